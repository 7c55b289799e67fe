//! What can be wrong with a file: [`MvtError`] ends the reading, [`Damage`] says where a file is broken.

use std::fmt;
use std::io;

/// Why a file cannot be read, or not further. Whatever was delivered before stays valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MvtError {
    /// The operating system refused.
    #[error("cannot {what} trace {name}: {source}")]
    Io {
        /// The name of the trace.
        name: String,
        /// `read` or `write`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It is no `.mvt` file.
    #[error("{name} is not an .mvt trace: {found}; `memvirt trace convert RECORDING NEW.mvt` makes one of a recording")]
    NotMvt {
        /// The name of the trace.
        name: String,
        /// What was found.
        found: String,
    },
    /// It is of a later version.
    #[error("{name} is an .mvt trace of version {found}; this memvirt reads versions up to {known}: update it")]
    Version {
        /// The name of the trace.
        name: String,
        /// The version found.
        found: u16,
        /// The newest that is understood.
        known: u16,
    },
    /// A part of it is damaged.
    #[error("trace {name} is damaged: {damage}; {}", damage.left())]
    Damaged {
        /// The name of the trace.
        name: String,
        /// Where and what.
        damage: Damage,
    },
    /// An access of the kernel, or more accesses than a batch may have: no stream of processes.
    #[error("cannot store this stream as an .mvt trace: {0}")]
    Unstorable(&'static str),
}

/// Where a file is broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The byte of the file at which the broken part begins.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

impl Damage {
    /// What of the file can be used.
    const fn left(&self) -> &'static str {
        if self.offset == 0 {
            "that is its header, so nothing of it can be read; convert the recording again"
        } else {
            "everything before is intact"
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.what)
    }
}
