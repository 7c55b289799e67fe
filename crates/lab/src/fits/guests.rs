//! The guests that models are fitted to and judged by, and what is observed of each natively.

use memvirt_addr::PageSize;
use memvirt_census::{Census, Events, Policy};
use memvirt_machine::{
    Guest, GuestConfig, Halted, HostConfig, MachineSpec, Measure, RegimeKind, RunResult, Setup, run,
};
use memvirt_ops::process::{Batch, Op, Source};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Platform, Tags, VmSpec, Work};
use memvirt_workload::Workload;
use serde::Serialize;

use super::stream::{Expected, Hardware, Stream, Tables};
use crate::error::LabError;
use crate::input::Input;
use crate::switches::Overrides;

/// How long a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// What is fitted to.
    Short,
    /// What is held out: a longer run of the same kind.
    Long,
}

/// A workload, how long it runs and on what kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuestSpec {
    /// The built-in workload.
    pub workload: &'static str,
    /// Whether the kernel isolates its page tables.
    pub kpti: bool,
    /// How long it runs.
    pub length: Length,
}

impl std::fmt::Display for GuestSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let isolated = if self.kpti { ", isolated" } else { "" };
        let length = if self.length == Length::Long { "long" } else { "short" };
        write!(f, "`{}`{isolated}, {length}", self.workload)
    }
}

/// The workloads of the fits: servers, process creation, churn of page tables, context switches, computation.
pub const WORKLOADS: [&str; 12] = [
    "churn",
    "context-switch-16",
    "database",
    "exec",
    "fork-and-exit",
    "kernel-build",
    "page-fault",
    "protection-fault",
    "sh",
    "touch-and-free",
    "web-server",
    "zipf",
];

/// Accesses of a short run, at most (a script's preparations come on top); long ones have [`LONGER`] times as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accesses(pub u64);

/// How many times as long a long run is.
pub const LONGER: u64 = 3;

impl GuestSpec {
    /// All of them, workload by workload.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let lengths = [Length::Short, Length::Long];
        let of = |workload| {
            let one = move |(kpti, length)| Self { workload, kpti, length };
            [false, true].into_iter().flat_map(move |kpti| lengths.map(|length| (kpti, length))).map(one)
        };
        WORKLOADS.into_iter().flat_map(of).collect()
    }

    /// The workload, cut to its length.
    ///
    /// # Errors
    ///
    /// Never in practice: it is built in, and a checked workload can be shortened.
    pub fn workload(&self, accesses: Accesses) -> Result<Workload, LabError> {
        let most = accesses.0 * if self.length == Length::Long { LONGER } else { 1 };
        cut(self.workload, most)
    }

    /// The switches that differ from the workload's.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        Overrides { kpti: Some(self.kpti), ..Overrides::default() }
    }
}

/// A built-in workload of so many accesses at most.
///
/// # Errors
///
/// Where there is no such workload.
pub(super) fn cut(name: &str, most: u64) -> Result<Workload, LabError> {
    let workload = Workload::find(name)?;
    let accesses = workload.facts().accesses.value();
    if accesses <= most { Ok(workload) } else { Ok(workload.scaled(real(most) / real(accesses))?) }
}

#[expect(clippy::cast_precision_loss, reason = "counts enter models")]
pub(super) const fn real(count: u64) -> f64 {
    count as f64
}

/// One guest natively, and under regimes.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The guest.
    pub spec: GuestSpec,
    /// What was counted of its native run, beside the run.
    pub events: Events,
    /// What the handlers of each regime would have done, counted likewise, in the order of the regimes asked for.
    pub work: Vec<Work>,
    /// The native run.
    pub native: RunResult,
    /// What its stream would do to TLBs whose entries cover no more than a host page of 4 KiB.
    pub splintered: Expected,
    /// The runs that are to be predicted, in the order of the regimes asked for.
    pub runs: Vec<RunResult>,
}

