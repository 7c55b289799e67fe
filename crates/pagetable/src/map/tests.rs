//! One operation at a time; sequences are tested against a model in `tests/model.rs`.

use alloc::vec::Vec;

use memvirt_addr::{Addr, Gfn, GuestPhys, Gva, Hfn, Hpa, Level, PageSize};

use crate::{
    Attrs, Ept4, FrameAllocator, FramePool, Guest4, LookupError, MapError, Mapper, PhysMem, SplitError, TableAttrs,
    TableMem, Teardown,
};

const RW: Attrs = Attrs::READ.union(Attrs::WRITE).union(Attrs::USER);

/// Memory that notes every store.
#[derive(Debug)]
struct Recorder {
    mem: PhysMem<GuestPhys>,
    stores: Vec<(u64, u64)>,
    cleared: Vec<Gfn>,
}

impl TableMem<GuestPhys> for Recorder {
    fn read_entry(&self, at: Addr<GuestPhys>) -> u64 {
        self.mem.read(at)
    }
    fn write_entry(&mut self, at: Addr<GuestPhys>, value: u64) {
        assert_ne!(self.mem.read(at), value, "a store that changes nothing");
        self.stores.push((at.as_u64(), value));
        self.mem.write(at, value);
    }
    fn clear(&mut self, frame: Gfn) {
        self.cleared.push(frame);
        self.mem.discard(frame);
    }
}

fn recorder() -> (Recorder, FramePool<GuestPhys>) {
    let mem = Recorder { mem: PhysMem::new(1 << 20), stores: Vec::new(), cleared: Vec::new() };
    (mem, FramePool::new(Gfn::new(1), 64))
}

#[test]
fn a_first_page_takes_three_tables_and_four_stores() {
    let (mut mem, mut pool) = recorder();
    let gva = Gva::new(0xffff_8000_0020_3000);
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    assert_eq!(mapper.map(gva, Gfn::new(99), PageSize::Size4K, RW, &mut pool), Ok(3));
    assert_eq!(mapper.translate(gva), Some((Gfn::new(99).base(), RW, PageSize::Size4K)));
    let again = mapper.map(gva, Gfn::new(98), PageSize::Size4K, RW, &mut pool);
    assert_eq!(again, Err(MapError::AlreadyMapped { at: gva.as_u64(), level: Level::L1 }));
    assert_eq!(mapper.map(gva.wrapping_add(0x1000), Gfn::new(98), PageSize::Size4K, RW, &mut pool), Ok(0));
    assert_eq!(mapper.count().tables, [1, 1, 1, 1, 0]);
    assert_eq!(mem.cleared, [1, 2, 3, 4].map(Gfn::new));
    assert_eq!(
        mem.stores,
        [
            (0x1800, 0x2007),
            (0x2000, 0x3007),
            (0x3008, 0x4007),
            (0x4018, 1 << 63 | 0x63007),
            (0x4020, 1 << 63 | 0x62007)
        ]
    );
}

#[test]
fn refusals_name_their_cause_and_change_nothing() {
    let (mut mem, mut pool) = recorder();
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    let page = Gva::new(0x20_0000);
    mapper.map(page, Gfn::new(0x200), PageSize::Size2M, RW, &mut pool).unwrap();
    mapper.map(Gva::new(0x40_0000), Gfn::new(7), PageSize::Size4K, RW, &mut pool).unwrap();
    let (before, allocated) = (mapper.count(), pool.allocated());
    let mut refuse =
        |at: u64, frame: u64, size| mapper.map(Gva::new(at), Gfn::new(frame), size, RW, &mut pool).unwrap_err();
    assert_eq!(
        refuse(0x20_1000, 8, PageSize::Size4K),
        MapError::HugeInTheWay { at: 0x20_1000, size: PageSize::Size2M }
    );
    assert_eq!(refuse(0x40_0000, 0x400, PageSize::Size2M), MapError::TableInTheWay { at: 0x40_0000, level: Level::L2 });
    assert!(matches!(refuse(0x60_1000, 0x400, PageSize::Size2M), MapError::Misaligned { .. }));
    assert!(matches!(refuse(0x60_0000, 0x401, PageSize::Size2M), MapError::Misaligned { .. }));
    assert_eq!(refuse(1 << 50, 1, PageSize::Size4K), MapError::NonCanonical { at: 1 << 50 });
    assert_eq!((mapper.count(), pool.allocated()), (before, allocated));
}

#[test]
fn running_out_of_frames_leaves_no_trace() {
    let (mut mem, _) = recorder();
    let mut pool = FramePool::new(Gfn::new(1), 3);
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    let refused = mapper.map(Gva::new(0x1000), Gfn::new(9), PageSize::Size4K, RW, &mut pool);
    assert_eq!(refused, Err(MapError::OutOfFrames { needed: 3 }));
    assert_eq!((mapper.count().all_tables(), pool.allocated()), (1, 1));
    assert!(mem.stores.is_empty());
}

