#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod format;
pub mod frames;
pub mod mem;
pub mod walk;

pub use format::{Attrs, Entry, Ept, Ept4, Format, Guest4, LongMode, Npt4, Shadow4};
pub use frames::{FrameAllocator, FramePool};
pub use mem::{PhysMem, TableMem};
pub use walk::{Path, Step, Walk, Walked, walk};
