#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod fit;
pub mod lang;

pub use lang::{EvalError, Model, ModelError};
