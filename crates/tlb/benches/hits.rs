//! Accesses a second of [`memvirt_tlb::Tlb::hits`] and [`memvirt_tlb::Tlb::fill`], beside a loop that does nothing but
//! the counting of two LRU levels. Both must count the same.
//!
//! Streams of 2 million accesses; `MEMVIRT_BENCH_ACCESSES=20000000` makes them longer.

#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memvirt_addr::{Acc, Hfn, PageSize};
use memvirt_tlb::{Entry, Geometry, Perms, Tag, Tlb};
use support::{Reference, stream};

/// Runs over a stream; a miss is filled with the identity mapping, the walk left out.
fn run(tlb: &mut Tlb, tag: Tag, stream: &[Acc]) {
    let mut at = tlb.hits(tag, stream);
    while let Some(missed) = stream.get(at) {
        let page = missed.gva().frame();
        tlb.fill(tag, Entry::new(page, Hfn::new(page.number()), PageSize::Size4K, Perms::USER));
        at += 1 + tlb.hits(tag, &stream[at + 1..]);
    }
}

fn streams(c: &mut Criterion) {
    let accesses = std::env::var("MEMVIRT_BENCH_ACCESSES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000_000);
    for name in ["hot", "seq", "zipf", "rand"] {
        let stream = stream(name, accesses);
        let (mut tlb, mut reference) = (Tlb::new(&Geometry::default()), Reference::new());
        run(&mut tlb, Tag::default(), &stream);
        reference.run(&stream);
        let stats = tlb.stats();
        assert_eq!(
            (stats.l1_hits, stats.l2_hits, stats.misses),
            (reference.l1_hits, reference.l2_hits, reference.misses),
            "{name}"
        );
        println!("{name}: {} L1 hits, {} L2 hits, {} misses", stats.l1_hits, stats.l2_hits, stats.misses);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(accesses as u64)).sample_size(20);
        group.bench_function("reference", |b| {
            b.iter_batched_ref(Reference::new, |reference| reference.run(black_box(&stream)), BatchSize::LargeInput);
        });
        group.bench_function("tlb", |b| {
            b.iter_batched_ref(
                || Tlb::new(&Geometry::default()),
                |tlb| run(tlb, Tag::default(), black_box(&stream)),
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, streams);
criterion_main!(benches);
