//! What can be wrong with a trace: [`TraceError`] ends the reading, [`Malformed`] is one line that was skipped.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a trace cannot be read, or not further. Whatever was delivered before stays valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be opened.
    #[error("cannot open trace {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Reading failed: an error of the device, or damaged compressed data.
    #[error("cannot read trace {name} beyond line {line}: {source}")]
    Read {
        /// The name of the trace.
        name: String,
        /// How many whole lines were read before.
        line: u64,
        /// What the operating system or the decompressor said.
        source: io::Error,
    },
    /// The compressed data ends too early.
    #[error(
        "trace {name} is cut off: its {compression} data ends in the middle, after line {line}; copy the whole file again"
    )]
    Truncated {
        /// The name of the trace.
        name: String,
        /// How it is compressed.
        compression: crate::Compression,
        /// How many whole lines were read before.
        line: u64,
    },
    /// A trace of memvirt's own cannot be read, or not further.
    #[error(transparent)]
    Mvt(#[from] memvirt_mvt::MvtError),
    /// A directory or an archive holds no recording.
    #[error(
        "{name} is a {kind} without a recording: none of the {files} files in it is a Valgrind lackey log, strace or perf \
         text, or a ChampSim trace{}", cut.as_ref().map(|cut| format!(" (it breaks off: {cut})")).unwrap_or_default()
    )]
    NoRecording {
        /// The name of the trace.
        name: String,
        /// `directory` or `tar archive`.
        kind: &'static str,
        /// How many files are in it.
        files: usize,
        /// Why it ends early, where it does.
        cut: Option<String>,
    },
    /// A part is asked for that lies beyond the end.
    #[error("trace {name} has {accesses} accesses, and the part wanted begins at {from}; begin before the end")]
    BeyondEnd {
        /// The name of the trace.
        name: String,
        /// Its accesses.
        accesses: u64,
        /// The first one wanted.
        from: u64,
    },
    /// A directory or an archive lacks the texts of strace and perf of one program.
    #[error(
        "{name} cannot be joined: {found}; it needs the text of `strace -f -e trace=memory,process PROGRAM` and that of \
         `perf script` after `perf record -e page-faults:u -c 1 -d PROGRAM`"
    )]
    NotAPair {
        /// The name of the bundle.
        name: String,
        /// What was found.
        found: String,
    },
    /// Lines are asked for, and there are pages only.
    #[error(
        "trace {name} keeps the pages of addresses only (density `pages`), and their lines are needed here; convert the \
         recording itself with `--density lines`"
    )]
    TooCoarse {
        /// The name of the trace.
        name: String,
    },
    /// The input is something else than its name or first lines promise.
    #[error("{name} is no {format} text: {found}; make one with `{made_by}`")]
    NotARecording {
        /// The name of the trace.
        name: String,
        /// The format that it was read as.
        format: &'static str,
        /// The command that makes such a file.
        made_by: &'static str,
        /// What was found.
        found: String,
    },
    /// The input is something else than a lackey log.
    #[error(
        "{name} is not a Valgrind lackey log: {found}; it is no other recording that is read either (.mvt, `strace -f` or `perf script` \
         text, ChampSim's `.champsimtrace`); make one with `memvirt trace record -- PROGRAM`, or with \
         `valgrind --tool=lackey --trace-mem=yes --trace-syscalls=yes --log-file=NEW.lackey PROGRAM`"
    )]
    NotALog {
        /// The name of the trace.
        name: String,
        /// What was found in place of a log.
        found: String,
    },
}

impl TraceError {
    /// Whether a trace of memvirt's own is damaged: what is intact of it was delivered.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Mvt(memvirt_mvt::MvtError::Damaged { .. }))
    }
}

/// A line that could not be understood and was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Malformed {
    /// The name of the trace, as given when it was opened.
    pub file: String,
    /// The number of the line, counted from 1.
    pub line: u64,
    /// What would have been right.
    pub expected: String,
    /// The beginning of what stands there instead, with unprintable bytes escaped.
    pub found: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: line {}: expected {}, found `{}`", self.file, self.line, self.expected, self.found)
    }
}

/// The beginning of `bytes` for a message: at most 60 bytes, unprintable ones escaped.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 60;
    let shown = bytes.get(..SHOWN).unwrap_or(bytes);
    let dots = if bytes.len() > SHOWN { "..." } else { "" };
    format!("{}{dots}", shown.escape_ascii())
}
