//! Operations a second of KVM's shadow MMU: a mixed run over few tables, and processes in turn over ever more shadow pages.
//!
//! The second shows the curve up to 10 000 shadow pages; time per operation must not grow with their number, caches aside.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, CrWrite, Event, StoreOp, Trap, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Tags, Vendor, VmSpec};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};

const FRAMES: u64 = 1 << 16;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const TEST: u64 = 0x80_0000_0000;
const TABLE: u64 = 0x67;
const LEAF: u64 = 0x63;
/// The kernel's own table of level 4, copied into every process.
const KERNEL_ROOT: u64 = 0x1000;
/// Where the tables of processes begin, four frames each.
const PROCESSES: u64 = 0x100_0000;
const DATA: u64 = 0x800_0000;

/// A guest with a direct map of all its memory and processes of four tables and 64 pages each.
struct Guest {
    engine: Engine<Kvm>,
    ledger: Ledger,
    next_table: u64,
    random: u64,
}

fn leaf_table(process: u64) -> u64 {
    root(process) + 0x3000
}

fn root(process: u64) -> u64 {
    PROCESSES + (process << 14)
}

impl Guest {
    fn new(kernel: Kernel, processes: u64) -> Self {
        let mut host = Host::new(2 * FRAMES);
        let mut map = MemoryMap::new(FRAMES, PageSize::Size4K);
        for gfn in 0..FRAMES {
            let _ = map.back(Gfn::new(gfn), &mut host);
        }
        let config = KvmConfig { page_limit: Some(20_000), ..KvmConfig::new(kernel, Vendor::Svm) };
        // Without tags every exit empties the TLB, so its size decides nothing but the cost of that.
        let geometry = Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 16)], &[]).unwrap_or_default();
        let vm = (VmSpec { map, vcpus: 1 }, Kvm::new(config));
        let engine = Engine::new(host, 1, &geometry, Tags::Off, vec![vm]);
        let mut guest = Self { engine, ledger: Ledger::sums(), next_table: 0x20_0000, random: 1 };
        for page in 0..16 {
            guest.map(KERNEL_ROOT, page << 12, page << 12);
        }
        for page in 0..FRAMES {
            guest.map(KERNEL_ROOT, DIRECT_MAP + (page << 12), page << 12);
        }
        for process in 0..processes {
            guest.add_process(process);
        }
        guest.control(Control::Cr3(Cr3::flushing(Gpa::new(root(0)))));
        guest
    }

    fn set(&mut self, at: u64, value: u64) {
        self.engine.poke(VmId::FIRST, Gpa::new(at), value);
    }

    fn get(&self, at: u64) -> u64 {
        self.engine.peek(VmId::FIRST, Gpa::new(at))
    }

    fn map(&mut self, root: u64, virt: u64, phys: u64) {
        let mut table = root;
        for shift in [39, 30, 21] {
            let at = table + 8 * (virt >> shift & 511);
            if self.get(at) == 0 {
                self.set(at, self.next_table | TABLE);
                self.next_table += 4096;
            }
            table = self.get(at) & !0xfff;
        }
        self.set(table + 8 * (virt >> 12 & 511), phys | LEAF);
    }

    fn add_process(&mut self, process: u64) {
        let root = root(process);
        for i in 0..512 {
            let entry = self.get(KERNEL_ROOT + 8 * i);
            if entry != 0 {
                self.set(root + 8 * i, entry);
            }
        }
        self.set(root + 8, (root + 0x1000) | TABLE);
        self.set(root + 0x1000, (root + 0x2000) | TABLE);
        self.set(root + 0x2000, (root + 0x3000) | TABLE);
        for i in 0..64 {
            self.set(root + 0x3000 + 8 * i, (DATA + (((process + i) % 4096) << 12)) | LEAF);
        }
    }

    fn control(&mut self, control: Control) {
        let _ = black_box(self.engine.event(VcpuId::FIRST, &control.into(), &mut self.ledger));
    }

    fn store(&mut self, at: u64, value: u64) {
        let op = StoreOp::Mov { width: Width::B8, value };
        let event = Event::Store { via: Gva::new_truncate(at), op, ip: Gva::new(0x5000) };
        let _ = black_box(self.engine.event(VcpuId::FIRST, &event, &mut self.ledger));
    }

    fn read(&mut self, at: u64) {
        let _ = black_box(self.engine.event(VcpuId::FIRST, &Event::Load { gva: Gva::new(at) }, &mut self.ledger));
    }

    /// What surrounds an operation of the recordings: a fetch, a read, and the marker's exit.
    fn around(&mut self, op: impl FnOnce(&mut Self)) {
        let own = [0x5000, 0x4000].map(|at| Acc::supervisor(Gva::new(at), AccessKind::Read));
        let _ = self.engine.accesses(VcpuId::FIRST, &own, Horizon::Open, &mut self.ledger);
        op(self);
        let _ = self.engine.accesses(VcpuId::FIRST, &own[..1], Horizon::Open, &mut self.ledger);
        self.control(Control::Trap(Trap::PortIo));
    }

    /// A linear congruential generator: the same operations in every run.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// One operation of a mix like that of the random recordings.
    fn mixed(&mut self) {
        let (process, page, value) = (self.draw(4), self.draw(64), self.draw(64));
        let entry = DIRECT_MAP + leaf_table(process) + 8 * page;
        match self.draw(100) {
            0..40 => self.around(|guest| guest.read(TEST + (page << 12))),
            40..60 => self.around(|guest| guest.store(TEST + (page << 12) + 8, value)),
            60..78 => self.around(|guest| guest.store(entry, (DATA + (value << 12)) | LEAF)),
            78..90 => self.around(|guest| guest.control(Control::Cr3(Cr3::flushing(Gpa::new(root(process)))))),
            90..97 => self.around(|guest| guest.control(Control::Invlpg(Gva::new(TEST + (page << 12))))),
            97..99 => {
                let directory = root(process) + 0x2000;
                self.around(|guest| guest.store(DIRECT_MAP + directory, leaf_table(process) | TABLE));
            }
            _ => self.around(|guest| guest.control(Control::Cr(CrWrite::TogglePge))),
        }
    }

    /// The next process runs: eight operations on its own tables.
    fn turn(&mut self, process: u64, round: u64) {
        let entry = DIRECT_MAP + leaf_table(process);
        self.control(Control::Cr3(Cr3::flushing(Gpa::new(root(process)))));
        self.read(TEST);
        self.store(entry + 8 * 8, (DATA + (((process + round) % 4096) << 12)) | LEAF);
        self.control(Control::Invlpg(Gva::new(TEST + (8 << 12))));
        self.read(TEST + (8 << 12));
        self.read(TEST + (16 << 12));
        self.store(TEST + (16 << 12), 1);
        self.store(DIRECT_MAP + root(process) + 0x2000, leaf_table(process) | TABLE);
    }
}

