//! What can be wrong with data or with a fit.

use crate::lang::EvalError;

/// A fit that cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// Too few observations for so many unknowns.
    #[error("{observations} observation(s) cannot determine {unknowns} unknown(s): add runs, or fix parameters")]
    TooFew {
        /// How many there are.
        observations: usize,
        /// How many unknowns there are.
        unknowns: usize,
    },
    /// Rows of different lengths, or as many rows as observations are not there.
    #[error("row {row} has {found} value(s), expected {expected}")]
    Shape {
        /// The row, from 0.
        row: usize,
        /// How many values it has.
        found: usize,
        /// How many it must have.
        expected: usize,
    },
    /// A value that is no number.
    #[error("row {row} holds {value}: data must be finite")]
    NotFinite {
        /// The row, from 0.
        row: usize,
        /// The value.
        value: f64,
    },
    /// Columns that depend on each other.
    #[error(
        "the columns determine only {rank} of {unknowns} coefficients: a column is constant, or a combination of others"
    )]
    Rank {
        /// How many coefficients are determined.
        rank: usize,
        /// How many were asked for.
        unknowns: usize,
    },
    /// No minimum was found.
    #[error("the fit did not converge: {0}")]
    Diverged(String),
    /// The two runs of a line are the same point.
    #[error("the two runs that the {model} line goes through have the same {what}")]
    Degenerate {
        /// The model.
        model: &'static str,
        /// What must differ, or must not be zero.
        what: &'static str,
    },
    /// No such output.
    #[error("{model} has no output `{output}`")]
    Output {
        /// The model.
        model: String,
        /// The name.
        output: String,
    },
    /// The model cannot be evaluated.
    #[error(transparent)]
    Evaluate(#[from] EvalError),
}
