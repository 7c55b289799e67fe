//! What tells the policies apart: scenarios that a renamed write-protect would fail, each with the counts of its source.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use lab::*;
use memvirt_addr::{Gfn, PageSize};
use memvirt_ops::arch::{StoreOp, Width};
use memvirt_platform::{MemoryMap, Vendor};
use memvirt_shadow::*;

const USER: u64 = 0x80_0000_0000;
const LEAF: u64 = P | W | U | A | D;
const UPPER: u64 = P | W | U | A | D;
const DATA: u64 = 64;

/// The first address that leaf table `number` maps.
fn region(number: u64) -> u64 {
    USER + (number << 21)
}

/// A guest with `tables` leaf tables, the first page of each mapped and touched, all tables' aliases touched.
fn guest<R: Audited>(tables: u64, regime: impl FnOnce(&MemoryMap) -> R) -> Lab<R> {
    let mut lab = Lab::new(SMALL, 1, regime);
    lab.boot_direct_map(1);
    let direct = lab.peek(1, index_of(DIRECT_MAP, 4));
    lab.boot(2, index_of(DIRECT_MAP, 4), direct);
    for number in 0..tables {
        lab.boot_map(1, region(number), PageSize::Size4K, (DATA + number) << 12 | LEAF, UPPER);
    }
    lab.cr3(1);
    for number in 0..tables {
        lab.read(region(number)).unwrap();
        let table = leaf_table(&lab, number);
        lab.load(alias(table, 511)).unwrap();
    }
    lab
}

fn leaf_table<R: Audited>(lab: &Lab<R>, number: u64) -> u64 {
    lab.table(1, region(number), 1)
}

fn alias(table: u64, index: u64) -> u64 {
    DIRECT_MAP + (table << 12) + 8 * index
}

fn xen(tables: u64) -> Lab<Xen> {
    guest(tables, |map| Xen::new(map, 1, Vendor::Vmx))
}

fn vbox(tables: u64) -> Lab<Vbox> {
    guest(tables, |map| Vbox::new(map, Vendor::Vmx))
}

/// Stores one entry that changes nothing of what is mapped.
fn touch_table<R: Audited>(lab: &mut Lab<R>, number: u64, index: usize) {
    let table = leaf_table(lab, number);
    lab.set(table, index, 0xabc << 12);
}

#[test]
fn xen_lets_a_leaf_table_out_of_sync_with_one_exit() {
    let mut lab = xen(1);
    // One hidden fault makes the alias writable, nothing is emulated; 31 more stores are free.
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 100)), [1, 0, 0, 0]);
    assert_eq!(lab.exits(|lab| (101..132).for_each(|i| touch_table(lab, 0, i))), 0);
    assert_eq!(lab.out.counters.work.instructions_emulated, 0);
    // A CR3 load brings it back; the next store is an exit again.
    lab.cr3(1);
    assert_eq!((lab.policy().stats().unsync, lab.policy().stats().resync), (1, 1));
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 100)), [1, 0, 0, 0]);
    lab.audit();
    lab.sound();
}

#[test]
fn xen_has_room_for_three_tables_out_of_sync_a_fourth_evicts_one() {
    let mut lab = xen(4);
    for number in 0..3 {
        assert_eq!(lab.kinds(|lab| touch_table(lab, number, 100)), [1, 0, 0, 0]);
    }
    // The tables lie in neighbouring frames of the host, so each has its own place.
    assert_eq!(lab.policy().out_of_sync(CPU).count(), 3);
    assert_eq!(lab.policy().stats().unsync_evict, 0);
    touch_table(&mut lab, 3, 100);
    assert_eq!(lab.policy().out_of_sync(CPU).count(), 3);
    assert_eq!((lab.policy().stats().unsync, lab.policy().stats().unsync_evict), (4, 1));
    // One of the first three is protected again: to store to all of them costs one exit, and evicts another, and so on.
    lab.audit();
    let again = lab.exits(|lab| (0..3).for_each(|number| touch_table(lab, number, 101)));
    assert!(again >= 1, "the evicted table traps");
    lab.audit();
    lab.sound();
}

