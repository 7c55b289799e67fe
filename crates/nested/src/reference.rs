//! What a two-dimensional walk does to memory: references and locked updates, one by one to a [`Probe`], and their sums.

pub use memvirt_platform::probe::{CacheHit, Dimension, Probe, Reference, Update};

/// What a walk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// References to guest entries.
    pub guest: u64,
    /// References to nested entries.
    pub host: u64,
    /// Locked updates that set accessed or dirty bits, in guest and nested entries together.
    pub ad_updates: u64,
    /// Those of them that went to nested entries.
    pub ad_updates_nested: u64,
}
