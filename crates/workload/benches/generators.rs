//! Accesses per second of each generator, without anything behind it.

#![expect(clippy::unwrap_used, reason = "a benchmark may stop at a broken workload file")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvirt_ops::process::{Batch, Source};
use memvirt_workload::{Generator, Workload};

const STREAMS: [(&str, &str); 9] = [
    ("hot", ""),
    ("sequential", ""),
    ("sequential", "loads"),
    ("uniform", ""),
    ("zipf", ""),
    ("pointer-chase", ""),
    ("touch-and-free", ""),
    ("fork-and-exit", ""),
    ("churn", ""),
];

fn drain(mut generator: Generator, batch: &mut Batch) -> u64 {
    let mut accesses = 0;
    while generator.next_batch(batch).unwrap_or_else(|never| match never {}) {
        accesses += batch.run.len() as u64;
    }
    accesses
}

fn generators(c: &mut Criterion) {
    let mut group = c.benchmark_group("generators");
    let mut batch = Batch::default();
    for (name, variant) in STREAMS {
        let builtin = Workload::builtin().find(|builtin| builtin.name == name).unwrap();
        let text = match variant {
            "loads" => builtin.text.replace("write_share = 0.33", "write_share = 0.0"),
            _ => builtin.text.to_owned(),
        };
        let generator = Workload::parse(name, &text).unwrap().generator(1);
        group.throughput(Throughput::Elements(drain(generator.clone(), &mut batch)));
        group.sample_size(10);
        group.bench_function(format!("{name}{}{variant}", if variant.is_empty() { "" } else { "-" }), |b| {
            b.iter_batched(
                || generator.clone(),
                |generator| drain(generator, &mut batch),
                criterion::BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, generators);
criterion_main!(benches);
