//! Results: what one run counted, in the stable form of `docs/results.md`.

use std::collections::BTreeMap;

use memvirt_addr::PageSize;
use memvirt_platform::{Counters, ExitReason, Invalidation, MmuCounts, TableBytes};
use memvirt_tlb::{NestedStats, WalkStats};
use serde::{Serialize, Serializer};

use crate::measure::{Measure, Mode};
use crate::price::Cycles;
use crate::regime::{HostConfig, RegimeKind};
use crate::run::Setup;
use memvirt_guest::{GuestConfig, GuestStats};

pub(crate) fn page_size<S: Serializer>(size: &PageSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(size.name())
}

/// TLB lookups by outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TlbCounts {
    /// Served by the first level.
    pub l1_hits: u64,
    /// Served by the second level.
    pub l2_hits: u64,
    /// Misses.
    pub misses: u64,
}

/// References of page walks by the tables they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RefCounts {
    /// The guest's tables.
    pub guest: u64,
    /// Shadow tables.
    pub shadow: u64,
    /// Nested tables.
    pub host: u64,
    /// All.
    pub total: u64,
    /// Those of the longest walk. A walk that has used a cache and ends in a fault is made once more, and both count.
    pub longest: u64,
}

/// What the paging-structure caches of one dimension did, by the level of the entry that a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DimensionCounts {
    /// Walks that began below a PDE.
    pub pde_hits: u64,
    /// Below a PDPTE.
    pub pdpte_hits: u64,
    /// Below a PML4E.
    pub pml4e_hits: u64,
    /// Below a PML5E.
    pub pml5e_hits: u64,
    /// Walks that began at the root.
    pub misses: u64,
    /// Entries lost to newer ones.
    pub evictions: u64,
    /// Entries lost to invalidations.
    pub flushed: u64,
}

impl DimensionCounts {
    /// Lookups.
    #[must_use]
    pub const fn lookups(&self) -> u64 {
        self.pde_hits + self.pdpte_hits + self.pml4e_hits + self.pml5e_hits + self.misses
    }
}

impl From<WalkStats> for DimensionCounts {
    fn from(stats: WalkStats) -> Self {
        let [pde_hits, pdpte_hits, pml4e_hits, pml5e_hits] = stats.hits;
        let WalkStats { misses, evictions, flushed_entries: flushed, .. } = stats;
        Self { pde_hits, pdpte_hits, pml4e_hits, pml5e_hits, misses, evictions, flushed }
    }
}

/// What the nested TLB did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NestedTlbCounts {
    /// Guest-physical addresses translated without a walk.
    pub hits: u64,
    /// Others. Both are 0 where the machine has no nested TLB.
    pub misses: u64,
    /// Pages lost to newer ones.
    pub evictions: u64,
    /// Pages lost to invalidations.
    pub flushed: u64,
}

/// What the walk caches did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalkCacheCounts {
    /// Over guest-virtual addresses: of the guest's tables, or of shadow tables.
    pub guest: DimensionCounts,
    /// Over guest-physical addresses: of the nested tables. Each walk looks once for each guest-physical address that it
    /// translates.
    pub host: DimensionCounts,
    /// Of guest-physical pages.
    pub nested_tlb: NestedTlbCounts,
    /// Invalidations by kind.
    pub invalidations: BTreeMap<&'static str, u64>,
}

impl From<MmuCounts> for WalkCacheCounts {
    fn from(counts: MmuCounts) -> Self {
        let NestedStats { hits, misses, evictions, flushed_entries: flushed, .. } = counts.nested;
        let invalidations = Invalidation::ALL.into_iter().map(|kind| (kind.key(), counts.invalidations[kind as usize]));
        Self {
            guest: counts.guest.into(),
            host: counts.host.into(),
            nested_tlb: NestedTlbCounts { hits, misses, evictions, flushed },
            invalidations: invalidations.collect(),
        }
    }
}

/// Bytes of tables by kind, at the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TableCounts {
    /// The guest's own tables, its kernel's included.
    pub guest: u64,
    /// Shadow tables.
    pub shadow: u64,
    /// Nested tables.
    pub nested: u64,
    /// What the hypervisor keeps beside them.
    pub metadata: u64,
    /// All.
    pub total: u64,
    /// All, at most; sampled between batches and operations.
    pub peak: u64,
}

impl TableCounts {
    /// Of a guest's tables and of those below them; `peak` is the most of all of them.
    #[must_use]
    pub fn new(guest: u64, below: TableBytes, peak: u64) -> Self {
        let TableBytes { shadow, nested, metadata, .. } = below;
        Self { guest, shadow, nested, metadata, total: guest + shadow + nested + metadata, peak }
    }
}

/// Stale translations that were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stale {
    /// Whether the oracle watched; without, both counts are 0.
    pub checked: bool,
    /// Old, but not yet covered by a flush: the architecture permits them.
    pub allowed: u64,
    /// Translations, values or faults that no hardware could have given.
    pub broken: u64,
}

