//! A parent with a footprint that forks children which store to some pages and exit.

use memvirt_addr::AccessKind;
use memvirt_ops::process::{Batch, Op, ProcessId};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::draw;
use crate::spec;

#[derive(Clone, Debug)]
pub(super) struct ForkAndExit {
    spec: spec::ForkAndExit,
    stage: Stage,
    children: u32,
    /// All pages of the area. The first stage stores to them in this order, which is ascending; later each draw moves the
    /// pages that were drawn to the end.
    pages: Vec<u32>,
    rng: ChaCha8Rng,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Map,
    /// The parent stores to each page, from this one on.
    Build(usize),
    Fork,
    EnterChild,
    /// The child stores to the pages from this index of the list on.
    Child(usize),
    LeaveChild,
    Parent(usize),
}

impl ForkAndExit {
    pub(super) fn new(spec: spec::ForkAndExit, rng: ChaCha8Rng) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "checked: at most 2^28 pages")]
        let pages = (0..spec.footprint.pages() as u32).collect();
        Self { spec, stage: Stage::Map, children: 0, pages, rng }
    }

    /// Fills the batch; leaves it empty after the last child and what the parent stores after it.
    pub(super) fn fill(&mut self, batch: &mut Batch) {
        match self.stage {
            Stage::Map => {
                batch.then = Some(draw::mmap(self.spec.base.get(), self.spec.footprint.bytes()));
                self.stage = Stage::Build(0);
            }
            Stage::Build(at) => self.stage = self.store(at, batch).map_or(Stage::Fork, Stage::Build),
            Stage::Fork => self.fork(batch),
            Stage::EnterChild => {
                batch.then = Some(Op::Switch { to: ProcessId(self.children) });
                self.stage = Stage::Child(self.draw_pages(self.spec.child_pages()));
            }
            Stage::Child(at) => {
                self.stage = self.store(at, batch).map_or(Stage::LeaveChild, Stage::Child);
                if matches!(self.stage, Stage::LeaveChild) {
                    batch.then = Some(Op::Exit);
                }
            }
            Stage::LeaveChild => {
                batch.then = Some(Op::Switch { to: ProcessId::FIRST });
                self.stage = match self.draw_pages(self.spec.parent_pages()) {
                    at if at == self.pages.len() => Stage::Fork,
                    at => Stage::Parent(at),
                };
            }
            Stage::Parent(at) => self.stage = self.store(at, batch).map_or(Stage::Fork, Stage::Parent),
        }
    }

    fn fork(&mut self, batch: &mut Batch) {
        if u64::from(self.children) < self.spec.forks.get() {
            self.children += 1;
            batch.then = Some(Op::Fork { child: ProcessId(self.children) });
            self.stage = Stage::EnterChild;
        }
    }

    /// Moves `count` pages, drawn without replacement, to the end of the list; returns where they begin.
    fn draw_pages(&mut self, count: u64) -> usize {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.pages.len());
        let _drawn_and_rest = self.pages.partial_shuffle(&mut self.rng, count);
        self.pages.len() - count
    }

    /// Stores to the pages from `at` on, one batch of them; returns where the next batch begins.
    fn store(&self, at: usize, batch: &mut Batch) -> Option<usize> {
        let base = self.spec.base.get();
        let end = at + draw::chunk((self.pages.len() - at) as u64);
        let pages = &self.pages[at..end];
        batch.run.extend(pages.iter().map(|&page| draw::user(base + (u64::from(page) << 12), AccessKind::Write)));
        batch.instructions = pages.len() as u64 * u64::from(self.spec.instructions_per_access.get());
        (end < self.pages.len()).then_some(end)
    }
}
