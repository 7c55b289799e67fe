#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod caches;
mod machine;
pub mod op;
mod scenario;

pub use machine::Machine;
pub use scenario::{Recorded, Scenario};
