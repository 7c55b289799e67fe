//! How many references a cold walk of each proposal makes, counted by walking, and in which order.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use memvirt_addr::{Gva, Level, PageSize};
use memvirt_alternatives::{Design, NoWalk, WalkOf, cold_walk};
use memvirt_platform::Dimension::{self, Guest, Host, Shadow};

const SIZES: [PageSize; 3] = PageSize::ALL;

fn walk_of(design: Design, guest_levels: u8, guest_page: PageSize, host_page: PageSize) -> WalkOf {
    WalkOf { design, guest_levels, guest_page, host_page, address: Gva::new(0x7f12_3456_7abc) }
}

/// Whose tables were read and at which level.
fn order(design: Design, guest_levels: u8, guest_page: PageSize, host_page: PageSize) -> Vec<(Dimension, u8)> {
    let recorded = cold_walk(&walk_of(design, guest_levels, guest_page, host_page)).unwrap();
    let offset = recorded.reached.as_u64() & 0xfff;
    assert_eq!(offset, 0xabc, "the walk reached the address");
    recorded.references.iter().map(|seen| (seen.dimension, seen.level.number())).collect()
}

fn count(design: Design, guest_levels: u8, guest_page: PageSize, host_page: PageSize) -> usize {
    order(design, guest_levels, guest_page, host_page).len()
}

#[test]
fn a_flat_table_makes_9_references() {
    let order = order(Design::Flat, 4, PageSize::Size4K, PageSize::Size4K);
    assert_eq!(
        order,
        [(Host, 1), (Guest, 4), (Host, 1), (Guest, 3), (Host, 1), (Guest, 2), (Host, 1), (Guest, 1), (Host, 1)]
    );
}

#[test]
fn a_flat_table_makes_g_and_g_plus_1_references_for_every_size() {
    for host_page in SIZES {
        assert_eq!(SIZES.map(|guest_page| count(Design::Flat, 4, guest_page, host_page)), [9, 7, 5]);
        assert_eq!(SIZES.map(|guest_page| count(Design::Flat, 5, guest_page, host_page)), [11, 9, 7]);
    }
}

fn agile(lowest: u8) -> Vec<(Dimension, u8)> {
    order(Design::Agile(lowest), 4, PageSize::Size4K, PageSize::Size4K)
}

#[test]
fn agile_paging_with_nothing_nested_makes_4_references() {
    assert_eq!(agile(0), [(Shadow, 4), (Shadow, 3), (Shadow, 2), (Shadow, 1)]);
}

#[test]
fn agile_paging_with_the_leaf_nested_makes_8_references() {
    let data = [(Host, 4), (Host, 3), (Host, 2), (Host, 1)];
    assert_eq!(agile(1), [&[(Shadow, 4), (Shadow, 3), (Shadow, 2), (Guest, 1)][..], &data].concat());
}

#[test]
fn agile_paging_with_two_levels_nested_makes_12_references() {
    let host = [(Host, 4), (Host, 3), (Host, 2), (Host, 1)];
    let shadow = [(Shadow, 4), (Shadow, 3), (Guest, 2)];
    assert_eq!(agile(2), [&shadow[..], &host, &[(Guest, 1)], &host].concat());
}

#[test]
fn agile_paging_with_three_levels_nested_makes_16_references() {
    assert_eq!(agile(3).len(), 16);
    assert_eq!(agile(3).iter().filter(|(whose, _)| *whose == Shadow).count(), 1);
}

#[test]
fn agile_paging_with_all_levels_nested_makes_20_references() {
    assert_eq!(agile(4).len(), 20);
    assert!(agile(4).iter().all(|(whose, _)| *whose != Shadow));
    assert_eq!(agile(4)[0], (Guest, 4), "the root is named by its host frame");
}