#[test]
fn protect_keeps_the_bits_it_does_not_name_and_stores_only_changes() {
    let (mut mem, mut pool) = recorder();
    let gva = Gva::new(0x1000);
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    mapper.map(gva, Gfn::new(9), PageSize::Size4K, RW, &mut pool).unwrap();
    let leaf_at = mapper.leaves(..).next().unwrap().entry_at;
    let key = 0b101 << 59;
    mapper.mem.mem.write(leaf_at, mapper.mem.mem.read(leaf_at) | key);
    let old = mapper.protect(gva, |attrs| attrs - Attrs::WRITE).unwrap();
    assert_eq!(old.attrs, RW);
    assert_eq!(mapper.mem.mem.read(leaf_at), key | 1 << 63 | 0x9005);
    mapper.protect(gva, |attrs| attrs - Attrs::WRITE).unwrap();
    mapper.replace(gva, Gfn::new(10), RW).unwrap();
    assert_eq!(mapper.mem.mem.read(leaf_at), key | 1 << 63 | 0xa007);
    assert_eq!(mem.stores.len(), 6, "three links, the leaf, protect, replace");
}

#[test]
fn splitting_twice_keeps_each_translation_and_pat() {
    let (mut mem, mut pool) = recorder();
    let base = Gva::new(0xffff_ff80_4000_0000);
    let attrs = RW | Attrs::PAT | Attrs::DIRTY | Attrs::GLOBAL;
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    mapper.map(base, Gfn::new(0x4_0000), PageSize::Size1G, attrs, &mut pool).unwrap();
    let inner = base.wrapping_add(0x1234_5678);
    let want = Addr::new(0x4000_0000 + 0x1234_5678);
    assert_eq!(mapper.translate(inner), Some((want, attrs, PageSize::Size1G)));
    assert_eq!(mapper.split(inner, PageSize::Size4K, &mut pool), Ok(2));
    assert_eq!(mapper.split(inner, PageSize::Size4K, &mut pool), Ok(0));
    assert_eq!(mapper.translate(inner), Some((want, attrs, PageSize::Size4K)));
    let far = base.wrapping_add(0x2000_0123);
    assert_eq!(mapper.translate(far), Some((Addr::new(0x6000_0123), attrs, PageSize::Size2M)));
    assert_eq!(mapper.count().leaves, [512, 511, 0]);
    assert_eq!(mapper.count().mapped_bytes(), 1 << 30);
    let missing = mapper.split(Gva::new(0), PageSize::Size4K, &mut pool);
    assert_eq!(missing, Err(SplitError::Lookup(LookupError::NotMapped { at: 0, level: Level::L4 })));
}

#[test]
fn ept_refuses_leaves_that_would_be_absent_or_misconfigured() {
    let mut mem = PhysMem::new(64);
    let mut pool = FramePool::new(Hfn::new(1), 16);
    let mut mapper = Mapper::<Ept4, _>::create(&mut mem, &mut pool, TableAttrs::EPT).unwrap();
    let at = Addr::new(0x5000);
    for attrs in [Attrs::empty(), Attrs::WRITE, Attrs::READ | Attrs::MEMTYPE_1, Attrs::USER | Attrs::ACCESSED] {
        let refused = mapper.map(at, Hfn::new(9), PageSize::Size4K, attrs, &mut pool);
        assert_eq!(refused, Err(MapError::BadAttrs { attrs }));
    }
    let attrs = Attrs::RWX | Attrs::WRITE_BACK;
    mapper.map(at, Hfn::new(9), PageSize::Size4K, attrs, &mut pool).unwrap();
    let refused = mapper.protect(at, |attrs| attrs - Attrs::READ - Attrs::EXEC);
    assert_eq!(refused, Err(LookupError::BadAttrs { attrs: Attrs::WRITE | Attrs::WRITE_BACK }));
    assert_eq!(mapper.unmap(at).map(|old| (old.frame.base(), old.attrs)), Ok((Hpa::new(0x9000), attrs)));
    assert_eq!(mapper.unmap(at), Err(LookupError::NotMapped { at: 0x5000, level: Level::L1 }));
    let mut mapper = mapper.with_table_attrs(TableAttrs::new(Attrs::WRITE));
    let refused = mapper.map(Addr::new(1 << 40), Hfn::new(9), PageSize::Size4K, attrs, &mut pool);
    assert_eq!(refused, Err(MapError::BadAttrs { attrs: Attrs::WRITE }));
}

#[test]
fn prune_frees_empty_tables_only_and_unlinks_them_first() {
    let (mut mem, mut pool) = recorder();
    let (one, two) = (Gva::new(0x1000), Gva::new(0x4000_0000));
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    mapper.map(one, Gfn::new(99), PageSize::Size4K, RW, &mut pool).unwrap();
    mapper.map(two, Gfn::new(98), PageSize::Size4K, RW, &mut pool).unwrap();
    assert_eq!(mapper.prune(.., &mut pool), 0);
    mapper.unmap(one).unwrap();
    mapper.unmap(two).unwrap();
    assert_eq!(mapper.prune(two.., &mut pool), 2, "the shared table of level 3 is not empty yet");
    assert_eq!((mapper.count().tables, pool.allocated()), ([1, 1, 1, 1, 0], 4));
    assert_eq!(mapper.prune(one..two, &mut pool), 3);
    assert_eq!((mapper.count().all_tables(), pool.allocated()), (1, 1));
    let zeros = mem.stores.iter().filter(|(_, value)| *value == 0).count();
    assert_eq!(zeros, 2 + 5);
}

