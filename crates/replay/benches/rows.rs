//! Rows a second, once a recording is loaded and the machine has booted: the platforms alone, nobody comparing.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvirt_platform::{Native, Platform};
use memvirt_replay::platforms::{kvm_nested, kvm_shadow};
use memvirt_replay::{Guest, GuestOp, Item, Recording, Sequence, golden};
use memvirt_shadow::kvm::Kernel;

/// The operations of the first section of a recording.
fn operations(name: &str) -> (Sequence, Vec<GuestOp>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm").join(name);
    let mut items = Recording::open(&path).expect("the recordings are part of the repository").flatten();
    let Some(Item::Section(section)) = items.next() else { panic!("{name} starts with a section") };
    let rows = items.map_while(|item| if let Item::Row(row) = item { Some(row.op) } else { None }).collect();
    (section.sequence, rows)
}

/// Runs the operations `iters` times, each time on a machine that has just booted; the boots are not timed.
fn run<P: Platform>(iters: u64, sequence: Sequence, ops: &[GuestOp], make: impl Fn() -> P) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..iters {
        let mut guest = Guest::boot(make(), sequence).expect("the host is large enough");
        let start = Instant::now();
        for op in ops {
            black_box(guest.execute(op).expect("the host is large enough"));
        }
        spent += start.elapsed();
    }
    spent
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("rows");
    group.sample_size(10);
    for name in ["fuzz1-linux61-shadow", "fuzz2-linux61-shadow"] {
        let (sequence, ops) = operations(&format!("{name}.csv.zst"));
        group.throughput(Throughput::Elements(ops.len() as u64));
        group.bench_function(format!("kvm-shadow/{name}"), |b| {
            b.iter_custom(|iters| run(iters, sequence, &ops, || kvm_shadow(Kernel::V6_1)));
        });
        group.bench_function(format!("kvm-nested/{name}"), |b| {
            b.iter_custom(|iters| run(iters, sequence, &ops, kvm_nested))
        });
        group.bench_function(format!("native/{name}"), |b| {
            b.iter_custom(|iters| run(iters, sequence, &ops, || golden::bare(Native)));
        });
    }
    group.finish();
}

criterion_group!(benches, rows);
criterion_main!(benches);