#[test]
fn xen_remembers_two_writable_aliases_a_third_evicts_a_fixup() {
    let mut lab = xen(1);
    let table = leaf_table(&lab, 0);
    // Three more kernel aliases of the table, supervisor pages of another leaf table.
    let others = [1, 2, 3].map(|i| region(8) + (i << 12));
    for at in others {
        lab.boot_map(1, at, PageSize::Size4K, table << 12 | P | W | A | D, UPPER);
    }
    let store = |lab: &mut Lab<Xen>, at: u64| lab.store(at + 8 * 200, 0).unwrap();
    assert_eq!(lab.exits(|lab| store(lab, others[0])), 1);
    assert_eq!(lab.exits(|lab| store(lab, others[1])), 1);
    assert_eq!((lab.policy().stats().fixup_add, lab.policy().stats().fixup_evict), (2, 0));
    assert_eq!(lab.exits(|lab| store(lab, others[2])), 1);
    assert_eq!((lab.policy().stats().fixup_add, lab.policy().stats().fixup_evict), (3, 1));
    // Without a flush the first alias may still be cached; after one the shadow decides, and it is read-only.
    lab.invlpg(others[0]);
    assert_eq!(lab.kinds(|lab| store(lab, others[0])), [1, 0, 0, 0]);
    assert_eq!((lab.policy().stats().unsync, lab.policy().stats().fixup_evict), (1, 2));
    lab.audit();
    lab.sound();
}

/// A region of 512 pages, all accessed and dirty save what `special` says, nothing touched.
fn dense<R: Audited>(special: &[(u64, u64)], regime: impl FnOnce(&MemoryMap) -> R) -> Lab<R> {
    let mut lab = guest(1, regime);
    for number in 0..512 {
        let flags = special.iter().find(|(page, _)| *page == number).map_or(LEAF, |(_, flags)| *flags);
        let frame = if flags & P == 0 { 0 } else { 600 + number };
        lab.boot_map(1, region(9) + (number << 12), PageSize::Size4K, frame << 12 | flags, UPPER);
    }
    // The host has all of it.
    for number in 0..512 {
        lab.load(DIRECT_MAP + ((600 + number) << 12)).unwrap();
    }
    lab
}

/// Which of the pages can be read without an exit.
fn filled<R: Audited>(lab: &mut Lab<R>, pages: core::ops::Range<u64>) -> Vec<u64> {
    let hidden = |lab: &Lab<R>| lab.out.counters.exits_for(memvirt_platform::ExitReason::HiddenFault);
    pages
        .filter(|page| {
            let before = hidden(lab);
            let _ = lab.read(region(9) + (page << 12));
            hidden(lab) == before
        })
        .collect()
}

#[test]
fn xen_prefetches_the_31_entries_that_follow() {
    let mut lab = dense(&[], |map| Xen::new(map, 1, Vendor::Vmx));
    let before = lab.policy().stats().prefetched;
    assert_eq!(lab.exits(|lab| lab.read(region(9) + (100 << 12)).unwrap()), 1);
    assert_eq!(lab.policy().stats().prefetched - before, 31);
    assert_eq!(lab.exits(|lab| (101..132).for_each(|n| lab.read(region(9) + (n << 12)).unwrap())), 0);
    assert_eq!(lab.exits(|lab| lab.read(region(9) + (132 << 12)).unwrap()), 1, "the 32nd is not");
    assert_eq!(lab.exits(|lab| lab.read(region(9) + (99 << 12)).unwrap()), 1, "nor the one before");
    lab.audit();
    lab.sound();
}

#[test]
fn xen_stops_prefetching_where_the_guest_must_see_a_or_d_and_passes_over_holes() {
    // 103 is absent, 106 not accessed, so 101, 102, 104 and 105 are filled.
    let mut lab = dense(&[(103, 0), (106, LEAF & !A & !D)], |map| Xen::new(map, 1, Vendor::Vmx));
    let before = lab.policy().stats().prefetched;
    lab.read(region(9) + (100 << 12)).unwrap();
    assert_eq!(lab.policy().stats().prefetched - before, 4);
    assert_eq!(filled(&mut lab, 101..106), [101, 102, 103, 104, 105], "103 is a guest fault, not a hidden one");
    // A clean page that may be written stops it too.
    let mut lab = dense(&[(103, LEAF & !D)], |map| Xen::new(map, 1, Vendor::Vmx));
    let before = lab.policy().stats().prefetched;
    lab.read(region(9) + (100 << 12)).unwrap();
    assert_eq!(lab.policy().stats().prefetched - before, 2);
}

