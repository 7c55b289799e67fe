//! When a part of the address space is walked nested, and when it returns to shadow.
//!
//! Stores to a page of page tables come either once or by the dozen in an interval (Gandhi, Hill and Swift, section III.C; the
//! figures are remembered from the paper). So a table goes nested with the second trapped store of an interval, and with it
//! all that it leads to: stores there do not trap any more. At the end of each interval the hypervisor looks at the dirty bits
//! of the nested tables' own pages and clears them; a table that was not stored to for a whole interval goes back to shadow.
//! What is below follows when it proves quiet in its turn.
//!
//! An interval is a number of TLB misses of the virtual machine, which stand for time here. The paper's is a second, in which a
//! program that such a policy is for misses millions of times. Much shorter ones make tables that are filled one page fault
//! at a time go to and fro.

use std::collections::BTreeMap;

use memvirt_addr::{Gfn, Level};

/// What is walked nested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switching {
    /// The lowest levels, 0 to 4 of them, always.
    Levels(u8),
    /// The tables that the guest changes.
    Activity(Policy),
}

/// The numbers of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// How many trapped stores to one table in an interval make it nested; default 2.
    pub threshold: u32,
    /// The length of an interval in TLB misses; default 2^20 (an estimate).
    pub interval: u64,
}

impl Policy {
    /// Two stores, 2^20 misses.
    pub const DEFAULT: Self = Self { threshold: 2, interval: 1 << 20 };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A nested table.
#[derive(Clone, Copy, Debug)]
struct Watched {
    /// It has been watched for a whole interval.
    settled: bool,
    /// It was stored to by a way that leaves no dirty bit.
    touched: bool,
}

/// What the policy knows.
#[derive(Debug)]
pub(super) struct Activity {
    switching: Switching,
    misses: u64,
    stores: BTreeMap<Gfn, u32>,
    nested: BTreeMap<Gfn, Watched>,
}

impl Activity {
    pub(super) const fn new(switching: Switching) -> Self {
        Self { switching, misses: 0, stores: BTreeMap::new(), nested: BTreeMap::new() }
    }

    /// Whether the switching follows the guest's stores.
    pub(super) const fn adapts(&self) -> bool {
        matches!(self.switching, Switching::Activity(_))
    }

    /// Whether hardware may ever enter the guest's own tables.
    pub(super) const fn may_nest(&self) -> bool {
        !matches!(self.switching, Switching::Levels(0))
    }

    /// Whether the table of `level` in `gfn` is walked nested.
    pub(super) fn is_nested(&self, gfn: Gfn, level: Level) -> bool {
        match self.switching {
            Switching::Levels(lowest) => level.number() <= lowest,
            Switching::Activity(_) => self.nested.contains_key(&gfn),
        }
    }

    /// A store to a shadowed table trapped; true where the table is to be nested from now on.
    pub(super) fn stored(&mut self, gfn: Gfn) -> bool {
        let Switching::Activity(policy) = self.switching else { return false };
        let stores = self.stores.entry(gfn).or_default();
        *stores += 1;
        let active = *stores >= policy.threshold;
        if active {
            self.nested.insert(gfn, Watched { settled: false, touched: true });
        }
        active
    }

    /// The hypervisor made a page writable for a store to it.
    pub(super) fn touched(&mut self, gfn: Gfn) {
        if let Some(watched) = self.nested.get_mut(&gfn) {
            watched.touched = true;
        }
    }

    /// Counts a TLB miss; true where it ends an interval.
    pub(super) fn missed(&mut self) -> bool {
        let Switching::Activity(policy) = self.switching else { return false };
        self.misses += 1;
        let over = self.misses >= policy.interval;
        if over {
            self.misses = 0;
            self.stores.clear();
        }
        over
    }

    /// The nested tables.
    pub(super) fn nested(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.nested.keys().copied()
    }

    /// The table's dirty bits said `dirty` at the end of an interval; true where it goes back to shadow.
    pub(super) fn looked_at(&mut self, gfn: Gfn, dirty: bool) -> bool {
        let Some(watched) = self.nested.get_mut(&gfn) else { return false };
        let quiet = watched.settled && !watched.touched && !dirty;
        *watched = Watched { settled: true, touched: false };
        if quiet {
            self.nested.remove(&gfn);
        }
        quiet
    }
}