const MIXED: u64 = 10_000;
const TURNS: u64 = 1_000;

fn kvm(c: &mut Criterion) {
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        let mut group = c.benchmark_group(format!("kvm-{}", kernel.name()));
        group.sample_size(20);
        let mut guest = Guest::new(kernel, 4);
        group.throughput(Throughput::Elements(MIXED));
        group.bench_function("mixed", |b| b.iter(|| (0..MIXED).for_each(|_| guest.mixed())));
        group.throughput(Throughput::Elements(8 * TURNS));
        for pages in [100, 1_000, 10_000] {
            let processes = pages / 4;
            let mut guest = Guest::new(kernel, processes);
            let mut turn = 0;
            let mut step = |guest: &mut Guest| {
                guest.turn(turn % processes, turn / processes);
                turn += 1;
            };
            (0..2 * processes).for_each(|_| step(&mut guest));
            let used = guest.engine.regime(VmId::FIRST).used_pages();
            assert!(used >= pages, "{used} shadow pages, {pages} wanted");
            group.bench_with_input(BenchmarkId::new("processes", used), &pages, |b, _| {
                b.iter(|| (0..TURNS).for_each(|_| step(&mut guest)));
            });
        }
    }
}

criterion_group!(benches, kvm);
criterion_main!(benches);
