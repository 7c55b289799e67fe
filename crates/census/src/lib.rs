#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod census;
mod drift;
mod events;
mod graph;
mod path;
mod shadows;
mod trees;
mod vbox;
mod xen;

pub use census::Census;
pub use events::Events;
