//! What served each reference: the counts that cycles are made of.
//!
//! Filled in the mode `cycles` only ([`timed`](crate::timed)). Counts, not prices: the latencies stand in the machine file, and
//! whoever multiplies gets an account that adds up exactly.

use memvirt_cache::{Purpose, Served};

use crate::probe::{Dimension, Reference};

/// What served a reference of a walk, or saved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ServedBy {
    /// A paging-structure cache: the entry of this level was known, and with it all above.
    WalkCache,
    /// The nested TLB: the whole nested walk was known; entered at level 1.
    NestedTlb,
    /// The first cache level.
    L1,
    /// The second.
    L2,
    /// The last.
    Llc,
    /// Memory.
    Dram,
}

impl ServedBy {
    /// Every kind, nearest first.
    pub const ALL: [Self; 6] = [Self::WalkCache, Self::NestedTlb, Self::L1, Self::L2, Self::Llc, Self::Dram];

    /// The stable key in results.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::WalkCache => "walk_cache",
            Self::NestedTlb => "nested_tlb",
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Llc => "llc",
            Self::Dram => "dram",
        }
    }

    /// Whether memory was referenced at all.
    #[must_use]
    pub const fn is_reference(self) -> bool {
        !matches!(self, Self::WalkCache | Self::NestedTlb)
    }
}

impl From<Served> for ServedBy {
    #[inline]
    fn from(served: Served) -> Self {
        match served {
            Served::L1 => Self::L1,
            Served::L2 => Self::L2,
            Served::Llc => Self::Llc,
            Served::Dram => Self::Dram,
        }
    }
}

/// What a reference of a walk is for.
#[must_use]
#[inline]
pub fn purpose_of(reference: &Reference) -> Purpose {
    match reference.dimension {
        Dimension::Guest => Purpose::guest(reference.level),
        Dimension::Shadow => Purpose::shadow(reference.level),
        Dimension::Host => Purpose::nested(reference.guest_level, reference.level),
    }
}

/// Counts by purpose and by what served it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cells([[u64; ServedBy::ALL.len()]; Purpose::COUNT]);

impl Default for Cells {
    fn default() -> Self {
        Self([[0; ServedBy::ALL.len()]; Purpose::COUNT])
    }
}

impl Cells {
    /// Counts one.
    #[inline]
    pub fn count(&mut self, purpose: Purpose, served: ServedBy) {
        self.0[purpose.index()][served as usize] += 1;
    }

    /// How many.
    #[must_use]
    pub const fn of(&self, purpose: Purpose, served: ServedBy) -> u64 {
        self.0[purpose.index()][served as usize]
    }

    /// Every cell that is not 0, data first.
    pub fn iter(&self) -> impl Iterator<Item = (Purpose, ServedBy, u64)> + '_ {
        let cells = Purpose::all().flat_map(|purpose| ServedBy::ALL.map(|served| (purpose, served)));
        cells.map(|(purpose, served)| (purpose, served, self.of(purpose, served))).filter(|(_, _, count)| *count > 0)
    }
}

/// What the accesses of a run met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// References to tables and hits in walk caches whose time the program waits for. With one walker all of them.
    pub walks: Cells,
    /// Those of walks that overlapped with a longer one: counted, no time of their own.
    pub overlapped: Cells,
    /// References to data, by what served them ([`Purpose::Data`]).
    pub data: Cells,
}
