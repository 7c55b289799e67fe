//! Dirty logging by hardware's log: 512 entries, read at every exit.

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_nested::{AdBits, DirtyLogging};
use memvirt_ops::arch::{Control, HostEvent, Trap};
use memvirt_pagetable::{Ept4, Npt4};
use memvirt_platform::{ExitReason, Horizon, Platform, Stop, Vendor};

use crate::lab::{CPU, Lab, Setup, VM, direct};

const PML: Setup = Setup { logging: DirtyLogging::ModificationLog, ..Setup::SMALL };
/// The direct map's tables on the way to any page: the root, two upper tables; and a leaf table for 512 pages.
const UPPER: u64 = 3;

/// Frames 512 to 2047 written once, then logging on.
fn logging(setup: Setup) -> Lab<Ept4> {
    let mut lab = Lab::new(setup);
    (512..2048).for_each(|gfn| lab.direct(gfn, AccessKind::Write));
    lab.host(HostEvent::DirtyLog(VM, true));
    lab
}

fn dirty(lab: &mut Lab<Ept4>) -> Vec<u64> {
    lab.host(HostEvent::DirtyRound(VM));
    lab.nested().dirty_frames().iter().map(|gfn| gfn.number()).collect()
}

#[test]
fn the_log_exits_once_for_512_pages_and_never_for_one() {
    let mut lab = logging(PML);
    assert_eq!(lab.nested().dirty_logging(), Some(DirtyLogging::ModificationLog));
    for round in 0..2 {
        let before = lab.out.counters.total_exits();
        let full = lab.exits(ExitReason::PmlFull, |lab| (512..2048).for_each(|gfn| lab.direct(gfn, AccessKind::Write)));
        let logged = 1536 + UPPER + 3;
        assert_eq!(full, (logged - 1) / 512, "round {round}: the exit comes with the page that finds no room");
        assert_eq!(lab.out.counters.total_exits() - before, full);
        let pages = dirty(&mut lab);
        assert_eq!(pages.len() as u64, logged);
        assert!((512..2048).all(|gfn| pages.contains(&gfn)));
        lab.sound();
    }
    assert_eq!(dirty(&mut lab), [], "nothing since");
}

#[test]
fn any_other_exit_empties_the_log() {
    let mut lab = logging(PML);
    let full = lab.exits(ExitReason::PmlFull, |lab| {
        for gfn in 512..2048 {
            lab.direct(gfn, AccessKind::Write);
            if gfn % 400 == 0 {
                lab.control_on(CPU, Control::Trap(Trap::Cpuid));
            }
        }
    });
    assert_eq!(full, 0);
    assert_eq!(dirty(&mut lab).len() as u64, 1536 + UPPER + 3);
}

#[test]
fn the_access_that_finds_the_log_full_has_not_happened() {
    let mut lab = logging(PML);
    let write = |gfn| Acc::supervisor(Gva::new(direct(gfn, 0)), AccessKind::Write);
    let run: Vec<Acc> = (512..2048).map(write).collect();
    let (done, stop) = lab.checked.accesses(CPU, &run, Horizon::NextExit, &mut lab.out);
    // 3 upper tables, the first leaf table, 507 pages: of 512 entries one is left, which the second leaf table would take.
    assert_eq!((done, stop), (508, Stop::Horizon));
    assert_eq!(lab.out.counters.exits_for(ExitReason::PmlFull), 0);
    assert!(!dirty(&mut lab).contains(&(512 + 508)), "not logged, for not done");
}

#[test]
fn reads_are_not_logged_but_the_tables_they_walk_are() {
    let mut lab = logging(PML);
    (512..1024).for_each(|gfn| lab.direct(gfn, AccessKind::Read));
    assert_eq!(dirty(&mut lab).len() as u64, UPPER + 1);
}

#[test]
fn a_page_that_was_read_before_is_logged_when_it_is_written() {
    let mut lab = logging(PML);
    (512..1024).for_each(|gfn| {
        lab.direct(gfn, AccessKind::Read);
        lab.direct(gfn, AccessKind::Write);
    });
    assert_eq!(dirty(&mut lab).len() as u64, 512 + UPPER + 1);
}

#[test]
fn hardware_without_a_log_write_protects() {
    let without = [Setup { ad: AdBits::Off, ..PML }, Setup { vendor: Vendor::Svm, ..PML }];
    for setup in without {
        assert_eq!(logging(setup).nested().dirty_logging(), Some(DirtyLogging::WriteProtect));
    }
    let mut npt = Lab::<Npt4>::new(PML);
    npt.host(HostEvent::DirtyLog(VM, true));
    assert_eq!(npt.nested().dirty_logging(), Some(DirtyLogging::WriteProtect));
}

#[test]
fn write_protection_exits_once_a_page_and_finds_the_same_pages() {
    let mut lab = logging(Setup::SMALL);
    let mut log = logging(PML);
    for round in 0..2 {
        let exits = lab.exits(ExitReason::EptViolation, |lab| {
            (512..1024).for_each(|gfn| lab.direct(gfn, AccessKind::Write));
        });
        assert_eq!(exits, 512 + UPPER + 1, "round {round}");
        (512..1024).for_each(|gfn| log.direct(gfn, AccessKind::Write));
        assert_eq!(dirty(&mut lab), dirty(&mut log));
    }
}

#[test]
fn a_page_mapped_while_logging_is_on_is_logged_at_once_and_at_4_kib() {
    for logging in [DirtyLogging::WriteProtect, DirtyLogging::ModificationLog] {
        let mut lab = Lab::<Ept4>::new(Setup { logging, ..Setup::LARGE });
        lab.host(HostEvent::DirtyLog(VM, true));
        lab.direct(1030, AccessKind::Read);
        assert_eq!(lab.stats().leaves[1], 0);
        assert!(dirty(&mut lab).contains(&1030));
        lab.sound();
    }
}

#[test]
fn switching_logging_on_twice_is_once() {
    let mut lab = logging(PML);
    let before = lab.stats();
    lab.host(HostEvent::DirtyLog(VM, true));
    assert_eq!(lab.stats(), before);
    lab.host(HostEvent::DirtyLog(VM, false));
    lab.host(HostEvent::DirtyLog(VM, false));
    assert_eq!(lab.stats(), before, "4 KiB pages: nothing to merge, no flush");
    assert_eq!(lab.nested().dirty_logging(), None);
}
