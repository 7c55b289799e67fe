//! The benefit of nested paging for programs of all kinds, each measured as those who use it as a benchmark measure it, in time.
//!
//! A program that runs for hours is measured once it has loaded what it maps; a program whose point is to make processes, mappings or
//! faults is measured from its beginning. Which is which stands in the workload's file (`measure`). Everything is measured in the mode
//! `cycles`, with walk caches in both dimensions: without them, and with one price for every reference, a walk of 24 references
//! would be as dear as 24 references that miss everything.

use memvirt_addr::PageSize;
use memvirt_machine::{FrameOrder, RegimeKind, TableFrames};
use memvirt_workload::{Measured, Workload};
use serde::Serialize;

use super::evidence::REGIMES;
use super::task::Task;
use crate::comparison::Comparison;
use crate::switches::Overrides;

/// Workloads that stand for kinds of programs, in the order of their names: all that the report runs under every regime.
pub const WORKLOADS: [&str; 23] = [
    "b-tree",
    "boot",
    "churn",
    "compute",
    "context-switch-16",
    "context-switch-96",
    "database",
    "exec",
    "fork",
    "forkwait",
    "graph",
    "gups",
    "hash-join",
    "jvm",
    "kernel-build",
    "key-value",
    "page-fault",
    "pointer-chase",
    "stream",
    "touch-and-free",
    "web-server",
    "xsbench",
    "zipf",
];

pub(crate) const THREE: [RegimeKind; 3] = [RegimeKind::Native, RegimeKind::ShadowKvm61, RegimeKind::NestedEpt];

/// The same workloads under three settings, and what single switches make of a few of them.
#[derive(Debug, Serialize)]
pub struct Fair {
    /// Pages of 4 KiB, no isolation of the kernel's page tables. Workloads that are measured from their start also run under the
    /// other shadow policies.
    pub plain: Vec<Comparison>,
    /// The same with isolation and PCIDs.
    pub kpti: Vec<Comparison>,
    /// Pages of 2 MiB in guest and host, no isolation.
    pub large: Vec<Comparison>,
    /// One switch changed at a time.
    pub switched: Vec<Comparison>,
}

/// No isolation: the guest of 2006 and of every processor that needs none.
pub(crate) const PLAIN: Overrides = none();
const KPTI: Overrides = Overrides { kpti: Some(true), pcid: Some(true), ..none() };
const LARGE: Overrides = Overrides { guest_page: Some(PageSize::Size2M), host_page: Some(PageSize::Size2M), ..none() };

const fn none() -> Overrides {
    Overrides {
        memory_bytes: None,
        kpti: Some(false),
        pcid: None,
        guest_page: None,
        direct_map_page: None,
        tick_instructions: None,
        flush_ceiling: None,
        host_page: None,
        tags: None,
        ept_ad: None,
        walk_caches: None,
        host_frames: None,
        table_frames: None,
    }
}

/// Workloads on which single switches are tried: one that misses the TLB, one that makes processes and maps files.
const SWITCHED: [&str; 2] = ["gups", "kernel-build"];

fn switches() -> Vec<Overrides> {
    vec![
        Overrides { host_page: Some(PageSize::Size2M), ..PLAIN },
        Overrides { guest_page: Some(PageSize::Size2M), ..PLAIN },
        Overrides { direct_map_page: Some(PageSize::Size4K), ..PLAIN },
        Overrides { direct_map_page: Some(PageSize::Size1G), ..PLAIN },
        Overrides { table_frames: Some(TableFrames::Grouped), ..PLAIN },
        Overrides { host_frames: Some(FrameOrder::Scattered), ..PLAIN },
        Overrides { walk_caches: Some(false), ..PLAIN },
        Overrides { tags: Some(false), ..PLAIN },
    ]
}

/// The setting without isolation, and which regimes it takes.
pub(crate) fn plain_tasks() -> Vec<Task> {
    let regimes = |name| {
        let steady = Workload::find(name).is_ok_and(|workload| workload.measured() == Measured::Steady);
        if steady { THREE.to_vec() } else { REGIMES.to_vec() }
    };
    WORKLOADS.iter().map(|name| Task::timed(name, &regimes(name), PLAIN)).collect()
}

/// All tasks, in the order of the fields of [`Fair`].
pub(super) fn tasks() -> Vec<Task> {
    let mut tasks = plain_tasks();
    for overrides in [KPTI, LARGE] {
        tasks.extend(WORKLOADS.iter().map(|name| Task::timed(name, &THREE, overrides)));
    }
    let switched = switches().into_iter().flat_map(|switch| SWITCHED.map(|name| Task::timed(name, &THREE, switch)));
    tasks.extend(switched);
    tasks
}

impl Fair {
    /// Of the results of [`tasks`], in their order.
    pub(super) fn of(mut made: Vec<Comparison>) -> Self {
        let n = WORKLOADS.len();
        let mut rest = |from: usize| made.split_off(from.min(made.len()));
        let switched = rest(3 * n);
        let large = rest(2 * n);
        let kpti = rest(n);
        Self { plain: made, kpti, large, switched }
    }

    /// The comparison of a workload without isolation.
    #[must_use]
    pub fn plain_of(&self, workload: &str) -> Option<&Comparison> {
        self.plain.iter().find(|comparison| comparison.workload.name() == workload)
    }
}

/// How a comparison was measured, in words.
#[must_use]
pub fn measured_as(comparison: &Comparison) -> &'static str {
    let loaded = comparison.results.iter().any(|result| result.switches.measure.warm_up_accesses > 0);
    if loaded { "loaded and warm" } else { "from its start" }
}
