//! Which of several faults is reported, and what a failing walk leaves behind.

use memvirt_addr::{Acc, AccessKind, Level, PageSize, PfCode};
use memvirt_nested::{AdBits, End};
use memvirt_pagetable::{Ept4, Guest4, Npt4};

use crate::lab::Lab;

const A: u64 = 0x20;
const D: u64 = 0x40;

fn lab() -> Lab<Guest4, Ept4> {
    Lab::uniform(PageSize::Size4K, PageSize::Size4K)
}

/// Unmaps the nested page behind the `i`th thing touched.
fn take_away(lab: &mut Lab<Guest4, Ept4>, i: usize) {
    lab.change(lab.nested_entry(lab.touched[i], Level::L1), u64::MAX, 0);
}

#[test]
fn a_guest_fault_beats_a_nested_fault_on_the_data() {
    let mut lab = lab();
    take_away(&mut lab, 4);
    lab.change(lab.guest_entry(3), 2, 0);
    let acc = Acc::user(lab.gva, AccessKind::Write);
    assert_eq!(lab.walk(AccessKind::Write, AdBits::On), End::GuestFault(PfCode::of(acc, true)));
    assert!(matches!(lab.walk(AccessKind::Read, AdBits::On), End::Violation(found) if found.on_data));
}

#[test]
fn a_nested_fault_on_a_table_beats_every_guest_fault_below_it() {
    for table in 0..4 {
        for broken in 0..4 {
            for ad in [AdBits::On, AdBits::Off] {
                let mut lab = lab();
                take_away(&mut lab, table);
                lab.change(lab.guest_entry(broken), 1, 0);
                let end = lab.walk(AccessKind::Read, ad);
                if broken < table {
                    let acc = Acc::user(lab.gva, AccessKind::Read);
                    assert_eq!(end, End::GuestFault(PfCode::of(acc, false)), "table {table} is never reached");
                } else {
                    assert!(matches!(end, End::Violation(found) if found.gpa == lab.touched[table] && !found.on_data));
                }
            }
        }
    }
}

#[test]
fn the_first_entry_that_is_absent_or_illegal_decides_and_permissions_come_last() {
    for (absent, illegal) in (0..4).flat_map(|a| (0..4).map(move |i| (a, i))).filter(|(a, i)| a != i) {
        let mut lab = lab();
        let data = lab.data();
        let path = lab.nested_path(data);
        lab.change(path[illegal], 7, 6);
        lab.change(path[absent], 7, 0);
        let end = lab.walk(AccessKind::Read, AdBits::On);
        let first = absent < illegal;
        assert!(
            matches!(end, End::Violation(_) if first) || matches!(end, End::Misconfig(_) if !first),
            "absent at {absent}, illegal at {illegal}: {end:?}"
        );
    }
    // An upper entry that forbids the access is looked at only after the illegal leaf.
    let mut lab = lab();
    let path = lab.nested_path(lab.data());
    lab.change(path[0], 7, 4);
    lab.change(path[3], 7, 6);
    assert!(matches!(lab.walk(AccessKind::Read, AdBits::On), End::Misconfig(found) if found.gpa == lab.data()));
}

#[test]
fn every_kind_of_misconfiguration_stops_the_walk_at_its_level() {
    // (level, bits cleared, bits set): write without read; a reserved memory type in a leaf; reserved bits in a table's
    // entry; a large page at level 4; an address wider than the machine's.
    let cases = [
        (0, 7, 2),
        (3, 7, 6),
        (3, 7 << 3, 2 << 3),
        (3, 7 << 3, 3 << 3),
        (3, 7 << 3, 7 << 3),
        (1, 0, 1 << 3),
        (0, 0, 1 << 7),
        (2, 0, 1 << 51),
        (3, 0, 1 << 51),
    ];
    for (depth, clear, set) in cases {
        let mut lab = lab();
        let path = lab.nested_path(lab.data());
        lab.change(path[depth], clear, set);
        let (end, _, seen) = lab.walk_as(Acc::user(lab.gva, AccessKind::Read), AdBits::On);
        assert!(matches!(end, End::Misconfig(found) if found.on_data), "{depth} {clear:x} {set:x}: {end:?}");
        assert_eq!(seen.len(), 20 + depth + 1, "nothing is read after it");
    }
}

#[test]
fn under_npt_a_reserved_bit_is_reported_in_the_error_code() {
    let mut lab = Lab::<Guest4, Npt4>::uniform(PageSize::Size4K, PageSize::Size4K);
    let at = *lab.nested_path(lab.data()).last().unwrap();
    lab.change(at, 0, 1 << 51);
    let End::Misconfig(found) = lab.walk(AccessKind::Write, AdBits::On) else { panic!("not stopped") };
    let code = PfCode::PRESENT | PfCode::RESERVED | PfCode::WRITE | PfCode::USER;
    assert_eq!(found.error_code(), u64::from(code) | 1 << 32);
}

#[test]
fn accessed_bits_are_set_on_the_way_down_and_dirty_only_when_the_guest_permits_the_store() {
    let bits = |lab: &Lab<Guest4, Ept4>| [0, 1, 2, 3].map(|i| lab.mem.read(lab.guest_entry(i)) & (A | D));
    let mut absent = lab();
    absent.change(absent.guest_entry(2), 1, 0);
    absent.walk(AccessKind::Write, AdBits::On);
    assert_eq!(bits(&absent), [A, A, 0, 0], "the walk ended at the third entry");

    let mut denied = lab();
    denied.change(denied.guest_entry(3), 2, 0);
    denied.walk(AccessKind::Write, AdBits::On);
    assert_eq!(bits(&denied), [A, A, A, 0], "the leaf forbids the store");

    let mut nested = lab();
    take_away(&mut nested, 4);
    nested.walk(AccessKind::Write, AdBits::On);
    assert_eq!(bits(&nested), [A, A, A, A | D], "guest bits are set before the data is translated");

    let mut update = lab();
    update.change(update.guest_entry(3), 0, A);
    update.change(update.nested_entry(update.touched[3], Level::L1), 2, 0);
    assert!(
        matches!(update.walk(AccessKind::Write, AdBits::Off), End::Violation(found) if found.gpa == update.touched[3])
    );
    assert_eq!(bits(&update), [A, A, A, A], "a bit that cannot be set stays clear");
}
