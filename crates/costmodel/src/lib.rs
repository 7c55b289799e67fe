#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod closed;
pub mod fit;
pub mod footprint;
pub mod lang;
pub mod literature;
pub mod mva;
pub mod sets;
pub mod stack;
pub mod usl;
pub mod walk;

pub use lang::{EvalError, Model, ModelError};
