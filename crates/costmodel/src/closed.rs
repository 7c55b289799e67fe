//! vCPUs that think for exponential times and queue for one lock that is held for times of any distribution: exact.
//!
//! The closed queue M/G/1//N, also called machine repair: N vCPUs, one lock, first come first served. How many are served between
//! two times at which the lock is free depends on the times held by their Laplace transform alone (Takács, Introduction to the
//! Theory of Queues, 1962, chapter 5; Takagi, Queueing Analysis 2, 1993, chapter 4). With exponential times it gives what
//! [`crate::mva`] gives. Only where the time held is different for who had to wait (a lock's line that has to travel) the mean is
//! taken for all.
//!
//! What is fed in comes from a run with one vCPU only.

use crate::mva::Expected;

/// Times that the lock is held: one class of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hold {
    /// How many there are of this class, in any unit that is the same for all classes.
    pub weight: f64,
    /// How long it is held.
    pub time: f64,
}

/// The closed queue. All times in one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// Mean time from giving the lock back to asking for it again.
    pub think: f64,
    /// How long it is held; at least one class.
    pub holds: Vec<Hold>,
    /// Added for who does not find the lock free.
    pub handover: f64,
}

impl Closed {
    /// What is expected of `vcpus` vCPUs.
    #[must_use]
    pub fn expected(&self, vcpus: usize) -> Expected {
        let one = self.solve(1);
        let mut expected = self.solve(vcpus);
        expected.speedup = if one.throughput > 0.0 { expected.throughput / one.throughput } else { real(vcpus) };
        expected
    }

    /// The most that `vcpus` vCPUs can do: nobody waits unless the lock is always held. Times that are always the same come to
    /// that once they have fallen into step.
    #[must_use]
    pub fn most(&self, vcpus: usize) -> f64 {
        let hold = self.mean();
        (real(vcpus) / (self.think + hold)).min(1.0 / hold)
    }

    /// The mean time that it is held, handing over not included.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let (weight, sum) = self
            .holds
            .iter()
            .fold((0.0, 0.0), |(weight, sum), hold| (weight + hold.weight, sum + hold.weight * hold.time));
        if weight > 0.0 { sum / weight } else { 0.0 }
    }

    fn solve(&self, vcpus: usize) -> Expected {
        const ROUNDS: u32 = 30;
        // Who is the first of a busy time finds the lock free.
        let (mut added, mut served) = (0.0, 1.0);
        for _ in 0..ROUNDS {
            served = self.served(vcpus, added);
            if self.handover <= 0.0 {
                break;
            }
            added = f64::midpoint(added, self.handover * (1.0 - 1.0 / served));
        }
        let hold = self.mean() + added;
        let throughput = match self.think / real(vcpus.max(1)) + served * hold {
            cycle if !cycle.is_finite() => 1.0 / hold,
            cycle if cycle > 0.0 => served / cycle,
            _ => 0.0,
        };
        let response = if throughput > 0.0 { real(vcpus) / throughput - self.think } else { 0.0 };
        let waiting = (response - self.mean()).max(0.0);
        Expected {
            vcpus,
            throughput,
            response,
            waiting,
            utilization: (throughput * hold).min(1.0),
            waiting_share: if response + self.think > 0.0 { waiting / (response + self.think) } else { 0.0 },
            speedup: 1.0,
        }
    }

    /// How many take the lock, on average, from when it is taken to when it is free again.
    fn served(&self, vcpus: usize, added: f64) -> f64 {
        let rate = 1.0 / self.think.max(f64::MIN_POSITIVE);
        let (mut sum, mut log_term) = (1.0, 0.0);
        for n in 1..vcpus {
            let transform = self.transform(rate * real(n), added);
            log_term += libm::log((1.0 - transform) / transform) + libm::log(real(vcpus - n) / real(n));
            sum += libm::exp(log_term);
        }
        sum
    }

    /// The Laplace transform of the time held.
    fn transform(&self, s: f64, added: f64) -> f64 {
        let (weight, sum) = self.holds.iter().fold((0.0, 0.0), |(weight, sum), hold| {
            (weight + hold.weight, sum + hold.weight * libm::exp(-s * (hold.time + added)))
        });
        (sum / weight).max(f64::MIN_POSITIVE)
    }
}

#[expect(clippy::cast_precision_loss, reason = "vCPUs are few")]
fn real(n: usize) -> f64 {
    n as f64
}
