//! The machines that are measured: one vCPU, one process with 4 GiB of touched 4 KiB pages.

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, PageSize};
use memvirt_nested::{AdBits, Nested};
use memvirt_ops::arch::{Control, Cr3};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Ept4;
use memvirt_platform::{
    Engine, Horizon, Host, Ledger, MemoryMap, Native, Platform, Regime, Stop, Tags, Vendor, VmSpec,
};
use memvirt_shadow::{OnStore, WriteProtect};
use memvirt_tlb::Geometry;

/// Pages that the process maps, from address 0, each to the guest frame of the same number.
pub(crate) const PAGES: u64 = 1 << 20;
/// The root's frame; the other tables follow it.
const ROOT: u64 = PAGES;
const GUEST_FRAMES: u64 = PAGES + (1 << 12);
const HOST_FRAMES: u64 = GUEST_FRAMES + (1 << 13);
/// Present, writable, user.
const TABLE: u64 = 0x7;

pub(crate) fn native() -> Box<dyn Platform> {
    machine(GUEST_FRAMES, MemoryMap::identity(GUEST_FRAMES), |_, _| Native)
}

pub(crate) fn shadow() -> Box<dyn Platform> {
    machine(HOST_FRAMES, guest_memory(), |_, map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx))
}

pub(crate) fn nested() -> Box<dyn Platform> {
    machine(HOST_FRAMES, guest_memory(), |host, _| {
        Nested::<Ept4>::new(host, AdBits::On, Vendor::Vmx).expect("the host has frames")
    })
}

fn guest_memory() -> MemoryMap {
    MemoryMap::new(GUEST_FRAMES, PageSize::Size4K)
}

/// Drops every cached translation: the loop starts with an empty TLB as well.
pub(crate) fn empty_tlb(platform: &mut dyn Platform) {
    let load = Control::Cr3(Cr3::flushing(Gpa::new(ROOT << 12)));
    platform.event(VcpuId::FIRST, &load.into(), &mut Ledger::sums()).expect("CR3 can be loaded");
}

fn machine<R: Regime + 'static>(
    frames: u64,
    map: MemoryMap,
    regime: impl FnOnce(&mut Host, &MemoryMap) -> R,
) -> Box<dyn Platform> {
    let mut host = Host::new(frames);
    let regime = regime(&mut host, &map);
    let vm = VmSpec { map, vcpus: 1 };
    let mut engine = Engine::new(host, 1, &Geometry::default(), Tags::On, vec![(vm, regime)]);
    lay_out(ROOT, |table, index, frame| {
        engine.poke(VmId::FIRST, Gpa::new((ROOT + table) << 12 | index << 3), frame << 12 | TABLE);
    });
    empty_tlb(&mut engine);
    let touch: Vec<Acc> = (0..PAGES).map(|page| Acc::user(Gva::new(page << 12), AccessKind::Read)).collect();
    let end = engine.accesses(VcpuId::FIRST, &touch, Horizon::Open, &mut Ledger::sums());
    assert_eq!(end, (touch.len(), Stop::Done));
    Box::new(engine)
}

/// How many tables [`lay_out`] fills.
pub(crate) const TABLES: u64 = 2 + (PAGES >> 18) + (PAGES >> 9);

/// The entries of tables that map each page to the frame of the same number, as table, index and frame. The root is table
/// 0; a table of level 3, those of level 2 and the leaf tables follow it. Table `n` lies in frame `first + n`.
pub(crate) fn lay_out(first: u64, mut put: impl FnMut(u64, u64, u64)) {
    let leaf_tables = 2 + (PAGES >> 18);
    put(0, 0, first + 1);
    for gigabyte in 0..PAGES >> 18 {
        put(1, gigabyte, first + 2 + gigabyte);
    }
    for region in 0..PAGES >> 9 {
        put(2 + region / 512, region % 512, first + leaf_tables + region);
    }
    for page in 0..PAGES {
        put(leaf_tables + page / 512, page % 512, page);
    }
}
