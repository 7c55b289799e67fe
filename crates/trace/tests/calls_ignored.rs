//! A log whose memory calls are not carried out: the same accesses, and plain system calls in place of area changes.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use memvirt_ops::process::{Batch, Op, Source};
use memvirt_trace::{LackeyReader, MemoryCalls};

const LOG: &str = "\
I  04001090,3
SYSCALL[7,1](9) sys_mmap ( 0x0, 8192, 3, 34, 4294967295, 0 ) --> [pre-success] Success(0x4835000)
 S 04835008,8
SYSCALL[7,1](11) sys_munmap ( 0x4835000, 8192 )[sync] --> Success(0x0)
SYSCALL[7,1](231) exit_group( 0 ) --> [pre-success] Success(0x0)
";

fn read(memory_calls: MemoryCalls) -> (usize, Vec<Op>) {
    let mut reader = LackeyReader::new(LOG.as_bytes(), "log").with_memory_calls(memory_calls);
    let (mut batch, mut accesses, mut ops) = (Batch::default(), 0, Vec::new());
    while reader.next_batch(&mut batch).unwrap() {
        accesses += batch.run.len();
        ops.extend(batch.then);
    }
    (accesses, ops)
}

#[test]
fn ignored_calls_are_system_calls_and_nothing_more() {
    let (accesses, ops) = read(MemoryCalls::Apply);
    assert!(matches!(ops[..], [Op::Mmap { .. }, Op::Munmap { .. }, Op::Exit]), "{ops:?}");
    let plain = [Op::Syscall { number: 9 }, Op::Syscall { number: 11 }, Op::Exit];
    assert_eq!(read(MemoryCalls::Ignore), (accesses, plain.to_vec()));
}
