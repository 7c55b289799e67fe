//! What may be wrong with a machine file.

use std::path::PathBuf;

/// A machine file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// It cannot be read.
    #[error("cannot read machine file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no text, or far too long for a machine file.
    #[error("{} is not a machine file: {reason}", path.display())]
    NotAMachine {
        /// The file.
        path: PathBuf,
        /// What is wrong with it as a whole.
        reason: String,
    },
    /// It is not what a machine file must be.
    #[error("machine file {file}: line {line}: {}{message}", if field.is_empty() { String::new() } else { format!("{field}: ") })]
    Field {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The field, as in `walk_caches.guest[0].ways`; empty where the text is no TOML, or a whole section is missing.
        field: String,
        /// What is wrong, and what is accepted.
        message: String,
    },
    /// The mode `cycles` needs caches.
    #[error("machine `{machine}` has no [caches], which the mode cycles needs; take another machine, or --mode counts")]
    NoCaches {
        /// The machine.
        machine: String,
    },
    /// There is no machine of this name.
    #[error("unknown machine `{name}`; known: {known}; or give the path of a machine file")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
}
