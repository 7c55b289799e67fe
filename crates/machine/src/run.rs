//! One run: a stream of process operations, a guest, a platform, a price list.

use memvirt_ops::arch::HostEvent;
use memvirt_ops::process::{Batch, Op, Source};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Ledger, Platform, TimingSpec};

use crate::measure::{Measure, Mode};
use crate::price::price;
use crate::regime::{Bench, Hardware, HostConfig, RegimeKind, Shape, build};
use crate::result::{Outcome, RunResult, Stale, TableCounts};
use crate::spec::{MachineError, MachineSpec};
use crate::watch::Watch;
use memvirt_guest::{Guest, GuestConfig, GuestStats, Halted};

/// Everything a run depends on but its input.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The regime.
    pub regime: RegimeKind,
    /// The guest's switches.
    pub guest: GuestConfig,
    /// The hypervisor's switches.
    pub host: HostConfig,
    /// The machine that prices.
    pub machine: MachineSpec,
    /// How the run is measured.
    pub measure: Measure,
    /// Whether the oracle watches every access.
    pub check: bool,
}

/// A finished run.
#[derive(Debug)]
pub struct Finished<E> {
    /// What was counted, up to where the run ended.
    pub result: RunResult,
    /// Why the input could not be read to its end, where it could not.
    pub input_error: Option<E>,
    /// The first violations that the oracle found, in words.
    pub violations: Vec<String>,
}

/// Runs `source` under `setup`. `progress` is told the accesses of processes done so far, after each batch.
///
/// # Errors
///
/// [`MachineError`] where the machine's TLB shape is impossible.
pub fn run<S: Source>(
    setup: &Setup,
    source: &mut S,
    progress: &mut dyn FnMut(u64),
) -> Result<Finished<S::Error>, MachineError> {
    run_watched(setup, source, progress, &mut ())
}

/// As [`run`], with somebody who looks at it between batches.
///
/// # Errors
///
/// [`MachineError`] where the machine's TLB shape is impossible.
pub fn run_watched<S: Source>(
    setup: &Setup,
    source: &mut S,
    progress: &mut dyn FnMut(u64),
    watch: &mut dyn Watch,
) -> Result<Finished<S::Error>, MachineError> {
    let setup = &Setup { guest: setup.regime.asks_of(setup.guest), ..setup.clone() };
    let Some(mut bench) = assemble(setup, Shape::SINGLE)? else {
        return Ok(Recorder::default().finish(setup, None, GuestStats::default(), 0, Outcome::HostOutOfMemory, None));
    };
    let mut recorder = Recorder::default();
    let booted = Guest::boot(setup.guest, VmId::FIRST, VcpuId::FIRST, bench.platform(), &mut recorder.ledger);
    let mut guest = match booted {
        Ok(guest) => guest,
        Err(halted) => {
            let stats = GuestStats::default();
            return Ok(recorder.finish(setup, Some(&mut bench), stats, 0, halted.into(), None));
        }
    };
    let mut observers = Observers { progress, watch };
    let (outcome, input_error) = recorder.drive(&setup.measure, &mut guest, bench.platform(), source, &mut observers);
    observers.watch.end(&guest, bench.platform(), &recorder.ledger.counters);
    let (stats, tables) = (guest.stats(), guest.table_bytes());
    Ok(recorder.finish(setup, Some(&mut bench), stats, tables, outcome, input_error))
}

/// The platform of a run, of any shape; `None` where the host has no memory for it. The guest's switches must be those that the
/// regime asks for ([`RegimeKind::asks_of`]).
///
/// # Errors
///
/// [`MachineError`] where the machine's TLB shape is impossible.
pub fn assemble(setup: &Setup, shape: Shape) -> Result<Option<Bench>, MachineError> {
    let hardware = hardware(setup)?;
    let mut bench = build(setup.regime, setup.guest.memory_bytes, &setup.host, &hardware, shape, setup.check);
    if let (Some(bench), Some(limit)) = (&mut bench, setup.host.shadow_page_limit) {
        for vm in 0..shape.vms {
            bench.platform().host(&HostEvent::ShadowPageLimit(VmId(vm), limit), &mut Ledger::sums());
        }
    }
    Ok(bench)
}

