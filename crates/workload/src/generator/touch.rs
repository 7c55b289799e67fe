//! Map, touch every page, unmap, again.

use memvirt_ops::process::{Batch, Op};
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WriteShare};
use crate::spec;

#[derive(Clone, Debug)]
pub(super) struct TouchAndFree {
    spec: spec::TouchAndFree,
    writes: WriteShare,
    iterations_left: u64,
    /// The next page to touch; `None` while the area is not mapped.
    page: Option<u64>,
    rng: ChaCha8Rng,
}

impl TouchAndFree {
    pub(super) fn new(spec: spec::TouchAndFree, rng: ChaCha8Rng) -> Self {
        let writes = WriteShare::new(spec.write_share);
        Self { spec, writes, iterations_left: spec.iterations.get(), page: None, rng }
    }

    pub(super) fn fill(&mut self, batch: &mut Batch) {
        match self.page {
            None if self.iterations_left == 0 => {}
            None => {
                batch.then = Some(draw::mmap(self.spec.base.get(), self.spec.footprint.bytes()));
                self.page = Some(0);
            }
            Some(page) => self.touch(page, batch),
        }
    }

    fn touch(&mut self, page: u64, batch: &mut Batch) {
        let (base, footprint) = (self.spec.base.get(), self.spec.footprint);
        let count = draw::chunk(footprint.pages() - page);
        let end = page + count as u64;
        batch.run.extend((page..end).map(|page| draw::user(base + (page << 12), self.writes.draw(&mut self.rng))));
        batch.instructions = count as u64 * u64::from(self.spec.instructions_per_access.get());
        if end < footprint.pages() {
            self.page = Some(end);
        } else {
            batch.then = Some(Op::Munmap { range: draw::range(base, footprint.bytes()) });
            self.iterations_left -= 1;
            self.page = None;
        }
    }
}
