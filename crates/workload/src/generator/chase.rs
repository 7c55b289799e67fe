//! A chain through all nodes, in one cycle of random order.
//!
//! A uniform cyclic permutation (Sattolo, 1986) followed from node to node visits the nodes in a uniformly random order,
//! over and over. So the order itself is drawn by a Fisher-Yates shuffle and walked: the same distribution, and the
//! generator need not wait for its own table as the chased program waits for memory.

use memvirt_addr::Acc;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::draw::{self, WriteShare};
use super::steady::Pattern;
use crate::spec;

#[derive(Clone, Debug)]
pub(super) struct Chase {
    base: u64,
    node_bytes: u64,
    order: Vec<u32>,
    at: usize,
    writes: WriteShare,
}

impl Chase {
    pub(super) fn new(s: &spec::PointerChase, rng: &mut ChaCha8Rng) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "checked: at most 2^26 nodes")]
        let mut order: Vec<u32> = (0..s.nodes() as u32).collect();
        order.shuffle(rng);
        let (base, node_bytes) = (s.base.get(), s.node.bytes());
        Self { base, node_bytes, order, at: 0, writes: WriteShare::new(s.write_share) }
    }
}

impl Pattern for Chase {
    fn extend(&mut self, rng: &mut ChaCha8Rng, count: usize, run: &mut Vec<Acc>) {
        let Self { base, node_bytes, writes, .. } = *self;
        let mut left = count;
        while left > 0 {
            let stretch = left.min(self.order.len() - self.at);
            let nodes = &self.order[self.at..self.at + stretch];
            run.extend(nodes.iter().map(|&node| draw::user(base + u64::from(node) * node_bytes, writes.draw(rng))));
            left -= stretch;
            self.at = (self.at + stretch) % self.order.len();
        }
    }
}
