//! The two patterns without a table: equal steps, and uniform words.

use memvirt_addr::{Acc, AccessKind};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WORD, WriteShare};
use super::steady::{Pattern, Steady};
use crate::spec;

/// Equal steps, modulo the footprint.
#[derive(Clone, Debug)]
pub(super) struct Sequential {
    base: u64,
    footprint: u64,
    stride: u64,
    offset: u64,
    writes: WriteShare,
}

impl Sequential {
    pub(super) fn steady(s: &spec::Sequential, rng: ChaCha8Rng) -> Steady<Self> {
        let pattern = Self {
            base: s.base.get(),
            footprint: s.footprint.bytes(),
            stride: s.stride.bytes(),
            offset: 0,
            writes: WriteShare::new(s.write_share),
        };
        Steady::new(s.base, s.footprint, s.accesses, s.instructions_per_access, pattern, rng)
    }

    fn walk(&mut self, count: usize, run: &mut Vec<Acc>, mut kind: impl FnMut() -> AccessKind) {
        let Self { base, footprint, stride, mut offset, .. } = *self;
        run.extend((0..count).map(|_| {
            let acc = draw::user(base + offset, kind());
            offset += stride;
            if offset >= footprint {
                offset -= footprint;
            }
            acc
        }));
        self.offset = offset;
    }
}

impl Pattern for Sequential {
    fn extend(&mut self, rng: &mut ChaCha8Rng, count: usize, run: &mut Vec<Acc>) {
        let writes = self.writes;
        match writes.constant() {
            Some(kind) => self.walk(count, run, || kind),
            None => self.walk(count, run, || writes.kind(rng.next_u32())),
        }
    }
}

/// Every word of the area with the same probability.
#[derive(Clone, Debug)]
pub(super) struct Uniform {
    base: u64,
    words: u64,
    writes: WriteShare,
}

impl Uniform {
    pub(super) fn steady(s: &spec::Uniform, rng: ChaCha8Rng) -> Steady<Self> {
        let pattern =
            Self { base: s.base.get(), words: s.footprint.bytes() / WORD, writes: WriteShare::new(s.write_share) };
        Steady::new(s.base, s.footprint, s.accesses, s.instructions_per_access, pattern, rng)
    }
}

impl Pattern for Uniform {
    fn extend(&mut self, rng: &mut ChaCha8Rng, count: usize, run: &mut Vec<Acc>) {
        let Self { base, words, writes } = *self;
        run.extend((0..count).map(|_| {
            let (word, rest) = draw::split(rng.next_u64(), words);
            draw::user(base + word * WORD, writes.kind(rest))
        }));
    }
}
