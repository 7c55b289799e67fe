#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod around;
mod census;
mod events;
mod graph;
mod kvm;
mod path;
mod private;
mod protect;
mod shadows;
mod store;
mod trees;
mod vbox;
mod xen;

pub use census::{Census, Policy};
pub use events::Events;
