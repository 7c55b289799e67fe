#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod eptp;
mod error;
pub mod format;
pub mod frames;
pub mod free;
pub mod map;
pub mod mem;
pub mod tree;
pub mod walk;

pub use eptp::{EptAd, EptLevels, EptMemoryType, Eptp, EptpError};
pub use error::{LookupError, MapError, SplitError};
pub use format::{Attrs, Entry, Ept, Ept4, Format, Guest4, LongMode, Npt4, Pae, Shadow4};
pub use frames::{BuddyAllocator, FrameAllocator, FramePool, LeafArena, ScatteredAllocator};
pub use free::Teardown;
pub use map::{Mapper, TableAttrs};
pub use mem::{FewWords, PhysMem, TableMem, Words};
pub use tree::{Mapping, TableCount, Tree};
pub use walk::{Path, Step, Walk, Walked, walk};
