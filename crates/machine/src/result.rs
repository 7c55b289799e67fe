//! Results: what one run counted, in the stable form of `docs/results.md`.

use std::collections::BTreeMap;

use memvirt_addr::PageSize;
use memvirt_platform::{Counters, ExitReason, TableBytes};
use serde::{Serialize, Serializer};

use crate::measure::{Measure, Mode};
use crate::price::Cycles;
use crate::regime::{HostConfig, RegimeKind};
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
    pub(crate) fn new(guest: u64, below: TableBytes, peak: u64) -> Self {
        let TableBytes { shadow, nested, metadata } = below;
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
    /// What the hypervisor's handlers did.
    pub work: memvirt_platform::Work,
    /// What the guest did; equal under every regime.
    pub guest: GuestStats,
}

impl RunResult {
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

pub(crate) fn exits(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let mut exits: BTreeMap<_, _> = ExitReason::ALL
        .iter()
        .map(|reason| (reason.key(), counters.exits_for(*reason)))
        .filter(|(_, n)| *n > 0)
        .collect();
    exits.insert("total", counters.total_exits());
    exits
}
