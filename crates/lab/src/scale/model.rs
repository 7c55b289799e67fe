//! What models say of many vCPUs that were fed from one: mean-value analysis of the closed network of vCPUs and one lock, and the law
//! of scalability fitted to the measured points.
//!
//! Of the run with one vCPU the analysis takes: takings of the lock, mean and variation of the time held, the time in between, remote
//! flushes asked for, flushes of the guest, and which of INVLPG and CR3 loads exit. All else is the machine file's. Service that is
//! not exponential enters by its residual life, an approximation; a fair queue of vCPUs that behave alike and start together waits
//! less than that, and vCPUs that finish leave the others alone.

use memvirt_costmodel::mva::{Lock, Shootdown};
use memvirt_costmodel::usl::Usl;
use memvirt_machine::{MachineSpec, RegimeKind};
use memvirt_platform::{ExitReason, Interrupts};
use memvirt_smp::Run;
use serde::Serialize;

use super::{Bed, ScalePlan, Sharing};

/// What mean-value analysis expects of a number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Throughput of a vCPU relative to one alone.
    pub efficiency: f64,
    /// The share of time that the lock is held.
    pub lock_utilization: f64,
    /// The share of a vCPU's time that it waits for the lock.
    pub lock_wait: f64,
}

/// The law of scalability, fitted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The regime.
    pub regime: RegimeKind,
    /// Its parameters; throughput in accesses for each million cycles, of all vCPUs.
    pub law: Usl,
    /// The number of vCPUs with the greatest throughput; none where it never falls.
    pub peak: Option<f64>,
}

/// Fits the law to (vCPUs, throughput of each); `None` for fewer than three numbers of vCPUs.
pub(super) fn fit(regime: RegimeKind, points: impl Iterator<Item = (u16, f64)>) -> Option<Fit> {
    let points: Vec<_> = points.map(|(n, each)| (f64::from(n), each * f64::from(n))).collect();
    let (law, _) = Usl::fit(&points).ok()?;
    let peak = Some(law.peak()).filter(|peak| peak.is_finite());
    Some(Fit { regime, law, peak })
}

/// What the models take of a run with one vCPU, and of the machine. Times in cycles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Feed {
    /// The regime.
    pub regime: RegimeKind,
    /// Cycles of the run.
    pub cycles: f64,
    /// Those of them under the lock.
    pub locked: f64,
    /// Takings of the lock.
    pub takings: f64,
    /// The share of them that is shared with others.
    pub shared: f64,
    /// How long it is held alone, on average.
    pub hold: f64,
    /// How long it is held shared.
    pub hold_shared: f64,
    /// The squared coefficient of variation of the time held alone: 1 where exponential.
    pub variation: f64,
    /// Remote flushes.
    pub flushes: f64,
    /// The share of time in guest mode: who is there has to be kicked.
    pub in_guest: f64,
    /// From sending an interrupt to its arrival.
    pub interrupt: f64,
    /// What a kick costs the kicked vCPU.
    pub kicked: f64,
    #[serde(skip)]
    guest: GuestFlushes,
}

/// Flushes of an address space that others run on, for which threads interrupt each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct GuestFlushes {
    count: f64,
    /// What sending costs.
    send: f64,
    /// What a target does, waits excluded, and what of that the sender does not do itself meanwhile.
    receive: f64,
    beyond: f64,
    /// Takings of the lock by each target.
    takings: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts enter a model")]
const fn real(n: u64) -> f64 {
    n as f64
}

fn per(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { real(part) / real(whole) }
}

