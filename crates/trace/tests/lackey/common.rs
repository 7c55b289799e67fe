//! What the tests share: a slow and obvious reader of logs, written apart from the real one, and helpers to run that.

use std::io::Read;
use std::path::PathBuf;

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_ops::process::{Batch, Op, Source};
use memvirt_trace::{LackeyReader, Tally, TraceError};

pub(crate) const LOGS: [&str; 4] =
    ["compress-300-lines.lackey.zst", "fork-child.lackey.zst", "threads.lackey", "threads-server.lackey"];

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/lackey").join(name)
}

/// The text of a shipped log.
pub(crate) fn text(name: &str) -> Vec<u8> {
    let bytes = std::fs::read(path(name)).unwrap();
    if name.ends_with(".zst") { zstd::decode_all(&bytes[..]).unwrap() } else { bytes }
}

/// Everything a reader delivered, and how it ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) batches: Vec<Batch>,
    pub(crate) tally: Tally,
    pub(crate) error: Option<TraceError>,
}

impl Run {
    pub(crate) fn accesses(&self) -> Vec<Acc> {
        self.batches.iter().flat_map(|batch| batch.run.iter().copied()).collect()
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.batches.iter().filter_map(|batch| batch.then).collect()
    }

    pub(crate) fn instructions(&self) -> u64 {
        self.batches.iter().map(|batch| batch.instructions).sum()
    }
}

pub(crate) fn run<R: Read>(input: R) -> Run {
    drain(LackeyReader::new(input, "test.lackey"))
}

pub(crate) fn drain<R: Read>(mut reader: LackeyReader<R>) -> Run {
    let mut run = Run { batches: Vec::new(), tally: Tally::default(), error: None };
    let mut batch = Batch::default();
    loop {
        match reader.next_batch(&mut batch) {
            Ok(true) => {
                assert!(batch.run.len() <= Batch::CAPACITY);
                assert!(!batch.is_empty());
                run.batches.push(batch.clone());
            }
            Ok(false) => break,
            Err(error) => {
                run.error = Some(error);
                break;
            }
        }
    }
    // The end stays the end.
    assert!(matches!(reader.next_batch(&mut batch), Ok(false)));
    assert!(batch.is_empty());
    run.tally = reader.tally().clone();
    run
}

/// An access of `bytes` bytes at `address`, page by page, found by asking each byte for its page.
pub(crate) fn pieces(letter: char, address: u64, bytes: u64) -> Vec<Acc> {
    let mut starts = vec![address];
    starts.extend((address + 1..address + bytes).filter(|at| at % 4096 == 0));
    let kinds: &[AccessKind] = match letter {
        'I' => &[AccessKind::Fetch],
        'L' => &[AccessKind::Read],
        'S' => &[AccessKind::Write],
        _ => &[AccessKind::Read, AccessKind::Write],
    };
    kinds.iter().flat_map(|&kind| starts.iter().map(move |&at| Acc::user(Gva::new(at), kind))).collect()
}

/// The access lines of a log of well-formed lines: letter, address, size. An access after a result is found too.
pub(crate) fn naive(text: &str) -> Vec<(char, u64, u64)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = match line.rfind(") I  ") {
            Some(at) if line.starts_with("SYSCALL") => &line[at + 2..],
            _ => line,
        };
        let letter = match line.get(..3) {
            Some("I  ") => 'I',
            Some(" L ") => 'L',
            Some(" S ") => 'S',
            Some(" M ") => 'M',
            _ => continue,
        };
        let (address, size) = line[3..].split_once(',').unwrap();
        found.push((letter, u64::from_str_radix(address, 16).unwrap(), size.trim().parse().unwrap()));
    }
    found
}
