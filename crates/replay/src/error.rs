//! What can be wrong with a recording.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a recording cannot be read, or not further. What was delivered before stays valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file cannot be opened.
    #[error("cannot open recording {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is a directory.
    #[error("{} is a directory; give the file of one recording", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// It is compressed with what recordings are not.
    #[error("{} is compressed with {found}; a recording is plain text or compressed with zstd", path.display())]
    Compression {
        /// The file.
        path: PathBuf,
        /// What its first bytes say.
        found: &'static str,
    },
    /// Reading failed: an error of the device, or damaged or truncated compressed data.
    #[error("cannot read recording {file} beyond line {line}: {source}")]
    Read {
        /// The name of the recording.
        file: String,
        /// How many whole lines were read before.
        line: u64,
        /// What the operating system or the decompressor said.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{file}: line {line}, {place}: expected {expected}, found `{found}`")]
    Malformed {
        /// The name of the recording.
        file: String,
        /// The number of the line, counted from 1.
        line: u64,
        /// Where in the line.
        place: Place,
        /// What would have been right.
        expected: String,
        /// The beginning of what stands there.
        found: String,
    },
    /// A section has fewer rows than it announces.
    #[error(
        "{file}: the section of line {line} announces {announced} rows and has {rows}: the recording is cut off or rows were \
         taken out; record or copy it again"
    )]
    Short {
        /// The name of the recording.
        file: String,
        /// The line of the section, counted from 1.
        line: u64,
        /// The rows announced.
        announced: u64,
        /// The rows that there are.
        rows: u64,
    },
    /// The recording holds no operation at all.
    #[error("{file}: holds no recorded operation; expected `## FUZZ seed=S n=N` and one line for each operation")]
    Empty {
        /// The name of the recording.
        file: String,
    },
}

/// A place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the field, counted from 1.
    pub column: usize,
    /// The name of the field; empty where the line as a whole is meant.
    pub name: &'static str,
    /// The number of the field's first character, counted from 1.
    pub character: usize,
}

impl Place {
    /// The line as a whole.
    pub(crate) const LINE: Self = Self { column: 1, name: "", character: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}", self.column)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " ({}, character {})", self.name, self.character) }
    }
}

/// The beginning of `text` for a message, unprintable characters escaped.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 60;
    let shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() { shown + "..." } else { shown }
}
