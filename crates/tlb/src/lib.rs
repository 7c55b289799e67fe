#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod array;
mod entry;
mod flush;
mod front;
mod geometry;
mod hits;
mod order;
mod small;
mod stats;
mod tag;
mod tlb;

pub use entry::{Entry, Perms};
pub use flush::KeepGlobal;
pub use geometry::{
    ArrayGeometry, CacheLevel, FracturedInvlpg, Geometry, GeometryError, GigabytePages, Inclusion, Replacement, Sizes,
};
pub use stats::Stats;
pub use tag::Tag;
pub use tlb::Tlb;
