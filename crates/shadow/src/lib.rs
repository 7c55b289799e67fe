#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod exits;
mod fault;
mod graph;
mod guest;
mod hardware;
pub mod kvm;
pub mod store;
pub mod write_protect;

pub use store::{Footprint, ShadowStore};
pub use write_protect::{OnStore, WriteProtect};
