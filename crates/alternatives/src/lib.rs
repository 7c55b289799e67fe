#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod agile;
pub mod direct;
pub mod dirty;
pub mod escape;
pub mod flat;
pub mod flat_table;
mod hypervisor;
pub mod leaf_array;
pub mod meter;
pub mod radix;
pub mod record;
pub mod register;
pub mod segment;
pub mod stage;
pub mod walk;

pub use agile::{Agile, AgileStats, Policy, Switching};
pub use direct::{DirectSegment, GuestSegment, Mode};
pub use dirty::DirtyLog;
pub use escape::EscapeFilter;
pub use flat::Flat;
pub use flat_table::FlatTable;
pub use leaf_array::LeafArray;
pub use meter::{DataReference, Meter};
pub use radix::Radix;
pub use record::{Design, NoWalk, Recorded, WalkOf, cached_walk, cold_walk};
pub use register::RegisterWalk;
pub use segment::Segment;
pub use stage::{HostPage, HostTables, Stage, Violation};
pub use walk::{End, Start, TableAt};
