#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod array;
mod assoc;
mod entry;
mod flush;
mod front;
mod geometry;
mod hits;
mod nested;
mod order;
mod pieces;
mod ready;
mod small;
mod stats;
mod tag;
mod tlb;
mod walk;

pub use assoc::{Shape, ShapeError};
pub use entry::{Entry, Perms};
pub use flush::KeepGlobal;
pub use geometry::{
    ArrayGeometry, CacheLevel, FracturedInvlpg, Geometry, GeometryError, GigabytePages, Inclusion, Replacement, Sizes,
};
pub use nested::{NestedEntry, NestedStats, NestedTlb};
pub use ready::{Ready, THROUGH, Through};
pub use stats::Stats;
pub use tag::Tag;
pub use tlb::Tlb;
pub use walk::{WalkCache, WalkGeometry, WalkStats};
