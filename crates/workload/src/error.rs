//! What can be wrong with a workload file, or with the name of one.

use std::io;
use std::path::PathBuf;

/// A workload that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// The file cannot be read.
    #[error("cannot read workload file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a workload file at all.
    #[error("{} is not a workload file: {reason}", path.display())]
    NotAWorkload {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The file is no TOML, or one of its fields is missing, unknown or out of bounds.
    #[error("{file}:{line}: {}{message}", if field.is_empty() { String::new() } else { format!("{field}: ") })]
    Invalid {
        /// The file, as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The path of the field (`generator.footprint`), empty where no field is concerned.
        field: String,
        /// What is wrong, and what is accepted.
        message: String,
    },
    /// No built-in workload has this name.
    #[error("no workload is called `{name}`; the known ones, nearest first: {}; a file is given by its path, with a `/` or ending in `.toml`", known.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names of all built-in workloads, the most similar first.
        known: Vec<&'static str>,
    },
    /// A workload's area cannot have this size.
    #[error("cannot give workload `{name}` {bytes} bytes: {reason}")]
    Footprint {
        /// The workload.
        name: String,
        /// The size in bytes.
        bytes: u64,
        /// What is wrong, and what is accepted.
        reason: String,
    },
    /// A field cannot be set to a value.
    #[error("cannot set `{path}` of workload `{name}`: {message}")]
    Set {
        /// The workload.
        name: String,
        /// The field, from the generator's table.
        path: String,
        /// What is wrong, and what is accepted.
        message: String,
    },
    /// A run cannot be made so much longer or shorter.
    #[error("cannot scale workload `{name}` by {factor}: {reason}")]
    Scale {
        /// The workload.
        name: String,
        /// The factor.
        factor: f64,
        /// What is wrong, and what is accepted.
        reason: String,
    },
}
