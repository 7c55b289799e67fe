//! The two-dimensional walk against what its sources say: numbers of references, permissions, faults and their order.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod lab;
mod matrix;
mod order;
mod pae;
mod permissions;
mod tables;
