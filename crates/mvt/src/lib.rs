#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod block;
mod codec;
mod error;
mod format;
mod index;
mod ops;
mod reader;
mod varint;
mod verify;
mod writer;

pub use error::{Damage, MvtError};
pub use format::{Density, Header, Order, VERSION, broken_signature, is_mvt};
pub use index::BlockInfo;
pub use reader::{Mvt, ProcessReader};
pub use verify::Verified;
pub use writer::{Writer, Written};
