//! Joining texts that were made up, sound and unsound.

use std::path::Path;

use memvirt_addr::AccessKind;
use memvirt_ops::process::{Batch, Op, ProcessId, Source};

use super::{Pair, Party, Replay, Step};

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

/// A parent stores to a page, forks, and both store to it again; then the parent gives it back and stores once more.
const CALLS_OF_A_COPY: &str = "7 execve(\"/bin/a\", [], 0x7 /* 1 var */) = 0
7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00000fe000
7 clone(child_stack=NULL, flags=SIGCHLD) = 8
8 exit_group(0 <unfinished ...>
8 <... exit_group resumed>) = ?
7 wait4(8, NULL, 0, NULL) = 8
7 madvise(0x7f00000fe000, 4096, MADV_DONTNEED) = 0
7 exit_group(0) = ?
";
const FAULTS_OF_A_COPY: &str = "a 9 1.1: page-faults:u: 7f0010104b70 7f0010104b70
a 9 1.2: page-faults:u: 401000 401000
a 9 1.3: page-faults: 7ffc97800000 ffffffff81b75d98
a 9 1.4: page-faults:u: 7f00100fe010 401010
a 10 1.5: page-faults:u: 401020 401020
a 10 1.6: page-faults:u: 7f00100fe010 401030
a 9 1.7: page-faults:u: 7f00100fe010 401040
a 9 1.8: page-faults:u: 7f00100fe010 401050
";

#[test]
fn a_copy_lies_where_its_parent_does_and_what_faults_anew_was_stored_to_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let pair = pair(folder.path(), CALLS_OF_A_COPY, FAULTS_OF_A_COPY);
    assert_eq!(pair.malformed().0, 0, "{:?}", pair.malformed());
    let mut joined = pair.join("faults.txt").unwrap();
    assert_eq!((joined.found.spaces, joined.found.faults), (2, 7), "the kernel's own fault is none of the program's");
    assert_eq!(joined.found.unplaced, 0, "{:?}", joined.found);
    let (mut batch, mut page, mut at_discard) = (Batch::default(), Vec::new(), 0);
    while joined.next_batch(&mut batch).unwrap() {
        page.extend(batch.run.iter().filter(|access| access.gva().as_u64() == 0x7f00_100f_e010).map(|a| a.kind()));
        if let Some(Op::Discard { range }) = batch.then {
            assert_eq!(range.start.as_u64(), 0x7f00_100f_e000);
            at_discard = page.len();
        }
    }
    assert_eq!(
        (page, at_discard),
        (vec![AccessKind::Write; 4], 3),
        "the last store comes after the page was given back"
    );
}

/// Two processes at once: the child goes to a second CPU while its parent runs on, and both leave to others.
const CALLS_OF_TWO: &str = "7 execve(\"/bin/a\", [], 0x7 /* 1 var */) = 0
7 clone(child_stack=NULL, flags=SIGCHLD) = 8
8 exit_group(0) = ?
7 wait4(8, NULL, 0, NULL) = 8
7 exit_group(0) = ?
";
const SCHEDULED: &str = "a 17 [002] 1.0: sched:sched_process_exec: filename=/bin/a pid=17 old_pid=17
a 17 [002] 1.1: exceptions:page_fault_user: address=0x401000 ip=0x401000 error_code=0x14
a 17 [002] 1.2: sched:sched_process_fork: comm=a pid=17 child_comm=a child_pid=18
other 0 [005] 1.3: sched:sched_switch: prev_comm=other prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=a next_pid=18 next_prio=120
a 18 [005] 1.4: exceptions:page_fault_user: address=0x402000 ip=0x401000 error_code=0x6
a 17 [002] 1.5: exceptions:page_fault_user: address=0x402000 ip=0x401000 error_code=0x6
a 17 [002] 1.6: exceptions:page_fault_user: address=0x403000 ip=0x401000 error_code=0x6
a 17 [002] 1.7: sched:sched_switch: prev_comm=a prev_pid=17 prev_prio=120 prev_state=S ==> next_comm=other next_pid=900 next_prio=120
a 18 [005] 1.8: exceptions:page_fault_user: address=0x403000 ip=0x401000 error_code=0x6
a 18 [005] 1.9: sched:sched_process_exit: comm=a pid=18 prio=120 group_dead=true
a 18 [005] 2.0: sched:sched_switch: prev_comm=a prev_pid=18 prev_prio=120 prev_state=Z ==> next_comm=other next_pid=15 next_prio=120
other 15 [005] 2.1: sched:sched_switch: prev_comm=other prev_pid=15 prev_prio=120 prev_state=I ==> next_comm=a next_pid=17 next_prio=120
a 17 [005] 2.2: exceptions:page_fault_user: address=0x404000 ip=0x401000 error_code=0x6
a 17 [005] 2.3: sched:sched_process_exit: comm=a pid=17 prio=120 group_dead=true
";

