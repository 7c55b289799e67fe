//! What a flush takes on two CPUs, step by step: whom it interrupts, what each counts, and what a CPU that slept finds.

use memvirt_addr::{AccessKind, PageSize};
use memvirt_guest::{Cause, Shootdown};
use memvirt_machine::{GuestConfig, HostConfig, Invlpg, RegimeKind};
use memvirt_ops::process::{Backing, Op, ProcessId, Prot};
use memvirt_platform::{ExitReason, Interrupts};

use super::lab::{Lab, range};

const RW: Op = Op::Mmap { range: range(0, 64), prot: Prot::RW, backing: Backing::AnonymousPrivate };

fn plain() -> GuestConfig {
    GuestConfig { memory_bytes: 64 << 20, ..GuestConfig::default() }
}

/// Two threads of process 0 that have both stored to the first pages.
fn threads(regime: RegimeKind, config: GuestConfig, interrupts: Interrupts, pages: u64) -> Lab {
    let all: Vec<u64> = (0..64).collect();
    let host = HostConfig { interrupts, ..HostConfig::default() };
    let mut lab = Lab::new(regime, config, host, 2, 2).looking_at(&all);
    lab.op(0, RW);
    lab.share(1, 0);
    for number in 0..pages {
        lab.touch(0, number, AccessKind::Write);
        lab.touch(1, number, AccessKind::Write);
    }
    lab
}

fn munmap(pages: u64) -> Op {
    Op::Munmap { range: range(0, pages) }
}

fn only(shootdowns: Vec<Shootdown>) -> Shootdown {
    assert_eq!(shootdowns.len(), 1, "one flush for the call");
    let shootdown = shootdowns.into_iter().next().unwrap();
    assert_eq!((shootdown.sender, shootdown.targets.len(), shootdown.targets[0].cpu), (0, 1, 1));
    shootdown
}

#[test]
fn a_flush_of_pages_interrupts_the_other_thread_which_flushes_them_too() {
    let mut lab = threads(RegimeKind::Native, plain(), Interrupts::Exiting, 3);
    let before = lab.guest.stats_on(0);
    let shot = only(lab.op(0, munmap(3)));
    assert_eq!(shot.cause, Cause::Flush);
    let theirs = shot.targets[0].stats;
    assert_eq!((theirs.invlpgs, theirs.cr3_loads, theirs.kernel_entries, theirs.interrupted), (3, 0, 1, 1));
    // The interrupt is sent before the sender's own flush, and waited for after it.
    let (sent, waits) = (shot.sent.stats - before, shot.waits.stats - before);
    assert_eq!((sent.invlpgs, waits.invlpgs, sent.shootdowns), (0, 3, 1));
    assert_eq!(shot.targets[0].ledger.counters.total_exits(), 0, "a bare machine has nobody to exit to");
    assert_eq!(lab.stale(), 0);
}

#[test]
fn above_the_ceiling_both_load_cr3() {
    let mut lab = threads(RegimeKind::Native, plain(), Interrupts::Exiting, 40);
    let theirs = only(lab.op(0, munmap(40))).targets[0].stats;
    assert_eq!((theirs.invlpgs, theirs.cr3_loads, theirs.full_flushes), (0, 1, 1));
}

#[test]
fn isolation_adds_a_load_at_either_end_of_the_interrupt() {
    let kpti = GuestConfig { kpti: true, ..plain() };
    let theirs = only(threads(RegimeKind::Native, kpti, Interrupts::Exiting, 3).op(0, munmap(3))).targets[0].stats;
    assert_eq!((theirs.invlpgs, theirs.cr3_loads), (3, 2));
}

