#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod calibrate;
pub mod claims;
pub mod comparison;
mod error;
pub mod exits;
pub mod experiment;
pub mod faults;
pub mod fits;
pub mod footprint;
pub mod input;
pub mod nested_virt;
pub mod phase;
pub mod plan;
pub mod published;
mod rates;
pub mod scale;
mod several;
pub mod summary;
pub mod switches;
mod table;
pub mod text;
mod threads;
pub mod walk;
pub mod walk_latency;
pub mod words;

pub use comparison::{Benefit, Comparison};
pub use error::LabError;
pub use experiment::{Done, Experiment, Progress};
pub use input::{Described, Input, TraceSummary};
pub use rates::Rates;
pub use several::Vcpus;
pub use summary::{Group, Row, summary};
pub use switches::{MEMORY_BYTES, Overrides};
pub use walk_latency::WalkLatency;
pub mod report;
pub use report::write_report;