#[test]
fn xen_unshadows_at_the_second_zero_in_a_row() {
    let mut lab = xen(1);
    let pd = lab.table(1, USER, 2);
    // A directory is always in sync. Anything but zeros may go on for ever.
    assert_eq!(lab.kinds(|lab| (0..6).for_each(|i| lab.set(pd, 100 + i, 0xabc << 12))), [0, 0, 6, 0]);
    assert_eq!(lab.policy().stats().early_unshadow, 0);
    assert_eq!(lab.kinds(|lab| lab.set(pd, 100, 0)), [0, 0, 1, 0]);
    // An ordinary fault in between starts it anew.
    lab.read(region(0) + 0x5000).unwrap_err();
    assert_eq!(lab.kinds(|lab| lab.set(pd, 101, 0)), [0, 0, 1, 0]);
    assert_eq!(lab.policy().stats().early_unshadow, 0);
    assert_eq!(lab.kinds(|lab| lab.set(pd, 102, 0)), [0, 0, 1, 0]);
    assert_eq!(lab.policy().stats().early_unshadow, 1);
    // Data now: one fault makes the page writable, the rest is free.
    assert_eq!(lab.kinds(|lab| (103..300).for_each(|i| lab.set(pd, i, 0))), [1, 0, 0, 0]);
    lab.audit();
    lab.sound();
}

#[test]
fn xen_frees_a_table_that_nothing_leads_to() {
    let mut lab = xen(1);
    let (pd, pt) = (lab.table(1, USER, 2), leaf_table(&lab, 0));
    assert!(lab.policy().store().is_table(Gfn::new(pt)));
    lab.set(pd, index_of(USER, 2), 0);
    assert!(!lab.policy().store().is_table(Gfn::new(pt)), "its last reference went");
    // Write-protect keeps it, to be found again.
    let mut other = guest(1, |map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
    let (pd, pt) = (other.table(1, USER, 2), leaf_table(&other, 0));
    other.set(pd, index_of(USER, 2), 0);
    assert!(other.policy().store().is_table(Gfn::new(pt)));
}

#[test]
fn xen_splinters_large_pages_and_flushes_the_whole_tlb_for_them() {
    let memory = Memory { host_page: PageSize::Size2M, ..SMALL };
    let mut lab = Lab::new(memory, 1, |map| Xen::new(map, 1, Vendor::Vmx));
    lab.boot_direct_map(1);
    lab.boot_map(1, USER, PageSize::Size2M, 1 << 21 | LEAF | PS, UPPER);
    lab.cr3(1);
    // 512 pages, 32 at a time, although the host has a large page.
    let exits = lab.exits(|lab| (0..512).for_each(|page| lab.read(USER + (page << 12)).unwrap()));
    assert_eq!((exits, lab.policy().store().leaves()[1]), (16, 0));
    let flushes = lab.out.counters.tlb_flushes;
    lab.invlpg(USER);
    assert_eq!(lab.out.counters.tlb_flushes, flushes + 1);
    lab.audit();
    lab.sound();
}

#[test]
fn vbox_makes_a_leaf_table_dirty_that_has_four_modifications() {
    let mut lab = vbox(1);
    // Not from the first entry upwards: each store counts once. Four are interpreted.
    let stores = [300, 200, 250, 100];
    assert_eq!(lab.kinds(|lab| stores.into_iter().for_each(|i| touch_table(lab, 0, i))), [0, 0, 4, 0]);
    assert_eq!(lab.policy().stats().dirtied, 0);
    // At its limit the table becomes dirty instead of being written once more; then all stores are free. "At its fourth
    // modification" is said of it: pgmRZPoolAccessPfHandler interprets and counts while cModifications < 4, so the fourth is
    // the last that it interprets, and the next trapped store reaches pgmPoolAddDirtyPage.
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 150)), [1, 0, 0, 0]);
    assert_eq!((lab.policy().stats().dirtied, lab.policy().dirty().count()), (1, 1));
    assert_eq!(lab.exits(|lab| (400..450).for_each(|i| touch_table(lab, 0, i))), 0);
    // An access through it needs it in step: monitored again, with its count lowered to 1. From now on it is the fourth store
    // that makes it dirty.
    assert_eq!(lab.kinds(|lab| lab.read(region(0)).unwrap()), [1, 0, 0, 0]);
    assert_eq!((lab.policy().stats().resets, lab.policy().dirty().count()), (1, 0));
    assert_eq!(lab.kinds(|lab| [300, 200, 250].into_iter().for_each(|i| touch_table(lab, 0, i))), [0, 0, 3, 0]);
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 150)), [1, 0, 0, 0]);
    lab.audit();
    lab.sound();
}

