//! vCPUs that think and queue for one lock: exact mean-value analysis of the closed network, and its terms for shootdowns.
//!
//! N vCPUs run (think) for a time, then need the hypervisor's MMU lock. With exponential service the recursion of Reiser and
//! Lavenberg (JACM 27, 1980) is exact; other variances enter by the residual life of the service under way (Reiser 1979), an
//! approximation. A lock that faults share and zaps take alone is approximated after the same arrival theorem: throughput within
//! 10 % of an event-by-event simulation up to 32 vCPUs in the tests, and within 2 % up to 8.
//!
//! Service and think times come from a run with one vCPU only.

/// What a vCPU does between two times that it needs the lock, and with the lock. All times in one unit, cycles say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lock {
    /// Time outside the lock for each acquisition.
    pub think: f64,
    /// Time that the lock is held alone, on average over its holders.
    pub hold: f64,
    /// The squared coefficient of variation of the time held: 1 exponential (exact), 0 always the same.
    pub variation: f64,
    /// The share of acquisitions that share the lock with each other; 0 for shadow paging.
    pub shared: f64,
    /// The time that the lock is held shared.
    pub hold_shared: f64,
    /// What flushing the other vCPUs' TLBs adds.
    pub shootdown: Shootdown,
}

/// Flushes of the other vCPUs' TLBs, averaged over acquisitions of the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shootdown {
    /// Shootdowns for each acquisition.
    pub rate: f64,
    /// Time that the sender spends on each, whatever the number of targets.
    pub send: f64,
    /// Time that the sender spends for each target.
    pub send_each: f64,
    /// Time that each target spends.
    pub receive: f64,
    /// Whether the sender holds the lock while it waits.
    pub locked: bool,
}

impl Shootdown {
    /// Time of the sender, and time lost to the others' shootdowns, for each acquisition, with `vcpus` vCPUs.
    #[must_use]
    pub fn times(&self, vcpus: usize) -> (f64, f64) {
        let others = f64_of(vcpus.saturating_sub(1));
        if others > 0.0 {
            (self.rate * (self.send + self.send_each * others), self.rate * self.receive * others)
        } else {
            (0.0, 0.0)
        }
    }
}

/// What is expected of a number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Expected {
    /// How many vCPUs there are.
    pub vcpus: usize,
    /// Acquisitions of the lock by all vCPUs per unit of time.
    pub throughput: f64,
    /// Time from needing the lock to giving it back.
    pub response: f64,
    /// Of that, time spent waiting.
    pub waiting: f64,
    /// The share of time that the lock is held, alone or shared.
    pub utilization: f64,
    /// The share of a vCPU's time that it waits for the lock.
    pub waiting_share: f64,
    /// Throughput relative to that of one vCPU: `vcpus` where nothing is lost.
    pub speedup: f64,
}

#[expect(clippy::cast_precision_loss, reason = "vCPUs are few")]
fn f64_of(n: usize) -> f64 {
    n as f64
}

impl Lock {
    /// A lock that is always held alone, for exponential times, and no shootdowns: the exact case.
    #[must_use]
    pub fn exclusive(think: f64, hold: f64) -> Self {
        Self { think, hold, variation: 1.0, shared: 0.0, hold_shared: 0.0, shootdown: Shootdown::default() }
    }

    /// What is expected of `vcpus` vCPUs.
    #[must_use]
    pub fn expected(&self, vcpus: usize) -> Expected {
        let one = self.solve(1).throughput;
        let mut expected = self.solve(vcpus);
        expected.speedup = if one > 0.0 { expected.throughput / one } else { f64_of(vcpus) };
        expected
    }

    /// The recursion over the number of vCPUs in the network. Shootdown terms depend on how many there are in all.
    fn solve(&self, vcpus: usize) -> Expected {
        let (send, lost) = self.shootdown.times(vcpus);
        let think = self.think + lost + if self.shootdown.locked { 0.0 } else { send };
        let alone = 1.0 - self.shared;
        let extra = if self.shootdown.locked && alone > 0.0 { send / alone } else { 0.0 };
        let hold = self.hold + extra;
        let mut state = State::default();
        for _ in 0..vcpus {
            state = self.next(state, think, hold);
        }
        let waiting = state.response - alone * hold - self.shared * self.hold_shared;
        let utilization = state.throughput * (alone * hold) + self.shared_time(&state);
        Expected {
            vcpus,
            throughput: state.throughput,
            response: state.response,
            waiting: waiting.max(0.0),
            utilization: utilization.min(1.0),
            waiting_share: if state.cycle > 0.0 { (waiting / state.cycle).max(0.0) } else { 0.0 },
            speedup: 1.0,
        }
    }

    /// One vCPU more: it finds the network as it is without it (the arrival theorem).
    fn next(&self, state: State, think: f64, hold: f64) -> State {
        let population = state.population + 1.0;
        let alone = 1.0 - self.shared;
        // Ahead in the queue: those who want the lock alone, one after the other; the one in service has a residual life.
        let residual = state.busy_alone * hold * (1.0 - self.variation) / 2.0;
        let ahead = state.alone_queue * hold - residual;
        // Those who share it hold it together: a queue of them costs the longest of them, not the sum.
        let together =
            if self.shared > 0.0 { self.hold_shared * groups(state.shared_queue, state.alone_queue) } else { 0.0 };
        let response_alone = hold + ahead + together;
        // Whoever shares waits for those alone ahead, and for groups between them.
        let between =
            if state.alone_queue > 0.0 { together * state.alone_queue / (1.0 + state.alone_queue) } else { 0.0 };
        let response_shared = self.hold_shared + ahead + between;
        let response = alone * response_alone + self.shared * response_shared;
        let cycle = think + response;
        let throughput = if cycle > 0.0 { population / cycle } else { 0.0 };
        State {
            population,
            throughput,
            response,
            cycle,
            alone_queue: throughput * alone * response_alone,
            busy_alone: (throughput * alone * hold).min(1.0),
            shared_queue: throughput * self.shared * response_shared,
        }
    }

    /// The share of time that at least one holds the lock shared, were the holders independent.
    fn shared_time(&self, state: &State) -> f64 {
        let holders = state.throughput * self.shared * self.hold_shared;
        -libm::expm1(-holders)
    }
}

/// Means with some number of vCPUs in the network.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    population: f64,
    throughput: f64,
    response: f64,
    cycle: f64,
    alone_queue: f64,
    busy_alone: f64,
    shared_queue: f64,
}

/// Into how many groups those who share fall, between those who do not: none where there are none, one where nobody is between
/// them, one before each of the others at most.
fn groups(shared: f64, alone: f64) -> f64 {
    // The longest of k exponential times is the harmonic number of k times their mean, about log(1 + k) for fractions of k.
    let per_group = shared / (1.0 + alone);
    (1.0 + alone) * libm::log1p(per_group)
}

/// The most that any number of vCPUs can do per unit of time, and the number at which the asymptotes of few and of many cross.
#[must_use]
pub fn asymptotes(lock: &Lock) -> (f64, f64) {
    let demand = (1.0 - lock.shared) * lock.hold;
    (1.0 / demand, (lock.think + demand + lock.shared * lock.hold_shared) / demand)
}
