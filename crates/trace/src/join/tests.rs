//! Joining texts that were made up, sound and unsound.

use std::path::Path;

use memvirt_ops::process::{Batch, Op, Source};

use super::Pair;

/// A program's start under strace, and its faults in another run that lies 0x1000_0000 higher and whose heap begins elsewhere.
const CALLS: &str = "7 execve(\"/bin/a\", [], 0x7 /* 1 var */) = 0
7 brk(NULL) = 0x2000000
7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00000fe000
7 mmap(NULL, 16384, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7f00000fa000
7 mmap(0x7f00000fb000, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED, 3, 0x1000) = 0x7f00000fb000
7 mprotect(0x403000, 4096, PROT_READ) = 0
7 brk(0x2002000) = 0x2002000
7 munmap(0x7f00000fa000, 16384) = 0
7 exit_group(0) = ?
";
const FAULTS: &str = "a 9 1.1: page-faults:u: 7f0010104b70 7f0010104b70
a 9 1.2: page-faults:u: 400040 7f0010104c00
a 9 1.3: page-faults:u: 403010 7f0010104c10
a 9 1.4: page-faults:u: 7f00100fe010 7f0010104c20
a 9 1.5: page-faults:u: 7f00100fb010 7f00100fb010
a 9 1.6: page-faults:u: 3000008 7f0010104c30
a 9 1.7: page-faults:u: 3001008 7f0010104c40
a 9 1.8: page-faults:u: 401000 401000
";

fn pair(folder: &Path, calls: &str, faults: &str) -> Pair {
    std::fs::write(folder.join("calls.txt"), calls).unwrap();
    std::fs::write(folder.join("faults.txt"), faults).unwrap();
    Pair::open(folder).unwrap()
}

#[test]
fn calls_move_to_where_the_faults_are_and_come_when_they_are_needed() {
    let folder = tempfile::tempdir().unwrap();
    let mut joined = pair(folder.path(), CALLS, FAULTS).join("faults.txt").unwrap();
    assert_eq!((joined.found.spaces, joined.found.faults, joined.found.elsewhere), (1, 8, 0));
    assert_eq!(joined.found.unplaced, 0, "{:?}", joined.found);
    let (mut batch, mut touched, mut heap, mut text) = (Batch::default(), 0, 0, 0);
    while joined.next_batch(&mut batch).unwrap() {
        touched += batch.run.len();
        match batch.then {
            Some(Op::Brk { end }) => heap = end.as_u64(),
            Some(Op::MapFile { range, prot, .. }) if prot.execute => {
                text = range.start.as_u64();
                assert_eq!(touched, 4, "the text is mapped with its library, after what does not need it");
            }
            Some(Op::Mprotect { range, .. }) => assert_eq!(range.start.as_u64(), 0x40_3000),
            _ => {}
        }
    }
    assert_eq!((touched, text, heap), (8, 0x7f00_100f_b000, 0x300_2000));
}

#[test]
fn texts_without_sense_are_joined_without_panic() {
    let folder = tempfile::tempdir().unwrap();
    let line = |text: &str| format!("7 execve(\"/bin/a\", [], 0x7 /* 1 var */) = 0\n{text}\n7 exit_group(0) = ?\n");
    let odd = [
        "7 mmap(NULL, 18446744073709551615, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x1000",
        "7 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0xfffffffffffff000",
        "7 mmap(NULL, 140737488351232, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x1000",
        "7 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0xfffffffffffff000) = 0x1000",
        "7 munmap(0x1000, 140737488351232) = 0",
        "7 mprotect(0xfffffffffffff000, 4096, PROT_READ) = 0",
        "7 mremap(0x1000, 4096, 140737488351232, MREMAP_MAYMOVE) = 0xffffffff00000000",
        "7 brk(0x7fffffffffff) = 0x7fffffffffff\n7 brk(0) = 0x1000",
    ];
    let faults = ["0 0", "fff 7fffffffffff", "7fffffffffff 7fffffffffff", "fffffffffffff000 1", "ffffffffffff 1"];
    for calls in odd {
        for second in odd {
            for fault in faults {
                let faults = format!("a 9 1.1: page-faults:u: {fault}\na 9 1.2: page-faults:u: 1000 1000\n");
                let pair = pair(folder.path(), &line(&format!("{calls}\n{second}")), &faults);
                let mut joined = pair.join("faults.txt").unwrap();
                let mut batch = Batch::default();
                while joined.next_batch(&mut batch).unwrap() {}
            }
        }
    }
}