#[test]
fn vbox_counts_double_what_walks_up_a_table_from_its_first_entry() {
    let mut lab = vbox(1);
    // 1; doubled to 2, stored, 3; doubled to 6: over the limit. The third store throws the table out of the pool.
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 0)), [0, 0, 1, 0]);
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 1)), [0, 0, 1, 0]);
    assert_eq!(lab.policy().stats().flushed, 0);
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 2)), [0, 0, 1, 0]);
    assert_eq!((lab.policy().stats().flushed, lab.policy().stats().dirtied), (1, 0));
    assert_eq!(lab.kinds(|lab| (3..512).for_each(|i| touch_table(lab, 0, i))), [1, 0, 0, 0]);
    // By another instruction the stores count once each.
    let mut lab = vbox(1);
    let table = leaf_table(&lab, 0);
    let store = StoreOp::Mov { width: Width::B8, value: 0xabc << 12 };
    let kinds = lab.kinds(|lab| {
        (0..4).for_each(|i| lab.store_from(alias(table, i), store, IP + 0x100 * i).unwrap());
    });
    assert_eq!((kinds, lab.policy().stats().flushed), ([0, 0, 4, 0], 0));
    lab.store_from(alias(table, 4), store, IP + 0x400).unwrap();
    assert_eq!(lab.policy().stats().dirtied, 1);
    lab.audit();
    lab.sound();
}

#[test]
fn vbox_has_sixteen_dirty_slots_the_seventeenth_flushes_one() {
    let mut lab = vbox(17);
    for number in 0..17 {
        for index in [300, 200, 250, 100, 150] {
            touch_table(&mut lab, number, index);
        }
        let dirty = usize::try_from(number).unwrap() + 1;
        assert_eq!(lab.policy().dirty().count(), dirty.min(16));
        assert_eq!(lab.policy().stats().overflow_flushes, u64::from(dirty > 16));
    }
    // The first is monitored again, the second is not.
    let first = Gfn::new(leaf_table(&lab, 0));
    assert!(lab.policy().dirty().all(|gfn| gfn != first));
    assert_eq!(lab.kinds(|lab| touch_table(lab, 0, 300)), [0, 0, 1, 0]);
    assert_eq!(lab.exits(|lab| touch_table(lab, 1, 300)), 0);
    // Any flush resets them all.
    lab.invlpg(USER);
    assert_eq!((lab.policy().dirty().count(), lab.policy().stats().resets), (0, 17));
    lab.audit();
    lab.sound();
}

#[test]
fn vbox_allows_upper_tables_24_modifications() {
    let mut lab = vbox(1);
    let pd = lab.table(1, USER, 2);
    let stores = |lab: &mut Lab<Vbox>, n: usize| (0..n).for_each(|i| lab.set(pd, 100 + 3 * (i % 100), 0xabc << 12));
    assert_eq!(lab.kinds(|lab| stores(lab, 24)), [0, 0, 24, 0]);
    assert_eq!(lab.policy().stats().flushed, 0);
    assert_eq!(lab.kinds(|lab| stores(lab, 1)), [0, 0, 1, 0]);
    assert_eq!(lab.policy().stats().flushed, 1);
    // A CR3 load starts the counts anew.
    lab.read(region(0)).unwrap();
    stores(&mut lab, 24);
    lab.cr3(1);
    assert_eq!(lab.kinds(|lab| stores(lab, 24)), [0, 0, 24, 0]);
    assert_eq!(lab.policy().stats().flushed, 1);
    lab.audit();
}