/// What each step is, in a few words.
fn words(replay: &Replay) -> Vec<String> {
    let all = replay.steps.iter().filter_map(|step| match step {
        Step::Turn(turn) => Some(format!("{}: {:?}{}", turn.cpu, turn.to, if turn.is_recorded { "" } else { " ?" })),
        Step::Run { cpu, batch } if batch.then.is_none_or(|op| matches!(op, Op::Wait { .. } | Op::Syscall { .. })) => {
            (!batch.run.is_empty()).then(|| format!("{cpu}: {} accesses", batch.run.len()))
        }
        Step::Run { cpu, batch } => {
            let op = batch.then.map(|op| format!("{op:?}")).unwrap_or_default();
            Some(format!("{cpu}: {}", op.split([' ', '{']).next().unwrap_or_default()))
        }
    });
    all.collect()
}

#[test]
fn a_recorded_schedule_is_followed_on_its_cpus() {
    let folder = tempfile::tempdir().unwrap();
    let replay = pair(folder.path(), CALLS_OF_TWO, SCHEDULED).replay("faults.txt").unwrap();
    let (followed, steps) = (replay.schedule.clone().unwrap(), words(&replay));
    assert_eq!((followed.switches, followed.cpus, replay.cpus), (4, 2, 2));
    let own = |n: u32| format!("{:?}", Party::Own(ProcessId(n)));
    // The child appears before the recording says that its parent has forked it; the parent stays where it is meanwhile, and goes
    // over to the child's CPU once the stopped child and a thread of the kernel have left it.
    let expected = [
        "0: Load",
        "0: 1 accesses",
        "0: Fork",
        &format!("1: {}", own(1)),
        "0: 2 accesses",
        "0: Foreign(900)",
        "1: 2 accesses",
        "1: Exit",
        "1: Kernel",
        &format!("1: {}", own(0)),
        "1: 1 accesses",
        "1: Exit",
    ];
    assert_eq!(steps, expected, "{steps:#?}");
}

#[test]
fn a_schedule_of_other_lives_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let alone = "7 execve(\"/bin/a\", [], 0x7 /* 1 var */) = 0\n7 execve(\"/bin/b\", [], 0x7 /* 1 var */) = 0\n7 exit_group(0) = ?\n";
    let replay = pair(folder.path(), alone, SCHEDULED).replay("faults.txt").unwrap();
    assert!(replay.schedule.is_none());
    assert!(replay.steps.iter().all(|step| matches!(step, Step::Run { cpu: 0, .. })));
}

#[test]
fn an_exec_in_a_process_is_told_by_its_new_name_where_nothing_else_tells_it() {
    let folder = tempfile::tempdir().unwrap();
    let calls = "7 execve(\"/bin/sh\", [], 0x7 /* 1 var */) = 0\n7 brk(NULL) = 0x2000000\n\
                 7 execve(\"/bin/ls\", [], 0x7 /* 1 var */) = 0\n7 brk(NULL) = 0x3000000\n7 exit_group(0) = ?\n";
    let faults = "sh 9/9 1.1: page-faults:u: 7f0000001000 7f0000001000\nsh 9/9 1.2: page-faults:u: 401000 401000\n\
                  ls 9/9 1.3: page-faults:u: 7f1000001000 7f1000001000\nls 9/9 1.4: page-faults:u: 402000 402000\n";
    let joined = pair(folder.path(), calls, faults).join("faults.txt").unwrap();
    assert_eq!((joined.found.spaces, joined.found.faults), (2, 4));
    let execs = joined.batches.iter().filter(|batch| matches!(batch.then, Some(Op::Load { .. }))).count();
    assert_eq!(execs, 2);
    // Names that change without an exec do not make up for one.
    let renamed = faults.replace("ls 9/9 1.4", "worker 9/9 1.4");
    let error = pair(folder.path(), calls, &renamed).join("faults.txt").unwrap_err().to_string();
    assert!(error.contains("2 address spaces in its strace text and 1 in faults.txt"), "{error}");
}

