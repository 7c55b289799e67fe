#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod audit;
mod config;
pub mod ept_on_ept;
mod format;
mod hypervisor;
mod l0;
mod l1;
mod merge;
pub mod scenario;
pub mod shadow_on_ept;
mod stack;
mod walk;
pub mod world;

pub use audit::Audit;
pub use config::{Arrangement, Config, Flushes, Linking, OnStore};
pub use ept_on_ept::EptOnEpt;
pub use format::{Depth, Ept12, Guest, Merged02, Nested01, Shadow12};
pub use hypervisor::Nesting;
pub use l0::L0;
pub use l1::L1;
pub use shadow_on_ept::ShadowOnEpt;
pub use world::{Cause, Counts, Step, StepKind, Who, World};
