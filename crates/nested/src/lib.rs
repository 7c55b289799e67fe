#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod regime;
pub mod stage;
pub mod walk;

pub use regime::{Nested, NestedStats};
pub use stage::{AdBits, SecondStage, Want};
pub use walk::{Counts, Dimension, End, Mapped, Probe, Reference, Violation, Walker};
