//! Logs of real programs, against a naive reader and against figures counted with other tools.

use crate::common::{LOGS, drain, naive, path, pieces, run, text};
use memvirt_addr::{AccessKind, Gva};
use memvirt_ops::process::{Batch, Op, Prot, Range, Sharing, Source};
use memvirt_trace::{Compression, LackeyReader, TraceInfo};

#[test]
fn every_access_is_the_one_that_a_naive_reader_finds() {
    for name in LOGS {
        let text = String::from_utf8(text(name)).unwrap();
        let expected = naive(&text);
        let run = run(text.as_bytes());
        assert!(run.error.is_none());
        let accesses: Vec<_> =
            expected.iter().flat_map(|&(letter, address, bytes)| pieces(letter, address, bytes)).collect();
        assert!(run.accesses() == accesses, "{name}");
        let count = |wanted| expected.iter().filter(|(letter, ..)| *letter == wanted).count() as u64;
        let tally = &run.tally;
        assert_eq!(
            [tally.fetches, tally.loads, tally.stores, tally.modifies],
            ['I', 'L', 'S', 'M'].map(count),
            "{name}"
        );
        assert_eq!(run.instructions(), tally.fetches, "{name}");
        assert_eq!(tally.lines, text.lines().count() as u64, "{name}");
        assert_eq!(tally.raw_bytes, text.len() as u64, "{name}");
        assert_eq!((tally.malformed, &tally.first_malformed), (0, &None), "{name}");
        let calls = text.matches("SYSCALL[").count() - text.matches(") ... [async]").count();
        assert_eq!(tally.syscall_count(), calls as u64, "{name}");
    }
}

/// The figures were counted with grep, sort and wc.
#[test]
fn the_shipped_log_has_the_counts_that_grep_finds() {
    let mut reader = memvirt_trace::open(path(LOGS[0])).unwrap();
    let info = TraceInfo::read(&mut reader).unwrap();
    assert_eq!(info.compression, Compression::Zstd);
    assert_eq!(info.file_bytes, std::fs::metadata(path(LOGS[0])).unwrap().len());
    assert_eq!(reader.progress().total_bytes(), Some(info.file_bytes));
    let tally = &info.tally;
    assert_eq!((tally.lines, tally.raw_bytes), (726_585, 10_349_850));
    assert_eq!((tally.fetches, tally.loads, tally.stores, tally.modifies), (519_213, 124_964, 78_776, 3_434));
    let called = |name: &str| tally.syscalls.get(name).copied();
    assert_eq!(
        ["mmap", "munmap", "mprotect", "brk", "exit_group"].map(called),
        [Some(29), Some(6), Some(7), Some(3), Some(1)]
    );
    assert_eq!(
        tally.command.as_deref(),
        Some("zstd --single-thread --no-asyncio --fast=3 -q -f table.txt -o table.zst")
    );
    assert_eq!(tally.pids.len(), 1);
    assert_eq!((info.pages, info.ranges.len()), (294, 4));
    assert_eq!(info.ranges.iter().map(|range| range.pages).sum::<u64>(), info.pages);
}

#[test]
fn the_operations_of_the_shipped_log_are_those_of_its_calls() {
    let run = run(&text(LOGS[0])[..]);
    let ops = run.ops();
    let count = |test: fn(&Op) -> bool| ops.iter().filter(|op| test(op)).count();
    // 29 mmap, 8 of them anonymous (descriptor -1); 3 brk.
    assert_eq!(count(|op| matches!(op, Op::Mmap { .. })), 8);
    assert_eq!(count(|op| matches!(op, Op::MapFile { .. })), 21);
    assert_eq!(count(|op| matches!(op, Op::Brk { .. })), 3);
    assert_eq!(count(|op| matches!(op, Op::Munmap { .. })), 6);
    assert_eq!(count(|op| matches!(op, Op::Mprotect { .. })), 7);
    assert_eq!(ops.iter().position(|op| *op == Op::Exit), Some(ops.len() - 1));
    assert_eq!(ops.len() as u64, run.tally.syscall_count());
    assert!(ops.contains(&Op::Brk { end: Gva::new(0x405_6000) }), "the heap grows");
    // `sys_mmap ( 0x0, 16400, 1, 2050, 4, 0 )`: read-only, private, of a file.
    let part = |op: &Op, bytes, prot| match *op {
        Op::MapFile { range, prot: has, sharing: Sharing::Private, file, first_page }
            if range.bytes == bytes && has == prot =>
        {
            Some((file, first_page))
        }
        _ => None,
    };
    let whole: Vec<_> = ops.iter().filter_map(|op| part(op, 16_400, Prot::R)).collect();
    assert_eq!(whole.len(), 1);
    // The parts of that library are mapped over it by the same descriptor: the same file, at page 1 and page 2.
    let text: Vec<_> = ops.iter().filter_map(|op| part(op, 4096, Prot::RX)).collect();
    assert_eq!((whole[0].1, text[0]), (0, (whole[0].0, 1)));
}

