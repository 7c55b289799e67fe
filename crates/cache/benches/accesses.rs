//! References a second: in the first level, in each level beyond, and in a mix that misses everywhere.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvirt_addr::Hpa;
use memvirt_cache::{CacheHierarchy, CoreCaches, Purpose, SharedCache};

const REFERENCES: u64 = 1 << 20;

fn streams(c: &mut Criterion) {
    let spec = CacheHierarchy::example();
    // Scattered over a power of two of bytes: what each size is served by is in the name.
    for (name, bytes) in [("l1", 16u64 << 10), ("l2", 512 << 10), ("llc", 16 << 20), ("dram", 16 << 30)] {
        let stream: Vec<_> =
            (0..REFERENCES).map(|i| Hpa::new(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 & (bytes - 1))).collect();
        let (mut core, mut shared) = (CoreCaches::new(&spec), SharedCache::new(&spec));
        let mut group = c.benchmark_group("access");
        group.throughput(Throughput::Elements(REFERENCES)).sample_size(10);
        group.bench_function(name, |b| {
            b.iter(|| {
                for at in black_box(&stream) {
                    core.access(&mut shared, *at, Purpose::Data);
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, streams);
criterion_main!(benches);
