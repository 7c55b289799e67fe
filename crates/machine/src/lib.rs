#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod price;
pub mod regime;
pub mod result;
pub mod run;
pub mod spec;

pub use memvirt_guest::{Guest, GuestConfig, GuestStats, Halted, Undeclared};
pub use price::{Cycles, Part, price};
pub use regime::{HostConfig, RegimeKind};
pub use result::{Outcome, RunResult};
pub use run::{Finished, Setup, run};
pub use spec::{MachineError, MachineSpec};
