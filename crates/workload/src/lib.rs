#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod builtin;
mod error;
mod facts;
mod field;
mod generator;
mod guest;
mod measured;
mod parse;
mod program;
pub mod script;
mod set;
pub mod spec;
mod text;
pub mod units;
mod workload;

pub use builtin::Builtin;
pub use error::WorkloadError;
pub use facts::{Facts, Figure};
pub use generator::Generator;
pub use guest::{GuestSwitches, Invlpg, Like};
pub use measured::{Measured, Steady};
pub use spec::{Spec, SpecError};
pub use workload::Workload;