#[test]
fn a_swap_slot_keeps_its_table() {
    let (mut mem, mut pool) = recorder();
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    mapper.map(Gva::new(0), Gfn::new(99), PageSize::Size4K, RW, &mut pool).unwrap();
    let leaf = mapper.unmap(Gva::new(0)).unwrap();
    mapper.mem.mem.write(leaf.entry_at, 0x1234 << 12);
    assert_eq!(mapper.prune(.., &mut pool), 0);
}

#[test]
fn collapse_takes_one_store_and_gives_the_table_back() {
    let (mut mem, mut pool) = recorder();
    let base = Gva::new(0xffff_ffff_ffe0_0000);
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    let missing = mapper.collapse(base, Gfn::new(0x200), PageSize::Size2M, RW, &mut pool, |_| {});
    assert_eq!(missing, Err(MapError::NothingToCollapse { at: base.as_u64(), level: Level::L4 }));
    for page in [0, 7, 511] {
        mapper.map(base.wrapping_add(page << 12), Gfn::new(700 + page), PageSize::Size4K, RW, &mut pool).unwrap();
    }
    let stores = mapper.mem.stores.len();
    let mut seen = Vec::new();
    let freed = mapper.collapse(base, Gfn::new(0x200), PageSize::Size2M, RW, &mut pool, |leaf| seen.push(leaf.frame));
    assert_eq!((freed, seen), (Ok(1), [700, 707, 1211].map(Gfn::new).to_vec()));
    assert_eq!((mapper.mem.stores.len(), pool.allocated()), (stores + 1, 3));
    assert_eq!(mapper.translate(Gva::new(u64::MAX)), Some((Addr::new(0x3f_ffff), RW, PageSize::Size2M)));
    let again = mapper.collapse(base, Gfn::new(0x200), PageSize::Size2M, RW, &mut pool, |_| {});
    assert_eq!(again, Err(MapError::AlreadyMapped { at: base.as_u64(), level: Level::L2 }));
}

#[test]
fn teardown_spares_the_kept_half_and_clears_what_it_says() {
    // Clearing stores zero in two leaves and three links (PDE, PDPTE, PML4E); unlinking in the root's slot alone.
    for (how, zeros) in [(Teardown::ClearEntries, 2 + 3), (Teardown::Unlink, 1)] {
        let (mut mem, mut pool) = recorder();
        let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
        let kernel = Gva::new(0xffff_8880_0000_0000);
        mapper.map(kernel, Gfn::new(0), PageSize::Size1G, RW, &mut pool).unwrap();
        mapper.map(Gva::new(0x1000), Gfn::new(99), PageSize::Size4K, RW, &mut pool).unwrap();
        mapper.map(Gva::new(0x20_0000), Gfn::new(0x400), PageSize::Size2M, RW, &mut pool).unwrap();
        let mut seen = Vec::new();
        let freed = mapper.free_tree(&mut pool, 256..512, how, |leaf| seen.push((leaf.at.as_u64(), leaf.size)));
        assert_eq!(freed, 3);
        assert_eq!(seen, [(0x1000, PageSize::Size4K), (0x20_0000, PageSize::Size2M)]);
        assert_eq!((mapper.count().tables, mapper.count().leaves), ([0, 0, 1, 1, 0], [0, 0, 1]));
        assert_eq!(pool.allocated(), 2);
        assert_eq!(mem.stores.iter().filter(|(_, value)| *value == 0).count(), zeros);
    }
}

#[test]
fn ranges_cross_the_hole_between_the_halves() {
    let (mut mem, mut pool) = recorder();
    let mut mapper = Mapper::<Guest4, _>::create(&mut mem, &mut pool, TableAttrs::USER).unwrap();
    let pages = [0x0, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000].map(Gva::new);
    for page in pages {
        mapper.map(page, Gfn::new(99), PageSize::Size4K, RW, &mut pool).unwrap();
    }
    let found = |range: (core::ops::Bound<Gva>, core::ops::Bound<Gva>)| {
        mapper.leaves(range).map(|leaf| leaf.at).collect::<Vec<_>>()
    };
    use core::ops::Bound::{Excluded, Included, Unbounded};
    assert_eq!(found((Unbounded, Unbounded)), pages);
    assert_eq!(found((Included(Gva::new(0xfff)), Excluded(pages[2]))), pages[..2]);
    assert_eq!(found((Included(Gva::new(1 << 50)), Unbounded)), pages[2..]);
    assert_eq!(found((Unbounded, Included(Gva::new(1 << 50)))), pages[..2]);
    assert_eq!(found((Excluded(Gva::new(0x7fff_ffff_ffff)), Included(pages[2]))), pages[2..3]);
    assert_eq!(found((Included(Gva::new(0xff00_0000_0000_0000)), Excluded(pages[2]))), []);
    assert_eq!(found((Unbounded, Excluded(Gva::new(0)))), []);
}
