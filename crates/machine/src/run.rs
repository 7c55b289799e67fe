//! One run: a stream of process operations, a guest, a platform, a price list.

use memvirt_ops::process::{Batch, Source};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Ledger, Platform};

use memvirt_guest::{Guest, GuestConfig, GuestStats, Halted};
use crate::price::price;
use crate::regime::{Bench, HostConfig, RegimeKind, build};
use crate::result::{Outcome, RefCounts, RunResult, Stale, Switches, TableCounts, TlbCounts, exits};
use crate::spec::{MachineError, MachineSpec};

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
    let geometry = setup.machine.geometry()?;
    let bench = build(setup.regime, setup.guest.memory_bytes, &setup.host, &geometry, setup.check);
    let Some(mut bench) = bench else {
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
    let (outcome, input_error) = recorder.drive(&mut guest, bench.platform(), source, progress);
    let (stats, tables) = (guest.stats(), guest.table_bytes());
    Ok(recorder.finish(setup, Some(&mut bench), stats, tables, outcome, input_error))
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

#[derive(Default)]
struct Recorder {
    ledger: Ledger,
    peak: u64,
}

impl Recorder {
    fn drive<S: Source>(
        &mut self,
        guest: &mut Guest,
        platform: &mut dyn Platform,
        source: &mut S,
        progress: &mut dyn FnMut(u64),
    ) -> (Outcome, Option<S::Error>) {
        let mut batch = Batch::default();
        loop {
            match source.next_batch(&mut batch) {
                Ok(true) => {}
                Ok(false) => return (Outcome::Completed, None),
                Err(error) => return (Outcome::InputError, Some(error)),
            }
            let then = batch.then.take();
            let run = guest.batch(&batch, platform, &mut self.ledger);
            self.sample(guest, platform);
            let done = match (run, then) {
                (Ok(()), Some(op)) => {
                    batch.clear();
                    batch.then = Some(op);
                    guest.batch(&batch, platform, &mut self.ledger)
                }
                (run, _) => run,
            };
            self.sample(guest, platform);
            if let Err(halted) = done {
                return (halted.into(), None);
            }
            progress(guest.stats().user_accesses);
        }
    }

    fn sample(&mut self, guest: &Guest, platform: &dyn Platform) {
        let below = platform.table_bytes();
        self.peak = self.peak.max(guest.table_bytes() + below.shadow + below.nested + below.metadata);
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
        let refs = counters.refs;
        let result = RunResult {
            regime: setup.regime,
            switches: Switches { guest: setup.guest, host: setup.host, vcpus: 1 },
            outcome,
            accesses: counters.accesses,
            tlb: TlbCounts { l1_hits: counters.l1_hits, l2_hits: counters.l2_hits, misses: counters.misses },
            walks: counters.walks,
            walk_refs: RefCounts { guest: refs.guest, shadow: refs.shadow, host: refs.host, total: refs.total() },
            ad_updates: counters.ad_updates,
            tlb_flushes: counters.tlb_flushes,
            exits: exits(&counters),
            guest_page_faults: counters.guest_page_faults,
            table_bytes: TableCounts::new(guest_tables, below, self.peak),
            stale,
            cycles: price(&setup.machine, &counters, &guest),
            work: counters.work,
            guest,
        };
        Finished { result, input_error, violations }
    }
}
