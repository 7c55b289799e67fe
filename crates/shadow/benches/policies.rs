//! Operations a second as the number of shadow pages grows: the cost of one must not depend on how many there are.
//!
//! An operation is one of a rotation over all leaf tables of a guest: a store to a page-table entry, its INVLPG, an access to
//! the page, and now and then a CR3 load.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, Event, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::{LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_tlb::Geometry;

const LEAF: u64 = 0x67;
const V: VcpuId = VcpuId::FIRST;
const FRAMES: u64 = 1 << 16;
const ROOT: u64 = 1;
const OPS: u64 = 3000;

/// A guest with `tables` leaf tables, all touched. Leaf table `n` is frame 0x4000 + n and maps page 0 of its region, and, at
/// entry 1, itself: the alias through which it is stored to.
struct Guest<R> {
    engine: Engine<R>,
    out: Ledger,
    tables: u64,
    next: u64,
}

impl<R: Regime> Guest<R> {
    fn new(tables: u64, regime: impl FnOnce(&MemoryMap) -> R) -> Self {
        let map = MemoryMap::new(FRAMES, PageSize::Size4K);
        let regime = regime(&map);
        let vm = (VmSpec { map, vcpus: 1 }, regime);
        let engine = Engine::new(Host::new(4 * FRAMES), 1, &Geometry::default(), Tags::On, vec![vm]);
        let mut guest = Self { engine, out: Ledger::sums(), tables, next: 0 };
        guest.poke(ROOT, 0, 2 << 12 | LEAF);
        for table in 0..tables {
            guest.poke(2, table >> 9, (16 + (table >> 9)) << 12 | LEAF);
            guest.poke(16 + (table >> 9), table & 511, (0x4000 + table) << 12 | LEAF);
            guest.poke(0x4000 + table, 0, 0x8000 << 12 | LEAF);
            guest.poke(0x4000 + table, 1, (0x4000 + table) << 12 | LEAF);
        }
        guest.engine.host(&HostEvent::ShadowPageLimit(VmId::FIRST, 20_000), &mut guest.out);
        guest.load();
        (0..tables).for_each(|table| guest.access(table));
        guest
    }

    fn poke(&mut self, table: u64, index: u64, raw: u64) {
        self.engine.poke(VmId::FIRST, Gfn::new(table).at(8 * index), raw);
    }

    fn load(&mut self) {
        let load = Control::Cr3(Cr3::flushing(Gfn::new(ROOT).base()));
        black_box(self.engine.event(V, &load.into(), &mut self.out)).ok();
    }

    fn access(&mut self, table: u64) {
        let run = [Acc::user(Gva::new(table << 21), AccessKind::Write)];
        black_box(self.engine.accesses(V, &run, Horizon::Open, &mut self.out));
    }

    /// [`OPS`] operations, a CR3 load (which some policies pay for every cached entry) only where `loads` asks for it.
    fn run(&mut self, loads: bool) {
        for i in 0..OPS / 3 {
            let table = (self.next * 7919) % self.tables;
            self.next += 1;
            let op = StoreOp::Mov { width: Width::B8, value: (0x8000 + (self.next & 0xff)) << 12 | LEAF };
            let store = Event::Store { via: Gva::new(table << 21 | 0x1000), op, ip: Gva::new(0x40 * (i & 7)) };
            black_box(self.engine.event(V, &store, &mut self.out)).ok();
            black_box(self.engine.event(V, &Control::Invlpg(Gva::new(table << 21)).into(), &mut self.out)).ok();
            self.access(table);
        }
        if loads {
            self.load();
        }
    }
}

fn curve<R: Regime>(c: &mut Criterion, name: &str, loads: bool, regime: impl Fn(&MemoryMap) -> R) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(OPS)).sample_size(10);
    for tables in [100, 1000, 10_000] {
        let mut guest = Guest::new(tables, &regime);
        group.bench_function(BenchmarkId::from_parameter(tables), |b| b.iter(|| guest.run(loads)));
    }
    group.finish();
}

fn policies(c: &mut Criterion) {
    let vendor = Vendor::Vmx;
    curve(c, "write-protect-zap", true, |map| WriteProtect::new(map, OnStore::Zap, vendor));
    curve(c, "write-protect-propagate", true, |map| WriteProtect::new(map, OnStore::Propagate, vendor));
    curve(c, "lazy-fill", false, |map| LazyFill::new(map, vendor));
    curve(c, "vtlb", false, |map| Vtlb::new(map, vendor));
    curve(c, "xen", true, |map| Xen::new(map, 1, vendor));
    curve(c, "vbox", true, |map| Vbox::new(map, vendor));
}

criterion_group!(benches, policies);
criterion_main!(benches);
