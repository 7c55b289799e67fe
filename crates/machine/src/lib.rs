#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod measure;
pub mod price;
pub mod regime;
pub mod result;
pub mod run;
pub mod spec;
pub mod watch;

pub use measure::{Measure, Mode};
pub use memvirt_guest::{Guest, GuestConfig, GuestStats, Halted, Invlpg, TableFrames, Undeclared};
pub use price::{
    Cycles, ExitPrice, GuestCycles, Part, ServedReferences, exit_price, guest_cycles, price, translation_cycles,
    work_cycles,
};
pub use regime::{Bench, FrameOrder, HostConfig, RegimeKind, Shape};
pub use result::{NestedVirtCounts, Outcome, RunResult};
pub use run::{Finished, Setup, assemble, run, run_watched};
pub use spec::{MachineError, MachineSpec};
pub use watch::Watch;
