//! A bare machine: four tables, one page, what a cold and a warm access cost.

use memvirt_addr::{Acc, AccessKind, Gpa, Gva};
use memvirt_ops::arch::{Control, Cr3};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Native, Platform, Tags, VmSpec};
use memvirt_tlb::Geometry;

fn main() {
    let vm = VmSpec { map: MemoryMap::identity(64), vcpus: 1 };
    let mut machine = Engine::new(Host::new(64), 1, &Geometry::default(), Tags::On, vec![(vm, Native)]);
    for table in 1u64..5 {
        machine.poke(VmId::FIRST, Gpa::new(table << 12), ((table + 1) << 12) | 0x7);
    }
    let mut ledger = Ledger::sums();
    let cr3 = Control::Cr3(Cr3::flushing(Gpa::new(0x1000)));
    machine.event(VcpuId::FIRST, &cr3.into(), &mut ledger).ok();

    for kind in [AccessKind::Read, AccessKind::Read, AccessKind::Write] {
        let before = ledger.counters;
        let run = [Acc::user(Gva::new(0x18), kind)];
        let (done, stop) = machine.accesses(VcpuId::FIRST, &run, Horizon::Open, &mut ledger);
        let now = ledger.counters;
        let (refs, bits) = (now.refs.guest - before.refs.guest, now.ad_updates - before.ad_updates);
        println!("{kind:?}: {done} done, {stop:?}, {refs} references, {bits} accessed and dirty bits set");
    }
}
