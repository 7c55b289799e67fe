//! The streams of the bench, and the loop it is measured against.

use memvirt_addr::{Acc, AccessKind, Gva};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The streams by name: `hot` uniform in 32 KiB; `seq` 64-byte stride modulo 1 GiB; `zipf` exponent 0.99 over 2^20
/// shuffled pages; `rand` uniform over 4 GiB. All are 8-byte user loads of 4 KiB pages.
pub(crate) fn stream(name: &str, accesses: usize) -> Vec<Acc> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let addresses: Vec<u64> = match name {
        "hot" => (0..accesses).map(|_| rng.next_u64() % (32 << 10)).collect(),
        "seq" => (0..accesses as u64).map(|i| i * 64 % (1 << 30)).collect(),
        "rand" => (0..accesses).map(|_| rng.next_u64() % (4 << 30)).collect(),
        "zipf" => zipf(&mut rng, accesses),
        _ => panic!("no stream {name}"),
    };
    addresses.iter().map(|at| Acc::user(Gva::new(at & !7), AccessKind::Read)).collect()
}

fn zipf(rng: &mut ChaCha8Rng, accesses: usize) -> Vec<u64> {
    const PAGES: usize = 1 << 20;
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=PAGES)
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut pages: Vec<u64> = (0..PAGES as u64).collect();
    for last in (1..PAGES).rev() {
        pages.swap(last, rng.next_u64() as usize % (last + 1));
    }
    let mut draw = || {
        let at = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let rank = cumulative.partition_point(|c| *c < at).min(PAGES - 1);
        pages[rank] << 12 | rng.next_u64() & 0xfff
    };
    (0..accesses).map(|_| draw()).collect()
}

/// The reference: nothing but 4 KiB pages of one process, a 64-entry 4-way and a 1536-entry 12-way TLB in true LRU
/// order, kept as lists with the most recent first. No tags, permissions, sizes or flushes.
pub(crate) struct Reference {
    l1: [[u64; 4]; 16],
    l2: [[u64; 12]; 128],
    pub l1_hits: u64,
    pub l2_hits: u64,
    pub misses: u64,
}

impl Reference {
    pub(crate) fn new() -> Self {
        Self { l1: [[u64::MAX; 4]; 16], l2: [[u64::MAX; 12]; 128], l1_hits: 0, l2_hits: 0, misses: 0 }
    }

    pub(crate) fn run(&mut self, run: &[Acc]) {
        for acc in run {
            let page = acc.page_bits(12);
            let set = &mut self.l1[page as usize % 16];
            if set[0] == page {
                self.l1_hits += 1;
            } else if let Some(way) = set.iter().position(|held| *held == page) {
                self.l1_hits += 1;
                to_front(set, way, page);
            } else {
                to_front(set, 3, page);
                self.second_level(page);
            }
        }
    }

    #[inline]
    fn second_level(&mut self, page: u64) {
        let set = &mut self.l2[page as usize % 128];
        match set.iter().position(|held| *held == page) {
            Some(way) => {
                self.l2_hits += 1;
                to_front(set, way, page);
            }
            None => {
                self.misses += 1;
                to_front(set, 11, page);
            }
        }
    }
}

/// Moves what stands before `way` back by one and puts `page` first.
#[inline]
fn to_front(set: &mut [u64], way: usize, page: u64) {
    set.copy_within(..way, 1);
    set[0] = page;
}
