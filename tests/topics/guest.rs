//! The guest against what Linux was seen to do: page faults of recorded programs, and events in impossible order.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_lab::{Input, Overrides};
use memvirt_machine::{GuestConfig, GuestStats, Outcome, RegimeKind, RunResult};
use memvirt_ops::process::{Backing, Batch, Op, ProcessId, Prot, Range, Source};
use memvirt_tests::result_of;
use memvirt_workload::{Generator, Workload};

/// A run of a script under the guest that Linux is like.
fn script(steps: &str, kpti: bool) -> GuestStats {
    let text = format!(
        "name = 's'\ntitle = 's'\nabout = 's'\nsource = 'estimate'\n[guest]\nlike = 'linux'\nkpti = {kpti}\n[generator]\n\
         kind = 'script'\niterations = 1\nbody = [{steps}]"
    );
    let workload = Workload::parse("s.toml", &text).unwrap();
    let guest = Overrides::default().guest(&Input::Workload(Box::new(workload.clone())));
    let mut source = Generator::new(workload.spec(), 0).unwrap();
    let result = result_of(RegimeKind::Native, guest, true, &mut source);
    assert_eq!(result.stale.broken, 0);
    result.guest
}

/// Faults of the last of some steps.
fn faults_of_last(before: &str, last: &str) -> u64 {
    script(&format!("{before}{last}"), false).faults()
        - if before.is_empty() { 0 } else { script(before, false).faults() }
}

/// The recorded counts are those of `perf record -e page-faults` on Linux 6.18; see `crates/workload/programs`.
#[test]
fn programs_fault_as_often_as_they_were_recorded_to() {
    let parent = "{ run = 'parent' }, ";
    let recorded = [
        ("hello: exec to exit", "", "{ run = 'hello' }", 49),
        ("sh: exec to its vfork", "", "{ run = 'sh' }", 60),
        ("child: fork to exit", parent, "{ fork = { child = [{ run = 'child' }] } }", 25),
        ("child: fork to exec", parent, "{ fork = { child = [{ run = 'child-exec' }] } }", 19),
        (
            "parent: after a fork",
            parent,
            "{ fork = { parent = [{ run = 'after-fork' }], child = [{ compute = 1 }] } }",
            2,
        ),
    ];
    for (what, before, steps, expected) in recorded {
        let faults = faults_of_last(before, steps);
        println!("{what}: recorded {expected}, guest {faults}");
        assert_eq!(faults, expected, "{what}");
    }
}

#[test]
fn a_child_of_vfork_loads_no_root_until_it_executes() {
    let parent = "{ run = 'parent' }, ";
    let idle = script(&format!("{parent}{{ vfork = [{{ compute = 1 }}] }}"), false);
    let alone = script(parent, false);
    assert_eq!((idle.cr3_loads, idle.table_stores), (alone.cr3_loads, alone.table_stores));
    assert_eq!((idle.forks, idle.exits), (1, 1));
    let run = script(&format!("{parent}{{ vfork = [{{ run = 'hello' }}] }}"), false);
    // Into the program, its flushes, out of it at its end, back to the parent.
    assert!(run.cr3_loads >= idle.cr3_loads + 3, "{} {}", run.cr3_loads, idle.cr3_loads);
}

/// Ready-made batches.
struct Batches(std::vec::IntoIter<Batch>);

impl Source for Batches {
    type Error = std::convert::Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        let next = self.0.next();
        *batch = next.clone().unwrap_or_default();
        Ok(next.is_some())
    }
}

fn does(op: Op) -> Batch {
    Batch { then: Some(op), ..Batch::default() }
}

fn touches(page: u64) -> Batch {
    Batch { run: vec![Acc::user(Gva::new(page << 12), AccessKind::Write)], instructions: 1, then: None }
}

fn range(page: u64, bytes: u64) -> Range {
    Range { start: Gva::new(page << 12), bytes }
}

/// Everything that cannot be, one after the other.
fn nonsense() -> Vec<Batch> {
    let (a, b) = (ProcessId(1), ProcessId(2));
    let map = |range| does(Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate });
    vec![
        does(Op::Switch { to: b }),                     // never forked
        does(Op::Munmap { range: range(0x100, 4096) }), // nothing there
        does(Op::Mprotect { range: range(0x100, 4096), prot: Prot::R }),
        map(range(0x100, 1 << 60)), // 1 EiB
        map(range(0x100, 0)),
        map(range(0x100, 16 * 4096)),
        map(range(0x108, 16 * 4096)), // over the end of the last one
        touches(0x110),
        does(Op::Mremap { from: range(0x100, 8 * 4096), to: range(0x104, 8 * 4096) }),
        does(Op::Mremap { from: range(0x900, 4096), to: range(0xa00, 4096) }),
        does(Op::Brk { end: Gva::new(0x200_0000) }),
        does(Op::Brk { end: Gva::new(0x100_0000) }), // below where it begins
        does(Op::Fork { child: a }),
        does(Op::Fork { child: a }), // a number in use
        does(Op::Exit),
        touches(0x110), // nobody runs
        does(Op::Exec),
        does(Op::Exit),
        does(Op::Switch { to: ProcessId(0) }), // ended
        does(Op::Switch { to: a }),
        touches(0x110),
        touches(0x500), // no area
    ]
}

fn run_nonsense(regime: RegimeKind, guest: GuestConfig) -> RunResult {
    result_of(regime, guest, true, &mut Batches(nonsense().into_iter()))
}

#[test]
fn events_that_make_no_sense_have_defined_outcomes_under_every_regime() {
    let guest = GuestConfig { memory_bytes: 256 << 20, ..GuestConfig::linux() };
    let native = run_nonsense(RegimeKind::Native, guest);
    assert_eq!(native.outcome, Outcome::Completed);
    let ignored = native.guest.ignored;
    assert_eq!((ignored.unknown_process, ignored.nothing_there, ignored.bad_range), (2, 2, 2), "{ignored:?}");
    assert_eq!((ignored.bad_move, ignored.bad_heap, ignored.number_in_use), (2, 1, 1), "{ignored:?}");
    assert_eq!((ignored.without_process, native.guest.faults_refused), (3, 1), "{ignored:?}");
    assert_eq!(native.guest.ignored_ops, ignored.total());
    for regime in RegimeKind::ALL.iter().copied().filter(|kind| kind.is_correct()) {
        let result = run_nonsense(regime, guest);
        // A regime that asks something of the guest is held against a bare machine whose guest does that too.
        let asked = regime.asks_of(guest);
        let native = if asked == guest { &native } else { &run_nonsense(RegimeKind::Native, asked) };
        assert_eq!((result.outcome, result.stale.broken), (Outcome::Completed, 0), "{regime}");
        assert_eq!(result.guest, native.guest, "{regime}");
    }
}