/// What the machine file says of what is modelled.
fn hardware(setup: &Setup) -> Result<Hardware, MachineError> {
    let Setup { machine, measure, host, .. } = setup;
    let timing = match measure.mode {
        Mode::Counts => None,
        Mode::Cycles => {
            let caches = machine.cache_hierarchy()?;
            let caches = caches.ok_or_else(|| MachineError::NoCaches { machine: machine.name.clone() })?;
            let walk_cache_cycles = machine.walk_caches.as_ref().map_or(0, |caches| caches.latency.value);
            Some(TimingSpec { caches, walk_cache_cycles, walkers: measure.walkers })
        }
    };
    let mmu = host.walk_caches.then(|| machine.mmu_geometry()).transpose()?;
    Ok(Hardware { tlb: machine.geometry()?, mmu, timing })
}

impl From<Halted> for Outcome {
    fn from(halted: Halted) -> Self {
        match halted {
            Halted::GuestOutOfMemory => Self::GuestOutOfMemory,
            Halted::HostOutOfMemory => Self::HostOutOfMemory,
            Halted::KernelFault(_) => Self::GuestKernelFault,
            Halted::Livelock(_) => Self::Livelock,
        }
    }
}

/// Who is told of a run as it goes on.
struct Observers<'a> {
    progress: &'a mut dyn FnMut(u64),
    watch: &'a mut dyn Watch,
}

#[derive(Default)]
struct Recorder {
    ledger: Ledger,
    peak: u64,
}

impl Recorder {
    fn drive<S: Source>(
        &mut self,
        measure: &Measure,
        guest: &mut Guest,
        platform: &mut dyn Platform,
        source: &mut S,
        observers: &mut Observers<'_>,
    ) -> (Outcome, Option<S::Error>) {
        let mut batch = Batch::default();
        let (mut warming, mut uncounted) = (measure.warm_up_accesses > 0, 0);
        loop {
            match source.next_batch(&mut batch) {
                Ok(true) => {}
                Ok(false) if warming => return (Outcome::WarmUpOnly, None),
                Ok(false) => return (Outcome::Completed, None),
                Err(error) => return (Outcome::InputError, Some(error)),
            }
            if warming && guest.stats().user_accesses >= measure.warm_up_accesses {
                (warming, uncounted) = (false, guest.stats().user_accesses);
                guest.restart_stats();
                *self = Self::default();
            }
            let then = batch.then.take();
            let mapped = match then {
                Some(Op::Mmap { range, .. }) if measure.prefault => Some(range),
                _ => None,
            };
            let run = guest.batch(&batch, platform, &mut self.ledger);
            self.sample(guest, platform, observers.watch);
            let done = match (run, then) {
                (Ok(()), Some(op)) => {
                    batch.clear();
                    batch.then = Some(op);
                    guest.batch(&batch, platform, &mut self.ledger)
                }
                (run, _) => run,
            };
            let done = done.and_then(|()| mapped.map_or(Ok(()), |range| guest.prefault(range, platform)));
            self.sample(guest, platform, observers.watch);
            if let Err(halted) = done {
                return (halted.into(), None);
            }
            (observers.progress)(uncounted + guest.stats().user_accesses);
        }
    }

    fn sample(&mut self, guest: &Guest, platform: &dyn Platform, watch: &mut dyn Watch) {
        let below = platform.table_bytes();
        self.peak = self.peak.max(guest.table_bytes() + below.shadow + below.nested + below.metadata);
        watch.look(guest, platform, &self.ledger.counters);
    }

    fn finish<E>(
        self,
        setup: &Setup,
        bench: Option<&mut Bench>,
        guest: GuestStats,
        guest_tables: u64,
        outcome: Outcome,
        input_error: Option<E>,
    ) -> Finished<E> {
        let counters = self.ledger.counters;
        let (below, tally) =
            bench.map_or((Default::default(), None), |bench| (bench.platform().table_bytes(), bench.tally()));
        let (stale, violations) = tally.map_or((Stale::default(), Vec::new()), |(tally, violations)| {
            (Stale { checked: true, allowed: tally.allowed, broken: tally.violations() }, violations)
        });
        let tables = TableCounts::new(guest_tables, below, self.peak);
        let cycles = price(&setup.machine, &counters, &guest, self.ledger.served.as_deref());
        let result = RunResult::new(setup, outcome, &counters, guest, tables, stale, cycles);
        Finished { result, input_error, violations }
    }
}
