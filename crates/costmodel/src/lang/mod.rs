//! The model language: files that name inputs with units, parameters with bounds and priors, and formulas.
//!
//! A file goes through `lexer` (nom; text to words), `parser` (words to statements, one pass, no backtracking), which
//! resolves names and has `check` work out every unit, and ends as a [`Model`]: it can be evaluated (`eval`) and rendered
//! (`text`, `latex`). The language itself is explained in `docs/models.md`.
//!
//! Whatever the bytes of a file, reading it ends in time proportional to its length, on a bounded stack, with a model or with one
//! error that names line and column.

pub mod ast;
mod blame;
mod builtin;
mod check;
#[cfg(feature = "serde")]
mod describe;
mod error;
mod eval;
mod latex;
mod lexer;
mod model;
mod parser;
mod text;
mod unit;
mod words;

pub use builtin::Builtin;
#[cfg(feature = "serde")]
pub use describe::{
    DescribedFormula, DescribedInput, DescribedParam, DescribedRequirement, DescribedUnit, Description,
};
pub use error::{EvalError, ModelError, Problem, few_digits};
pub use eval::{MAX_STEPS, MAX_TERMS};
pub use lexer::MAX_FILE_BYTES;
pub use model::{Input, Model, Origin, Param, Prior, Range, Requirement, Value, ValueKind};
pub use parser::MAX_DEPTH;
pub use unit::{Scaled, Unit, Units};
