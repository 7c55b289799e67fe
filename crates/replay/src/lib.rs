#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod counters;
mod error;
pub mod golden;
mod guest;
pub mod micro;
mod op;
pub mod recording;
mod replay;
mod report;

pub use counters::{Column, Counts, KvmCounters};
pub use error::{Place, RecordingError};
pub use golden::Sequence;
pub use guest::{Guest, HostOutOfMemory};
pub use op::{GuestOp, OpKind};
pub use recording::{Item, Recording, Row, Section, Seen};
pub use replay::{Tolerance, check, compare};
pub use report::{Mismatch, Mode, Report, Total, WatchedViolation};
