//! A process that maps one area and accesses it in one pattern until its accesses are used up.

use memvirt_addr::Acc;
use memvirt_ops::process::Batch;
use rand_chacha::ChaCha8Rng;

use super::draw;
use crate::measured::Loading;
use crate::units::{Base, Count, Footprint, InstructionsPerAccess};

/// Where the next accesses of a steady process go.
pub(super) trait Pattern {
    /// Appends `count` accesses.
    fn extend(&mut self, rng: &mut ChaCha8Rng, count: usize, run: &mut Vec<Acc>);
}

#[derive(Clone, Debug)]
pub(super) struct Steady<P> {
    base: Base,
    footprint: Footprint,
    mapped: bool,
    loading: Loading,
    left: u64,
    instructions_per_access: InstructionsPerAccess,
    pattern: P,
    rng: ChaCha8Rng,
}

impl<P: Pattern> Steady<P> {
    pub(super) fn new(
        base: Base,
        footprint: Footprint,
        accesses: Count,
        instructions_per_access: InstructionsPerAccess,
        pattern: P,
        rng: ChaCha8Rng,
    ) -> Self {
        let (mapped, loading, left) = (false, Loading::default(), accesses.get());
        Self { base, footprint, mapped, loading, left, instructions_per_access, pattern, rng }
    }

    /// Stores to every page before all else.
    pub(super) fn load(&mut self) {
        self.loading = Loading { next: self.base.get(), left: self.footprint.pages() };
    }

    pub(super) fn fill(&mut self, batch: &mut Batch) {
        if !self.mapped {
            self.mapped = true;
            batch.then = Some(draw::mmap(self.base.get(), self.footprint.bytes()));
            return;
        }
        if self.loading.fill(batch, self.instructions_per_access.get().into()) {
            return;
        }
        let count = draw::chunk(self.left);
        batch.run.reserve(count);
        self.pattern.extend(&mut self.rng, count, &mut batch.run);
        batch.instructions = count as u64 * u64::from(self.instructions_per_access.get());
        self.left -= count as u64;
    }
}
