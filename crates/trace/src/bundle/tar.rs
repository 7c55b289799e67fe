//! The headers of a tar archive.
//!
//! Source: POSIX.1-2017, `pax` utility, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Basic Tar
//! Format", for long names (`L`) and sizes in base 256.

use std::io::{self, Read};

pub(crate) const BLOCK: usize = 512;
/// Names longer than this are not believed.
const MAX_NAME: u64 = 64 << 10;
/// Members of an archive at most.
const MAX_MEMBERS: usize = 1 << 16;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Where its contents begin in the decompressed archive.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// Whether the first block of a file is a header.
pub(crate) fn is_header(block: &[u8]) -> bool {
    block.len() >= BLOCK && block.get(257..262) == Some(b"ustar") && sums_up(&block[..BLOCK])
}

/// The sum of all bytes, those of the checksum itself taken as spaces.
fn sums_up(block: &[u8]) -> bool {
    let sum: u64 =
        block.iter().enumerate().map(|(at, b)| u64::from(if (148..156).contains(&at) { b' ' } else { *b })).sum();
    number(&block[148..156]) == Some(sum)
}

/// A number in octal digits, or in base 256 where its first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let Some(first) = field.first().filter(|first| **first & 0x80 != 0) {
        let start = u64::from(first & 0x7f);
        return field[1..].iter().try_fold(start, |sum, b| sum.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let text = field.trim_ascii_start();
    let mut digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.try_fold(0u64, |sum, b| sum.checked_mul(8)?.checked_add(u64::from(b.wrapping_sub(b'0')).min(7)))
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The `path` of a pax header: records of the form `LENGTH path=NAME\n`.
fn pax_path(records: &[u8]) -> Option<String> {
    let records = String::from_utf8_lossy(records);
    records.lines().find_map(|line| line.split_once(' ')?.1.strip_prefix("path=").map(str::to_owned))
}

struct Position<R> {
    input: R,
    at: u64,
}

impl<R: Read> Position<R> {
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut got = 0;
        while got < BLOCK {
            match self.input.read(&mut block[got..]) {
                Ok(0) => return if got == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) },
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    fn take(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        match self.take_some(bytes) {
            (taken, None) => Ok(taken),
            (_, Some(error)) => Err(error),
        }
    }

    /// As many bytes as there are, and why there are not more.
    fn take_some(&mut self, bytes: u64) -> (Vec<u8>, Option<io::Error>) {
        let mut taken = Vec::new();
        let ended = self.input.by_ref().take(bytes).read_to_end(&mut taken);
        self.at += taken.len() as u64;
        let is_short = (taken.len() as u64) < bytes;
        let missing = ended.err().or_else(|| is_short.then(|| io::ErrorKind::UnexpectedEof.into()));
        (taken, missing)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())?;
        self.at += skipped;
        if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Finds the regular files of an archive; `look` sees the first bytes of each, up to `head` of them. The second value tells
/// why the archive ends early, where it does: what stands before is there all the same.
pub(crate) fn scan(
    input: impl Read,
    head: u64,
    look: &mut dyn FnMut(&Entry, &[u8]),
) -> (Vec<Entry>, Option<io::Error>) {
    let mut entries = Vec::new();
    let mut position = Position { input, at: 0 };
    let ended = scan_all(&mut position, head, look, &mut entries);
    (entries, ended.err())
}

fn scan_all(
    position: &mut Position<impl Read>,
    head: u64,
    look: &mut dyn FnMut(&Entry, &[u8]),
    entries: &mut Vec<Entry>,
) -> io::Result<()> {
    let mut long_name = None;
    while let Some(block) = position.block()? {
        if block.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if !is_header(&block) {
            return Err(bad("a header of the tar archive is damaged"));
        }
        let bytes = number(&block[124..136]).ok_or_else(|| bad("a member of the tar archive has no size"))?;
        let padding = bytes.wrapping_neg() % BLOCK as u64;
        match block[156] {
            kind @ (b'L' | b'x') if bytes <= MAX_NAME => {
                let contents = position.take(bytes)?;
                long_name = if kind == b'L' { Some(text(&contents)) } else { pax_path(&contents).or(long_name) };
            }
            b'0' | 0 => {
                let prefix = text(&block[345..500]);
                let short = text(&block[..100]);
                let short = if prefix.is_empty() { short } else { format!("{prefix}/{short}") };
                let name = long_name.take().unwrap_or(short);
                let entry = Entry { name, offset: position.at, bytes };
                if entries.len() == MAX_MEMBERS {
                    return Err(bad("the tar archive has more than 65536 members"));
                }
                // What is there of a member that breaks off may tell what it was.
                let (first, cut) = position.take_some(bytes.min(head));
                look(&entry, &first);
                entries.push(entry);
                if let Some(error) = cut {
                    return Err(error);
                }
                position.skip(bytes - first.len() as u64)?;
            }
            _ => {
                long_name = None;
                position.skip(bytes)?;
            }
        }
        position.skip(padding)?;
    }
    Ok(())
}