#[test]
fn what_exits_of_a_shootdown_is_the_regimes_and_the_interrupt_controllers_matter() {
    let exits = |regime, interrupts| {
        let mut lab = threads(regime, plain(), interrupts, 3);
        let listed = lab.ledgers[0].exits.as_ref().unwrap().len();
        let shot = only(lab.op(0, munmap(3)));
        let target = &shot.targets[0].ledger;
        assert_eq!(target.exits.as_ref().unwrap().len() as u64, target.counters.total_exits());
        let sender = &lab.ledgers[0].exits.as_ref().unwrap()[listed..];
        let sent = sender.iter().filter(|exit| exit.reason == ExitReason::Ipi).count() as u64;
        let before = &sender[..shot.sent.exits - listed];
        assert_eq!(before.iter().filter(|exit| exit.reason == ExitReason::Ipi).count() as u64, sent);
        let between = &sender[shot.sent.exits - listed..shot.waits.exits - listed];
        assert!(between.iter().all(|exit| exit.reason == ExitReason::Invlpg), "its own flush, nothing else");
        assert_eq!(lab.stale(), 0);
        (sent, target.counters.exits_for(ExitReason::Ipi), target.counters.exits_for(ExitReason::Invlpg))
    };
    assert_eq!(exits(RegimeKind::NestedEpt, Interrupts::Exiting), (1, 1, 0));
    assert_eq!(exits(RegimeKind::NestedEpt, Interrupts::Posted), (1, 0, 0));
    assert_eq!(exits(RegimeKind::NestedEpt, Interrupts::Virtualized), (0, 0, 0));
    assert_eq!(exits(RegimeKind::ShadowKvm61, Interrupts::Exiting), (1, 1, 3));
    assert_eq!(exits(RegimeKind::ShadowVtlb, Interrupts::Virtualized), (0, 0, 3));
}

#[test]
fn processes_apart_leave_each_other_alone() {
    let mut lab = Lab::new(RegimeKind::Native, plain(), HostConfig::default(), 2, 2);
    for (cpu, id) in [(0, 0), (1, 1)] {
        if cpu == 1 {
            lab.spawn(cpu, id);
        }
        lab.op(cpu, RW);
        (0..50).for_each(|number| drop(lab.touch(cpu, number, AccessKind::Write)));
    }
    assert!(lab.op(0, munmap(50)).is_empty());
    assert!(lab.op(0, Op::Fork { child: ProcessId(2) }).is_empty());
    assert!(lab.op(0, Op::Exit).is_empty());
    assert_eq!(lab.guest.stats_on(1).interrupted, 0);
    assert_eq!(lab.stale(), 0);
}

/// `tlb_is_not_lazy`, `switch_mm_irqs_off`: an idle CPU is not woken for a flush; it finds the address space's generation ahead.
#[test]
fn an_idle_cpu_flushes_when_it_takes_the_address_space_up_again() {
    let mut lab = threads(RegimeKind::Native, plain(), Interrupts::Exiting, 3);
    lab.idle(1);
    let protect = Op::Mprotect { range: range(0, 3), prot: Prot::R };
    assert!(lab.op(0, protect).is_empty(), "nobody is interrupted");
    let before = lab.guest.stats_on(1);
    lab.share(1, 0);
    assert_eq!((lab.guest.stats_on(1) - before).full_flushes, 1);
    // Once more, without a flush in between: nothing is loaded.
    lab.idle(1);
    let before = lab.guest.stats_on(1);
    lab.share(1, 0);
    assert_eq!((lab.guest.stats_on(1) - before).cr3_loads, 0);
    assert_eq!(lab.stale(), 0);
}

/// `flush_tlb_func`: where tables are freed, a CPU that only borrows the address space must give it up.
#[test]
fn freed_tables_reach_an_idle_cpu_too() {
    let mut lab = threads(RegimeKind::Native, plain(), Interrupts::Exiting, 3);
    lab.idle(1);
    let theirs = only(lab.op(0, munmap(64))).targets[0].stats;
    assert_eq!((theirs.cr3_loads, theirs.full_flushes), (1, 1));
    // It is on the kernel's tables now, and whatever happens to the process is nothing to it.
    assert!(lab.op(0, Op::Exit).is_empty());
    lab.spawn(1, 7);
    lab.op(1, RW);
    lab.touch(1, 0, AccessKind::Write);
    assert_eq!(lab.stale(), 0);
}

/// `choose_new_asid`: translations under a PCID that is not loaded are flushed when it is, and only where they are out of date.
#[test]
fn a_pcid_that_is_not_loaded_is_flushed_by_its_generation() {
    let pcid = GuestConfig { pcid: true, ..plain() };
    let flushes = |protect: bool| {
        let mut lab = threads(RegimeKind::Native, pcid, Interrupts::Exiting, 3);
        lab.spawn(1, 1);
        if protect {
            let op = Op::Mprotect { range: range(0, 3), prot: Prot::R };
            assert!(lab.op(0, op).is_empty(), "CPU 1 has another address space loaded");
        }
        let (before, loads) = (lab.ledgers[1].counters.tlb_flushes, lab.guest.stats_on(1).cr3_loads);
        lab.share(1, 0);
        assert_eq!(lab.guest.stats_on(1).cr3_loads - loads, 1);
        let flushed = lab.ledgers[1].counters.tlb_flushes - before;
        lab.touch(1, 0, AccessKind::Write);
        assert_eq!(lab.stale(), 0);
        flushed
    };
    assert_eq!((flushes(false), flushes(true)), (0, 1));
}

