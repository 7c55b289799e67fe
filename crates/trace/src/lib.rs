#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod info;
mod input;
pub mod lackey;

pub use error::{Malformed, TraceError};
pub use info::{AddressRange, Footprint, TraceInfo};
pub use input::{Compression, Progress};
pub use lackey::{LackeyReader, MemoryCalls, Tally, open};
