//! Scaling: one workload on 1, 2, 4, ... vCPUs under several regimes, in simulated time; what each vCPU still gets done, what it waits
//! for, and what models say that were fed from one vCPU.
//!
//! Each vCPU runs its own instances of the workload, or all are threads of one process. Runs are independent and spread by rayon;
//! each is sequential, so results do not depend on the number of threads.

mod model;
mod plots;
mod point;
mod stream;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use memvirt_machine::spec::SmpTimes;
use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, Mode, Outcome, RegimeKind, Setup, Shape};
use memvirt_ops::process::ProcessId;
use memvirt_smp::{Load, Rotation, Run, Smp, Start, Tenant, Thread, run};
use memvirt_timeline::Slice;
use memvirt_workload::{Spec, Workload};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::claims::Done;
use crate::error::LabError;
use crate::input::Input;
use crate::switches::{MEMORY_BYTES, Overrides};
use crate::text::count;
use crate::threads::on_threads;

pub use memvirt_platform::Interrupts;
pub use memvirt_timeline::Latencies;
pub use model::{Assumptions, Feed, Fit, Half, Prediction};
pub use point::{BenefitRow, PUBLISHED, Point, ScaleTable, Waits};
use stream::Stream;

/// What the vCPUs of a virtual machine share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Nothing but the machine: each vCPU has processes of its own.
    Tenants,
    /// One address space: each vCPU is a thread that does the workload's work in areas of its own.
    Threads,
}

impl Sharing {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::Threads => "threads",
        }
    }
}

impl std::str::FromStr for Sharing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Tenants, Self::Threads].into_iter().find(|sharing| sharing.name() == text);
        found.ok_or_else(|| format!("unknown sharing `{text}`; known: tenants, threads"))
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct ScalePlan {
    /// The workload.
    pub workload: Workload,
    /// The regimes, in the order of the results.
    pub regimes: Vec<RegimeKind>,
    /// Numbers of vCPUs of each virtual machine, in the order of the results.
    pub vcpus: Vec<u16>,
    /// What they share.
    pub sharing: Sharing,
    /// Virtual machines.
    pub vms: u16,
    /// Physical CPUs; as many as vCPUs in all where `None`.
    pub physical_cpus: Option<u16>,
    /// Instances of the workload in each virtual machine, dealt out to its vCPUs; one for each where `None`.
    pub processes: Option<u32>,
    /// Instructions that an instance runs before the next one on its vCPU does.
    pub quantum: u64,
    /// Fixed times, in cycles; those of [`latencies`] where `None`.
    pub latencies: Option<Latencies>,
    /// Cycles that a vCPU runs before another gets its physical CPU.
    pub slice: u64,
    /// Which interrupts between vCPUs exit.
    pub interrupts: Interrupts,
    /// Switches that differ from their defaults.
    pub overrides: Overrides,
    /// The machine that prices.
    pub machine: MachineSpec,
    /// The seed; instance k is run with a seed made of it and k.
    pub seed: u64,
    /// What is measured; the mode is `counts`. A warm-up is so many accesses of each vCPU.
    pub measure: Measure,
    /// vCPUs begin at random times within so many times what one alone takes; 0: all at once.
    pub stagger: f64,
    /// Whether the oracle watches.
    pub check: bool,
    /// Threads of the laboratory; as many as the computer has processors where `None`.
    pub threads: Option<NonZeroUsize>,
    /// The command that makes these results.
    pub command: String,
}

/// Instructions that an instance runs before the next one does, where nothing is said: a tick of Linux at 250 Hz on a core of
/// 2.5 GHz.
pub const QUANTUM: u64 = 10_000_000;
/// Cycles that a vCPU has its physical CPU for, where nothing is said: about a millisecond, the order of Linux' scheduler.
pub const SLICE: u64 = 3_000_000;
/// The fixed times on a machine.
#[must_use]
pub fn latencies(machine: &MachineSpec) -> Latencies {
    let SmpTimes { interrupt, kicked, world_switch, lock_handover, .. } = machine.smp_times();
    Latencies { interrupt, kicked, world_switch, handover: lock_handover }
}

/// The share of the time of one vCPU within which the others begin, where nothing is said: instances that do the same are not all
/// at the same place of it.
pub const STAGGER: f64 = 0.1;

