//! The limit on shadow pages, footprints, and runs that must stop before an exit.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use lab::*;
use memvirt_addr::{Acc, AccessKind, Gva, PageSize};
use memvirt_ops::VmId;
use memvirt_ops::arch::HostEvent;
use memvirt_platform::{Horizon, MemoryMap, Platform, Stop, Vendor};
use memvirt_shadow::*;

const USER: u64 = 0x80_0000_0000;
const LEAF: u64 = P | W | U | A | D;

fn guest<R: Audited>(tables: u64, regime: impl FnOnce(&MemoryMap) -> R) -> Lab<R> {
    let mut lab = Lab::new(Memory { frames: 4096, ..SMALL }, 1, regime);
    lab.boot_direct_map(1);
    for number in 0..tables {
        lab.boot_map(1, USER + (number << 21), PageSize::Size4K, (64 + number) << 12 | LEAF, LEAF);
    }
    lab.cr3(1);
    lab
}

/// 300 leaf tables, more than any policy may keep; every page is reached again and again, stores to tables in between.
fn thrash<R: Audited>(limit: u64, used: impl Fn(&R) -> u64, regime: impl FnOnce(&MemoryMap) -> R) {
    let mut lab = guest(300, regime);
    lab.host(HostEvent::ShadowPageLimit(VmId::FIRST, 0));
    for round in 0..3 {
        for number in 0..300 {
            let at = USER + (number << 21);
            lab.write(at).unwrap();
            if number % 3 == round {
                let table = lab.table(1, at, 1);
                lab.set(table, 0, (400 + number) << 12 | LEAF);
                lab.invlpg(at);
                lab.read(at).unwrap();
            }
            assert!(used(lab.policy()) <= limit, "{} pages", used(lab.policy()));
        }
        lab.audit();
    }
    lab.sound();
}

#[test]
fn old_pages_are_recycled_under_the_limit() {
    let vendor = Vendor::Vmx;
    thrash(64, |p: &WriteProtect| p.store().used(), |map| WriteProtect::new(map, OnStore::Zap, vendor));
    thrash(64, |p: &WriteProtect| p.store().used(), |map| WriteProtect::new(map, OnStore::Propagate, vendor));
    thrash(64, |p: &LazyFill| p.store().used(), |map| LazyFill::new(map, vendor));
    thrash(64, |p: &Vtlb| p.store().used(), |map| Vtlb::new(map, vendor));
    thrash(64, |p: &Vbox| p.store().used(), |map| Vbox::new(map, vendor));
    thrash(128, |p: &Xen| p.store().used(), |map| Xen::new(map, 1, vendor));
}

#[test]
fn table_bytes_are_those_of_the_structures_that_kvm_keeps() {
    let mut lab = guest(3, |map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
    (0..3).for_each(|number| lab.read(USER + (number << 21)).unwrap());
    // Root, PDPT, PD and three leaf tables.
    let bytes = lab.checked.table_bytes();
    assert_eq!(bytes.shadow, 6 * 4096);
    // Reverse map 8 bytes a frame and large page, large-page info 4, tracked tables 2 a frame, the hash; and 184 + 4096 a page.
    let fixed = 8 * (4096 + 8) + 4 * 8 + 2 * 4096 + 32768;
    assert_eq!(bytes.metadata, fixed + 6 * (184 + 4096));
    // One frame mapped 15 times needs two descriptors of 14 entries.
    let table = lab.table(1, USER, 1);
    for index in 1..16 {
        lab.boot(table, index, 64 << 12 | LEAF);
    }
    (0..15).for_each(|page| lab.read(USER + (page << 12)).unwrap());
    assert_eq!(lab.checked.table_bytes().metadata - bytes.metadata, 2 * 128);
    lab.audit();
}

/// Under [`Horizon::NextExit`] a run stops before an access that would exit, and nothing has changed.
fn stops<R: Audited>(regime: impl FnOnce(&MemoryMap) -> R) {
    let mut lab = guest(1, regime);
    let run = [Acc::user(Gva::new(USER), AccessKind::Write)];
    let before = (lab.out.counters, lab.checked.table_bytes(), lab.peek(lab.table(1, USER, 1), 0));
    for _ in 0..3 {
        let (done, stop) = lab.checked.accesses(CPU, &run, Horizon::NextExit, &mut lab.out);
        assert_eq!((done, stop), (0, Stop::Horizon));
    }
    // Lookups that missed are counted, nothing else.
    lab.out.counters.misses = before.0.misses;
    assert_eq!((lab.out.counters, lab.checked.table_bytes(), lab.peek(lab.table(1, USER, 1), 0)), before);
    lab.write(USER).unwrap();
    // What needs no exit goes through.
    let (done, stop) = lab.checked.accesses(CPU, &run, Horizon::NextExit, &mut lab.out);
    assert_eq!((done, stop), (1, Stop::Done));
    // A guest fault exits too.
    let absent = [Acc::user(Gva::new(USER + 0x5000), AccessKind::Read)];
    let (done, stop) = lab.checked.accesses(CPU, &absent, Horizon::NextExit, &mut lab.out);
    assert_eq!((done, stop), (0, Stop::Horizon));
    lab.audit();
}

#[test]
fn a_run_stops_before_an_exit_where_it_must() {
    let vendor = Vendor::Vmx;
    stops(|map| WriteProtect::new(map, OnStore::Zap, vendor));
    stops(|map| LazyFill::new(map, vendor));
    stops(|map| Vtlb::new(map, vendor));
    stops(|map| InvlpgOnly::new(map, vendor));
    stops(|map| Xen::new(map, 1, vendor));
    stops(|map| Vbox::new(map, vendor));
}

#[test]
fn a_guest_page_of_a_gigabyte_over_small_host_pages_takes_direct_pages() {
    fn play<R: Audited>(host_page: PageSize, regime: impl FnOnce(&MemoryMap) -> R) -> Lab<R> {
        let mut lab = Lab::new(Memory { frames: 4096, host_page, ..SMALL }, 1, regime);
        lab.boot(1, index_of(USER, 4), 2 << 12 | LEAF);
        lab.boot(2, 0, LEAF | PS);
        lab.cr3(1);
        for page in [0, 5, 512, 1500] {
            lab.write(USER + (page << 12)).unwrap();
        }
        lab.audit();
        lab.sound();
        lab
    }
    let vendor = Vendor::Vmx;
    let lab = play(PageSize::Size4K, |map| WriteProtect::new(map, OnStore::Zap, vendor));
    // Root and PDPT shadowed, one direct page of level 2, three of level 1.
    assert_eq!((lab.policy().store().leaves(), lab.policy().store().used()), ([4, 0, 0], 6));
    let lab = play(PageSize::Size2M, |map| Vtlb::new(map, vendor));
    assert_eq!((lab.policy().store().leaves(), lab.policy().store().used()), ([0, 3, 0], 3));
    // The region holds the root and the PDPT, so write-protect maps it by small pages there, and large ones elsewhere.
    let lab = play(PageSize::Size2M, |map| WriteProtect::new(map, OnStore::Zap, vendor));
    assert_eq!((lab.policy().store().leaves(), lab.policy().store().used()), ([2, 2, 0], 4));
}