#[test]
fn whatever_the_order_of_a_schedule_everything_is_played_once() {
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<&str> = SCHEDULED.lines().collect();
    let mut followed = 0;
    for first in 0..lines.len() {
        for moved in 0..lines.len() {
            // One line taken out and put elsewhere: switches of processes that are not yet there, or not any more, or elsewhere.
            let mut shuffled = lines.clone();
            let line = shuffled.remove(first);
            shuffled.insert(moved, line);
            let pair = pair(folder.path(), CALLS_OF_TWO, &(shuffled.join("\n") + "\n"));
            let Ok(joined) = pair.join("faults.txt") else { continue };
            let replay = pair.replay("faults.txt").unwrap();
            followed += u32::from(replay.schedule.is_some());
            let run =
                |batch: &Batch| (batch.run.len(), usize::from(matches!(batch.then, Some(Op::Exit | Op::Fork { .. }))));
            let add = |sum: (usize, usize), one: (usize, usize)| (sum.0 + one.0, sum.1 + one.1);
            let wanted = joined.batches.iter().map(run).fold((0, 0), add);
            let played = replay
                .steps
                .iter()
                .filter_map(|step| if let Step::Run { batch, .. } = step { Some(batch) } else { None });
            assert_eq!(played.map(run).fold((0, 0), add), wanted, "{first} {moved}: {:#?}", words(&replay));
        }
    }
    assert!(followed > 50, "{followed} of them are followed");
}

/// The faults of a program with a thread, whose number stands behind that of the process.
#[test]
fn threads_share_the_address_space_of_their_process() {
    let folder = tempfile::tempdir().unwrap();
    let threaded = FAULTS.replace("a 9 1.5", "worker 9/10 1.5").replace("a 9 1.8", "a 9/9 1.8");
    let joined = pair(folder.path(), CALLS, &threaded).join("faults.txt").unwrap();
    assert_eq!((joined.found.spaces, joined.found.faults, joined.found.unplaced), (1, 8, 0), "{:?}", joined.found);
    // The kernel names tasks alone; that one was a thread shows when it ends before its process.
    let fork = "a 9 [000] 1.05: sched:sched_process_fork: comm=a pid=9 child_comm=a child_pid=10\n";
    let exit = "a 10 [000] 1.9: sched:sched_process_exit: comm=a pid=10 prio=120 group_dead=false\n";
    let traced = fork.to_owned() + &FAULTS.replace("a 9 1.5", "a 10 1.5") + exit;
    let joined = pair(folder.path(), CALLS, &traced).join("faults.txt").unwrap();
    assert_eq!((joined.found.spaces, joined.found.faults, joined.found.unplaced), (1, 8, 0), "{:?}", joined.found);
}

/// Two children that have their first faults in the other order than they were made in.
#[test]
fn address_spaces_are_matched_by_process_whoever_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let calls = CALLS.replace(
        "7 exit_group",
        "7 clone(child_stack=NULL, flags=SIGCHLD) = 8\n7 clone(child_stack=NULL, flags=SIGCHLD) = 9
9 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00000f9000\n9 exit_group(0) = ?
8 mmap(NULL, 65536, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00000ea000\n8 exit_group(0) = ?\n7 exit_group",
    );
    let early = FAULTS.to_owned()
        + "a 11 2.1: page-faults:u: 7f00100f9008 7f0010104c30\na 10 2.2: page-faults:u: 7f00100ea008 7f0010104c30\n";
    let late = FAULTS.to_owned()
        + "a 10 2.1: page-faults:u: 7f00100ea008 7f0010104c30\na 11 2.2: page-faults:u: 7f00100f9008 7f0010104c30\n";
    for faults in [early, late] {
        let joined = pair(folder.path(), &calls, &faults).join("faults.txt").unwrap();
        assert_eq!((joined.found.spaces, joined.found.unplaced), (3, 0), "{:?}", joined.found);
    }
}