#[test]
fn vbox_carries_out_a_short_rep_stos_and_takes_a_long_one_for_reuse() {
    let mut lab = vbox(1);
    let table = leaf_table(&lab, 0);
    let stos = |count| StoreOp::RepStos { value: 0, count };
    assert_eq!(lab.kinds(|lab| lab.store_op(alias(table, 64), stos(32)).unwrap()), [0, 0, 1, 0]);
    assert_eq!(lab.policy().stats().flushed, 0);
    assert_eq!(lab.peek(table, 0), DATA << 12 | LEAF, "other entries keep their value");
    // 64 entries: the table leaves the pool, the instruction starts again, one fault makes the page writable.
    assert_eq!(lab.kinds(|lab| lab.store_op(alias(table, 64), stos(64)).unwrap()), [1, 0, 1, 0]);
    assert_eq!(lab.policy().stats().flushed, 1);
    lab.audit();
    lab.sound();
}

#[test]
fn vbox_takes_a_cleared_write_bit_for_a_fork() {
    let mut lab = vbox(1);
    let table = leaf_table(&lab, 0);
    let protect = StoreOp::And { mask: !W };
    assert_eq!(lab.kinds(|lab| lab.store_op(alias(table, 0), protect).unwrap()), [0, 0, 1, 0]);
    assert_eq!((lab.policy().stats().flushed, lab.peek(table, 0)), (1, DATA << 12 | LEAF & !W));
    lab.audit();
    lab.sound();
}

#[test]
fn vbox_fills_the_32_entries_around_a_fault() {
    let mut lab = dense(&[(103, LEAF & !A & !D)], |map| Vbox::new(map, Vendor::Vmx));
    let before = lab.policy().stats().prefetched;
    assert_eq!(lab.exits(|lab| lab.read(region(9) + (100 << 12)).unwrap()), 1);
    // 84 to 115 save the one not accessed.
    assert_eq!(lab.policy().stats().prefetched - before, 30);
    let expected: Vec<u64> = (84..116).filter(|page| *page != 103).collect();
    assert_eq!(filled(&mut lab, 84..116), expected);
    lab.audit();
    lab.sound();
}

#[test]
fn a_vtlb_refills_what_lazy_fill_keeps() {
    fn second_visit<R: Audited>(regime: impl FnOnce(&MemoryMap) -> R) -> u64 {
        let mut lab = dense(&[], regime);
        let visit = |lab: &mut Lab<R>| (0..20).for_each(|page| lab.read(region(9) + (page << 12)).unwrap());
        visit(&mut lab);
        lab.cr3(2);
        lab.cr3(1);
        let exits = lab.exits(visit);
        lab.sound();
        exits
    }
    assert_eq!(second_visit(|map| Vtlb::new(map, Vendor::Vmx)), 20);
    assert_eq!(second_visit(|map| LazyFill::new(map, Vendor::Vmx)), 0);
}

#[test]
fn lazy_fill_compares_at_a_cr3_load_what_is_cached_whether_changed_or_not() {
    let mut lab = dense(&[], |map| LazyFill::new(map, Vendor::Vmx));
    (0..20).for_each(|page| lab.read(region(9) + (page << 12)).unwrap());
    let table = lab.table(1, region(9), 1);
    lab.set(table, 3, 700 << 12 | LEAF);
    let before = lab.out.counters.work.entries_synced;
    lab.cr3(1);
    assert!(lab.out.counters.work.entries_synced - before > 20, "leaves and the entries that lead to them");
    // Only the changed one faults again.
    assert_eq!(lab.exits(|lab| (0..20).for_each(|page| lab.read(region(9) + (page << 12)).unwrap())), 1);
    lab.sound();
}
