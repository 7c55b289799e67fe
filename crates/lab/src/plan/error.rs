//! What can be wrong with a plan, or with carrying it out.

use std::io;
use std::path::PathBuf;

use crate::error::LabError;

/// A plan that cannot be read or carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read plan file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no plan at all.
    #[error("{} is not a plan file: {reason}", path.display())]
    NotAPlan {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The file is no TOML, or something in it is missing, unknown or out of bounds.
    #[error("{file}:{line}: {}{message}", if field.is_empty() { String::new() } else { format!("{field}: ") })]
    Field {
        /// The file, as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The field, as in `grid[0].regime`; empty where none is concerned.
        field: String,
        /// What is wrong, and what is accepted.
        message: String,
    },
    /// No built-in plan has this name.
    #[error("no plan is called `{name}`; known: {known}; a file is given by its path, with a `/` or ending in `.toml`")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The short form of a plan that has none.
    #[error("plan `{name}` has no quick form; a grid of its file gets one by a table `[grid.quick]` with shorter axes")]
    NoQuick {
        /// The plan.
        name: String,
    },
    /// A run cannot be made.
    #[error("{command}: {source}")]
    Run {
        /// The run's command.
        command: String,
        /// Why.
        #[source]
        source: LabError,
    },
    /// A result has a counter for which there is no column.
    #[error("{command}: the result has `{column}`, which the table has no column for; please report this")]
    Column {
        /// The run's command.
        command: String,
        /// The counter.
        column: String,
    },
    /// The table cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    Table {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Where the table would go there is a file that is none.
    #[error("{} is no table of a plan; remove it, or name another folder with --out", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The threads cannot be started.
    #[error(transparent)]
    Threads(LabError),
}
