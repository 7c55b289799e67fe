//! Everything that is measured for the claims.

use std::num::NonZeroUsize;

use memvirt_machine::{MachineSpec, RegimeKind, RunResult};
use memvirt_platform::Vendor;
use memvirt_workload::Workload;
use rayon::prelude::*;
use serde::Serialize;

use super::fair::{Fair, PLAIN, WORKLOADS};
use super::machines::{Isolation, WorldSwitches};
use super::many::Many;
use super::task::Task;
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::exits::ExitTable;
use crate::fits::Fits;
use crate::nested_virt::NestedVirtTable;
use crate::published::{Own, PublishedRow, Row, Sources, pvm, rows};
use crate::switches::Overrides;
use crate::threads::on_threads;
use crate::walk::{CacheState, GuestPaging, HostLevels, NestedFormat, RecordedWalk, Tables, WalkSpec, record_walk};

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effort {
    /// Workloads cut to a twentieth of their accesses, but to no fewer than 50,000: the report of a minute.
    Quick,
    /// Workloads as their files say.
    Full,
}

impl Effort {
    /// The fraction of a workload that is run.
    pub(super) fn scale(self, workload: &Workload) -> f64 {
        let accesses = workload.facts().accesses.value().max(1);
        match self {
            Self::Full => 1.0,
            Self::Quick => crate::text::fraction(50_000, accesses).clamp(0.05, 1.0),
        }
    }
}

/// What a step of the measuring came to, for a progress bar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What was finished.
    pub what: String,
    /// Steps in all.
    pub of: usize,
}

/// The regimes of every workload.
pub(super) const REGIMES: [RegimeKind; 6] = [
    RegimeKind::Native,
    RegimeKind::ShadowWriteProtect,
    RegimeKind::ShadowLazyFill,
    RegimeKind::ShadowVtlb,
    RegimeKind::ShadowKvm61,
    RegimeKind::NestedEpt,
];

/// Everything measured.
#[derive(Debug, Serialize)]
pub struct Evidence {
    /// How much was run.
    pub effort: Effort,
    /// Which events exit, on the hardware of each vendor.
    pub exits: Vec<ExitTable>,
    /// Walks with caches off: four levels natively, and two dimensions with each page size.
    pub walks: Vec<RecordedWalk>,
    /// Nested virtualization.
    pub nested_virt: NestedVirtTable,
    /// PVM's rows.
    pub published: Vec<Row>,
    /// What only the comparison with published figures needs.
    pub own: Own,
    /// Each workload under six regimes, without isolation of the kernel's page tables, from its first access on: counts.
    pub plain: Vec<Comparison>,
    /// Time: each workload measured as its file says.
    pub fair: Fair,
    /// The naive policy under the oracle, and write protection beside it.
    pub naive: Comparison,
    /// Guest pages of 2 MiB on host pages of 4 KiB.
    pub large_guest_pages: Comparison,
    /// World switches.
    pub world_switches: WorldSwitches,
    /// Isolation.
    pub isolation: [Isolation; 2],
    /// What takes many runs each: vCPUs, processes, the plane of who wins.
    pub many: Many,
    /// Cost models fitted to memvirt's own runs.
    pub fits: Fits,
}

impl Evidence {
    /// The command that measures all of it.
    #[must_use]
    pub fn command(&self) -> String {
        let quick = if self.effort == Effort::Quick { " --quick" } else { "" };
        format!("memvirt report{quick} --machine {}", self.fits.machine)
    }

    /// Measures everything, spread over rayon's threads; the result does not depend on how many there are. `observer` hears of
    /// each comparison made, from several threads.
    ///
    /// # Errors
    ///
    /// [`LabError`] where a run cannot be made.
    pub fn gather(
        effort: Effort,
        machine: &MachineSpec,
        threads: Option<NonZeroUsize>,
        observer: &(dyn Fn(Done) + Sync),
    ) -> Result<Self, LabError> {
        Many::check(machine)?;
        let most = tasks().len() + Many::steps() + Fits::steps(effort);
        on_threads(threads, most, || Self::measure(effort, machine, observer))?
    }

