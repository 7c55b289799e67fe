//! What a platform counts: plain sums, and on request the exits one by one.

use memvirt_tlb::Stats;

use crate::account::Account;
use crate::exit::{Exit, ExitReason, Work};
use crate::mmu::MmuCounts;

/// Memory references made by hardware page walks, by what they read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct WalkRefs {
    /// Entries of guest tables (on the bare machine: of the operating system's tables).
    pub guest: u64,
    /// Entries of shadow tables.
    pub shadow: u64,
    /// Entries of nested tables.
    pub host: u64,
}

impl WalkRefs {
    /// All references.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.guest + self.shadow + self.host
    }
}

/// The sums over a run. All are exact counts of things that happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Accesses completed, plain ones and those of loads and stores whose value matters.
    pub accesses: u64,
    /// Accesses served by the first TLB level.
    pub l1_hits: u64,
    /// Accesses served by the second TLB level.
    pub l2_hits: u64,
    /// TLB misses. An access that is retried after a fault or an exit can miss more than once.
    pub misses: u64,
    /// Page walks by hardware; each begins with a TLB miss.
    pub walks: u64,
    /// Table references of those walks.
    pub refs: WalkRefs,
    /// The references of the longest walk.
    pub max_walk_refs: u64,
    /// Accessed and dirty bits set by hardware, each a locked update.
    pub ad_updates: u64,
    /// Those of them in nested tables.
    pub ad_updates_nested: u64,
    /// What the walk caches counted, where they are modelled.
    pub caches: MmuCounts,
    /// TLB invalidations wider than one page.
    pub tlb_flushes: u64,
    /// Page faults that the guest saw.
    pub guest_page_faults: u64,
    /// Exits by [`ExitReason`].
    pub exits: [u64; ExitReason::COUNT],
    /// What the hypervisor did at all exits together.
    pub work: Work,
    /// Changes of who runs, where hypervisors are nested: [`Counters::exits`] then counts how often the innermost guest stopped.
    pub world_switches: u64,
    /// How often the outermost hypervisor was entered, by whomever, where hypervisors are nested.
    pub l0_exits: u64,
}

impl Counters {
    /// How often the guest exited for `reason`.
    #[must_use]
    pub const fn exits_for(&self, reason: ExitReason) -> u64 {
        self.exits[reason as usize]
    }

    /// All exits.
    #[must_use]
    pub fn total_exits(&self) -> u64 {
        self.exits.iter().sum()
    }

    /// Enters one walk: its references, and the accessed and dirty bits that it set.
    #[inline]
    pub fn add_walk(&mut self, refs: WalkRefs, ad_updates: u64, ad_updates_nested: u64) {
        self.walks += 1;
        self.refs.guest += refs.guest;
        self.refs.shadow += refs.shadow;
        self.refs.host += refs.host;
        self.max_walk_refs = self.max_walk_refs.max(refs.total());
        self.ad_updates += ad_updates;
        self.ad_updates_nested += ad_updates_nested;
    }

    /// Enters several walks that only read: their references together, and how many the longest made.
    #[inline]
    pub(crate) fn add_walks(&mut self, walks: u64, refs: WalkRefs, longest: u64) {
        self.walks += walks;
        self.refs.guest += refs.guest;
        self.refs.shadow += refs.shadow;
        self.refs.host += refs.host;
        self.max_walk_refs = self.max_walk_refs.max(longest);
    }

    pub(crate) fn add_tlb(&mut self, before: &Stats, after: &Stats) {
        self.l1_hits += after.l1_hits - before.l1_hits;
        self.l2_hits += after.l2_hits - before.l2_hits;
        self.misses += after.misses - before.misses;
    }
}

/// Where a platform writes what happened.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The sums.
    pub counters: Counters,
    /// The exits one by one, where somebody wants them (`Some`); the reader empties the list.
    pub exits: Option<Vec<Exit>>,
    /// What served each reference, in the mode `cycles` only.
    pub served: Option<Box<Account>>,
}

impl Ledger {
    /// A ledger that keeps sums only.
    #[must_use]
    pub fn sums() -> Self {
        Self::default()
    }

    /// A ledger that also lists every exit.
    #[must_use]
    pub fn listing() -> Self {
        Self { exits: Some(Vec::new()), ..Self::default() }
    }

    /// What served each reference, from the first one on.
    #[inline]
    pub(crate) fn account(&mut self) -> &mut Account {
        self.served.get_or_insert_default()
    }

    /// Enters one exit.
    pub fn exit(&mut self, exit: Exit) {
        self.counters.exits[exit.reason as usize] += 1;
        self.counters.work += exit.work;
        if let Some(list) = &mut self.exits {
            list.push(exit);
        }
    }
}
