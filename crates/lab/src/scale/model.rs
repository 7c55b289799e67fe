//! What models say of many vCPUs that were fed from one: mean-value analysis of the closed network of vCPUs and one lock, and the law
//! of scalability fitted to the measured points.
//!
//! Of the run with one vCPU the analysis takes: takings of the lock, how long each held it, the time in between, which of them flush
//! all vCPUs, flushes of the guest, and which of INVLPG and CR3 loads exit. All else is the machine file's. A lock that is always
//! held alone is the closed queue with times held as counted, exact where times in between are exponential and vCPUs independent;
//! one that is shared is approximated. Whether that holds is decided from the same run ([`Assumptions`]).

use memvirt_costmodel::closed::{Closed, Hold};
use memvirt_costmodel::mva::{Lock, Shootdown};
use memvirt_costmodel::usl::Usl;
use memvirt_machine::{MachineSpec, RegimeKind};
use memvirt_platform::{ExitReason, Interrupts};
use memvirt_smp::{Part, Parts, Run, Times};
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
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// The same of the time between two takings.
    pub think_variation: f64,
    /// Remote flushes.
    pub flushes: f64,
    /// The share of takings that kick the others, once there are any.
    pub flushing: f64,
    /// The share of time in guest mode: who is there has to be kicked.
    pub in_guest: f64,
    /// The mean time in guest mode between two exits: who leaves by itself is out when the kick arrives.
    pub stretch: f64,
    /// From sending an interrupt to its arrival.
    pub interrupt: f64,
    /// What a kick costs the kicked vCPU.
    pub kicked: f64,
    /// From giving the lock back until the next in its queue has it.
    pub handover: f64,
    /// Twice the standard error of the time of an access, as a share of it, by batches of the run: how far other instances may be
    /// from this one. None where the run is too short to tell.
    pub uncertainty: Option<f64>,
    /// Cycles, those of them under the lock, and takings, in the first half of the run and in the second.
    pub halves: [Half; 2],
    /// Whether each vCPU has a physical CPU.
    #[serde(skip)]
    own_cpus: bool,
    #[serde(skip)]
    holds: Vec<(Hold, bool)>,
    #[serde(skip)]
    guest: GuestFlushes,
}

/// One half of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Half {
    /// Accesses by processes.
    pub accesses: f64,
    /// Cycles.
    pub cycles: f64,
    /// Those of them under the lock.
    pub locked: f64,
    /// Takings of the lock.
    pub takings: f64,
}

impl From<Part> for Half {
    fn from(part: Part) -> Self {
        Self {
            accesses: real(part.accesses),
            cycles: real(part.cycles),
            locked: real(part.locked),
            takings: real(part.takings),
        }
    }
}

/// Whether the analysis may be believed: decided by the run with one vCPU and what is predicted from it, never by the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Assumptions {
    /// What is assumed holds, or makes no difference.
    Hold,
    /// vCPUs depend on each other by more than the lock: threads interrupt each other and wait for answers.
    Interrupts,
    /// vCPUs share physical CPUs.
    Preemption,
    /// The second half of the run costs another time than all of it, or asks for the lock as the first does not.
    Trend,
    /// Instances differ more from each other than one of them can tell.
    Sample,
    /// Kicks follow each other so fast that the next one meets vCPUs which the last one has put out of guest mode.
    Kicks,
    /// Times in between and times held are so regular that vCPUs fall into step.
    Regular,
}

