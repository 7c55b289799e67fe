//! The streams: 8-byte user loads.

#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

use memvirt_addr::{Acc, AccessKind, Gva};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::machines::PAGES;

/// `hot` is uniform in 32 KiB; `seq` has a stride of 64 bytes modulo 1 GiB; `zipf` has exponent 0.99 over 2^20 shuffled
/// pages; `rand` is uniform over 4 GiB.
pub(crate) const NAMES: [&str; 4] = ["hot", "seq", "zipf", "rand"];

pub(crate) fn make(name: &str, accesses: usize) -> Vec<Acc> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let load = |address: u64| Acc::user(Gva::new(address & !7), AccessKind::Read);
    match name {
        "hot" => (0..accesses).map(|_| load(rng.next_u64() % (32 << 10))).collect(),
        "seq" => (0..accesses as u64).map(|i| load(i * 64 % (1 << 30))).collect(),
        "rand" => (0..accesses).map(|_| load(rng.next_u64() % (PAGES << 12))).collect(),
        "zipf" => {
            let mut draw = zipf(&mut rng);
            (0..accesses).map(|_| load(draw(&mut rng))).collect()
        }
        _ => panic!("no stream {name}"),
    }
}

fn zipf(rng: &mut ChaCha8Rng) -> impl FnMut(&mut ChaCha8Rng) -> u64 + use<> {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=PAGES)
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut pages: Vec<u64> = (0..PAGES).collect();
    for last in (1..pages.len()).rev() {
        pages.swap(last, rng.next_u64() as usize % (last + 1));
    }
    move |rng| {
        let at = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let rank = cumulative.partition_point(|c| *c < at).min(pages.len() - 1);
        pages[rank] << 12 | rng.next_u64() & 0xfff
    }
}
