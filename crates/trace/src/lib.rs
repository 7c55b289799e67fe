#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod calls;
mod error;
mod info;
mod input;
mod interleave;
pub mod lackey;

pub use error::{Malformed, TraceError};
pub use info::{AddressRange, Footprint, TraceInfo};
pub use input::{Compression, Progress};
pub use interleave::{Family, Interleaver, Repairs, Turns};
pub use lackey::{LackeyReader, MemoryCalls, Tally, open};
