#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bundle;
mod calls;
mod champsim;
mod convert;
mod cut;
mod error;
mod format;
mod info;
mod input;
mod interleave;
mod join;
pub mod lackey;
mod mvt;
mod recording;
mod text;

pub use convert::{Converted, convert, difference};
pub use cut::cut;
pub use error::{Malformed, TraceError};
pub use format::Format;
pub use info::{AddressRange, Footprint, TraceInfo};
pub use input::{Compression, Progress};
pub use interleave::{Family, Interleaver, Repairs, Tap, Turns};
pub use join::{FaultText, Followed, Found, Joined, Pair, Party, Replay, Step, Turn};
pub use lackey::{LackeyReader, MemoryCalls, Tally, open};
pub use recording::{Reading, Recording};
