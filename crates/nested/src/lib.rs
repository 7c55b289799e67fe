#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod fault;
mod foresee;
pub mod pml;
pub mod reference;
pub mod regime;
pub mod stage;
pub mod walk;

pub use fault::{Misconfig, Violation};
pub use pml::ModificationLog;
pub use reference::{CacheHit, Counts, Dimension, Probe, Reference, Update};
pub use regime::{DirtyLogging, Nested, NestedStats};
pub use stage::{AdBits, SecondStage, Want};
pub use walk::{End, Mapped, Walker};