/// A run, however it ended.
pub(crate) type Ended = memvirt_smp::Finished<memvirt_smp::ThreadError<std::convert::Infallible>>;

/// What each run is told.
struct Bed {
    guest: GuestConfig,
    host: HostConfig,
    latencies: Latencies,
}

impl ScalePlan {
    /// A plan with all that a command leaves out where no flag is given: an instance for each vCPU of one machine, fixed times and
    /// interrupts as the machine has them.
    pub(crate) fn usual(
        workload: Workload,
        regimes: Vec<RegimeKind>,
        vcpus: Vec<u16>,
        machine: &MachineSpec,
        command: String,
    ) -> Self {
        Self {
            workload,
            regimes,
            vcpus,
            sharing: Sharing::Tenants,
            vms: 1,
            physical_cpus: None,
            processes: None,
            quantum: QUANTUM,
            latencies: None,
            slice: SLICE,
            interrupts: machine.smp_times().interrupts,
            overrides: Overrides::default(),
            machine: machine.clone(),
            seed: 0,
            measure: Measure::default(),
            stagger: STAGGER,
            check: false,
            threads: None,
            command,
        }
    }

    /// Runs every point. The run with one vCPU, which the models are fed from, is made whether it is asked for or not.
    ///
    /// # Errors
    ///
    /// Where numbers do not fit each other or the workload, or the machine or the threads cannot be had.
    pub fn run(&self) -> Result<ScaleTable, LabError> {
        self.run_watched(&|_| {})
    }

    /// As [`run`](Self::run); `observer` hears of each finished point, from several threads.
    ///
    /// # Errors
    ///
    /// As `run`.
    pub fn run_watched(&self, observer: &(dyn Fn(Done) + Sync)) -> Result<ScaleTable, LabError> {
        self.check()?;
        let bed = self.bed();
        let mut cells: Vec<(RegimeKind, u16)> = Vec::new();
        for regime in &self.regimes {
            let counts = std::iter::once(1).chain(self.vcpus.iter().copied());
            for cell in counts.map(|vcpus| (*regime, vcpus)) {
                if !cells.contains(&cell) {
                    cells.push(cell);
                }
            }
        }
        let of = cells.len();
        let one = |regime: RegimeKind, vcpus: u16, length: u64| {
            let run = self.one(regime, vcpus, length, &bed)?;
            observer(Done { what: format!("{} under {regime} on {vcpus} vCPUs", self.workload.name()), of });
            Ok((regime, vcpus, run))
        };
        // One vCPU first: when the others begin follows from how long that takes.
        let (alone, several): (Vec<_>, Vec<_>) = cells.into_iter().partition(|(_, vcpus)| *vcpus == 1);
        let first = |(regime, vcpus): &(RegimeKind, u16)| one(*regime, *vcpus, 0);
        let length = |regime, runs: &[(RegimeKind, u16, Run)]| {
            runs.iter().find(|(kind, ..)| *kind == regime).map_or(0, |(.., run)| run.timeline.end)
        };
        let all = || -> Result<Vec<_>, LabError> {
            let mut runs: Vec<_> = alone.par_iter().map(first).collect::<Result<_, LabError>>()?;
            let more = |(regime, vcpus): &(RegimeKind, u16)| one(*regime, *vcpus, length(*regime, &runs));
            let more: Vec<_> = several.par_iter().map(more).collect::<Result<_, LabError>>()?;
            runs.extend(more);
            Ok(runs)
        };
        let runs = on_threads(self.threads, several.len().max(alone.len()), all)??;
        Ok(self.table(&bed, &runs))
    }

    fn check(&self) -> Result<(), LabError> {
        let refuse = |text: String| Err(LabError::Scale(text));
        let most = self.vcpus.iter().copied().max().unwrap_or(0);
        if self.regimes.is_empty() {
            return Err(LabError::NoRegime);
        }
        if !(0.0..=100.0).contains(&self.stagger) {
            return refuse(format!("--stagger {}: expected a share of the time of one vCPU, 0 to 100", self.stagger));
        }
        if self.vcpus.contains(&0) || most == 0 || u32::from(most) * u32::from(self.vms) > 256 {
            return refuse(format!("{most} vCPUs in {} machines: expected 1 to 256 vCPUs in all", self.vms));
        }
        if self.physical_cpus == Some(0) || self.vms == 0 {
            return refuse("expected at least one physical CPU and one virtual machine".to_owned());
        }
        if self.vms > 1 && self.regimes.contains(&RegimeKind::Native) {
            return refuse("`native` has no virtual machines: leave it out, or give --vms 1".to_owned());
        }
        match self.processes {
            Some(_) if self.sharing == Sharing::Threads => {
                refuse("threads are those of one process: leave out --processes, or --threads".to_owned())
            }
            Some(processes) if processes < u32::from(most) => {
                refuse(format!("{processes} processes on {most} vCPUs: expected at least one for each"))
            }
            _ => Ok(()),
        }
    }