#[test]
fn threads_and_calls_that_are_torn_apart_are_understood() {
    let run = run(&text("threads.lackey")[..]);
    let ops = run.ops();
    // The result of this call stands eleven lines below it, after remarks of Valgrind about a library's symbols.
    let torn = Range { start: Gva::new(0x4a1_4000), bytes: 24_576 };
    assert!(
        ops.iter().any(|op| matches!(op, Op::MapFile { range, prot: Prot::RW, first_page: 463, .. } if *range == torn))
    );
    // The threads' exits are no exit of the process; that comes once, at the end.
    assert_eq!(ops.iter().filter(|op| **op == Op::Exit).count(), 1);
    assert_eq!(ops.last(), Some(&Op::Exit));
    assert_eq!(ops.iter().filter(|op| **op == Op::Syscall { number: 60 }).count(), 2);
    // mremap to another place, then shrinking in place.
    let range = |start, bytes| Range { start: Gva::new(start), bytes };
    let moves: Vec<_> = ops.iter().filter(|op| matches!(op, Op::Mremap { .. })).copied().collect();
    let moved = Op::Mremap { from: range(0x5a2_c000, 303_104), to: range(0x5a7_6000, 3_002_368) };
    let shrunk = Op::Mremap { from: range(0x5a7_6000, 3_002_368), to: range(0x5a7_6000, 602_112) };
    assert_eq!(moves, [moved, shrunk]);
    // Three threads take turns.
    let threads: Vec<_> =
        ops.iter().filter_map(|op| if let Op::Handoff { thread } = op { Some(*thread) } else { None }).collect();
    assert!(threads.windows(2).all(|pair| pair[0] != pair[1]), "{threads:?}");
    assert_eq!(threads.len() as u64, run.tally.handoffs);
    assert!(threads.contains(&2) && threads.contains(&1), "{threads:?}");
}

#[test]
fn an_access_on_the_line_of_a_result_comes_after_the_call() {
    let run = run(&text("threads-server.lackey")[..]);
    let clone = Op::Syscall { number: 56 };
    let after: Vec<_> =
        run.batches.windows(2).filter(|pair| pair[0].then == Some(clone)).map(|pair| &pair[1]).collect();
    assert_eq!(after.len(), 4);
    let fetches: Vec<_> = after.iter().map(|batch| batch.run.len()).collect();
    assert_eq!(fetches, [1, 0, 1, 1], "three of the four results have an access behind them");
    assert_eq!(after[0].run[0].gva(), Gva::new(0x532_eb42));
    assert_eq!(after[0].run[0].kind(), AccessKind::Fetch);
}

#[test]
fn a_child_of_a_fork_begins_with_the_result_of_a_call_it_did_not_make() {
    let run = run(&text("fork-child.lackey.zst")[..]);
    let count = |number| run.ops().iter().filter(|op| **op == Op::Syscall { number }).count();
    assert_eq!((count(56), count(61), count(273)), (2, 3, 1));
    assert_eq!(run.ops().last(), Some(&Op::Exit));
    assert_eq!(run.tally.command.as_deref(), Some("sh ./fork.sh"));
    assert!(run.tally.schedule_remarks > 0 && run.tally.blank_lines > 0);
}

#[test]
fn batches_are_full_or_end_with_an_operation_or_the_log() {
    let run = run(&text(LOGS[0])[..]);
    let (last, before) = run.batches.split_last().unwrap();
    assert!(before.iter().all(|batch| batch.then.is_some() || batch.run.len() >= Batch::CAPACITY - 1));
    assert_eq!(last.then, Some(Op::Exit));
}

#[test]
fn lines_with_carriage_returns_or_without_the_last_newline_read_the_same() {
    for name in LOGS {
        let plain = text(name);
        let expected = run(&plain[..]);
        let crlf = String::from_utf8(plain.clone()).unwrap().replace('\n', "\r\n");
        let other = run(crlf.as_bytes());
        assert!(other.batches == expected.batches, "{name}");
        assert_eq!((other.tally.lines, other.tally.malformed), (expected.tally.lines, 0));
        let cut = run(plain.strip_suffix(b"\n").unwrap());
        assert!(cut.batches == expected.batches, "{name}");
        assert_eq!(cut.tally.lines, expected.tally.lines);
    }
}

#[test]
fn a_reader_can_be_drained_through_a_reference() {
    let text = text("threads.lackey");
    let mut reader = LackeyReader::new(&text[..], "x");
    let mut batch = Batch::default();
    let source: &mut dyn Source<Error = memvirt_trace::TraceError> = &mut reader;
    assert!(source.next_batch(&mut batch).unwrap());
    assert!(drain(reader).error.is_none());
}

#[test]
fn the_footprint_knows_pages_by_kind_and_joins_near_ones() {
    let text =
        "I  00400000,1\n L 00400fff,1\n S 00401000,1\n M 005ff000,8\nI  00600000,1\n S 7fffffff000,1\n S 00400000,1\n";
    let info = TraceInfo::read(&mut LackeyReader::new(text.as_bytes(), "x")).unwrap();
    assert_eq!((info.pages, info.pages_fetched, info.pages_read, info.pages_written), (5, 2, 2, 4));
    let ranges: Vec<_> = info.ranges.iter().map(|range| (range.start, range.end, range.pages)).collect();
    assert_eq!(ranges, [(0x40_0000, 0x60_1000, 4), (0x7ff_ffff_f000, 0x800_0000_0000, 1)]);
    assert_eq!((info.accesses, info.operations), (8, 0));
}

#[cfg(feature = "serde")]
#[test]
fn the_summary_is_written_as_json() {
    let info = TraceInfo::read(&mut memvirt_trace::open(path("threads-server.lackey")).unwrap()).unwrap();
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["compression"], "plain");
    assert_eq!(json["tally"]["syscalls"]["clone"], 4);
    assert_eq!(json["ranges"][0]["pages"], 1);
}
