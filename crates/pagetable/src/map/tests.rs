//! One operation at a time; sequences are tested against a model in `tests/model.rs`.

use alloc::vec::Vec;

use memvirt_addr::{Addr, Gfn, GuestPhys, Gva, Hfn, Hpa, Level, PageSize};

use crate::{
    Attrs, Ept4, FrameAllocator, FramePool, Guest4, LookupError, MapError, Mapper, PhysMem, SplitError, TableAttrs,
    TableMem,
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
