//! References to guest tables: reads or writes, by whether nested A/D bits are on.
//!
//! The expectations are those of kvm-unit-tests, `x86/vmx_tests.c`, `ept_access_test_paddr_*`, which run on hardware: the
//! permissions of the frame that holds the guest's page table, and the A and D bits of the guest's entry in it.

use memvirt_addr::{AccessKind, Level, PageSize, PfCode, Privilege};
use memvirt_nested::{AdBits, End, Violation};
use memvirt_pagetable::{Ept4, Guest4, Npt4};

use crate::lab::{KINDS, Lab};

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
/// A and D of a guest entry.
const A: u64 = 0x20;
const D: u64 = 0x40;

const READ: u64 = Violation::READ | Violation::LINEAR_VALID;
const UPDATE: u64 = READ | Violation::WRITE;

/// The frame of guest table `i` (root first) gets the permissions `rwx`; the guest's entry there, the bits `entry`. The exit
/// qualification of each kind of access, `None` where it goes through.
fn paddr(i: usize, rwx: u64, entry: u64, ad: AdBits) -> [Option<u64>; 3] {
    KINDS.map(|kind| {
        let mut lab = Lab::<Guest4, Ept4>::uniform(PageSize::Size4K, PageSize::Size4K);
        (0..4).for_each(|table| lab.change(lab.guest_entry(table), 0, A | D));
        lab.change(lab.guest_entry(i), A | D, entry);
        lab.change(lab.nested_entry(lab.touched[i], Level::L1), 7, rwx);
        match lab.walk(kind, ad) {
            End::Mapped(_) => None,
            End::Violation(found) => {
                assert_eq!((found.gpa, found.on_data), (lab.touched[i], false));
                Some(found.qualification())
            }
            other => panic!("{other:?}"),
        }
    })
}

const PAGE_TABLE: usize = 3;

#[test]
fn a_page_table_that_is_not_there() {
    assert_eq!(paddr(PAGE_TABLE, 0, A | D, AdBits::Off), [Some(READ); 3]);
    assert_eq!(paddr(PAGE_TABLE, 0, A | D, AdBits::On), [Some(UPDATE); 3]);
}

#[test]
fn a_read_only_page_table_without_nested_accessed_bits_stops_only_what_must_set_a_bit() {
    for (rwx, granted) in [(R, Violation::READABLE), (R | X, Violation::READABLE | Violation::EXECUTABLE)] {
        let stopped = Some(UPDATE | granted);
        assert_eq!(paddr(PAGE_TABLE, rwx, 0, AdBits::Off), [stopped; 3], "A has to be set");
        assert_eq!(paddr(PAGE_TABLE, rwx, A, AdBits::Off), [None, stopped, None], "D has to be set by writes");
        assert_eq!(paddr(PAGE_TABLE, rwx, A | D, AdBits::Off), [None; 3]);
    }
}

#[test]
fn a_read_only_page_table_with_nested_accessed_bits_stops_everything() {
    for (rwx, granted) in [(R, Violation::READABLE), (R | X, Violation::READABLE | Violation::EXECUTABLE)] {
        for entry in [0, A, A | D] {
            assert_eq!(paddr(PAGE_TABLE, rwx, entry, AdBits::On), [Some(UPDATE | granted); 3]);
        }
    }
}

#[test]
fn a_writable_page_table_stops_nothing() {
    for ad in [AdBits::Off, AdBits::On] {
        assert_eq!(paddr(PAGE_TABLE, R | W, 0, ad), [None; 3]);
        assert_eq!(paddr(PAGE_TABLE, R | W | X, 0, ad), [None; 3]);
    }
}

#[test]
fn upper_tables_need_their_a_bit_and_no_d_bit() {
    for table in 0..PAGE_TABLE {
        let stopped = [Some(UPDATE | Violation::READABLE); 3];
        assert_eq!(paddr(table, R, 0, AdBits::Off), stopped);
        assert_eq!(paddr(table, R, A, AdBits::Off), [None; 3]);
        assert_eq!(paddr(table, R, A, AdBits::On), stopped);
    }
}

#[test]
fn under_npt_every_reference_to_a_guest_table_is_a_user_write() {
    for (table, bits, present) in [(0, 0, 0), (1, 1 | 4, 1), (2, 1 | 2, 1), (3, 1 | 4, 1)] {
        let mut lab = Lab::<Guest4, Npt4>::uniform(PageSize::Size4K, PageSize::Size4K);
        (0..4).for_each(|table| lab.change(lab.guest_entry(table), 0, A | D));
        lab.change(lab.nested_entry(lab.touched[table], Level::L1), 7, bits);
        let End::Violation(found) = lab.walk(AccessKind::Fetch, AdBits::On) else { panic!("not stopped") };
        let code = present | u64::from(PfCode::WRITE | PfCode::USER) | 1 << 33;
        assert_eq!((found.gpa, found.error_code()), (lab.touched[table], code));
    }
}

#[test]
fn nested_dirty_bits_of_table_frames_are_set_by_mere_walks_and_only_with_a_d_on() {
    for (ad, dirty) in [(AdBits::On, true), (AdBits::Off, false)] {
        let mut lab = Lab::<Guest4, Ept4>::uniform(PageSize::Size4K, PageSize::Size4K);
        assert!(matches!(lab.walk(AccessKind::Read, ad), End::Mapped(mapped) if !mapped.dirty));
        lab.change(lab.guest_entry(PAGE_TABLE), 0, D);
        let read = lab.walk(AccessKind::Read, ad);
        assert!(
            matches!(read, End::Mapped(mapped) if mapped.dirty != dirty),
            "the nested D bit counts where there is one"
        );
        let dirty_of = |lab: &Lab<Guest4, Ept4>, gpa| lab.mem.read(lab.nested_entry(gpa, Level::L1)) >> 9 & 1 == 1;
        for table in 0..4 {
            assert_eq!(dirty_of(&lab, lab.touched[table]), dirty);
        }
        assert!(!dirty_of(&lab, lab.data()), "the data was only read");
        assert!(matches!(lab.walk(AccessKind::Write, ad), End::Mapped(mapped) if mapped.dirty));
        assert_eq!(dirty_of(&lab, lab.data()), dirty);
        let acc = lab.acc(AccessKind::Write, Privilege::User);
        assert_eq!(lab.walk_as(acc, ad).1.ad_updates, 0);
    }
}
