//! What the architecture says, rule by rule, on shapes at their limits.

use memvirt_addr::PageSize::{self, Size1G, Size2M, Size4K};
use memvirt_addr::{Acc, AccessKind, Gva, Hfn, Privilege};
use memvirt_tlb::{
    ArrayGeometry, CacheLevel, Entry, FracturedInvlpg, Geometry, GeometryError, GigabytePages, Inclusion, KeepGlobal,
    Perms, Replacement, Sizes, Tag, Tlb,
};

const PROCESS: Tag = Tag::new(1, 1);

fn page(number: u64) -> Gva {
    Gva::new(number << 12)
}

fn load(gva: Gva) -> Acc {
    Acc::user(gva, AccessKind::Read)
}

fn entry(gva: Gva, size: PageSize) -> Entry {
    let frame = Hfn::new(gva.frame().number() + 0x100_0000).align_down(size);
    Entry::new(gva.frame().align_down(size), frame, size, Perms::ALL)
}

fn only_l1(array: ArrayGeometry) -> Tlb {
    Tlb::new(&Geometry::new(&[array], &[]).expect("a valid array"))
}

/// How many of the pages `0..count` are cached.
fn cached(tlb: &Tlb, count: u64) -> Vec<u64> {
    (0..count).filter(|number| tlb.probe(PROCESS, page(*number)).is_some()).collect()
}

fn fill_pages(tlb: &mut Tlb, pages: impl IntoIterator<Item = u64>) {
    for number in pages {
        tlb.fill(PROCESS, entry(page(number), Size4K));
    }
}

#[test]
fn a_fully_associative_array_loses_exactly_the_least_recently_used() {
    let mut tlb = only_l1(ArrayGeometry::full(Sizes::only(Size4K), 32));
    fill_pages(&mut tlb, 0..32);
    assert_eq!(tlb.hits(PROCESS, &[load(page(0))]), 1);
    fill_pages(&mut tlb, [99]);
    assert_eq!(cached(&tlb, 32), [vec![0], (2..32).collect()].concat());
    assert_eq!(tlb.stats().l1_evictions, 1);
}

#[test]
fn one_set_of_one_way_holds_one_entry() {
    let mut tlb = only_l1(ArrayGeometry::new(Sizes::only(Size4K), 1, 1));
    fill_pages(&mut tlb, [3, 4]);
    assert_eq!(cached(&tlb, 8), [4]);
}

#[test]
fn twelve_ways_over_two_sets_hold_twelve_pages_of_each_parity() {
    let array = ArrayGeometry::new(Sizes::only(Size4K), 24, 12);
    for geometry in [Geometry::new(&[array], &[]), Geometry::new(&[], &[array])] {
        let mut tlb = Tlb::new(&geometry.unwrap());
        fill_pages(&mut tlb, (0..26).step_by(2));
        fill_pages(&mut tlb, [1]);
        assert_eq!(cached(&tlb, 26), [vec![1], (2..26).step_by(2).collect()].concat());
    }
}

#[test]
fn a_store_misses_until_the_entry_permits_it_and_the_upgrade_replaces() {
    let mut tlb = Tlb::new(&Geometry::default());
    let store = Acc::user(page(5), AccessKind::Write);
    let clean = Entry { perms: Perms::USER, ..entry(page(5), Size4K) };
    tlb.fill(PROCESS, clean);
    assert_eq!(tlb.hits(PROCESS, &[load(page(5)), store]), 1);
    assert_eq!(tlb.stats().misses, 1);
    assert_eq!(tlb.probe(PROCESS, page(5)), Some(clean), "a miss alone drops nothing");
    tlb.fill(PROCESS, Entry { perms: Perms::USER | Perms::WRITE, ..clean });
    assert_eq!(tlb.hits(PROCESS, &[store, load(page(5))]), 2);
    assert_eq!(tlb.entries().count(), 2, "one in each level");
    assert_eq!(tlb.stats().l1_evictions + tlb.stats().l2_evictions, 0);
}

#[test]
fn each_permission_guards_its_access() {
    let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];
    for bits in 0..8 {
        let perms = Perms::from_bits(bits);
        let mut tlb = Tlb::new(&Geometry::default());
        tlb.fill(PROCESS, Entry { perms, ..entry(page(5), Size4K) });
        for (kind, needed) in kinds.into_iter().zip([Perms::NONE, Perms::WRITE, Perms::EXEC]) {
            let user = Acc::new(page(5), kind, Privilege::User);
            let expected = perms.contains(needed | Perms::USER);
            assert_eq!(tlb.lookup(PROCESS, user).is_some(), expected, "{user:?} with {perms:?}");
            assert_eq!(tlb.hits(PROCESS, &[user]) == 1, expected, "{user:?} with {perms:?}");
            let supervisor = Acc::new(page(5), kind, Privilege::Supervisor);
            assert_eq!(tlb.hits(PROCESS, &[supervisor]) == 1, perms.contains(needed), "{supervisor:?} with {perms:?}");
        }
    }
}

