//! The reader itself: from lines to batches.

use std::collections::VecDeque;
use std::io::Read;

use memvirt_addr::{Acc, AccessKind, Gva, PageSize};
use memvirt_ops::process::{Batch, Op, Source};

use super::access::{self, Access, Kind};
use super::buffer::{Lines, Peek};
use super::calls::Calls;
use super::line::{self, Line, Mismatch, Remark};
use super::split;
use super::tally::Tally;
use crate::calls::as_plain_call;
use crate::error::{TraceError, excerpt};
use crate::input::{Compression, Input, Progress};

/// So many lines or bytes may be anything before the first access or system call; then the input is refused.
const PATIENCE_LINES: u64 = 1000;
const PATIENCE_BYTES: u64 = 64 << 10;
const CAPACITY: usize = Batch::CAPACITY;

/// A streaming reader of a lackey log, plain or compressed with zstd, xz or gzip.
///
/// Batches hold at most [`Batch::CAPACITY`] accesses and depend on the bytes of the log only, not on how they arrive.
/// Malformed lines are counted and skipped ([`LackeyReader::tally`]).
pub struct LackeyReader<R: Read> {
    name: String,
    lines: Lines<Input<R>>,
    tally: Tally,
    calls: Calls,
    /// What follows the operation delivered last.
    queued: VecDeque<Op>,
    /// The thread that runs, once the log has named one.
    thread: Option<u32>,
    /// Malformed lines and bytes before the first access or call; `None` once that has come.
    doubt: Option<(u64, u64)>,
    memory_calls: MemoryCalls,
    started: bool,
    exited: bool,
    finished: bool,
}

/// What becomes of the recorded calls that change memory areas: mmap, munmap, mprotect, mremap, brk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryCalls {
    /// They are carried out.
    #[default]
    Apply,
    /// They are plain system calls: the process enters the kernel, and its areas stay what they are.
    Ignore,
}

/// What a line did to the batch.
enum Step {
    /// The batch can take more.
    More,
    /// The batch is complete; the line stays for the next one where it was not consumed.
    Full,
}

impl<R: Read> LackeyReader<R> {
    /// A reader of `input`, which messages call `name`.
    pub fn new(input: R, name: impl Into<String>) -> Self {
        Self::with_progress(input, name.into(), Progress::default())
    }

    pub(crate) fn with_progress(input: R, name: String, progress: Progress) -> Self {
        Self {
            name,
            lines: Lines::new(Input::new(input, progress)),
            tally: Tally::default(),
            calls: Calls::default(),
            queued: VecDeque::new(),
            thread: None,
            doubt: Some((0, 0)),
            memory_calls: MemoryCalls::default(),
            started: false,
            exited: false,
            finished: false,
        }
    }

    /// The same reader with another treatment of calls that change memory areas.
    #[must_use]
    pub fn with_memory_calls(self, memory_calls: MemoryCalls) -> Self {
        Self { memory_calls, ..self }
    }

    /// The same reader for a process whose earlier calls are known.
    pub(super) fn with_calls(self, calls: Calls) -> Self {
        Self { calls, ..self }
    }

    /// What is known from the calls, for the reader of the next log of the process.
    pub(super) fn into_calls(self) -> Calls {
        self.calls
    }

    /// Whether the log ends in a call of `execve` that did not fail.
    pub(super) fn ends_in_exec(&self) -> bool {
        !self.exited && self.calls.is_in_exec()
    }