/// The way to 24: nested paging proper looks up the root as well.
#[test]
fn nested_paging_makes_the_24_references_that_agile_paging_ends_at() {
    use memvirt_nested::{AdBits, End, Walker};
    use memvirt_ops::arch::Cr3;
    use memvirt_pagetable::{Attrs, Ept4, FramePool, Guest4, Mapper, PhysMem, TableAttrs};
    let mut host = PhysMem::new(64);
    let mut pool = FramePool::new(memvirt_addr::Hfn::new(32), 32);
    let mut ept = Mapper::<Ept4, _>::create(&mut host, &mut pool, TableAttrs::EPT).unwrap();
    let root = ept.root();
    for gfn in 0..16 {
        let (at, attrs) = (memvirt_addr::Gpa::new(gfn << 12), Attrs::RWX | Attrs::WRITE_BACK);
        ept.map(at, memvirt_addr::Hfn::new(gfn), PageSize::Size4K, attrs, &mut pool).unwrap();
    }
    for table in 1u64..5 {
        host.write(memvirt_addr::Hpa::new(table << 12), (table + 1) << 12 | 0x27);
    }
    let mut seen: Vec<memvirt_platform::Reference> = Vec::new();
    let regs = memvirt_platform::Regs::kernel(Cr3::flushing(memvirt_addr::Gpa::new(0x1000)));
    let load = memvirt_addr::Acc::user(Gva::new(0), memvirt_addr::AccessKind::Read);
    let end = Walker::<Guest4, Ept4, _>::new(&mut host, root, AdBits::On, &mut seen).walk(&regs, load);
    assert!(matches!(end, End::Mapped(_)));
    assert_eq!(seen.len(), 24);
    assert_eq!(seen.iter().filter(|seen| seen.guest_level == Some(Level::L4)).count(), 5);
}

/// A guest page larger than the host's is mapped in the shadow by direct tables, so with nothing nested the walk is as long as
/// the smaller page asks; what is nested stops at the guest's own leaf. Where a shadowed table lies in a large host page, that
/// page is mapped in pieces, for the table is write-protected: all tables here lie in one page of 2 MiB, and a guest page of
/// 4 KiB beside them.
#[test]
fn agile_paging_with_large_pages() {
    let of = |lowest, guest, host| count(Design::Agile(lowest), 4, guest, host);
    let all = |guest, host| [0, 1, 2, 3, 4].map(|lowest| of(lowest, guest, host));
    let (small, large) = (PageSize::Size4K, PageSize::Size2M);
    // 1 + (1) + (4 + 1) + 3: the table of level 2 shares its host page with the root, which is shadowed.
    assert_eq!(all(large, large), [3, 3, 6, 10, 12]);
    assert_eq!(all(small, large), [4, 8, 12, 16, 16]);
    assert_eq!(all(large, small), [4, 4, 7, 11, 15]);
}

#[test]
fn a_segment_of_the_host_leaves_the_guests_references_alone() {
    let small = PageSize::Size4K;
    assert_eq!(order(Design::VmmDirect, 4, small, small), [(Guest, 4), (Guest, 3), (Guest, 2), (Guest, 1)]);
    for host_page in SIZES {
        assert_eq!(SIZES.map(|guest_page| count(Design::VmmDirect, 4, guest_page, host_page)), [4, 3, 2]);
    }
}

#[test]
fn a_segment_of_the_guest_leaves_one_host_walk() {
    let small = PageSize::Size4K;
    assert_eq!(order(Design::GuestDirect, 4, small, small), [(Host, 4), (Host, 3), (Host, 2), (Host, 1)]);
    assert_eq!(SIZES.map(|host_page| count(Design::GuestDirect, 4, small, host_page)), [4, 3, 2]);
}

#[test]
fn segments_in_both_dimensions_make_no_reference_at_all() {
    for guest_page in SIZES {
        assert_eq!(count(Design::DualDirect, 4, guest_page, PageSize::Size4K), 0);
    }
}

#[test]
fn registers_that_name_leaf_tables_leave_3_references() {
    let small = PageSize::Size4K;
    assert_eq!(order(Design::Register, 4, small, small), [(Host, 1), (Guest, 1), (Host, 1)]);
    let large = order(Design::Register, 4, PageSize::Size2M, PageSize::Size2M);
    assert_eq!(large, [(Host, 1), (Guest, 2), (Host, 1)], "the register names the table of level 2");
    for host_page in SIZES {
        assert_eq!(SIZES.map(|guest_page| count(Design::Register, 4, guest_page, host_page)), [3, 3, 3]);
    }
}

#[test]
fn what_is_not_modelled_is_refused() {
    let page = PageSize::Size4K;
    assert_eq!(cold_walk(&walk_of(Design::Agile(1), 5, page, page)), Err(NoWalk::FourLevelsOnly));
    assert_eq!(cold_walk(&walk_of(Design::Agile(5), 4, page, page)), Err(NoWalk::TooManyLevels));
    assert_eq!(cold_walk(&walk_of(Design::Flat, 3, page, page)), Err(NoWalk::NotCanonical));
    let high = WalkOf { address: Gva::new(0x00aa_7f12_3456_7abc), ..walk_of(Design::Flat, 4, page, page) };
    assert_eq!(cold_walk(&high), Err(NoWalk::NotCanonical));
    assert_eq!(cold_walk(&WalkOf { guest_levels: 5, ..high }).unwrap().references.len(), 11);
}
