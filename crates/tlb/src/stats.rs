//! [`Stats`]: what a TLB counted.

/// Counts since the TLB was made, or since the statistics were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Accesses that hit in the first level.
    pub l1_hits: u64,
    /// Accesses that missed the first level and hit in the second.
    pub l2_hits: u64,
    /// Accesses that hit nowhere, or only an entry that forbids them: each is a walk.
    pub misses: u64,
    /// Live entries that the first level lost to a newer one.
    pub l1_evictions: u64,
    /// Live entries that the second level lost to a newer one.
    pub l2_evictions: u64,
    /// First-level entries that an inclusive second level took with it when it evicted its own.
    pub back_invalidations: u64,
    /// Flush operations, of any scope.
    pub flushes: u64,
    /// Entries that flushes dropped, over both levels (an entry in both counts twice).
    pub flushed_entries: u64,
}

impl Stats {
    /// Accesses looked up.
    #[must_use]
    pub const fn accesses(&self) -> u64 {
        self.l1_hits + self.l2_hits + self.misses
    }
}