impl Observed {
    /// Runs a guest natively, under the census, and under `regimes`.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made or does not come to its end.
    pub fn of(
        spec: GuestSpec,
        accesses: Accesses,
        machine: &MachineSpec,
        regimes: &[RegimeKind],
    ) -> Result<Self, LabError> {
        let workload = spec.workload(accesses)?;
        let guest = spec.overrides().guest(&Input::Workload(Box::new(workload.clone())));
        let make = |regime: RegimeKind| -> Result<RunResult, LabError> {
            let (host, measure) = (HostConfig::default(), Measure::default());
            let setup = Setup { regime, guest, host, machine: machine.clone(), measure, check: false };
            Ok(run(&setup, &mut workload.generator(SEED), &mut |_| {})?.result)
        };
        let native = make(RegimeKind::Native)?;
        let runs = regimes.iter().map(|regime| make(*regime)).collect::<Result<Vec<_>, _>>()?;
        let census = census(&workload, guest, machine)?;
        let events = *census.events();
        let work =
            regimes.iter().map(|regime| policy(*regime).map_or_else(Work::default, |of| census.work(of))).collect();
        let small = Hardware { walk_caches: false, reads: Tables::Guest, largest: PageSize::Size4K };
        let mut stream = Stream::new(bare(guest, machine)?, machine, &[small])?;
        drive(&mut workload.generator(SEED), guest, false, &mut stream, |_, _| {})?;
        let splintered = stream.expected().next().unwrap_or_default();
        Ok(Self { spec, events, work, native, splintered, runs })
    }
}

/// The seed of all runs.
pub(super) const SEED: u64 = 7;

/// What the census counts of a workload's native run; no other run is looked at.
///
/// # Errors
///
/// Where the guest does not come to its end.
pub fn census(
    workload: &Workload,
    guest: GuestConfig,
    machine: &MachineSpec,
) -> Result<Census<Engine<Native>>, LabError> {
    let mut census = Census::new(bare(guest, machine)?);
    drive(&mut workload.generator(SEED), guest, false, &mut census, |_, _| {})?;
    Ok(census)
}

/// The policy of a regime, where the census follows it.
#[must_use]
pub const fn policy(regime: RegimeKind) -> Option<Policy> {
    Some(match regime {
        RegimeKind::NestedEpt => Policy::Nested,
        RegimeKind::ShadowWriteProtect => Policy::WriteProtect,
        RegimeKind::ShadowLazyFill => Policy::LazyFill,
        RegimeKind::ShadowVtlb => Policy::Vtlb,
        RegimeKind::ShadowKvm61 => Policy::Kvm,
        RegimeKind::ShadowXen => Policy::Xen,
        RegimeKind::ShadowVbox => Policy::Vbox,
        _ => return None,
    })
}

/// A machine without virtualization and without walk caches.
pub(crate) fn bare(guest: GuestConfig, machine: &MachineSpec) -> Result<Engine<Native>, LabError> {
    let frames = guest.memory_bytes / 4096;
    let vm = VmSpec { map: MemoryMap::identity(frames), vcpus: 1 };
    Ok(Engine::new(Host::new(frames), 1, &machine.geometry()?, Tags::On, vec![(vm, Native)]))
}

/// Runs a workload on a platform, with its memory there before it is touched or not; `between` is called before each batch.
pub(crate) fn drive<P: Platform, S: Source<Error = core::convert::Infallible>>(
    stream: &mut S,
    config: GuestConfig,
    prefault: bool,
    platform: &mut P,
    mut between: impl FnMut(&Guest, &mut P),
) -> Result<(), LabError> {
    let halted = |halted: Halted| LabError::Model(format!("a guest ended early: {halted:?}"));
    let mut ledger = Ledger::sums();
    let mut guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, platform, &mut ledger).map_err(halted)?;
    let mut batch = Batch::default();
    while stream.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
        between(&guest, platform);
        guest.batch(&batch, platform, &mut ledger).map_err(halted)?;
        if let (true, Some(Op::Mmap { range, .. })) = (prefault, batch.then) {
            guest.prefault(range, platform).map_err(halted)?;
        }
    }
    Ok(())
}