    fn measure(effort: Effort, machine: &MachineSpec, observer: &(dyn Fn(Done) + Sync)) -> Result<Self, LabError> {
        let tasks = tasks();
        let of = tasks.len() + Many::steps() + Fits::steps(effort) + Own::STEPS;
        let run = |task: &Task| {
            let done = task.run(effort, machine)?;
            observer(Done { what: task.workload.to_owned(), of });
            Ok(done)
        };
        let compare = || tasks.par_iter().with_max_len(1).map(run).collect::<Result<Vec<_>, LabError>>();
        let fit = || Fits::gather(effort, machine, None, &|what| observer(Done { what: format!("fits: {what}"), of }));
        let many = || Many::measure(effort, machine, of, observer);
        let ((many, fits), made) = rayon::join(|| rayon::join(many, fit), compare);
        let (mut fits, many, mut made) = (fits?, many?, made?);
        fits.take(&many);
        let fair = Fair::of(made.split_off(WORKLOADS.len() + 2));
        let large_guest_pages = made.pop().ok_or(LabError::NoRegime)?;
        let naive = made.pop().ok_or(LabError::NoRegime)?;
        Ok(Self {
            effort,
            exits: [Vendor::Vmx, Vendor::Svm].into_par_iter().map(ExitTable::measure).collect(),
            walks: walks()?,
            nested_virt: NestedVirtTable::levels()?,
            published: pvm()?,
            own: Own::measure(effort, machine, &|what| observer(Done { what: what.to_owned(), of }))?,
            plain: made,
            fair,
            naive,
            large_guest_pages,
            world_switches: WorldSwitches::measure(),
            isolation: Isolation::measure(),
            many,
            fits,
        })
    }

    /// Every published figure beside what was measured.
    #[must_use]
    pub fn published_rows(&self) -> Vec<PublishedRow> {
        rows(&Sources {
            effort: self.effort,
            fair: &self.fair.plain,
            pvm: &self.published,
            nested_virt: &self.nested_virt,
            own: &self.own,
        })
    }

    /// The comparison of a workload without kernel-page-table isolation.
    #[must_use]
    pub fn of(&self, workload: &str) -> Option<&Comparison> {
        self.plain.iter().find(|comparison| comparison.workload.name() == workload)
    }

    /// Every run of a regime without kernel-page-table isolation.
    pub(crate) fn runs(&self, regime: RegimeKind) -> impl Iterator<Item = &RunResult> {
        self.plain.iter().filter_map(move |comparison| result(comparison, regime))
    }
}

/// The run of a regime.
pub(crate) fn result(comparison: &Comparison, regime: RegimeKind) -> Option<&RunResult> {
    comparison.results.iter().find(|result| result.regime == regime)
}

/// In the order of the fields of [`Evidence`].
fn tasks() -> Vec<Task> {
    let mut tasks: Vec<_> = WORKLOADS.iter().map(|workload| Task::counted(workload, &REGIMES, PLAIN)).collect();
    let two = [RegimeKind::ShadowWriteProtect, RegimeKind::ShadowInvlpgOnly];
    tasks.push(Task { check: true, ..Task::counted("fork-and-exit", &two, PLAIN) });
    let large = Overrides { guest_page: Some(memvirt_addr::PageSize::Size2M), ..PLAIN };
    tasks.push(Task::counted("zipf", &REGIMES, large));
    tasks.extend(super::fair::tasks());
    tasks
}

fn walks() -> Result<Vec<RecordedWalk>, LabError> {
    use memvirt_addr::PageSize::{Size1G, Size2M, Size4K};
    let native = Tables::Native(GuestPaging::Four);
    let nested = Tables::Nested { guest: Some(GuestPaging::Four), host: HostLevels::Four, format: NestedFormat::Ept };
    let mut specs = vec![(native, Size4K, Size4K)];
    for guest in [Size4K, Size2M, Size1G] {
        specs.extend([Size4K, Size2M, Size1G].map(|host| (nested, guest, host)));
    }
    let walk = |(tables, guest_page, host_page)| {
        record_walk(&WalkSpec { tables, guest_page, host_page, address: None, caches: CacheState::Off })
    };
    specs.into_iter().map(walk).collect()
}
