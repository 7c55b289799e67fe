//! Lines of a stream in bounded memory.
//!
//! The buffer never grows: it holds [`BUFFER_BYTES`], a line may have [`MAX_LINE_BYTES`]. Newlines are found with `memchr`,
//! and no byte is searched twice, however small the pieces are in which the input arrives.

use std::io::{self, Read};

use memchr::memchr;

/// The longest line that is parsed, in bytes without its newline. Longer ones are reported and skipped.
pub(crate) const MAX_LINE_BYTES: usize = 64 << 10;
const BUFFER_BYTES: usize = 256 << 10;

/// What stands at the front of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// A whole line of this many bytes, its newline not counted.
    Line {
        /// Bytes of text.
        text: usize,
        /// Bytes of text and newline (the last line of a stream may have none).
        whole: usize,
    },
    /// The beginning of a line longer than [`MAX_LINE_BYTES`].
    TooLong,
    /// Nothing: the stream has ended, or failed.
    End,
}

/// A stream and the part of it that is being looked at.
pub(crate) struct Lines<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// No newline stands between `start` and here.
    searched: usize,
    ended: bool,
    failure: Option<io::Error>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { input, buffer, start: 0, end: 0, searched: 0, ended: false, failure: None }
    }

    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// What has been read and not consumed.
    #[inline]
    pub(crate) fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        self.searched = self.searched.max(self.start);
        debug_assert!(self.start <= self.end, "only what is available can be consumed");
    }

    /// Why the stream ended before its time, once.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Reads on until `bytes` are available or the stream ends.
    pub(crate) fn prefetch(&mut self, bytes: usize) {
        while self.end - self.start < bytes && !self.ended {
            self.fill();
        }
    }

    /// Finds the next line. A line that the stream breaks off in, by an error, is not returned: it may be cut.
    pub(crate) fn peek(&mut self) -> Peek {
        loop {
            if let Some(at) = memchr(b'\n', &self.buffer[self.searched..self.end]) {
                self.searched += at;
                let text = self.searched - self.start;
                return if text > MAX_LINE_BYTES { Peek::TooLong } else { Peek::Line { text, whole: text + 1 } };
            }
            self.searched = self.end;
            let text = self.end - self.start;
            if text > MAX_LINE_BYTES {
                return Peek::TooLong;
            }
            if self.ended {
                return if text == 0 || self.failure.is_some() { Peek::End } else { Peek::Line { text, whole: text } };
            }
            self.fill();
        }
    }

    /// Drops everything up to and including the next newline; returns the bytes dropped.
    pub(crate) fn skip_line(&mut self) -> u64 {
        let mut dropped = 0;
        loop {
            let newline = memchr(b'\n', &self.buffer[self.searched..self.end]);
            let until = newline.map_or(self.end, |at| self.searched + at + 1);
            dropped += (until - self.start) as u64;
            self.consume(until - self.start);
            if newline.is_some() || self.ended {
                return dropped;
            }
            self.fill();
        }
    }

    fn fill(&mut self) {
        if self.start == self.end || self.buffer.len() - self.end < MAX_LINE_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.searched -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        match self.input.read(&mut self.buffer[self.end..]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.end += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                self.ended = true;
                self.failure = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_longer_than_the_bound_are_skipped_in_bounded_memory() {
        let long = MAX_LINE_BYTES + 1;
        for (length, newline) in [(long, true), (long, false), (5 * BUFFER_BYTES + 3, true)] {
            let mut text = vec![b'x'; length];
            if newline {
                text.extend(b"\nnext");
            }
            let mut lines = Lines::new(&text[..]);
            assert_eq!(lines.peek(), Peek::TooLong);
            assert_eq!(lines.skip_line(), length as u64 + u64::from(newline));
            assert_eq!(lines.peek(), if newline { Peek::Line { text: 4, whole: 4 } } else { Peek::End });
            assert_eq!(lines.buffer.len(), BUFFER_BYTES);
        }
    }

    #[test]
    fn the_longest_line_allowed_is_returned_whole() {
        let mut text = vec![b'x'; 3 * BUFFER_BYTES];
        for at in (MAX_LINE_BYTES..text.len()).step_by(MAX_LINE_BYTES + 1) {
            text[at] = b'\n';
        }
        let mut lines = Lines::new(&text[..]);
        let mut total = 0;
        while let Peek::Line { text, whole } = lines.peek() {
            assert!(text == MAX_LINE_BYTES || total + whole == 3 * BUFFER_BYTES);
            total += whole;
            lines.consume(whole);
        }
        assert_eq!(total, 3 * BUFFER_BYTES);
    }
}
