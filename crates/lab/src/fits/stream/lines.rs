//! Which level of the machine's caches holds each line of tables and data that the stream asks for.
//!
//! A set of a cache with least-recently-used replacement is its own stack (Mattson et al., 1970), so the caches themselves say how far back
//! each line was used. What decides is the order of lines, known from the stream, and the set of each: the host backs a guest's memory by
//! large frames, whose offsets are the guest's own. Frames of a hypervisor's tables are not known; they are numbered in the order in which
//! they are needed.

use std::collections::HashMap;

use memvirt_addr::{Gpa, Gva, Hpa, Level};
use memvirt_cache::{CacheHierarchy, CoreCaches, Purpose, Served, SharedCache};

/// The frames of a hypervisor's tables, beyond all memory of a guest.
const TABLES: u64 = 1 << 36;

/// The lines that one CPU's caches hold.
pub(super) struct Lines {
    hierarchy: CacheHierarchy,
    core: CoreCaches,
    shared: SharedCache,
    /// The frame of each shadow or nested table, by the level of its entries and the region that it maps.
    tables: HashMap<(Level, u64), u64>,
}

/// Cycles that references take, by what they read: tables all of them, data what it takes beyond a reference that the first level serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LineCycles {
    /// Data.
    pub data: u64,
    /// Entries of tables.
    pub tables: u64,
}

impl Lines {
    pub(super) fn new(hierarchy: CacheHierarchy) -> Self {
        let (core, shared) = (CoreCaches::new(&hierarchy), SharedCache::new(&hierarchy));
        Self { hierarchy, core, shared, tables: HashMap::new() }
    }

    pub(super) fn data(&mut self, at: Gpa) {
        self.core.access(&mut self.shared, Hpa::new_truncate(at.as_u64()), Purpose::Data);
    }

    /// An entry of a guest's table.
    pub(super) fn guest(&mut self, level: Level, at: Gpa) {
        self.core.access(&mut self.shared, Hpa::new_truncate(at.as_u64()), Purpose::guest(level));
    }

    /// The entry of `level` that translates a guest-physical address.
    pub(super) fn nested(&mut self, level: Level, gpa: Gpa) {
        self.owned(Purpose::nested(None, level), level, gpa.as_u64());
    }

    /// The entry of `level` that translates a guest-virtual address.
    pub(super) fn shadow(&mut self, level: Level, gva: Gva) {
        self.owned(Purpose::shadow(level), level, gva.as_u64());
    }

    /// An entry of a table of the hypervisor's.
    fn owned(&mut self, purpose: Purpose, level: Level, address: u64) {
        let entry = address >> (12 + 9 * (level as u64 - 1));
        let next = TABLES + self.tables.len() as u64;
        let frame = *self.tables.entry((level, entry >> 9)).or_insert(next);
        let at = Hpa::new_truncate((frame << 12) + 8 * (entry & 511));
        self.core.access(&mut self.shared, at, purpose);
    }

    /// Counts from 0 again; what is held is held.
    pub(super) fn restart(&mut self) {
        self.core.reset_traffic();
    }

    pub(super) fn cycles(&self) -> LineCycles {
        let of = |purpose, free: u32| -> u64 {
            let traffic = self.core.traffic();
            let cycles = |served| u64::from(self.hierarchy.latency_cycles(served) - free) * traffic.of(purpose, served);
            Served::ALL.into_iter().map(cycles).sum()
        };
        let tables = Purpose::all().filter(|purpose| *purpose != Purpose::Data);
        let free = self.hierarchy.latency_cycles(Served::L1);
        LineCycles { data: of(Purpose::Data, free), tables: tables.map(|purpose| of(purpose, 0)).sum() }
    }
}
