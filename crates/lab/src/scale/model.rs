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
    /// The mean time in guest mode between two exits: who leaves by itself has not to be waited for.
    pub stretch: f64,
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
            stretch: per(one.base + one.translation, one.counters.total_exits()),
            interrupt: real(bed.latencies.interrupt),
            kicked: real(bed.latencies.kicked),
            guest,
        }
    }

    /// The expectation for `vcpus` vCPUs of a virtual machine.
    pub(super) fn predict(&self, vcpus: u16) -> Prediction {
        const ROUNDS: u32 = 40;
        let mut expected = self.expect(vcpus, 1.0);
        // Who waits is not in guest mode and need not be kicked: the share there falls with the throughput.
        let mut efficiency = 1.0;
        for _ in 0..ROUNDS {
            efficiency = f64::midpoint(efficiency, expected.efficiency.min(1.0));
            expected = self.expect(vcpus, efficiency);
        }
        expected
    }

    /// The expectation where vCPUs are in guest mode so many times as long as one alone.
    fn expect(&self, vcpus: u16, presence: f64) -> Prediction {
        let others = f64::from(vcpus.saturating_sub(1));
        let own = if others > 0.0 { self.guest } else { GuestFlushes::default() };
        // Takings of the lock for each taking of its own: others' flushes make more.
        let visits = if self.takings > 0.0 { 1.0 + own.count / self.takings * own.takings * others } else { 1.0 };
        let queue = own.takings * self.hold * others;
        let sent = own.count * (own.send + self.interrupt + own.beyond + queue);
        let served = own.count * own.receive * others;
        // Nothing to queue for: native, or a hypervisor that never takes the lock.
        if self.takings <= 0.0 || self.locked <= 0.0 {
            let efficiency = self.cycles / (self.cycles + sent + served);
            return Prediction { efficiency, lock_utilization: 0.0, lock_wait: 0.0 };
        }
        let shootdown = Shootdown {
            rate: self.flushes / self.takings,
            send: self.kick_wait(others, presence),
            send_each: 0.0,
            receive: self.kicked * presence * self.there_after(self.interrupt),
            locked: true,
        };
        let think = (self.cycles - self.locked + sent + served) / (self.takings * visits);
        let Self { hold, variation, shared, hold_shared, .. } = *self;
        let lock = Lock { think, hold, variation, shared, hold_shared, shootdown };
        let expected = lock.expected(usize::from(vcpus));
        let each = expected.throughput / f64::from(vcpus) / visits;
        let one = self.takings / self.cycles;
        Prediction { efficiency: each / one, lock_utilization: expected.utilization, lock_wait: expected.waiting_share }
    }
}

impl Feed {
    /// The probability that a vCPU that was kicked is still in guest mode so much later, were times there exponential.
    fn there_after(&self, later: f64) -> f64 {
        if self.stretch > 0.0 { self.in_guest * (-later / self.stretch).exp() } else { 0.0 }
    }

    /// How long a kick of `others` is waited for: until the last that was in guest mode has left it, by itself or by the interrupt.
    fn kick_wait(&self, others: f64, presence: f64) -> f64 {
        const STEPS: u32 = 64;
        let width = self.interrupt / f64::from(STEPS);
        let anybody = |t: f64| 1.0 - (1.0 - presence * self.there_after(t)).powf(others);
        (0..STEPS).map(|i| anybody((f64::from(i) + 0.5) * width) * width).sum()
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
