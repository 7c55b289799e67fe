//! Lines a second of parsing alone: a real log, unpacked, in memory, read to its end.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvirt_ops::process::{Batch, Source};
use memvirt_trace::LackeyReader;

fn read_all(text: &[u8]) -> u64 {
    let mut reader = LackeyReader::new(text, "bench");
    let mut batch = Batch::default();
    while reader.next_batch(&mut batch).expect("the log is well-formed") {
        black_box(&batch);
    }
    reader.tally().lines
}

fn parse(criterion: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/lackey/compress-300-lines.lackey.zst");
    let log = zstd::decode_all(std::fs::File::open(path).expect("the log is in the repository")).expect("it is whole");
    let crlf = String::from_utf8_lossy(&log).replace('\n', "\r\n").into_bytes();
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(read_all(&log)));
    group.bench_function("lackey", |bencher| bencher.iter(|| read_all(&log)));
    group.bench_function("lackey, every line by the general grammar", |bencher| bencher.iter(|| read_all(&crlf)));
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
