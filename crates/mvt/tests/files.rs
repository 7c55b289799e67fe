//! Whole files: what goes in comes out, and whatever happens to the bytes, everything before the damage can be used.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::io::Cursor;

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_mvt::{Density, Header, Mvt, MvtError, Order, Writer};
use memvirt_ops::process::{Batch, Op, ProcessId, Source};
use proptest::prelude::*;

fn batches(seed: u64, count: u64) -> Vec<Batch> {
    let mut state = seed | 1;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let kinds = [AccessKind::Fetch, AccessKind::Read, AccessKind::Write];
    let batch = |_| {
        let run = (0..draw(200)).map(|_| {
            let kind = kinds[usize::try_from(draw(3)).unwrap()];
            Acc::user(Gva::new(0x40_0000 + draw(1 << 20)), kind)
        });
        let run: Vec<_> = run.collect();
        let then = (draw(3) == 0).then(|| Op::Syscall { number: u32::try_from(draw(400)).unwrap() });
        Batch { instructions: draw(5000), run, then }
    };
    (0..count).map(batch).collect()
}

/// A file of two processes, and what each did.
fn file(density: Density, count: u64) -> (Vec<u8>, [Vec<Batch>; 2]) {
    let header = Header { density, order: Order::Free, notes: vec![("program".into(), "two".into())] };
    let mut writer = Writer::new(Vec::new(), "two.mvt", header).unwrap();
    let mut streams = [batches(1, count), batches(2, count)];
    streams[0].push(Batch { then: Some(Op::Exit), ..Batch::default() });
    for pair in 0..streams[0].len() {
        for (process, stream) in (0..).zip(&streams) {
            if let Some(batch) = stream.get(pair) {
                writer.batch(ProcessId(process), batch).unwrap();
            }
        }
    }
    let (written, bytes) = writer.finish().unwrap();
    assert_eq!((written.bytes, written.processes), (bytes.len() as u64, 2));
    (bytes, streams)
}

