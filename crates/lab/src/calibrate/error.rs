//! Why a model cannot be fitted to a table, and what helps.

use std::path::PathBuf;

use memvirt_costmodel::EvalError;
use memvirt_costmodel::fit::FitError;

/// A model that cannot be fitted to a table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The table cannot be read.
    #[error("cannot read the table {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: memvirt_textfile::TextError,
    },
    /// A line is no CSV, or not as long as the first.
    #[error("{}:{line}: {problem}", file.display())]
    Csv {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// Nothing in it.
    #[error("{}: the table is empty: its first line must name the columns, and a line for each run follow", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// A column is missing.
    #[error("{}:1: there is no column `{column}` ({role}); {known}", file.display())]
    Column {
        /// The file.
        file: PathBuf,
        /// The column.
        column: String,
        /// What it is wanted for, and how another one is named.
        role: String,
        /// Columns that there are.
        known: String,
    },
    /// Two columns of one name.
    #[error("{}:1: two columns are called `{column}`: rename one", file.display())]
    Twice {
        /// The file.
        file: PathBuf,
        /// The name.
        column: String,
    },
    /// A cell holds no number.
    #[error(
        "{}:{line}: column `{column}` holds `{cell}`, not a finite number: correct it, or leave such rows out with --where",
        file.display()
    )]
    Cell {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// What it holds.
        cell: String,
    },
    /// The model cannot be evaluated for a row.
    #[error("{}:{line}: {source}; correct the row, or leave it out with --where", file.display())]
    Row {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// Why.
        #[source]
        source: EvalError,
    },
    /// Fewer rows than a fit needs.
    #[error(
        "{}: {rows} row(s) in {parts} part(s) cannot determine {} parameter(s) ({}): at least {} rows in 2 parts are needed, and as many rows \
         as parameters where a part is left out; add runs, widen --where, group more finely, or write `prior fixed` behind parameters that are known",
        file.display(), params.len(), params.join(", "), params.len() + 1
    )]
    TooFew {
        /// The file.
        file: PathBuf,
        /// Rows that count.
        rows: usize,
        /// Groups of them that are predicted together.
        parts: usize,
        /// The parameters to be fitted.
        params: Vec<String>,
    },
    /// It is not clear which output is meant.
    #[error("{model} has no output `{asked}`; name one of its outputs with --output: {}", known.join(", "))]
    Output {
        /// The model.
        model: String,
        /// What was asked for.
        asked: String,
        /// Its outputs.
        known: Vec<String>,
    },
    /// A name that is no input.
    #[error("--column {name}: the model has no input of this name; it has {}", known.join(", "))]
    Input {
        /// The name.
        name: String,
        /// The inputs.
        known: Vec<String>,
    },
    /// One input from two columns.
    #[error("--column names two columns for the input `{name}`, `{first}` and `{second}`: leave one out")]
    InputTwice {
        /// The input.
        name: String,
        /// A column.
        first: String,
        /// The other one.
        second: String,
    },
    /// No fit was found.
    #[error("{}: {source}", file.display())]
    Fit {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: FitError,
    },
}