/// Every switch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Switches {
    /// The guest's.
    #[serde(flatten)]
    pub guest: GuestConfig,
    /// The hypervisor's.
    #[serde(flatten)]
    pub host: HostConfig,
    /// How it was measured.
    #[serde(flatten)]
    pub measure: Measure,
    /// How many vCPUs.
    pub vcpus: u16,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The stream was run to its end.
    Completed,
    /// The input could not be read further; what was read was run.
    InputError,
    /// The input ended before the warm-up did: nothing was measured, and the counts are those of the warm-up.
    WarmUpOnly,
    /// The guest had no memory left.
    GuestOutOfMemory,
    /// The host had no memory left.
    HostOutOfMemory,
    /// The guest's kernel took a fault on its own memory: the regime handed out wrong translations.
    GuestKernelFault,
    /// An access kept faulting: the regime handed out wrong translations.
    Livelock,
}

/// What nested hypervisors cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NestedVirtCounts {
    /// Changes of who runs: the guest, its hypervisor, or the hypervisor of the machine.
    pub world_switches: u64,
    /// Entries into the hypervisor of the machine, by whomever.
    pub l0_exits: u64,
}

impl NestedVirtCounts {
    /// `None` where no hypervisors are nested.
    pub(crate) fn of(counters: &Counters) -> Option<Self> {
        let Counters { world_switches, l0_exits, .. } = *counters;
        (world_switches > 0).then_some(Self { world_switches, l0_exits })
    }
}

/// What several vCPUs did beside each other, in simulated time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SmpCounts {
    /// Cycles until the last vCPU had ended.
    pub end: u64,
    /// The share of that time for which the MMU lock was held.
    pub lock_utilization: f64,
    /// Interrupts that the guest sent to flush translations or to end threads.
    pub shootdowns: u64,
    /// vCPUs that they were sent to.
    pub interrupted: u64,
}

/// What one run counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunResult {
    /// The regime.
    pub regime: RegimeKind,
    /// Whether references were followed to the caches that hold their lines.
    pub mode: Mode,
    /// Every switch.
    pub switches: Switches,
    /// How the run ended.
    pub outcome: Outcome,
    /// Accesses completed, the guest kernel's included.
    pub accesses: u64,
    /// TLB lookups by outcome.
    pub tlb: TlbCounts,
    /// Hardware page walks.
    pub walks: u64,
    /// Their references.
    pub walk_refs: RefCounts,
    /// Accessed and dirty bits that hardware set.
    pub ad_updates: u64,
    /// Those of them in nested tables.
    pub ad_updates_nested: u64,
    /// What the walk caches did, where they were modelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub walk_caches: Option<WalkCacheCounts>,
    /// TLB invalidations wider than a page.
    pub tlb_flushes: u64,
    /// VM exits by reason, and `total`.
    pub exits: BTreeMap<&'static str, u64>,
    /// Page faults that the guest saw.
    pub guest_page_faults: u64,
    /// Bytes of tables.
    pub table_bytes: TableCounts,
    /// Stale translations used.
    pub stale: Stale,
    /// The account.
    pub cycles: Cycles,
    /// Where hypervisors are nested: what their exits come to; `exits` counts how often the innermost guest stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested_virt: Option<NestedVirtCounts>,
    /// Where there are several vCPUs: what they did beside each other. All other counts are the sums of all vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smp: Option<SmpCounts>,
    /// What the hypervisor's handlers did.
    pub work: memvirt_platform::Work,
    /// What the guest did; equal under every regime.
    pub guest: GuestStats,
}

impl RunResult {
    /// The result of a run with one vCPU, from what it counted.
    #[must_use]
    pub fn new(
        setup: &Setup,
        outcome: Outcome,
        counters: &Counters,
        guest: GuestStats,
        table_bytes: TableCounts,
        stale: Stale,
        cycles: Cycles,
    ) -> Self {
        let refs = counters.refs;
        Self {
            regime: setup.regime,
            mode: setup.measure.mode,
            switches: Switches { guest: setup.guest, host: setup.host, measure: setup.measure, vcpus: 1 },
            outcome,
            accesses: counters.accesses,
            tlb: TlbCounts { l1_hits: counters.l1_hits, l2_hits: counters.l2_hits, misses: counters.misses },
            walks: counters.walks,
            walk_refs: RefCounts {
                guest: refs.guest,
                shadow: refs.shadow,
                host: refs.host,
                total: refs.total(),
                longest: counters.max_walk_refs,
            },
            ad_updates: counters.ad_updates,
            ad_updates_nested: counters.ad_updates_nested,
            walk_caches: setup.host.walk_caches.then(|| counters.caches.into()),
            tlb_flushes: counters.tlb_flushes,
            exits: exits(counters),
            guest_page_faults: counters.guest_page_faults,
            table_bytes,
            stale,
            cycles,
            nested_virt: NestedVirtCounts::of(counters),
            smp: None,
            work: counters.work,
            guest,
        }
    }

    /// References of the average walk, 0 where there was none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn refs_per_walk(&self) -> f64 {
        if self.walks == 0 { 0.0 } else { self.walk_refs.total as f64 / self.walks as f64 }
    }

    /// All exits.
    #[must_use]
    pub fn total_exits(&self) -> u64 {
        self.exits.get("total").copied().unwrap_or(0)
    }
}

fn exits(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let mut exits: BTreeMap<_, _> = ExitReason::ALL
        .iter()
        .map(|reason| (reason.key(), counters.exits_for(*reason)))
        .filter(|(_, n)| *n > 0)
        .collect();
    exits.insert("total", counters.total_exits());
    exits
}