    /// The name given when the trace was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What has been counted so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How far the input has been read, for a progress display.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.lines.input().progress()
    }

    /// How the input is compressed; known after the first batch.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.lines.input().compression()
    }

    /// Parses access lines as lackey writes them until something else comes or the batch is nearly full.
    fn fast_lines(&mut self, batch: &mut Batch) {
        let available = self.lines.available();
        let mut input = available;
        let mut counts = [0u64; 4];
        while batch.run.len() + 2 <= CAPACITY
            && let Ok((rest, access)) = access::fast(input)
            && let Some((first, second)) = in_one_page(access)
        {
            batch.run.push(first);
            batch.run.extend(second);
            counts[access.kind as usize] += 1;
            input = rest;
        }
        let used = available.len() - input.len();
        if used > 0 {
            let [fetches, loads, stores, modifies] = counts;
            self.tally.fetches += fetches;
            self.tally.loads += loads;
            self.tally.stores += stores;
            self.tally.modifies += modifies;
            self.tally.lines += fetches + loads + stores + modifies;
            self.tally.raw_bytes += used as u64;
            batch.instructions += fetches;
            self.doubt = None;
            self.lines.consume(used);
        }
    }

    /// Parses one line by the full grammar.
    fn any_line(&mut self, text: usize, whole: usize, batch: &mut Batch) -> Step {
        let available = &self.lines.available()[..text];
        let content = available.strip_suffix(b"\r").unwrap_or(available);
        let (rest, line) = match line::line(content) {
            Ok(parsed) => parsed,
            Err(Mismatch { at, expected }) => {
                self.tally.malformed(&self.name, expected, if at.is_empty() { content } else { at });
                self.count_doubt(whole as u64);
                self.end_line(whole);
                return Step::More;
            }
        };
        // What follows on the same line is read as a line of its own; spaces before the newline are nothing.
        let used = if rest.trim_ascii().is_empty() { whole } else { content.len() - rest.len() };
        if matches!(line, Line::Access(_))
            && let Some(wait) = self.calls.interrupted_wait(None)
        {
            return self.apply(None, [Some(wait), None], batch);
        }
        let (mut thread, mut lost, mut op) = (None, None, Ok(None));
        match line {
            Line::Access(access) => match self.tally_access(access, batch) {
                Ok(Step::Full) => return Step::Full,
                Ok(Step::More) => {}
                Err(expected) => op = Err(expected),
            },
            Line::Call(call) => {
                self.doubt = None;
                self.tally.pid(call.caller.pid);
                self.tally.syscall(call.name);
                thread = Some(call.caller.tid);
                lost = self.calls.interrupted_wait(Some(call.caller));
                op = self.calls.call(&call);
            }
            Line::Result { caller, outcome } => op = self.calls.result(caller, outcome),
            Line::Remark(remark) => {
                self.tally.remark(&remark);
                if let Remark::Schedule { thread: next } = remark {
                    thread = next;
                }
            }
            Line::Blank => self.tally.blank_lines += 1,
        }
        let op = op.unwrap_or_else(|expected| {
            self.tally.malformed(&self.name, expected, self.lines.available()[..text].trim_ascii_end());
            None
        });
        if used == whole {
            self.end_line(whole);
        } else {
            self.tally.raw_bytes += used as u64;
            self.lines.consume(used);
        }
        self.apply(thread, [lost, op], batch)
    }

    /// Adds an access to the batch; says what was expected where it is impossible.
    fn tally_access(&mut self, access: Access, batch: &mut Batch) -> Result<Step, &'static str> {
        if self.exited {
            return Err("nothing, as the process has exited");
        }
        let (pages, count) = split::shape(access).ok_or("a canonical address")?;
        if batch.run.len() + count > CAPACITY {
            return Ok(Step::Full);
        }
        split::append(access, pages, &mut batch.run);
        batch.instructions += u64::from(access.kind == Kind::Fetch);
        self.tally.access(access.kind);
        self.tally.page_crossings += u64::from(pages > 1);
        self.doubt = None;
        Ok(Step::More)
    }

    /// Ends the batch with what a line did: a hand-off where another thread than before did it, and then `ops`.
    fn apply(&mut self, thread: Option<u32>, ops: [Option<Op>; 2], batch: &mut Batch) -> Step {
        if self.exited {
            return Step::More;
        }
        let before = if thread.is_some() { std::mem::replace(&mut self.thread, thread) } else { None };
        let handoff = thread.filter(|thread| before.is_some_and(|before| before != *thread));
        self.tally.handoffs += u64::from(handoff.is_some());
        self.queued.extend(handoff.map(|thread| Op::Handoff { thread }));
        for op in ops.into_iter().flatten() {
            let op = if self.memory_calls == MemoryCalls::Ignore { as_plain_call(op) } else { op };
            self.tally.operation(&op);
            self.exited = matches!(op, Op::Exit);
            self.queued.push_back(op);
        }
        batch.then = self.queued.pop_front();
        if batch.then.is_some() { Step::Full } else { Step::More }
    }

    fn end_line(&mut self, whole: usize) {
        self.tally.lines += 1;
        self.tally.raw_bytes += whole as u64;
        self.lines.consume(whole);
    }

    fn long_line(&mut self) {
        let found = self.lines.available();
        self.tally.malformed(&self.name, "a line of at most 64 KiB", found);
        let dropped = self.lines.skip_line();
        self.tally.lines += 1;
        self.tally.raw_bytes += dropped;
        self.count_doubt(dropped);
    }

    fn count_doubt(&mut self, bytes: u64) {
        if let Some((lines, total)) = &mut self.doubt {
            *lines += 1;
            *total += bytes;
        }
    }

    /// Refuses what cannot be a log by its first bytes.
    fn start(&mut self) -> Result<(), TraceError> {
        const TAR_MAGIC: std::ops::Range<usize> = 257..262;
        self.started = true;
        self.lines.prefetch(512);
        let first = self.lines.available();
        if first.get(TAR_MAGIC) == Some(b"ustar") {
            return Err(self.refuse("it is a tar archive; unpack it and name one log in it".into()));
        }
        let text = &first[..first.len().min(512)];
        if text.contains(&0) {
            let found = format!("it begins with binary data, `{}`", excerpt(&text[..text.len().min(16)]));
            return Err(self.refuse(found));
        }
        Ok(())
    }

    fn refuse(&mut self, found: String) -> TraceError {
        self.finished = true;
        TraceError::NotALog { name: self.name.clone(), found }
    }

    fn refuse_doubted(&mut self) -> TraceError {
        let found = match &self.tally.first_malformed {
            Some(first) => {
                let (lines, line, text) = (self.tally.lines, first.line, &first.found);
                format!("none of its first {lines} lines is a memory access or a system call; line {line} is `{text}`")
            }
            None if self.tally.raw_bytes == 0 => "it is empty".into(),
            None => "it holds Valgrind's remarks only, no memory access and no system call".into(),
        };
        self.refuse(found)
    }

    /// The stream has ended: whether that is in order.
    fn end(&mut self) -> Result<(), TraceError> {
        self.finished = true;
        let (name, line, compression) = (self.name.clone(), self.tally.lines, self.compression());
        match self.lines.take_failure() {
            Some(source) if source.kind() == std::io::ErrorKind::UnexpectedEof && compression != Compression::Plain => {
                Err(TraceError::Truncated { name, compression, line })
            }
            Some(source) => Err(TraceError::Read { name, line, source }),
            None if self.doubt.is_some() => Err(self.refuse_doubted()),
            None => Ok(()),
        }
    }

    fn fill(&mut self, batch: &mut Batch) -> Result<(), TraceError> {
        if !self.started {
            self.start()?;
        }
        if let Some(op) = self.queued.pop_front() {
            batch.then = Some(op);
            return Ok(());
        }
        loop {
            if !self.exited && !self.calls.is_in_wait(None) {
                self.fast_lines(batch);
            }
            match self.lines.peek() {
                Peek::Line { text, whole } => match self.any_line(text, whole, batch) {
                    Step::More => {}
                    Step::Full => return Ok(()),
                },
                Peek::TooLong => self.long_line(),
                // What came before is delivered first; the verdict waits for the next call.
                Peek::End if !batch.is_empty() => return Ok(()),
                Peek::End => return self.end(),
            }
            if self.doubt.is_some_and(|(lines, bytes)| lines >= PATIENCE_LINES || bytes >= PATIENCE_BYTES) {
                return Err(self.refuse_doubted());
            }
        }
    }
}

/// The one or two accesses of an access line that stays within one page and the lower half of the canonical addresses.
#[inline]
fn in_one_page(access: Access) -> Option<(Acc, Option<Acc>)> {
    let offset = access.address & (PageSize::Size4K.bytes() - 1);
    if access.address >= 1 << 56 || offset + u64::from(access.bytes) > PageSize::Size4K.bytes() {
        return None;
    }
    let gva = Gva::new_truncate(access.address);
    let first = match access.kind {
        Kind::Fetch => AccessKind::Fetch,
        Kind::Load | Kind::Modify => AccessKind::Read,
        Kind::Store => AccessKind::Write,
    };
    let second = matches!(access.kind, Kind::Modify).then(|| Acc::user(gva, AccessKind::Write));
    Some((Acc::user(gva, first), second))
}

impl<R: Read> Source for LackeyReader<R> {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        batch.clear();
        if self.finished {
            return Ok(false);
        }
        batch.run.reserve(CAPACITY);
        self.fill(batch)?;
        Ok(!batch.is_empty())
    }
}