impl Feed {
    pub(super) fn new(regime: RegimeKind, machine: &MachineSpec, bed: &Bed, plan: &ScalePlan, one: &Run) -> Self {
        let demand = &one.demand;
        let (alone, shared) = (demand.exclusive, demand.shared);
        let guest = match plan.sharing {
            Sharing::Tenants => GuestFlushes::default(),
            Sharing::Threads => GuestFlushes::of(machine, plan, bed, one),
        };
        Self {
            regime,
            cycles: real(one.cycles()),
            locked: real(alone.cycles + shared.cycles),
            takings: real(alone.count + shared.count),
            shared: per(shared.count, alone.count + shared.count),
            hold: alone.mean(),
            hold_shared: shared.mean(),
            variation: alone.variation(),
            flushes: real(demand.remote_flushes),
            in_guest: per(one.base + one.translation, one.cycles()),
            interrupt: real(bed.latencies.interrupt),
            kicked: real(bed.latencies.kicked),
            guest,
        }
    }

    /// The expectation for `vcpus` vCPUs of a virtual machine.
    pub(super) fn predict(&self, vcpus: u16) -> Prediction {
        let others = f64::from(vcpus.saturating_sub(1));
        let own = if others > 0.0 { self.guest } else { GuestFlushes::default() };
        // Takings of the lock for each taking of its own: others' flushes make more.
        let visits = if self.takings > 0.0 { 1.0 + own.count / self.takings * own.takings * others } else { 1.0 };
        let queue = own.takings * self.hold * others;
        let sent = own.count * (own.send + self.interrupt + own.beyond + queue);
        let served = own.count * own.receive * others;
        if self.takings <= 0.0 || self.locked <= 0.0 {
            let efficiency = self.cycles / (self.cycles + sent + served);
            return Prediction { efficiency, lock_utilization: 0.0, lock_wait: 0.0 };
        }
        let think = (self.cycles - self.locked + sent + served) / (self.takings * visits);
        let shootdown = Shootdown {
            rate: self.flushes / self.takings,
            send: self.interrupt,
            send_each: 0.0,
            receive: self.kicked * self.in_guest,
            locked: true,
        };
        let lock = Lock {
            think,
            hold: self.hold,
            variation: self.variation,
            shared: self.shared,
            hold_shared: self.hold_shared,
            shootdown,
        };
        let expected = lock.expected(usize::from(vcpus));
        let each = expected.throughput / f64::from(vcpus) / visits;
        let one = self.takings / self.cycles;
        Prediction {
            efficiency: each / one,
            lock_utilization: expected.utilization,
            lock_wait: expected.waiting_share,
        }
    }
}

impl GuestFlushes {
    fn of(machine: &MachineSpec, plan: &ScalePlan, bed: &Bed, one: &Run) -> Self {
        let (guest, exits) = (&one.guest, &one.counters);
        let virtualized = exits.total_exits() > 0;
        let round_trip = u64::from(machine.exits.round_trip.value);
        let exit = |handler: &memvirt_machine::spec::Figure| real(round_trip + handler.times(1));
        let interrupt = if virtualized { exit(&machine.exits.other) } else { 0.0 };
        let invlpg = per(exits.exits_for(ExitReason::Invlpg), guest.invlpgs);
        let load = per(exits.exits_for(ExitReason::Cr3Load), guest.cr3_loads);
        let mixed = |exits: f64, out: f64, within: f64| exits * out + (1.0 - exits) * within;
        let page = mixed(invlpg, exit(&machine.exits.invlpg), real(machine.base.invlpg.times(1)));
        let root = mixed(load, exit(&machine.exits.cr3_load), real(machine.base.cr3_load.times(1)));
        let (pages, roots) = (per(guest.invlpgs, guest.flushes), per(guest.full_flushes, guest.flushes));
        let (crossings, entry) = (if bed.guest.kpti { 2.0 } else { 0.0 }, real(machine.base.kernel_entry.times(1)));
        let posted = plan.interrupts != Interrupts::Exiting;
        let beyond = entry + crossings * root + if posted { 0.0 } else { interrupt };
        Self {
            count: real(guest.flushes),
            send: if plan.interrupts == Interrupts::Virtualized { 0.0 } else { interrupt },
            receive: beyond + pages * page + roots * root,
            beyond,
            takings: pages * invlpg + (roots + crossings) * load,
        }
    }
}
