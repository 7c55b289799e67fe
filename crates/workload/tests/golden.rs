//! Same seed, same bytes: a change of a stream, by a change here or in a generator's dependencies, does not pass unnoticed.
//! When a stream changes on purpose, so does its number here, and the change log says which results moved.

#![expect(clippy::unwrap_used, reason = "test helpers may stop the test")]

use memvirt_addr::Acc;
use memvirt_ops::process::{Batch, Op, Source};
use memvirt_workload::{Generator, Workload};

/// 64-bit FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn word(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn acc(&mut self, acc: Acc) {
        self.word(acc.gva().as_u64());
        self.word(acc.kind() as u64);
    }

    fn op(&mut self, op: Op) {
        let words = match op {
            Op::Mmap { range, prot, .. } => [1, range.start.as_u64(), range.bytes, u64::from(prot.write)],
            Op::Munmap { range } => [2, range.start.as_u64(), range.bytes, 0],
            Op::Mprotect { range, prot } => [3, range.start.as_u64(), range.bytes, u64::from(prot.write)],
            Op::Fork { child } => [4, child.number().into(), 0, 0],
            Op::Exit => [5, 0, 0, 0],
            Op::Switch { to } => [6, to.number().into(), 0, 0],
            other => {
                format!("{other:?}").bytes().for_each(|byte| self.word(byte.into()));
                [7, 0, 0, 0]
            }
        };
        words.into_iter().for_each(|word| self.word(word));
    }
}

fn hash(mut generator: Generator) -> u64 {
    let (mut hash, mut batch) = (Fnv(0xcbf2_9ce4_8422_2325), Batch::default());
    while generator.next_batch(&mut batch).unwrap() {
        batch.run.iter().for_each(|&acc| hash.acc(acc));
        hash.word(batch.instructions);
        batch.then.into_iter().for_each(|op| hash.op(op));
    }
    hash.0
}

/// Parameters of their own, so that the built-in files can be tuned without touching the goldens.
const STREAMS: [(&str, u64); 8] = [
    ("kind = 'sequential'\nfootprint = '1MiB'\naccesses = 50_000\nstride = '72B'\nwrite_share = 0.3", 0x5eaa_55af_f1e8_a509),
    ("kind = 'uniform'\nfootprint = '1GiB'\naccesses = 50_000\nwrite_share = 0.3", 0x289a_2002_28e1_989e),
    ("kind = 'zipf'\nfootprint = '16MiB'\naccesses = 50_000\nexponent = 0.99\nwrite_share = 0.3", 0x10a8_3e8f_dcfb_701c),
    ("kind = 'pointer-chase'\nfootprint = '1MiB'\nnode = '64B'\naccesses = 50_000\nwrite_share = 0.3", 0xcc63_4ccc_0e38_8c46),
    ("kind = 'touch-and-free'\nfootprint = '20MiB'\niterations = 5\nwrite_share = 0.3", 0x598a_e654_813a_1266),
    ("kind = 'fork-and-exit'\nfootprint = '20MiB'\nforks = 5\nchild_write_share = 0.9\nparent_write_share = 0.3", 0x17db_6bb4_4931_72e7),
    (
        "kind = 'churn'\nareas = 9\narea = '64KiB'\noperations = 5000\nmix = { mmap = 1, munmap = 2, mprotect = 3, touch = 4 }
        partial_share = 0.5\ntouches = 20\nwrite_share = 0.5",
        0x56b8_ffda_2cbf_5154,
    ),
    ("kind = 'residents'\nfootprint = '64MiB'\nprocesses = 5\ntouched = 0.3\nrounds = 2", 0xbadc_26b5_53fb_6863),
];

fn workload(fields: &str) -> Workload {
    let text = format!("name = 't'\ntitle = 't'\nabout = 't'\nsource = 'estimate'\n[generator]\n{fields}");
    Workload::parse("t.toml", &text).unwrap()
}

#[test]
fn streams_are_the_same_as_ever() {
    let changed: Vec<String> = STREAMS
        .iter()
        .map(|&(fields, golden)| (fields, golden, hash(workload(fields).generator(20_061))))
        .filter(|(_, golden, now)| golden != now)
        .map(|(fields, golden, now)| format!("{}: {golden:#018x} became {now:#018x}", fields.lines().next().unwrap()))
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
}

#[test]
fn another_seed_gives_another_stream_and_the_same_seed_the_same() {
    for (fields, _) in STREAMS {
        let workload = workload(fields);
        assert_eq!(hash(workload.generator(1)), hash(workload.generator(1)));
        assert_ne!(hash(workload.generator(1)), hash(workload.generator(2)), "{fields}");
    }
}
