#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod census;
mod drift;
mod events;
mod graph;
mod path;
mod trees;

pub use census::Census;
pub use events::Events;