impl Assumptions {
    /// For people: what fails, if anything.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Interrupts => "interrupts",
            Self::Preemption => "preemption",
            Self::Trend => "trend",
            Self::Sample => "sample",
            Self::Kicks => "kicks",
            Self::Regular => "regular",
        }
    }
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
        let classes = |of: &Times, kicks| -> Vec<_> {
            of.classes().map(|(count, time)| (Hold { weight: real(count), time }, kicks)).collect()
        };
        let (first, second) = demand.parts.halves();
        let most = plan.vcpus.iter().copied().max().unwrap_or(1);
        Self {
            regime,
            cycles: real(one.cycles()),
            locked: real(alone.cycles + shared.cycles),
            takings: real(alone.count + shared.count),
            shared: per(shared.count, alone.count + shared.count),
            hold: alone.mean(),
            hold_shared: shared.mean(),
            variation: alone.variation(),
            think_variation: demand.thinks.variation(),
            flushes: real(demand.remote_flushes),
            flushing: per(demand.flushing.count(), alone.count + shared.count),
            in_guest: per(one.base + one.translation, one.cycles()),
            stretch: per(one.base + one.translation, one.counters.total_exits()),
            interrupt: real(bed.latencies.interrupt),
            kicked: real(bed.latencies.kicked),
            handover: real(bed.latencies.handover),
            uncertainty: uncertainty(&demand.parts),
            halves: [first.into(), second.into()],
            own_cpus: plan.physical_cpus.is_none_or(|cpus| cpus >= plan.vms * most),
            holds: [classes(&demand.holds, false), classes(&demand.flushing, true)].concat(),
            guest,
        }
    }

    /// The expectation for `vcpus` vCPUs of a virtual machine.
    pub(super) fn predict(&self, vcpus: u16) -> Prediction {
        const ROUNDS: u32 = 40;
        // Nothing to queue for: native, or a hypervisor that never takes the lock.
        if self.takings <= 0.0 || self.locked <= 0.0 {
            let Extra { time, .. } = self.extra(vcpus);
            return Prediction {
                efficiency: self.cycles / (self.cycles + time),
                lock_utilization: 0.0,
                lock_wait: 0.0,
            };
        }
        if self.shared <= 0.0 {
            return self.alone(vcpus, &self.whole(), 1.0).1;
        }
        let mut expected = self.shared(vcpus, 1.0);
        // Who waits is not in guest mode and need not be kicked: the share there falls with the throughput.
        let mut efficiency = 1.0;
        for _ in 0..ROUNDS {
            efficiency = f64::midpoint(efficiency, expected.efficiency.min(1.0));
            expected = self.shared(vcpus, efficiency);
        }
        expected
    }

    const fn whole(&self) -> Half {
        let accesses = self.halves[0].accesses + self.halves[1].accesses;
        Half { accesses, cycles: self.cycles, locked: self.locked, takings: self.takings }
    }

    /// What threads add: time of each, and takings of the lock.
    fn extra(&self, vcpus: u16) -> Extra {
        let others = f64::from(vcpus.saturating_sub(1));
        let own = if others > 0.0 { self.guest } else { GuestFlushes::default() };
        // Takings of the lock for each taking of its own: others' flushes make more.
        let visits = if self.takings > 0.0 { 1.0 + own.count / self.takings * own.takings * others } else { 1.0 };
        let queue = own.takings * self.hold * others;
        let sent = own.count * (own.send + self.interrupt + own.beyond + queue);
        Extra { time: sent + own.count * own.receive * others, visits }
    }

    /// The expectation where the lock is always held alone: the closed queue with the times held as they were counted. `part` says
    /// how often and for how long in a part of the run; kicks meet vCPUs in guest mode so many times as often as chance has it.
    fn alone(&self, vcpus: u16, part: &Half, meets: f64) -> (Closed, Prediction) {
        const ROUNDS: u32 = 20;
        let others = f64::from(vcpus.saturating_sub(1));
        let Extra { time, visits } = self.extra(vcpus);
        let length = part.cycles / self.cycles;
        let outside = (part.cycles - part.locked + time * length) / (part.takings * visits);
        let longer = (part.locked / part.takings) / (self.locked / self.takings);
        // Of the time outside the lock, what is in guest mode and can be kicked.
        let guest = (self.in_guest * self.cycles / (self.cycles - self.locked)).min(1.0);
        let leaves = if self.stretch > 0.0 { (-self.interrupt / self.stretch).exp() } else { 0.0 };
        let mut queue = Closed { think: outside, holds: Vec::new(), handover: self.handover };
        let mut thinks = 1.0;
        for _ in 0..ROUNDS {
            // A kick waits for its interrupt where it finds anybody in guest mode, and costs those who are still there.
            let wait = self.interrupt * meets * (1.0 - (1.0 - thinks * guest).powf(others));
            queue.think = outside + self.flushing * others * self.kicked * thinks * guest * leaves;
            let held = |(hold, kicks): &(Hold, bool)| Hold {
                time: hold.time * longer + if *kicks { wait } else { 0.0 },
                ..*hold
            };
            queue.holds = self.holds.iter().map(held).collect();
            if others < 1.0 {
                break;
            }
            // Who gives the lock back sees the others as they are without it (the arrival theorem).
            let rest = queue.expected(usize::from(vcpus) - 1);
            thinks = f64::midpoint(thinks, (rest.throughput * queue.think / others).min(1.0));
        }
        let expected = queue.expected(usize::from(vcpus));
        let each = expected.throughput / f64::from(vcpus) / visits;
        let prediction = Prediction {
            efficiency: each * part.cycles / part.takings,
            lock_utilization: expected.utilization,
            lock_wait: expected.waiting_share,
        };
        (queue, prediction)
    }

    /// The expectation where the lock is shared by some, and vCPUs are in guest mode so many times as long as one alone.
    fn shared(&self, vcpus: u16, presence: f64) -> Prediction {
        let others = f64::from(vcpus.saturating_sub(1));
        let Extra { time, visits } = self.extra(vcpus);
        let there = presence * self.in_guest;
        let leaves = if self.stretch > 0.0 { (-self.interrupt / self.stretch).exp() } else { 0.0 };
        let shootdown = Shootdown {
            rate: self.flushing,
            send: self.interrupt * (1.0 - (1.0 - there).powf(others)),
            send_each: 0.0,
            receive: self.kicked * there * leaves,
            locked: true,
        };
        let think = (self.cycles - self.locked + time) / (self.takings * visits);
        let Self { hold, variation, shared, hold_shared, .. } = *self;
        let lock = Lock { think, hold, variation, shared, hold_shared, shootdown };
        let expected = lock.expected(usize::from(vcpus));
        let each = expected.throughput / f64::from(vcpus) / visits;
        let one = self.takings / self.cycles;
        Prediction { efficiency: each / one, lock_utilization: expected.utilization, lock_wait: expected.waiting_share }
    }

    /// Whether what is assumed holds for `vcpus` vCPUs, or how much it could matter is little.
    pub(super) fn assumptions(&self, vcpus: u16) -> Assumptions {
        if !self.own_cpus {
            return Assumptions::Preemption;
        }
        if vcpus <= 1 {
            return Assumptions::Hold;
        }
        if self.extra(vcpus).time > LITTLE * self.cycles {
            return Assumptions::Interrupts;
        }
        // What is done once for all, memory that the host brings in first of all, each of several does a part of.
        if self.drift() > DRIFT {
            return Assumptions::Trend;
        }
        if self.uncertainty.is_none_or(|error| error > MARGIN) {
            return Assumptions::Sample;
        }
        if self.takings <= 0.0 || self.locked <= 0.0 || self.shared > 0.0 {
            return Assumptions::Hold;
        }
        let whole = self.predict(vcpus).efficiency;
        if (self.by_halves(vcpus) / whole - 1.0).abs() > LITTLE {
            return Assumptions::Trend;
        }
        if self.alone(vcpus, &self.whole(), 0.0).1.efficiency / whole - 1.0 > MARGIN {
            return Assumptions::Kicks;
        }
        if self.think_variation < REGULAR && self.in_step(vcpus) / whole - 1.0 > MARGIN {
            return Assumptions::Regular;
        }
        Assumptions::Hold
    }

    /// By how much an access costs less or more in the second half of the run than in all of it.
    fn drift(&self) -> f64 {
        let [_, second] = self.halves;
        let whole = self.whole();
        if second.accesses <= 0.0 || whole.accesses <= 0.0 || second.cycles <= 0.0 {
            return 0.0;
        }
        (whole.cycles / whole.accesses / (second.cycles / second.accesses) - 1.0).abs()
    }

    /// The efficiency were each half of the run analysed by itself.
    fn by_halves(&self, vcpus: u16) -> f64 {
        let halves = self.halves.iter().filter(|half| half.cycles > 0.0);
        let slow = |half: &Half| if half.takings > 0.0 { self.alone(vcpus, half, 1.0).1.efficiency } else { 1.0 };
        let (cycles, then) =
            halves.fold((0.0, 0.0), |(cycles, then), half| (cycles + half.cycles, then + half.cycles / slow(half)));
        if then > 0.0 { cycles / then } else { 1.0 }
    }

    /// The most efficiency that there can be: nobody waits unless the lock is always held.
    fn in_step(&self, vcpus: u16) -> f64 {
        let (queue, _) = self.alone(vcpus, &self.whole(), 1.0);
        queue.most(usize::from(vcpus)) / f64::from(vcpus) / self.extra(vcpus).visits * self.cycles / self.takings
    }
}

/// Twice the standard error of an access' time, by the means of batches (Law and Kelton, Simulation Modeling and Analysis, 9.5.3).
fn uncertainty(parts: &Parts) -> Option<f64> {
    const BATCHES: usize = 8;
    let groups = parts.groups(BATCHES);
    let times: Vec<f64> =
        groups.iter().filter(|part| part.accesses > 0).map(|part| real(part.cycles) / real(part.accesses)).collect();
    if times.len() < BATCHES {
        return None;
    }
    let n = times.iter().map(|_| 1.0).sum::<f64>();
    let mean = times.iter().sum::<f64>() / n;
    let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(2.0 * (variance / n).sqrt() / mean)
}

/// An effect on the efficiency that is little.
const LITTLE: f64 = 0.02;
/// What an access may cost less in the second half of the run than in all of it.
const DRIFT: f64 = 0.05;
/// How far regular vCPUs may be from independent ones.
const MARGIN: f64 = 0.05;
/// The squared coefficient of variation of times between takings below which they are regular.
const REGULAR: f64 = 0.5;

/// What threads add for each vCPU.
struct Extra {
    /// Cycles of the run.
    time: f64,
    /// Takings of the lock for each taking of its own.
    visits: f64,
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
