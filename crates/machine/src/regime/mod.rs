//! Regimes by name, and the platforms they stand for.

mod bench;
mod host;
mod kind;

pub use bench::{Bench, Shape};
pub(crate) use bench::{Hardware, build};
pub use host::{FrameOrder, HostConfig};
pub use kind::RegimeKind;
