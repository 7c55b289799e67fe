//! Recordings that are text with an event a line, in the order in which they happened: `strace -f` and `perf script`.
//!
//! [`TextReader`] reads lines in bounded memory; a grammar ([`Grammar`]) says what each does; [`timeline`] makes one stream
//! of it, with switches from process to process as the recording has them.

pub(crate) mod numbers;
pub(crate) mod perf;
pub(crate) mod schedule;
pub(crate) mod strace;
mod timeline;

use std::io::Read;

use memvirt_ops::process::{Batch, Source};

pub(crate) use timeline::Timeline;

use crate::error::TraceError;
use crate::input::{Compression, Input, Progress};
use crate::lackey::Tally;
use crate::lackey::buffer::{Lines, Peek};

/// What the lines of a format do.
pub(crate) trait Grammar {
    /// The name of the format in messages.
    const NAME: &'static str;
    /// The command that makes such a file.
    const MADE_BY: &'static str;

    /// Reads one line, given without its newline.
    ///
    /// # Errors
    ///
    /// What was expected, where the line cannot be understood.
    fn line(&mut self, line: &[u8], timeline: &mut Timeline) -> Result<(), &'static str>;

    /// There are no more lines.
    fn end(&mut self, timeline: &mut Timeline);
}

/// So many lines may be anything before the first event; then the input is refused.
const PATIENCE: u64 = 1000;

/// A streaming reader of one of the formats.
pub(crate) struct TextReader<R: Read, G> {
    name: String,
    lines: Lines<Input<R>>,
    grammar: G,
    timeline: Timeline,
    finished: bool,
}

impl<R: Read, G: Grammar> TextReader<R, G> {
    pub(crate) fn new(input: R, name: String, progress: Progress, grammar: G) -> Self {
        let lines = Lines::new(Input::new(input, progress));
        Self { name, lines, grammar, timeline: Timeline::default(), finished: false }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.timeline.tally()
    }

    pub(crate) fn grammar(&self) -> &G {
        &self.grammar
    }

    pub(crate) fn progress(&self) -> Progress {
        self.lines.input().progress()
    }

    pub(crate) fn compression(&self) -> Compression {
        self.lines.input().compression()
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    pub(crate) fn orphans(&self) -> u64 {
        self.timeline.orphans()
    }

    fn read_line(&mut self, text: usize, whole: usize) {
        let content = &self.lines.available()[..text];
        let content = content.strip_suffix(b"\r").unwrap_or(content).trim_ascii_end();
        if content.is_empty() {
            self.timeline.tally.blank_lines += 1;
        } else if let Err(expected) = self.grammar.line(content, &mut self.timeline) {
            self.timeline.tally.malformed(&self.name, expected, content);
        }
        self.timeline.tally.lines += 1;
        self.timeline.tally.raw_bytes += whole as u64;
        self.lines.consume(whole);
    }

    fn refuse(&self) -> TraceError {
        let found = match &self.timeline.tally.first_malformed {
            Some(first) => format!("line {} is `{}`", first.line, first.found),
            None => "it holds no event".into(),
        };
        TraceError::NotARecording { name: self.name.clone(), format: G::NAME, made_by: G::MADE_BY, found }
    }

    /// The stream has ended: whether that is in order.
    fn end(&mut self) -> Result<(), TraceError> {
        self.finished = true;
        let (name, line, compression) = (self.name.clone(), self.timeline.tally.lines, self.compression());
        match self.lines.take_failure() {
            Some(source) if source.kind() == std::io::ErrorKind::UnexpectedEof && compression != Compression::Plain => {
                Err(TraceError::Truncated { name, compression, line })
            }
            Some(source) => Err(TraceError::Read { name, line, source }),
            None if self.timeline.is_idle() => Err(self.refuse()),
            None => Ok(()),
        }
    }
}

impl<R: Read, G: Grammar> Source for TextReader<R, G> {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        batch.clear();
        loop {
            if self.timeline.deliver(batch) {
                return Ok(true);
            }
            if self.finished {
                return Ok(self.timeline.deliver_rest(batch));
            }
            match self.lines.peek() {
                Peek::Line { text, whole } => self.read_line(text, whole),
                Peek::TooLong => {
                    let found = self.lines.available().get(..64).unwrap_or_default().to_vec();
                    self.timeline.tally.malformed(&self.name, "a line of at most 64 KiB", &found);
                    self.timeline.tally.raw_bytes += self.lines.skip_line();
                    self.timeline.tally.lines += 1;
                }
                Peek::End => {
                    self.grammar.end(&mut self.timeline);
                    if self.timeline.deliver(batch) || self.timeline.deliver_rest(batch) {
                        return Ok(true);
                    }
                    self.end()?;
                }
            }
            if self.timeline.is_idle() && self.timeline.tally.lines >= PATIENCE {
                self.finished = true;
                return Err(self.refuse());
            }
        }
    }
}
