//! Million accesses a second of [`memvirt_tlb::Tlb::hits`] on a run that always hits.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvirt_addr::{Acc, AccessKind, Gva, Hfn, PageSize};
use memvirt_tlb::{Entry, Geometry, Perms, Tag, Tlb};

fn hot(c: &mut Criterion) {
    let mut tlb = Tlb::new(&Geometry::default());
    let run: Vec<_> = (0..8192u64).map(|i| Acc::user(Gva::new((i * 0x9e37) % 0x8000), AccessKind::Read)).collect();
    for page in 0..8 {
        let gva = Gva::new(page << 12);
        tlb.fill(Tag::default(), Entry::new(gva.frame(), Hfn::new(page), PageSize::Size4K, Perms::USER));
    }
    let mut group = c.benchmark_group("hits");
    group.throughput(Throughput::Elements(run.len() as u64));
    group.bench_function("hot", |b| b.iter(|| assert_eq!(tlb.hits(Tag::default(), black_box(&run)), run.len())));
}

criterion_group!(benches, hot);
criterion_main!(benches);
