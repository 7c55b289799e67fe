#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod counters;
mod error;
pub mod golden;
mod guest;
pub mod micro;
mod op;
pub mod platforms;
pub mod recording;
mod replay;
mod report;

pub use counters::{Column, Counts, KvmCounters};
pub use error::{Place, RecordingError};
pub use golden::Sequence;
pub use guest::{Guest, HostOutOfMemory};
pub use op::{GuestOp, OpKind};
pub use platforms::{Under, replay};
pub use recording::{Item, Recording, Row, Section, Seen};
pub use replay::{Tolerance, Watch, check, compare};
pub use report::{Mismatch, Mode, Report, Total, WatchedViolation};
