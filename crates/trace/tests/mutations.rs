//! Whatever happens to a recording, reading it ends: with batches, counted mistakes, or an error that names the file.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::path::Path;

use memvirt_ops::process::{Batch, Op, ProcessId, Source};
use memvirt_trace::{Format, Reading, Recording, Tally, TraceError, Turns};
use proptest::prelude::*;

const STRACE: &str = r#"7 1795353082.714527 execve("/usr/bin/gcc", [...], 0x7ffda7dcff78 /* 36 vars */) = 0
7 1795353082.714924 brk(NULL)       = 0x3fa0a000
7 1795353082.715100 openat(AT_FDCWD, "/lib/libc.so.6", O_RDONLY|O_CLOEXEC) = 3
7 1795353082.715244 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7eff1c9c9000
7 1795353082.715585 mmap(0x7eff1c803000, 1400832, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED|MAP_DENYWRITE, 3, 0x26000) = 0x7eff1c803000
7 1795353082.715600 close(3) = 0
7 1795353082.716026 mprotect(0x7eff1c803000, 16384, PROT_READ) = 0
7 1795353082.716207 munmap(0x7eff1c9bf000, 37827) = 0
7 1795353082.716324 brk(0x3fa2b000) = 0x3fa2b000
7 1795353082.716325 mremap(0x7eff1c9c9000, 8192, 16384, MREMAP_MAYMOVE) = 0x7eff1c9d0000
7 1795353082.716326 madvise(0x7eff1c9d0000, 4096, MADV_DONTNEED) = 0
7 1795353082.718112 vfork( <unfinished ...>
8 1795353082.718237 execve("/usr/bin/cc1", [...], 0x3fa336a0 /* 40 vars */ <unfinished ...>
7 1795353082.718361 <... vfork resumed>) = 8
7 1795353082.718542 wait4(8,  <unfinished ...>
8 1795353082.718567 <... execve resumed>) = 0
8 1795353082.718600 clone(child_stack=0x7f00, flags=CLONE_VM|CLONE_FS|CLONE_THREAD, parent_tid=[9]) = 9
9 1795353082.718700 getpid() = 8
9 1795353082.718701 exit(0) = ?
9 1795353082.718702 +++ exited with 0 +++
8 1795353082.806008 exit_group(0)   = ?
8 1795353082.806439 +++ exited with 0 +++
7 1795353082.806453 <... wait4 resumed>[{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = 8
7 1795353082.806494 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=8, si_uid=0} ---
7 1795353082.811216 exit_group(0)   = ?
"#;

const PERF: &str = "\
             gcc 7 [000]  3219.506665:               tlb:tlb_flush: pages:1 reason:local MM shootdown (3)
             gcc 7 [000]  3219.506763:    sched:sched_process_exec: filename=/usr/bin/gcc pid=7 old_pid=7
             gcc 7 [000]  3219.506776:  exceptions:page_fault_user: address=0x7f688698bb70 ip=0x7f688698bb70 error_code=0x14
             gcc 7 [000]  3219.506780:  exceptions:page_fault_user: address=0x7f68869a4e06 ip=0x7f688698c7ad error_code=0x6
             gcc 7 [000]  3219.506800:      syscalls:sys_enter_brk: brk: 0x00000000
             gcc 7 [000]  3219.506801:       syscalls:sys_exit_brk: 0x3445b000
             gcc 7 [000]  3219.506988:     syscalls:sys_enter_mmap: addr: 0x00000000, len: 0x00002000, prot: 0x00000003, flags: 0x00000022, fd: 0xffffffff, off: 0x00000000
             gcc 7 [000]  3219.506993:      syscalls:sys_exit_mmap: 0x7f6886967000
             gcc 7 [000]  3219.507188: syscalls:sys_enter_mprotect: start: 0x7f6886967000, len: 0x00001000, prot: 0x00000001
             gcc 7 [000]  3219.507831:    sched:sched_process_fork: comm=gcc pid=7 child_comm=gcc child_pid=8
             gcc 7 [000]  3219.507841:          sched:sched_switch: prev_comm=gcc prev_pid=7 prev_prio=120 prev_state=D ==> next_comm=other next_pid=26 next_prio=125
             cc1 8 [000]  3219.509584:    sched:sched_process_exec: filename=/usr/lib/cc1 pid=8 old_pid=8
             cc1 8 [000]  3219.509600: page-faults:u:     7fe2143dfe06     7fe2143c77ad
             cc1 8 [000]  3219.573578:    sched:sched_process_exit: comm=cc1 pid=8 prio=120 group_dead=true
             gcc 7 [000]  3219.585521:    sched:sched_process_exit: comm=gcc pid=7 prio=120 group_dead=true
";

const LACKEY: &str = "\
==7== Lackey, an example Valgrind tool
==7== Command: sh
I  04001090,3
 L 1ffefff888,8
SYSCALL[7,1](9) sys_mmap ( 0x0, 8192, 3, 34, 4294967295, 0 ) --> [pre-success] Success(0x4835000)
 S 04835008,8
SYSCALL[7,1](56) sys_clone ( 1200011, 0x0, 0x0, 0x4a28a10, 0x0 )   clone(fork): process 7 created child 8
 --> [pre-success] Success(0x8) --7--   SCHED[1]: releasing lock (VG_(vg_yield)) -> VgTs_Yielding
SYSCALL[7,1](61) sys_wait4 ( 4294967295, 0x1fff00007c, 0, 0x0 ) --> [async] ...
SYSCALL[7,1](61) ... [async] --> Success(0x8)
SYSCALL[7,1](25) sys_mremap ( 0x4835000, 8192, 16384, 0x1, 0x0 )[sync] --> Success(0x5835000)
SYSCALL[7,1](231) exit_group( 0 ) --> [pre-success] Success(0x0)
";

const CHILD: &str = "\
==8== Lackey, an example Valgrind tool
==8== Parent PID: 7
 --> [pre-success] Success(0x0)
I  0491a353,6
SYSCALL[8,1](59) sys_execve ( 0x4036110(/usr/bin/wc), 0x4035fb8, 0x4035fd0 )
";

const PROGRAM: &str = "\
==8== Lackey, an example Valgrind tool
==8== Command: /usr/bin/wc -c
==8== Parent PID: 7
I  04001090,3
SYSCALL[8,1](231) exit_group( 0 ) --> [pre-success] Success(0x0)
";

/// A record of ChampSim.
fn champsim(count: u64) -> Vec<u8> {
    let record = |i: u64| {
        let mut record = [0u8; 64];
        record[..8].copy_from_slice(&(0x40_0000 + i * 4).to_le_bytes());
        record[16..24].copy_from_slice(&(0x7000_0000 + i * 512).to_le_bytes());
        record[32..40].copy_from_slice(&(0x6000_0000 + i * 64).to_le_bytes());
        record
    };
    (0..count).flat_map(record).collect()
}

struct Read {
    format: Format,
    batches: Vec<Batch>,
    tally: Tally,
    error: Option<TraceError>,
}

fn read(path: &Path) -> Result<Read, TraceError> {
    let turns = Turns { quantum: 1000, seed: 5 };
    let mut recording = Recording::open(path, Reading { turns, memory_calls: None })?;
    let (mut batches, mut batch) = (Vec::new(), Batch::default());
    let error = loop {
        match recording.next_batch(&mut batch) {
            Ok(true) => batches.push(batch.clone()),
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
        assert!(batch.run.len() <= Batch::CAPACITY);
        assert!(batches.len() < 20_000, "it never ends");
    };
    Ok(Read { format: recording.format(), batches, tally: recording.tally(), error })
}

fn read_bytes(bytes: &[u8]) -> Result<Read, TraceError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.txt");
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

fn ops(read: &Read) -> Vec<Op> {
    read.batches.iter().filter_map(|batch| batch.then).collect()
}

#[test]
fn strace_text_becomes_processes_and_areas() {
    let read = read_bytes(STRACE.as_bytes()).unwrap();
    assert_eq!(
        (read.format, read.tally.malformed, read.error.is_none()),
        (Format::Strace, 0, true),
        "{:?}",
        read.tally
    );
    let child = ProcessId(1);
    let ops = ops(&read);
    let place = |op: Op| ops.iter().position(|other| *other == op).unwrap_or_else(|| panic!("{op:?} in {ops:?}"));
    assert!(place(Op::Vfork { child }) < place(Op::Switch { to: child }));
    assert!(place(Op::Handoff { thread: 9 }) < place(Op::Exit));
    assert!(place(Op::Exit) < place(Op::Wait { child: Some(child) }));
    let counts = (read.tally.processes, read.tally.forks, read.tally.execs, read.tally.exits);
    assert_eq!(counts, (2, 1, 2, 2));
    for wanted in ["Mmap", "MapFile", "Munmap", "Mprotect", "Mremap", "Discard", "Brk"] {
        assert!(ops.iter().any(|op| format!("{op:?}").starts_with(wanted)), "{wanted}: {ops:?}");
    }
}

#[test]
fn perf_text_becomes_accesses_areas_and_processes() {
    let read = read_bytes(PERF.as_bytes()).unwrap();
    assert_eq!((read.format, read.tally.malformed, read.error.is_none()), (Format::Perf, 0, true), "{:?}", read.tally);
    let kinds: Vec<_> = read.batches.iter().flat_map(|batch| &batch.run).map(|access| access.kind()).collect();
    use memvirt_addr::AccessKind::{Fetch, Read, Write};
    assert_eq!(kinds, [Fetch, Write, Read]);
    let ops = ops(&read);
    assert!(ops.contains(&Op::Vfork { child: ProcessId(1) }), "the parent sleeps until the child's exec: {ops:?}");
    assert_eq!((read.tally.forks, read.tally.execs, read.tally.exits), (1, 2, 2));
    assert_eq!(read.tally.flushes.get("local MM shootdown"), Some(&1));
    // 17 us from exec to the last event before the fork, and so on: a nanosecond is an instruction.
    assert!(read.batches.iter().map(|batch| batch.instructions).sum::<u64>() > 1_000_000);
}

#[test]
fn champsim_records_become_fetches_loads_and_stores() {
    let read = read_bytes(&champsim(5000)).unwrap();
    assert_eq!((read.format, read.tally.malformed, read.error.is_none()), (Format::ChampSim, 0, true));
    assert_eq!((read.tally.fetches, read.tally.loads, read.tally.stores), (5000, 5000, 5000));
    assert_eq!(read.batches.iter().map(|batch| batch.instructions).sum::<u64>(), 5000);
    let cut = read_bytes(&champsim(5000)[..64 * 4000 + 10]).unwrap();
    assert_eq!((cut.tally.fetches, cut.tally.malformed), (4000, 1));
}

fn set(folder: &Path, logs: &[(&str, &[u8])]) {
    for (name, text) in logs {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn logs_of_several_processes_are_put_together_whatever_they_are_called() {
    let folder = tempfile::tempdir().unwrap();
    set(
        folder.path(),
        &[("z", LACKEY.as_bytes()), ("b", CHILD.as_bytes()), ("a", PROGRAM.as_bytes()), ("x.txt", b"notes")],
    );
    let read = read(folder.path()).unwrap();
    assert_eq!((read.format, read.tally.malformed, read.error.is_none()), (Format::LackeySet, 0, true));
    let ops = ops(&read);
    let place = |op: Op| ops.iter().position(|other| *other == op).unwrap_or_else(|| panic!("{op:?} in {ops:?}"));
    let child = ProcessId(1);
    assert!(place(Op::Fork { child }) < place(Op::Exec) && place(Op::Exec) < place(Op::Exit));
    assert!(place(Op::Exit) < place(Op::Wait { child: Some(child) }));
    assert_eq!((read.tally.processes, read.tally.forks, read.tally.execs, read.tally.exits), (2, 1, 1, 2));
}

#[test]
fn a_bundle_without_recordings_says_so() {
    let folder = tempfile::tempdir().unwrap();
    set(folder.path(), &[("notes.txt", b"It was a dark and stormy night.\n")]);
    let error = read(folder.path()).err().unwrap().to_string();
    assert!(error.contains("none of the 1 files"), "{error}");
}

/// One change to a recording.
#[derive(Clone, Debug)]
enum Change {
    Byte(prop::sample::Index, u8),
    Delete(prop::sample::Index),
    Double(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    /// A number becomes an absurd one.
    Number(prop::sample::Index, &'static str),
    Cut(prop::sample::Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let absurd =
        prop::sample::select(vec!["18446744073709551615", "0xffffffffffffffff", "-1", "0", "99999999999999999999"]);
    let index = any::<prop::sample::Index>;
    let change = prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        index().prop_map(Change::Delete),
        index().prop_map(Change::Double),
        (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        (index(), absurd).prop_map(|(at, number)| Change::Number(at, number)),
        index().prop_map(Change::Cut),
    ];
    prop::collection::vec(change, 1..8)
}

fn changed(text: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    for change in changes {
        if lines.is_empty() {
            break;
        }
        let count = lines.len();
        match change {
            Change::Byte(at, byte) => {
                let line = &mut lines[at.index(count)];
                let place = usize::from(*byte) % line.len().max(1);
                if let Some(slot) = line.get_mut(place) {
                    *slot = *byte;
                }
            }
            Change::Delete(at) => drop(lines.remove(at.index(count))),
            Change::Double(at) => {
                let line = lines[at.index(count)].clone();
                lines.insert(at.index(count), line);
            }
            Change::Swap(a, b) => lines.swap(a.index(count), b.index(count)),
            Change::Number(at, number) => {
                let line = &mut lines[at.index(count)];
                let digits: Vec<usize> = (0..line.len()).filter(|i| line[*i].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    let start = digits[at.index(digits.len())];
                    let end = (start..line.len()).find(|i| !line[*i].is_ascii_alphanumeric()).unwrap_or(line.len());
                    line.splice(start..end, number.bytes());
                }
            }
            Change::Cut(at) => {
                let line = &mut lines[at.index(count)];
                let half = line.len() / 2;
                line.truncate(half);
            }
        }
    }
    lines.concat()
}

/// Reading ends, twice alike; a mistake names the file and the line.
fn holds(outcome: &Result<Read, TraceError>, again: &Result<Read, TraceError>) -> Result<(), TestCaseError> {
    match (outcome, again) {
        (Ok(read), Ok(again)) => {
            prop_assert_eq!(&read.batches, &again.batches);
            if let Some(first) = &read.tally.first_malformed {
                prop_assert!(first.line > 0 && !first.expected.is_empty() && !first.file.is_empty());
            }
            if let Some(error) = &read.error {
                prop_assert!(error.to_string().contains("it"), "{}", error);
            }
        }
        (Err(error), Err(_)) => prop_assert!(!error.to_string().is_empty()),
        _ => return Err(TestCaseError::fail("two readings of the same bytes end differently")),
    }
    Ok(())
}

proptest! {
    #![proptest_config(memvirt_properties::cases(400))]

    #[test]
    fn changed_texts_are_read_or_refused(which in 0usize..3, changes in changes()) {
        let text = [STRACE, PERF, LACKEY][which];
        let bytes = changed(text.as_bytes(), &changes);
        holds(&read_bytes(&bytes), &read_bytes(&bytes))?;
    }

    #[test]
    fn changed_sets_are_read_or_refused(a in changes(), b in changes(), c in changes()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it");
        std::fs::create_dir(&path).unwrap();
        let logs = [changed(LACKEY.as_bytes(), &a), changed(CHILD.as_bytes(), &b), changed(PROGRAM.as_bytes(), &c)];
        set(&path, &[("1", &logs[0]), ("2", &logs[1]), ("3", &logs[2])]);
        holds(&read(&path), &read(&path))?;
    }

    #[test]
    fn changed_records_are_read_or_refused(at: prop::sample::Index, bytes: [u8; 24], cut: prop::sample::Index) {
        let mut trace = champsim(300);
        let start = at.index(trace.len() - bytes.len());
        trace[start..start + bytes.len()].copy_from_slice(&bytes);
        trace.truncate(cut.index(trace.len()));
        holds(&read_bytes(&trace), &read_bytes(&trace))?;
    }

    #[test]
    fn changed_archives_are_read_or_refused(spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut: prop::sample::Index, whole: bool) {
        let mut archive = tar(&[("1", LACKEY), ("2", CHILD), ("3", PROGRAM)]);
        for (at, byte) in spots {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if !whole {
            archive.truncate(cut.index(archive.len()));
        }
        holds(&read_bytes(&archive), &read_bytes(&archive))?;
    }
}

/// A tar archive in memory.
fn tar(members: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, text) in members {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", text.len()).as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend(header);
        archive.extend(text.as_bytes());
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0; 1024]);
    archive
}

#[test]
fn an_archive_reads_as_the_directory_does() {
    let folder = tempfile::tempdir().unwrap();
    set(folder.path(), &[("1", LACKEY.as_bytes()), ("2", CHILD.as_bytes()), ("3", PROGRAM.as_bytes())]);
    let of_folder = read(folder.path()).unwrap();
    let archive = tar(&[("1", LACKEY), ("2", CHILD), ("3", PROGRAM)]);
    for bytes in [archive.clone(), zstd::encode_all(&archive[..], 3).unwrap()] {
        let of_archive = read_bytes(&bytes).unwrap();
        assert_eq!(of_archive.batches, of_folder.batches);
        assert_eq!(of_archive.tally.lines, of_folder.tally.lines);
    }
}
