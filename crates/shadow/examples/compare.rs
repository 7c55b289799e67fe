//! One guest, several policies: how often does each exit? `cargo run -p memvirt-shadow --example compare`
use memvirt_addr::{Acc, AccessKind, Gpa, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, Event, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::{LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};

const LEAF: u64 = 0x67; // present, writable, user, accessed, dirty

fn run<R: Regime>(name: &str, regime: impl FnOnce(&MemoryMap) -> R) {
    let map = MemoryMap::new(1024, PageSize::Size4K);
    let regime = regime(&map);
    let vm = (VmSpec { map, vcpus: 1 }, regime);
    let mut guest = Engine::new(Host::new(8192), 1, &Default::default(), Tags::On, vec![vm]);
    // Frames 1 to 4 are the tables of an address space; the leaf table maps 8 pages of data, and itself as page 9.
    (1..4).for_each(|table| guest.poke(VmId::FIRST, Gpa::new(table << 12), (table + 1) << 12 | LEAF));
    (0..8).for_each(|page| guest.poke(VmId::FIRST, Gpa::new(0x4000 + 8 * page), (16 + page) << 12 | LEAF));
    guest.poke(VmId::FIRST, Gpa::new(0x4000 + 8 * 9), 4 << 12 | LEAF);
    let (v, mut out) = (VcpuId::FIRST, Ledger::sums());
    let pages: Vec<Acc> = (0..8).map(|page| Acc::user(Gva::new(page << 12), AccessKind::Write)).collect();
    for round in 0..4 {
        // Load CR3, move page 3 to another frame, touch all pages.
        let op = StoreOp::Mov { width: Width::B8, value: (32 + round) << 12 | LEAF };
        let load = Control::Cr3(Cr3::flushing(Gpa::new(0x1000))).into();
        let store = Event::Store { via: Gva::new(0x9000 + 8 * 3), op, ip: Gva::ZERO };
        assert!([load, store].iter().all(|event| guest.event(v, event, &mut out).is_ok()));
        assert_eq!(guest.accesses(v, &pages, Horizon::Open, &mut out).0, 8);
    }
    println!("{name:14} {:3} exits, {:5} bytes", out.counters.total_exits(), guest.table_bytes().shadow);
}

fn main() {
    run("write-protect", |map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx));
    run("lazy-fill", |map| LazyFill::new(map, Vendor::Vmx));
    run("vtlb", |map| Vtlb::new(map, Vendor::Vmx));
    run("xen", |map| Xen::new(map, 1, Vendor::Vmx));
    run("vbox", |map| Vbox::new(map, Vendor::Vmx));
}
