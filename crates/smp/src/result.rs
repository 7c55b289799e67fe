//! What a run of several vCPUs came to.

use memvirt_guest::GuestStats;
use memvirt_machine::Outcome;
use memvirt_platform::{Counters, TableBytes};
use memvirt_timeline::{Account, Timeline};

use crate::demand::Demand;

/// A finished run.
#[derive(Debug)]
pub struct Finished<E> {
    /// What was counted, up to where the run ended.
    pub run: Run,
    /// Why a stream could not be read to its end, where one could not.
    pub input_error: Option<E>,
    /// The first violations that the oracle found, in words.
    pub violations: Vec<String>,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// How it ended.
    pub outcome: Outcome,
    /// Where the time of every vCPU went, and how each virtual machine's lock was used.
    pub timeline: Timeline,
    /// The sums of all vCPUs, what they did when interrupted included.
    pub counters: Counters,
    /// What all guests did; the peak of data frames is the sum over guests.
    pub guest: GuestStats,
    /// Cycles in guest mode but for translation. With those below and the exits they are the accounts' `guest`, `host` and `locked`.
    pub base: u64,
    /// Cycles of TLB misses and walks.
    pub translation: u64,
    /// What was asked of the MMU locks.
    pub demand: Demand,
    /// Interrupts that guests sent to flush translations or to end threads.
    pub shootdowns: u64,
    /// vCPUs that they were sent to.
    pub interrupted: u64,
    /// Bytes of the guests' tables at the end.
    pub guest_tables: u64,
    /// Bytes of tables below them at the end.
    pub tables: TableBytes,
    /// Bytes of all these tables at most; sampled after batches.
    pub peak: u64,
    /// Broken translations, where the oracle watched.
    pub broken: Option<u64>,
    /// Old translations that the architecture permits, where the oracle watched.
    pub allowed: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            outcome: Outcome::Completed,
            timeline: Timeline::default(),
            counters: Counters::default(),
            guest: GuestStats::default(),
            base: 0,
            translation: 0,
            demand: Demand::default(),
            shootdowns: 0,
            interrupted: 0,
            guest_tables: 0,
            tables: TableBytes::default(),
            peak: 0,
            broken: None,
            allowed: 0,
        }
    }
}

impl Run {
    /// Cycles of exits and their handlers, waits excluded.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.timeline.vcpus.iter().map(|vcpu| vcpu.host + vcpu.locked + vcpu.kicked).sum()
    }

    /// Cycles that all vCPUs waited: for locks, for kicked vCPUs, for shootdowns, and for their physical CPUs.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.timeline.vcpus.iter().map(|vcpu| vcpu.waiting() + vcpu.preempted).sum()
    }

    /// All cycles of all vCPUs, each from its beginning to the end of its program.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        self.timeline.vcpus.iter().map(Account::span).sum()
    }
}

/// Adds what one ledger counted to another's.
pub(crate) fn merge(sum: &mut Counters, other: &Counters) {
    sum.accesses += other.accesses;
    sum.l1_hits += other.l1_hits;
    sum.l2_hits += other.l2_hits;
    sum.misses += other.misses;
    sum.walks += other.walks;
    sum.refs.guest += other.refs.guest;
    sum.refs.shadow += other.refs.shadow;
    sum.refs.host += other.refs.host;
    sum.max_walk_refs = sum.max_walk_refs.max(other.max_walk_refs);
    sum.ad_updates += other.ad_updates;
    sum.ad_updates_nested += other.ad_updates_nested;
    sum.caches += other.caches;
    sum.tlb_flushes += other.tlb_flushes;
    sum.guest_page_faults += other.guest_page_faults;
    sum.exits.iter_mut().zip(other.exits).for_each(|(sum, other)| *sum += other);
    sum.work += other.work;
    sum.world_switches += other.world_switches;
    sum.l0_exits += other.l0_exits;
}
