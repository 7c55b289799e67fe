//! Nested paging as a regime: the life of its tables, dirty logging, devices; random operations under the oracle's eyes.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may panic; 512 indices")]

mod lab;
mod life;
mod logging;
mod random;