#[test]
fn an_area_that_moves_is_placed_while_it_still_lies_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let calls = CALLS.replace(
        "7 exit_group",
        "7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00000fc000
7 mremap(0x7f00000fc000, 8192, 16384, MREMAP_MAYMOVE) = 0x7f00000f8000
7 mremap(0x7f00000f8000, 16384, 4096, 0) = 0x7f00000f8000\n7 exit_group",
    );
    let faults = FAULTS.to_owned()
        + "a 9 2.1: page-faults:u: 7f00100fc008 7f0010104c30\na 9 2.2: page-faults:u: 7f00100fb008 7f0010104c30\n";
    let joined = pair(folder.path(), &calls, &faults).join("faults.txt").unwrap();
    let found = joined.found;
    assert_eq!((found.mappings, found.elsewhere, found.unplaced), (5, 0, 0), "{found:?}");
}

#[test]
fn what_a_copy_inherits_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let calls = CALLS.replace(
        "7 exit_group",
        "7 mmap(0x7e0000000000, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED, -1, 0) = 0x7e0000000000
7 clone(child_stack=NULL, flags=SIGCHLD) = 8\n8 exit_group(0) = ?\n7 exit_group",
    );
    let faults = FAULTS.to_owned() + "a 10 2.1: page-faults:u: 403010 7f0010104c30\n";
    let found = pair(folder.path(), &calls, &faults).join("faults.txt").unwrap().found;
    assert_eq!((found.spaces, found.mappings, found.elsewhere), (2, 4, 1), "{found:?}");
}

#[test]
fn a_page_that_faults_again_does_so_after_what_was_there_was_unmapped() {
    let folder = tempfile::tempdir().unwrap();
    let one = "7 mmap(NULL, 32768, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00000f6000
7 munmap(0x7f00000f6000, 32768) = 0\n";
    let calls = CALLS.replace("7 exit_group", &(one.repeat(3) + "7 exit_group"));
    let fault = "a 9 2.1: page-faults:u: 7f00100f6008 7f0010104c30\n";
    let mut joined = pair(folder.path(), &calls, &(FAULTS.to_owned() + &fault.repeat(3))).join("faults.txt").unwrap();
    assert_eq!((joined.found.elsewhere, joined.found.unplaced), (0, 0), "{:?}", joined.found);
    let (mut batch, mut mapped, mut after) = (Batch::default(), 0, Vec::new());
    while joined.next_batch(&mut batch).unwrap() {
        after.extend(batch.run.iter().filter(|access| access.gva().as_u64() == 0x7f00_100f_6008).map(|_| mapped));
        mapped +=
            u32::from(matches!(batch.then, Some(Op::Mmap { range, .. }) if range.start.as_u64() == 0x7f00_100f_6000));
    }
    assert_eq!(after, [1, 2, 3], "each in a life of its own");
}

/// A child that executes another program has done something before, in the copy of its parent's address space.
#[test]
fn what_a_child_does_before_its_exec_comes_before_its_exec() {
    let folder = tempfile::tempdir().unwrap();
    let calls = CALLS.replace(
        "7 exit_group",
        "7 clone(child_stack=NULL, flags=SIGCHLD) = 8\n8 execve(\"/bin/b\", [], 0x7 /* 1 var */) = 0
8 exit_group(0) = ?\n7 exit_group",
    );
    let faults = FAULTS.to_owned()
        + "a 10 2.1: page-faults:u: 403010 7f0010104c30\na 10 2.2: page-faults:u: 3000008 7f0010104c30
b 10 2.3: page-faults:u: 7f0010204b70 7f0010204b70\n";
    let mut joined = pair(folder.path(), &calls, &faults).join("faults.txt").unwrap();
    assert_eq!(joined.found.spaces, 3, "{:?}", joined.found);
    let (mut batch, mut running, mut seen) = (Batch::default(), ProcessId::FIRST, Vec::new());
    while joined.next_batch(&mut batch).unwrap() {
        seen.extend(batch.run.iter().filter(|_| running != ProcessId::FIRST).map(|access| access.gva().as_u64()));
        match batch.then {
            Some(Op::Switch { to }) => running = to,
            Some(Op::Exec | Op::Load { .. }) if running != ProcessId::FIRST => seen.push(0),
            _ => {}
        }
    }
    assert_eq!(seen, [0x40_3010, 0x300_0008, 0, 0x7f00_1020_4b70]);
}
