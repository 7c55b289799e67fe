#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod cache;
mod hierarchy;
mod shape;
mod traffic;

pub use cache::Cache;
pub use hierarchy::{CacheHierarchy, CacheLevel, CoreCaches, SharedCache};
pub use shape::{Shape, ShapeError};
pub use traffic::{Purpose, Served, Traffic};