#[test]
fn fork_takes_writes_away_from_every_thread() {
    let mut lab = threads(RegimeKind::ShadowKvm61, plain(), Interrupts::Exiting, 3);
    let theirs = only(lab.op(0, Op::Fork { child: ProcessId(1) })).targets[0].stats;
    assert_eq!(theirs.full_flushes, 1, "the parent is flushed whole");
    let copies = lab.guest.stats().faults_copy;
    // The copy of one thread is a new page for the other.
    let shot = only(lab.touch(0, 0, AccessKind::Write));
    assert_eq!(shot.targets[0].stats.invlpgs, 1);
    lab.touch(1, 0, AccessKind::Write);
    assert_eq!(lab.guest.stats().faults_copy - copies, 1);
    assert_eq!(lab.stale(), 0);
}

#[test]
fn a_split_of_a_large_page_is_flushed_everywhere() {
    let large = GuestConfig { guest_page: PageSize::Size2M, ..plain() };
    let mut lab = Lab::new(RegimeKind::NestedEpt, large, HostConfig::default(), 2, 2).looking_at(&[0, 1, 511]);
    lab.op(0, Op::Mmap { range: range(0, 512), prot: Prot::RW, backing: Backing::AnonymousPrivate });
    lab.share(1, 0);
    (0..2).for_each(|cpu| drop(lab.touch(cpu, 0, AccessKind::Write)));
    assert_eq!(lab.guest.stats().faults_fresh, 1);
    let shootdowns = lab.op(0, munmap(1));
    assert_eq!(lab.guest.stats().splits, 1);
    assert_eq!(shootdowns.len(), 2, "one for the large page, one for what is unmapped of it");
    assert_eq!(lab.stale(), 0);
}

/// `do_group_exit`, `exit_mmap`: the threads end first, and the CPUs that they leave go over to the kernel's tables before those
/// of the process are used for something else.
#[test]
fn an_exit_ends_the_threads_and_gives_their_cpus_up() {
    for (op, after) in [(Op::Exit, None), (Op::Exec, Some(ProcessId::FIRST))] {
        let mut lab = threads(RegimeKind::ShadowKvm61, plain(), Interrupts::Exiting, 3);
        let shootdowns = lab.op(0, op);
        let causes: Vec<Cause> = shootdowns.iter().map(|shot| shot.cause).collect();
        assert_eq!(causes, [Cause::EndThreads, Cause::Flush]);
        assert_eq!((lab.guest.current_on(0), lab.guest.current_on(1)), (after, None));
        assert_eq!(shootdowns[1].targets[0].stats.cr3_loads, 1, "the kernel's root");
        lab.spawn(1, 9);
        lab.op(1, RW);
        lab.touch(1, 0, AccessKind::Write);
        assert_eq!(lab.stale(), 0);
    }
}

/// The tests above can fail: a CPU that does not do what it was interrupted for goes on with what was taken away, and hardware
/// may do so.
#[test]
fn a_cpu_that_is_deaf_to_interrupts_stores_to_pages_that_are_gone() {
    let stale = |deaf: bool| {
        let mut lab = threads(RegimeKind::Native, plain(), Interrupts::Exiting, 3).looking_at(&[]);
        lab.deaf = deaf;
        lab.op(0, munmap(3));
        lab.touch(1, 0, AccessKind::Write);
        lab.stale()
    };
    assert_eq!((stale(false), stale(true)), (0, 1));
}

/// A guest that never uses INVLPG is stale, on its own CPU and on others, in ways that hardware allows.
#[test]
fn a_guest_that_forgets_its_flushes_is_stale_and_nothing_is_broken() {
    let forgetful = GuestConfig { invlpg: Invlpg::Forgotten, ..plain() };
    for regime in [RegimeKind::Native, RegimeKind::NestedEpt, RegimeKind::ShadowKvm61, RegimeKind::ShadowVtlb] {
        let mut lab = threads(regime, forgetful, Interrupts::Exiting, 3).looking_at(&[]);
        // Tables stay: where they went, a shadow's tables would go with them.
        assert!(lab.op(0, Op::Discard { range: range(0, 3) }).is_empty());
        (0..2).for_each(|cpu| drop(lab.touch(cpu, 0, AccessKind::Write)));
        assert_eq!(lab.stale(), 2, "{regime}");
    }
}