#[test]
fn global_entries_serve_every_process_of_their_vpid_and_survive_cr3_loads() {
    let mut tlb = Tlb::new(&Geometry::default());
    let (kernel, other, stranger) = (page(0x800), Tag::new(1, 2), Tag::new(2, 1));
    tlb.fill(PROCESS, entry(kernel, Size4K).with_global());
    tlb.fill(PROCESS, entry(page(1), Size4K));
    assert_eq!(tlb.hits(other, &[load(kernel)]), 1);
    assert_eq!(tlb.hits(stranger, &[load(kernel)]), 0);
    tlb.flush_tag(PROCESS, KeepGlobal::Yes);
    assert_eq!(tlb.probe(PROCESS, page(1)), None);
    assert!(tlb.probe(PROCESS, kernel).is_some());
    tlb.flush_vpid(1, KeepGlobal::Yes);
    assert!(tlb.probe(other, kernel).is_some());
    tlb.flush_tag(other, KeepGlobal::No);
    assert_eq!(tlb.probe(PROCESS, kernel), None);
    tlb.fill(PROCESS, entry(kernel, Size4K).with_global());
    tlb.flush_all();
    assert_eq!(tlb.entries().count(), 0);
}

#[test]
fn invlpg_drops_global_entries_and_leaves_other_processes_alone() {
    let mut tlb = Tlb::new(&Geometry::default());
    let other = Tag::new(1, 2);
    tlb.fill(PROCESS, entry(page(1), Size4K).with_global());
    tlb.fill(other, entry(page(2), Size4K));
    tlb.flush_page(other, page(1));
    tlb.flush_page(PROCESS, page(2));
    assert_eq!(tlb.probe(PROCESS, page(1)), None);
    assert!(tlb.probe(other, page(2)).is_some());
}

#[test]
fn processes_and_machines_do_not_see_each_others_entries() {
    let tags = [Tag::new(0, 0), Tag::new(0, 1), Tag::new(1, 0), Tag::new(u16::MAX, Tag::PCID_MAX)];
    let mut tlb = Tlb::new(&Geometry::default());
    for (at, tag) in tags.into_iter().enumerate() {
        let frame = Hfn::new(at as u64);
        tlb.fill(tag, Entry { frame, ..entry(page(7), Size4K) });
    }
    for (at, tag) in tags.into_iter().enumerate() {
        assert_eq!(tlb.lookup(tag, load(page(7))).map(|held| held.frame), Some(Hfn::new(at as u64)));
    }
    tlb.flush_vpid(0, KeepGlobal::No);
    let left = tags.map(|tag| tlb.hits(tag, &[load(page(7))]) == 1);
    assert_eq!(left, [false, false, true, true]);
}

#[test]
fn a_page_of_another_size_replaces_what_it_overlaps_both_ways() {
    let mut tlb = Tlb::new(&Geometry::default());
    let (inside, outside) = (page(0x20_0007), page(0x20_0207));
    let small = |gva| Entry { frame: Hfn::new(3), ..entry(gva, Size4K) };
    tlb.fill(PROCESS, small(inside));
    tlb.fill(PROCESS, small(outside));
    tlb.fill(PROCESS, entry(inside, Size2M));
    assert_eq!(tlb.probe(PROCESS, inside), Some(entry(inside, Size2M)));
    assert_eq!(tlb.probe(PROCESS, outside), Some(small(outside)), "the neighbouring 2M page is untouched");
    tlb.fill(PROCESS, small(inside));
    assert_eq!(tlb.probe(PROCESS, inside), Some(small(inside)));
    assert_eq!(tlb.probe(PROCESS, page(0x20_0008)), None, "the 2M entry is gone as a whole");
    tlb.fill(PROCESS, entry(inside, Size1G));
    for gva in [inside, outside] {
        assert_eq!(tlb.probe(PROCESS, gva), Some(entry(inside, Size1G)));
    }
}

#[test]
fn three_sizes_hit_in_one_run() {
    let mut tlb = Tlb::new(&Geometry::default());
    let at = [page(1), Gva::new(5 << 21), Gva::new(7 << 30)];
    for (gva, size) in at.into_iter().zip(PageSize::ALL) {
        tlb.fill(PROCESS, entry(gva, size));
    }
    let run: Vec<_> = at.iter().cycle().take(300).map(|gva| load(*gva)).collect();
    assert_eq!(tlb.hits(PROCESS, &run), 300);
    assert_eq!(tlb.stats().l1_hits, 300);
}

#[test]
fn invlpg_drops_all_pieces_of_a_fractured_page() {
    let fractured = |gva| entry(gva, Size4K).with_guest_size(Size2M);
    let filled = |geometry: Geometry| {
        let mut tlb = Tlb::new(&geometry);
        for number in [0x200, 0x201, 0x3ff, 0x400] {
            tlb.fill(PROCESS, fractured(page(number)));
        }
        tlb.fill(PROCESS, entry(page(0x900), Size4K).with_global());
        tlb
    };
    let mut tlb = filled(Geometry::default());
    tlb.flush_page(PROCESS, page(0x250));
    assert_eq!(cached(&tlb, 0x1000), [0x400, 0x900]);

    let mut tlb = filled(Geometry::default().with_fractured_invlpg(FracturedInvlpg::DropsVpid));
    tlb.fill(Tag::new(2, 1), entry(page(1), Size4K));
    tlb.flush_page(Tag::new(2, 1), page(9));
    assert!(tlb.probe(Tag::new(2, 1), page(1)).is_some(), "no fractured entry in this VPID");
    tlb.flush_page(PROCESS, page(0x5000));
    assert_eq!(cached(&tlb, 0x1000), []);
    assert!(tlb.probe(Tag::new(2, 1), page(1)).is_some());
}