/// What can be read of a process, and why it ended early.
fn read(bytes: &[u8], process: u32) -> (Vec<Batch>, Option<MvtError>) {
    let mut stream = match Mvt::new(Cursor::new(bytes), "two.mvt") {
        Ok(mvt) => mvt.process(ProcessId(process)),
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (mut all, mut batch) = (Vec::new(), Batch::default());
    loop {
        match stream.next_batch(&mut batch) {
            Ok(true) => all.push(batch.clone()),
            Ok(false) => return (all, None),
            Err(error) => return (all, Some(error)),
        }
    }
}

fn rounded(batch: &Batch, shift: u32) -> Batch {
    let down = |acc: &Acc| Acc::user(Gva::new_truncate(acc.gva().as_u64() >> shift << shift), acc.kind());
    Batch { run: batch.run.iter().map(down).collect(), ..batch.clone() }
}

#[test]
fn streams_come_back_as_they_went_in() {
    for (density, shift) in [(Density::Pages, 12), (Density::Lines, 6)] {
        let (bytes, streams) = file(density, 20_000);
        let mvt = Mvt::new(Cursor::new(&bytes), "two.mvt").unwrap();
        assert!(mvt.blocks().len() > 4, "several blocks a process");
        assert_eq!((mvt.header().density, mvt.header().note("program")), (density, Some("two")));
        for (process, stream) in (0..).zip(&streams) {
            let (batches, error) = read(&bytes, process);
            assert!(error.is_none());
            assert!(batches.iter().eq(stream.iter().map(|batch| rounded(batch, shift)).collect::<Vec<_>>().iter()));
        }
        let verified = mvt.verify().unwrap();
        assert!(verified.damage.is_empty());
        assert_eq!(verified.batches, streams.iter().map(|stream| stream.len() as u64).sum::<u64>());
    }
}

#[test]
fn a_process_that_is_not_in_the_file_did_nothing() {
    assert!(matches!(read(&file(Density::Pages, 10).0, 5), (batches, None) if batches.is_empty()));
}

#[test]
fn a_file_cut_anywhere_gives_what_stands_before_the_cut_and_says_so() {
    let (bytes, streams) = file(Density::Pages, 20_000);
    let blocks = Mvt::new(Cursor::new(&bytes), "two.mvt").unwrap().blocks().to_vec();
    for cut in (0..bytes.len()).step_by(bytes.len() / 23).chain([bytes.len() - 1]) {
        for process in 0..2 {
            let (batches, error) = read(&bytes[..cut], process);
            let whole = |block: &&memvirt_mvt::BlockInfo| block.offset + block.bytes <= cut as u64;
            let before = blocks.iter().filter(whole).filter(|block| block.process.0 == process);
            let expected: u64 = before.clone().map(|block| u64::from(block.batches)).sum();
            assert_eq!(batches.len() as u64, expected, "cut to {cut}");
            let stream = &streams[usize::try_from(process).unwrap()];
            assert!(batches.iter().zip(stream).all(|(read, written)| *read == rounded(written, 12)));
            assert_eq!(error.is_none(), before.clone().any(|block| block.last), "cut to {cut}: {error:?}");
        }
        if let Ok(mvt) = Mvt::new(Cursor::new(&bytes[..cut]), "two.mvt") {
            assert!(mvt.damage().is_some_and(|damage| damage.offset <= cut as u64));
            assert!(!mvt.verify().unwrap().damage.is_empty());
        }
    }
}

/// What is said to be broken before any block is read.
fn damage(bytes: &[u8]) -> (u64, String) {
    let mvt = Mvt::new(Cursor::new(bytes), "two.mvt").unwrap();
    let damage = mvt.damage().unwrap();
    assert!(mvt.verify().unwrap().damage.contains(damage));
    (damage.offset, damage.what.clone())
}

#[test]
fn whatever_is_wrong_behind_the_blocks_is_named_and_costs_none() {
    let (bytes, streams) = file(Density::Pages, 20_000);
    let blocks = Mvt::new(Cursor::new(&bytes), "two.mvt").unwrap().blocks().to_vec();
    let index = blocks.last().map(|block| block.offset + block.bytes).unwrap();
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let wrong = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    let footer = bytes.len() as u64 - 16;
    let appended = |what: &[u8]| [&bytes[..], what].concat();
    let junk = (bytes.len() as u64, "16 bytes follow: something is appended".to_owned());
    let second = (bytes.len() as u64, format!("{} bytes follow: another .mvt trace is appended", bytes.len()));
    let cases = [
        (wrong(at(index) + 20), (index, "its index is damaged".to_owned())),
        (wrong(at(footer) + 3), (footer, "its footer is damaged".to_owned())),
        (bytes[..at(footer) + 9].to_vec(), (footer, "ends within its footer".to_owned())),
        (bytes[..at(index) + 30].to_vec(), (index, "ends within its index".to_owned())),
        (bytes[..at(index) + 6].to_vec(), (index, "ends within its index".to_owned())),
        (bytes[..at(index)].to_vec(), (index, "without its index".to_owned())),
        (appended(&[0x55; 16]), junk),
        // The footer of the copy leads to the index of the original.
        (appended(&bytes), second),
    ];
    for (bytes, (offset, what)) in cases {
        let found = damage(&bytes);
        assert!(found.0 == offset && found.1.contains(&what), "{found:?} is not {offset}: {what}");
        for (process, stream) in (0..).zip(&streams) {
            assert_eq!(read(&bytes, process).0.len(), stream.len(), "{what}");
        }
    }
}

#[test]
fn one_wrong_byte_in_a_block_costs_its_process_what_follows_and_the_others_nothing() {
    let (mut bytes, _) = file(Density::Pages, 20_000);
    let blocks = Mvt::new(Cursor::new(&bytes), "two.mvt").unwrap().blocks().to_vec();
    let hurt = blocks.iter().find(|block| block.process.0 == 0 && block.number == 1).unwrap();
    bytes[usize::try_from(hurt.offset + hurt.bytes / 2).unwrap()] ^= 1;
    let (batches, error) = read(&bytes, 0);
    let before = blocks.iter().find(|block| block.process.0 == 0 && block.number == 0).unwrap();
    assert_eq!(batches.len(), before.batches as usize);
    let message = error.unwrap().to_string();
    assert!(message.contains(&format!("byte {}", hurt.offset)) && message.contains("checksum"), "{message}");
    assert!(read(&bytes, 1).1.is_none());
    let verified = Mvt::new(Cursor::new(&bytes), "two.mvt").unwrap().verify().unwrap();
    assert_eq!((verified.damage.len(), verified.damage[0].offset), (1, hurt.offset));
}

#[test]
fn kernel_accesses_and_switched_streams_are_not_stored() {
    let mut writer = Writer::new(Vec::new(), "x", Header::default()).unwrap();
    let run = vec![Acc::supervisor(Gva::new(0x1000), AccessKind::Read)];
    assert!(matches!(writer.batch(ProcessId::FIRST, &Batch { run, ..Batch::default() }), Err(MvtError::Unstorable(_))));
    assert!(matches!(writer.batch(ProcessId(1), &Batch::default()), Err(MvtError::Unstorable(_))));
}

#[test]
fn other_files_are_told_from_damaged_ones() {
    for other in [&b""[..], b"I  04001090,3\n", b"\x89PNG\r\n\x1a\n......"] {
        assert!(matches!(Mvt::new(Cursor::new(other), "x"), Err(MvtError::NotMvt { .. })));
    }
}

proptest! {
    #![proptest_config(memvirt_properties::cases(300))]
    #[test]
    fn whatever_happens_to_the_bytes_nothing_wrong_is_delivered(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        static FILE: std::sync::LazyLock<(Vec<u8>, [Vec<Batch>; 2])> =
            std::sync::LazyLock::new(|| file(Density::Pages, 40));
        let (mut bytes, streams) = FILE.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        for process in 0..2 {
            let (batches, _) = read(&bytes, process);
            let stream = &streams[usize::try_from(process).unwrap()];
            prop_assert!(batches.len() <= stream.len());
            for (read, written) in batches.iter().zip(stream) {
                prop_assert_eq!(read, &rounded(written, 12));
            }
        }
        if let Ok(mvt) = Mvt::new(Cursor::new(&bytes), "two.mvt") {
            let _ = mvt.verify().unwrap();
        }
    }
}
