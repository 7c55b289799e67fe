//! Processes that live beside each other and store to pages of their own.

use memvirt_addr::AccessKind;
use memvirt_ops::process::{Batch, Op, ProcessId};
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::draw;
use crate::spec;
use crate::units::Share;

#[derive(Clone, Debug)]
pub(super) struct Residents {
    spec: spec::Residents,
    stage: Stage,
    process: u32,
    rounds_left: u64,
    /// The pages that the current process has drawn; none where it stores to all of them.
    drawn: Vec<usize>,
    rng: ChaCha8Rng,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The first process forks this child and those after it.
    Fork(u32),
    Enter,
    Map,
    /// The process stores to its pages from this one on.
    Touch(u64),
}

impl Residents {
    pub(super) const fn new(spec: spec::Residents, rng: ChaCha8Rng) -> Self {
        let rounds_left = spec.rounds.get();
        Self { spec, stage: Stage::Fork(1), process: 0, rounds_left, drawn: Vec::new(), rng }
    }

    /// Fills the batch; leaves it empty after the last process of the last round.
    pub(super) fn fill(&mut self, batch: &mut Batch) {
        if self.rounds_left == 0 {
            return;
        }
        if let Stage::Fork(child) = self.stage {
            if child < self.spec.processes.get() {
                batch.then = Some(Op::Fork { child: ProcessId(child) });
                self.stage = Stage::Fork(child + 1);
                return;
            }
            self.stage = Stage::Map;
        }
        match self.stage {
            Stage::Enter => {
                batch.then = Some(Op::Switch { to: ProcessId(self.process) });
                self.stage = if self.is_first_round() { Stage::Map } else { self.drawn() };
            }
            Stage::Fork(_) | Stage::Map => {
                batch.then = Some(draw::mmap(self.spec.base.get(), self.spec.footprint.bytes()));
                self.stage = self.drawn();
            }
            Stage::Touch(at) => self.touch(at, batch),
        }
    }

    fn is_first_round(&self) -> bool {
        self.rounds_left == self.spec.rounds.get()
    }

    /// Draws the pages of the current process: the same in each round.
    fn drawn(&mut self) -> Stage {
        if self.spec.touched < Share::ONE {
            let mut own = self.rng.clone();
            own.set_stream(u64::from(self.process));
            let length = |pages: u64| usize::try_from(pages).unwrap_or(usize::MAX);
            let (pages, touched) = (length(self.spec.footprint.pages()), length(self.spec.touched_pages()));
            self.drawn = index::sample(&mut own, pages, touched).into_vec();
        }
        Stage::Touch(0)
    }

    fn touch(&mut self, at: u64, batch: &mut Batch) {
        let (base, pages) = (self.spec.base.get(), self.spec.touched_pages());
        let count = draw::chunk(pages - at);
        let end = at + count as u64;
        let store = |page: u64| draw::user(base + (page << 12), AccessKind::Write);
        if self.drawn.is_empty() {
            batch.run.extend((at..end).map(store));
        } else {
            let drawn = self.drawn.iter().skip(usize::try_from(at).unwrap_or(usize::MAX)).take(count);
            batch.run.extend(drawn.map(|page| store(*page as u64)));
        }
        batch.instructions = count as u64 * u64::from(self.spec.instructions_per_access.get());
        self.stage = if end < pages { Stage::Touch(end) } else { self.next_process() };
    }

    fn next_process(&mut self) -> Stage {
        self.process += 1;
        if self.process == self.spec.processes.get() {
            self.process = 0;
            self.rounds_left -= 1;
        }
        // One process alone stays where it is.
        if self.spec.processes.get() == 1 { Stage::Touch(0) } else { Stage::Enter }
    }
}
