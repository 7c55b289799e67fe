//! What is asked of the MMU lock: the figures of a closed queueing network, counted.

use memvirt_timeline::Lock;

use crate::times::{Parts, Times};

/// Takings of the lock by one or more vCPUs. Fed from a run with one vCPU, it predicts runs with more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Takings alone, with the lock.
    pub exclusive: Service,
    /// Takings together with others.
    pub shared: Service,
    /// Remote flushes that the hypervisor asked for under the lock; with one vCPU nobody is kicked for them.
    pub remote_flushes: u64,
    /// For how long it was held alone, where nobody had to be kicked.
    pub holds: Times,
    /// And where all other vCPUs had to be, had there been any: exits that flushed all vCPUs.
    pub flushing: Times,
    /// Times outside the lock, from giving it back to asking for it again.
    pub thinks: Service,
    /// What a vCPU did, in the order of time.
    pub parts: Parts,
}

/// Times that the lock was held, waits excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Service {
    /// How often.
    pub count: u64,
    /// Cycles, all together.
    pub cycles: u64,
    /// The sum of the squares of those cycles.
    pub squares: f64,
}

impl Service {
    /// Cycles of one, on average.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.cycles as f64 / self.count as f64 }
    }

    /// The squared coefficient of variation: 0 where it is always the same time, 1 where times are exponential.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub fn variation(&self) -> f64 {
        let mean = self.mean();
        if mean > 0.0 { (self.squares / self.count as f64 / (mean * mean) - 1.0).max(0.0) } else { 0.0 }
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum of squares")]
    pub(crate) fn add(&mut self, cycles: u64) {
        self.count += 1;
        self.cycles += cycles;
        self.squares += (cycles as f64) * (cycles as f64);
    }
}

impl Demand {
    pub(crate) fn lock(&mut self, mode: Lock, cycles: u64, remote_flushes: u64) {
        match mode {
            Lock::Exclusive => {
                self.exclusive.add(cycles);
                let times = if remote_flushes > 0 { &mut self.flushing } else { &mut self.holds };
                times.add(cycles);
            }
            Lock::Shared => self.shared.add(cycles),
        }
        self.remote_flushes += remote_flushes;
    }
}