    /// One machine for all points: its memory is that of the largest, so that what follows memory is the same in each.
    fn bed(&self) -> Bed {
        let input = Input::Workload(Box::new(self.workload.clone()));
        let mut guest = self.overrides.guest(&input);
        if self.overrides.memory_bytes.is_none() {
            let most = self.vcpus.iter().copied().max().unwrap_or(1);
            let instances = u64::from(self.processes.unwrap_or(u32::from(most)));
            let need = self.workload.facts().footprint_bytes.saturating_mul(2 * instances);
            guest.memory_bytes = guest.memory_bytes.max(need.next_multiple_of(1 << 30)).min(*MEMORY_BYTES.end());
        }
        let host = HostConfig { interrupts: self.interrupts, ..self.overrides.host(Mode::Counts) };
        Bed { guest, host, latencies: self.latencies.unwrap_or_else(|| latencies(&self.machine)) }
    }

    /// When the physical CPUs begin; one vCPU by itself takes `length` for all that is to be done.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a time, not negative"
    )]
    fn begin(&self, cpus: usize, vcpus: u16, length: u64) -> Vec<u64> {
        let each = if self.processes.is_some() { length / u64::from(vcpus) } else { length };
        let within = (each as f64 * self.stagger.max(0.0)) as u64;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 0x5741_4747_4552);
        (0..cpus).map(|cpu| if cpu == 0 || within == 0 { 0 } else { random.random_range(0..within) }).collect()
    }

    /// What the runs of a regime are told.
    pub(crate) fn setup(&self, regime: RegimeKind) -> Setup {
        let (Bed { guest, host, .. }, machine) = (self.bed(), self.machine.clone());
        Setup { regime, guest, host, machine, measure: self.measure, check: self.check }
    }

    /// One point, however it ends; one vCPU by itself takes `length`.
    ///
    /// # Errors
    ///
    /// Where numbers do not fit each other, or the machine cannot be built.
    pub(crate) fn simulate(&self, regime: RegimeKind, vcpus: u16, length: u64) -> Result<Ended, LabError> {
        self.check()?;
        self.simulate_in(regime, vcpus, length, &self.bed())
    }

    /// What `one` makes of every regime, side by side.
    pub(crate) fn on_all_regimes<T: Send>(
        &self,
        one: impl Fn(&RegimeKind) -> Result<T, LabError> + Sync,
    ) -> Result<Vec<T>, LabError> {
        let all = || self.regimes.par_iter().map(&one).collect::<Result<Vec<_>, LabError>>();
        on_threads(self.threads, self.regimes.len(), all)?
    }

    fn simulate_in(&self, regime: RegimeKind, vcpus: u16, length: u64, bed: &Bed) -> Result<Ended, LabError> {
        let machine = self.machine.clone();
        let (guest, host, measure) = (bed.guest, bed.host, self.measure);
        let setup = Setup { regime, guest, host, machine, measure, check: self.check };
        let all = usize::from(self.vms) * usize::from(vcpus);
        let cpus = self.physical_cpus.map_or(all, usize::from).min(all);
        let shape = Shape { cpus, vms: self.vms, vcpus };
        let (latencies, slice) = (bed.latencies, Slice(self.slice));
        let smp = Smp { setup, shape, latencies, slice, start: Start::Booted, begin: self.begin(cpus, vcpus, length) };
        let loads = (0..self.vms).flat_map(|vm| (0..vcpus).map(move |vcpu| (vm, vcpu)));
        Ok(run(&smp, loads.map(|(vm, vcpu)| self.load(vm, vcpu, vcpus)).collect())?)
    }

    /// One point that must come to its end; one vCPU by itself takes `length`.
    fn one(&self, regime: RegimeKind, vcpus: u16, length: u64, bed: &Bed) -> Result<Run, LabError> {
        let done = self.simulate_in(regime, vcpus, length, bed)?;
        if let Some(error) = done.input_error {
            return Err(LabError::Scale(format!("{}: {error}", self.workload.name())));
        }
        if done.run.outcome != Outcome::Completed {
            return Err(LabError::Scale(format!("{regime} with {vcpus} vCPUs: {}", self.why(done.run.outcome))));
        }
        Ok(done.run)
    }

    /// Why a run ended early, and what can be done.
    fn why(&self, outcome: Outcome) -> String {
        match outcome {
            Outcome::GuestOutOfMemory => {
                "the guest has no memory left; give it more with --memory, or shorten the run with --scale".to_owned()
            }
            Outcome::HostOutOfMemory => {
                "the host has no memory left for guests of this size; give them less with --memory, or take fewer".to_owned()
            }
            Outcome::WarmUpOnly => format!(
                "the workload has no accesses left after a warm-up of {} on each vCPU; warm up less, or run longer with --scale",
                count(self.measure.warm_up_accesses)
            ),
            Outcome::GuestKernelFault => {
                "the guest's kernel faulted on its own memory: the regime handed out a wrong translation; --check says which".to_owned()
            }
            Outcome::Livelock => {
                "an access keeps faulting: the regime handed out a wrong translation; --check says which".to_owned()
            }
            Outcome::Completed | Outcome::InputError => "the run ended early".to_owned(),
        }
    }

    /// What runs on vCPU `vcpu` of `vcpus` in one of the machines.
    fn load(&self, vm: u16, vcpu: u16, vcpus: u16) -> Load<Stream> {
        let seed = |number: u32| self.seed ^ (u64::from(vm) << 40) ^ (u64::from(number) << 16);
        if self.sharing == Sharing::Threads {
            let source = Thread::new(self.workload.generator(seed(u32::from(vcpu))), u64::from(vcpu) * self.stride());
            return Load { source: Stream::Thread(Box::new(source)), processes: Vec::new() };
        }
        let of = self.processes.unwrap_or(u32::from(vcpus));
        let numbers = (u32::from(vcpu)..of).step_by(usize::from(vcpus));
        let tenants = numbers.map(|number| Tenant::new(self.workload.generator(seed(number)), number, of));
        let instances: Vec<_> = tenants.map(|tenant| (tenant.first(), tenant)).collect();
        let processes: Vec<ProcessId> = instances.iter().map(|(first, _)| *first).collect();
        let source = Rotation::new(instances.into_iter().map(|(first, tenant)| (tenant, first)), self.quantum);
        Load { source: Stream::Tenants(Box::new(source)), processes }
    }

    /// How far apart threads lie: twice the area, in the units of an allocator's arenas (glibc: 64 MiB).
    fn stride(&self) -> u64 {
        match self.workload.spec() {
            Spec::Script(_) => 64 << 30,
            _ => (self.workload.facts().footprint_bytes * 2).next_multiple_of(64 << 20),
        }
    }

    fn table(&self, bed: &Bed, runs: &[(RegimeKind, u16, Run)]) -> ScaleTable {
        let mut points = Vec::new();
        let (mut fits, mut feeds) = (Vec::new(), Vec::new());
        for regime in &self.regimes {
            let mine = || runs.iter().filter(|(kind, _, _)| kind == regime);
            let Some((_, _, base)) = mine().find(|(_, vcpus, _)| *vcpus == 1) else { continue };
            let feed = Feed::new(*regime, &self.machine, bed, self, base);
            let asked = || mine().filter(|(_, vcpus, _)| self.vcpus.contains(vcpus));
            let fit = model::fit(*regime, asked().map(|(_, vcpus, run)| (*vcpus, point::throughput(run))));
            for (_, vcpus, run) in asked() {
                let (mva, assumptions) = (feed.predict(*vcpus), feed.assumptions(*vcpus));
                points.push(Point { assumptions, ..Point::new(*regime, *vcpus, run, base, mva, fit.as_ref()) });
            }
            fits.extend(fit);
            feeds.push(feed);
        }
        ScaleTable::new(self, bed, points, (feeds, fits))
    }
}
