//! A store to a guest page table under write-protecting shadow paging: it exits.

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, Event, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Tags, Vendor, VmSpec};
use memvirt_shadow::{OnStore, WriteProtect};
use memvirt_tlb::Geometry;

fn main() {
    let map = MemoryMap::new(64, PageSize::Size4K);
    let regime = WriteProtect::new(&map, OnStore::Zap, Vendor::Vmx);
    let vms = vec![(VmSpec { map, vcpus: 1 }, regime)];
    let mut machine = Engine::new(Host::new(1024), 1, &Geometry::default(), Tags::On, vms);
    // Tables in guest frames 1 to 4; page 0 shows frame 9, page 1 the leaf table itself.
    for (at, entry) in [(0x1000, 0x2027), (0x2000, 0x3027), (0x3000, 0x4027), (0x4000, 0x9067), (0x4008, 0x4067)] {
        machine.poke(VmId::FIRST, Gpa::new(at), entry);
    }
    let mut ledger = Ledger::listing();
    let op = StoreOp::Mov { width: Width::B8, value: 0xa067 };
    let remap = Event::Store { via: Gva::new(0x1000), op, ip: Gva::ZERO };
    machine.event(VcpuId::FIRST, &Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into(), &mut ledger).ok();
    machine.accesses(VcpuId::FIRST, &[Acc::user(Gva::new(0), AccessKind::Read)], Horizon::Open, &mut ledger);
    machine.event(VcpuId::FIRST, &remap, &mut ledger).ok();
    for exit in ledger.exits.iter().flatten() {
        println!("{}: {:?}", exit.reason.key(), exit.work);
    }
}