#[test]
fn an_inclusive_second_level_takes_the_first_levels_copy_with_it() {
    let arrays = |entries| [ArrayGeometry::full(Sizes::only(Size4K), entries)];
    let plain = Geometry::new(&arrays(4), &arrays(2)).unwrap();
    for (inclusion, left) in [(Inclusion::NonInclusive, vec![0, 1, 2]), (Inclusion::Inclusive, vec![1, 2])] {
        let mut tlb = Tlb::new(&plain.clone().with_inclusion(inclusion));
        fill_pages(&mut tlb, 0..3);
        assert_eq!(cached(&tlb, 4), left);
        assert_eq!(tlb.stats().l2_evictions, 1);
        assert_eq!(tlb.stats().back_invalidations, u64::from(inclusion == Inclusion::Inclusive));
    }
}

#[test]
fn gigabyte_pages_can_be_cached_as_2m_pieces() {
    let mut tlb = Tlb::new(&Geometry::default().with_gigabyte_pages(GigabytePages::Split));
    let gva = Gva::new((3 << 30) + (9 << 21) + 0x1234);
    tlb.fill_at(PROCESS, gva, entry(gva, Size1G));
    let piece = tlb.probe(PROCESS, gva).unwrap();
    assert_eq!((piece.size, piece.guest_size), (Size2M, Size1G));
    assert_eq!(piece.frame_of(gva), entry(gva, Size1G).frame_of(gva));
    assert_eq!(tlb.probe(PROCESS, Gva::new((3 << 30) + (8 << 21))), None);
}

#[test]
fn policies_differ_where_they_should() {
    let left = |replacement| {
        let geometry = Geometry::new(&[ArrayGeometry::full(Sizes::only(Size4K), 4)], &[]).unwrap();
        let mut tlb = Tlb::new(&geometry.with_replacement(CacheLevel::L1, replacement).unwrap());
        fill_pages(&mut tlb, 0..4);
        assert_eq!(tlb.hits(PROCESS, &[load(page(0)), load(page(2))]), 2);
        fill_pages(&mut tlb, [4]);
        cached(&tlb, 8)
    };
    assert_eq!(left(Replacement::Lru), [0, 2, 3, 4]);
    assert_eq!(left(Replacement::Fifo), [1, 2, 3, 4]);
    // The root points away from the half {2, 3} used last, the node below it away from 0.
    assert_eq!(left(Replacement::TreePlru), [0, 2, 3, 4]);
    let drawn: Vec<_> = (0..64).map(|seed| left(Replacement::Random { seed })).collect();
    for way in 0..4 {
        assert!(drawn.iter().any(|pages| !pages.contains(&way)), "no seed of 64 evicts page {way}");
    }
    assert_eq!(left(Replacement::Random { seed: 1 }), left(Replacement::Random { seed: 1 }));
}

#[test]
fn shapes_that_cannot_be_are_refused_with_their_numbers() {
    let l1 = |sizes, entries, ways| Geometry::new(&[ArrayGeometry::new(sizes, entries, ways)], &[]);
    let level = CacheLevel::L1;
    let k4 = Sizes::only(Size4K);
    assert_eq!(l1(k4, 64, 0), Err(GeometryError::WaysDoNotDivide { level, entries: 64, ways: 0 }));
    assert_eq!(l1(k4, 64, 5), Err(GeometryError::WaysDoNotDivide { level, entries: 64, ways: 5 }));
    assert_eq!(l1(k4, 48, 4), Err(GeometryError::SetsNotPowerOfTwo { level, entries: 48, ways: 4 }));
    assert_eq!(l1(k4, 2048, 4), Err(GeometryError::TooManyEntries { level, entries: 2048 }));
    assert_eq!(l1(Sizes::NONE, 4, 4), Err(GeometryError::NoSizes { level }));
    assert!(l1(k4, 0, 0).is_ok());
    assert!(l1(k4, 1024, 1024).is_ok());
    let twice = [ArrayGeometry::full(k4, 4), ArrayGeometry::full(Sizes::ALL, 4)];
    assert_eq!(Geometry::new(&[], &twice), Err(GeometryError::SizeTwice { level: CacheLevel::L2, size: Size4K }));
    let trees = Geometry::default().with_replacement(CacheLevel::L2, Replacement::TreePlru);
    assert_eq!(trees, Err(GeometryError::NoTree { level: CacheLevel::L2, ways: 12 }));
    let message = l1(k4, 48, 4).unwrap_err().to_string();
    assert!(message.contains("48") && message.contains("12 sets"), "{message}");
}
