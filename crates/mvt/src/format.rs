//! The first bytes of a file: [`Header`].
//!
//! Everything is little-endian. See `docs/mvt.md` for the whole format.

use std::io::Read;

use crate::error::{Damage, MvtError};

/// The newest version of the format that this crate reads, and the one that it writes.
pub const VERSION: u16 = 1;

/// As PNG's signature: a byte that is no text, the name, and line ends that a transfer as text would change.
pub(crate) const MAGIC: [u8; 8] = *b"\x89MVT\r\n\x1a\n";
/// Magic, version, density, order, length of the notes, checksum.
const FIXED: usize = 8 + 2 + 1 + 1 + 4 + 4;
/// Notes are for people; no more of them than this is read.
const MAX_NOTES: usize = 64 << 10;

/// Whether a file that begins with these bytes is an `.mvt` trace, of any version.
#[must_use]
pub fn is_mvt(first: &[u8]) -> bool {
    first.starts_with(&MAGIC)
}

/// What is wrong with the first bytes of a file that seems to be an `.mvt` trace, or to have been one; `None` where nothing is,
/// and for any other file.
#[must_use]
pub fn broken_signature(first: &[u8]) -> Option<&'static str> {
    let first = first.get(..MAGIC.len()).unwrap_or(first);
    // What is left of the signature by transfers that take it for text: without the high bit, or with other line ends.
    let as_text = [&b"\tMVT"[..], b"\x89MVT\n\x1a", b"\x89MVT\r\r\n", b"\xc2\x89MVT", b"\xef\xbf\xbdMVT"];
    if first.len() < MAGIC.len() {
        return (first.len() >= 2 && MAGIC.starts_with(first)).then_some("it ends within its signature: it is cut off");
    }
    if as_text.iter().any(|text| first.starts_with(text)) {
        return Some("its signature shows that it was copied as text; copy it again as binary data");
    }
    let same = first.iter().zip(&MAGIC).filter(|(a, b)| a == b).count();
    (same < MAGIC.len() && same + 2 >= MAGIC.len()).then_some("its signature is damaged")
}

/// What is kept of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Density {
    /// Its 4 KiB page. Enough for everything that is counted without caches for data: TLBs and page tables know pages only.
    #[default]
    Pages,
    /// Its 64-byte line.
    Lines,
}

impl Density {
    /// The name in options and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Lines => "lines",
        }
    }

    /// How many low bits of an address are dropped.
    pub(crate) const fn shift(self) -> u32 {
        match self {
            Self::Pages => 12,
            Self::Lines => 6,
        }
    }
}

/// Whose order the streams of several processes are read in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// One stream, with its own switches from process to process.
    #[default]
    Recorded,
    /// A stream for each process; whoever reads them interleaves them between forks and waits.
    Free,
}

/// What a file says of itself before its first block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What is kept of addresses.
    pub density: Density,
    /// How processes are ordered.
    pub order: Order,
    /// Names and values for people and tools: where the trace comes from. Neither may hold a newline, names no `=`.
    pub notes: Vec<(String, String)>,
}

impl Header {
    /// The value of a note.
    #[must_use]
    pub fn note(&self, name: &str) -> Option<&str> {
        self.notes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let clean = |text: &str| text.replace(['\n', '\r'], " ");
        let mut notes: String = self
            .notes
            .iter()
            .map(|(name, value)| format!("{}={}\n", clean(name).replace('=', "-"), clean(value)))
            .collect();
        while notes.len() > MAX_NOTES {
            notes.pop();
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.push(u8::from(self.density == Density::Lines));
        bytes.push(u8::from(self.order == Order::Free));
        bytes.extend(u32::try_from(notes.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(notes.as_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a header; returns it with its length in bytes.
    pub(crate) fn read(input: &mut impl Read, name: &str) -> Result<(Self, u64), MvtError> {
        let not_mvt = |found: &str| MvtError::NotMvt { name: name.to_owned(), found: found.to_owned() };
        let mut fixed = [0; FIXED - 4];
        let mut got = 0;
        while got < fixed.len() {
            match input.read(&mut fixed[got..]) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(MvtError::Io { name: name.to_owned(), what: "read", source }),
            }
        }
        if got < MAGIC.len() || fixed[..8] != MAGIC {
            let known = broken_signature(&fixed[..got]);
            return Err(not_mvt(known.unwrap_or(if got == 0 { "it is empty" } else { "its first bytes are others" })));
        }
        let damaged = |what: &str| MvtError::Damaged {
            name: name.to_owned(),
            damage: Damage { offset: 0, what: what.to_owned() },
        };
        if got < fixed.len() {
            return Err(damaged("it ends within its header"));
        }
        let version = u16::from_le_bytes([fixed[8], fixed[9]]);
        if version == 0 || version > VERSION {
            return Err(MvtError::Version { name: name.to_owned(), found: version, known: VERSION });
        }
        let length = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
        if length > MAX_NOTES {
            return Err(damaged("notes longer than any"));
        }
        let mut rest = vec![0; length + 4];
        input.read_exact(&mut rest).map_err(|_| damaged("it ends within its header"))?;
        let (notes, sum) = rest.split_at(length);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&fixed);
        hasher.update(notes);
        if sum != hasher.finalize().to_le_bytes() {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let density = [Density::Pages, Density::Lines].get(usize::from(fixed[10])).copied();
        let order = [Order::Recorded, Order::Free].get(usize::from(fixed[11])).copied();
        let (Some(density), Some(order)) = (density, order) else {
            return Err(damaged("a density or an order that there is not"));
        };
        let notes = String::from_utf8_lossy(notes);
        let notes = notes.lines().filter_map(|line| line.split_once('='));
        let notes = notes.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok((Self { density, order, notes }, (FIXED + length) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_every_changed_byte_is_noticed() {
        let notes = vec![("program".to_owned(), "sort = in.txt".to_owned()), ("raw".to_owned(), "5".to_owned())];
        let header = Header { density: Density::Lines, order: Order::Free, notes };
        let bytes = header.to_bytes();
        let (read, length) = Header::read(&mut &bytes[..], "x").unwrap();
        assert_eq!((&read, length), (&header, bytes.len() as u64));
        assert_eq!(read.note("program"), Some("sort = in.txt"));
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            assert!(Header::read(&mut &wrong[..], "x").is_err(), "byte {at}");
            assert!(Header::read(&mut &bytes[..at], "x").is_err(), "cut to {at}");
        }
    }

    #[test]
    fn a_broken_signature_is_told_from_another_file() {
        assert_eq!(broken_signature(&MAGIC), None);
        for at in 0..8 {
            let mut wrong = MAGIC;
            wrong[at] ^= 0x10;
            assert!(broken_signature(&wrong).is_some(), "byte {at}");
            assert_eq!(broken_signature(&MAGIC[..at]).is_some(), at >= 2, "cut to {at}");
        }
        assert!(broken_signature(b"\x89MVT\n\x1a\n\x01\0").unwrap().contains("as text"));
        for other in [&b""[..], b"\x89PNG\r\n\x1a\n", b"I  04001090,3", b"==42== Lackey", b"MVT is a name"] {
            assert_eq!(broken_signature(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_later_version_says_so() {
        let mut bytes = Header::default().to_bytes();
        bytes[8] = 2;
        let error = Header::read(&mut &bytes[..], "later.mvt").unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("up to 1"), "{error}");
    }
}
