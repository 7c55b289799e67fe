//! The recorded machine: its memory at the start, and what its guest touches for every operation.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize};
use memvirt_nested::{AdBits, Nested, NestedStats};
use memvirt_ops::arch::{Control, Cr3, Event, GfnRange, GuestFault, HostEvent, StoreOp, Trap, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Npt4;
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Refusal, Tags, Vendor, VmSpec};
use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};

pub(crate) const P: u64 = 0x1;
pub(crate) const W: u64 = 0x2;
pub(crate) const U: u64 = 0x4;
pub(crate) const A: u64 = 0x20;
pub(crate) const D: u64 = 0x40;
pub(crate) const S: u64 = 0x80;
pub(crate) const PWAD: u64 = P | W | A | D;
pub(crate) const PWUA: u64 = P | W | U | A;
pub(crate) const PWUAD: u64 = PWAD | U;

pub(crate) const PML4A: u64 = 0x1_0000;
pub(crate) const PML4B: u64 = 0x2_0000;
pub(crate) const PDPT_A: u64 = 0x10_0000;
pub(crate) const PD_A: u64 = 0x10_1000;
pub(crate) const PT_A: u64 = 0x10_2000;
pub(crate) const PT_A1: u64 = 0x10_3000;
pub(crate) const PDPT_B: u64 = 0x11_0000;
pub(crate) const PD_B: u64 = 0x11_1000;
pub(crate) const PT_B: u64 = 0x11_2000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const FRAMES: u64 = 0x800_0000 >> 12;
const RESIDENT: u64 = 0x400_0000 >> 12;

/// The test page `n`.
pub(crate) const fn v(n: u64) -> u64 {
    0x80_0000_0000 + (n << 12)
}

/// The data frame `n`.
pub(crate) const fn f(n: u64) -> u64 {
    0x40_0000 + (n << 12)
}

/// The address of entry `i` of a table, in guest memory.
pub(crate) const fn e(table: u64, i: u64) -> u64 {
    table + 8 * i
}

/// The alias in the direct map through which the guest reaches a physical address.
pub(crate) const fn dm(at: u64) -> u64 {
    DIRECT_MAP + at
}

/// What the guest is told to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Loads from `n` pages in a row.
    Rds(u64, u64),
    /// Stores of 1 to `n` pages in a row.
    Wrs(u64, u64),
    /// One store.
    Wr(u64, StoreOp),
    /// `n` stores to entries in a row; the value grows by a page after each unless it is 0.
    Ptes(u64, u64, u64),
    /// INVLPG of `n` pages in a row.
    Invlpgs(u64, u64),
    /// Any privileged operation.
    Do(Control),
}

pub(crate) const fn rd(at: u64) -> Op {
    Op::Rds(at, 1)
}

pub(crate) const fn mov(width: Width, value: u64) -> StoreOp {
    StoreOp::Mov { width, value }
}

pub(crate) const fn wr(at: u64, value: u64) -> Op {
    Op::Wr(at, mov(Width::B8, value))
}

/// A store to entry `i` of a table through its alias.
pub(crate) const fn pte(table: u64, i: u64, value: u64) -> Op {
    wr(dm(e(table, i)), value)
}

pub(crate) const fn ptes(table: u64, i: u64, value: u64, n: u64) -> Op {
    Op::Ptes(dm(e(table, i)), value, n)
}

pub(crate) const fn clr(table: u64, i: u64, bits: u64) -> Op {
    Op::Wr(dm(e(table, i)), StoreOp::And { mask: !bits })
}

pub(crate) const fn stos(table: u64, value: u64, count: u16) -> Op {
    Op::Wr(dm(table), StoreOp::RepStos { value, count })
}

pub(crate) const fn movups(table: u64, i: u64) -> Op {
    Op::Wr(dm(e(table, i)), StoreOp::Vector)
}

pub(crate) const fn invlpg(at: u64) -> Op {
    Op::Invlpgs(at, 1)
}

pub(crate) const fn cr3(root: u64) -> Op {
    Op::Do(Control::Cr3(Cr3::flushing(Gpa::new(root))))
}

const CODE: u64 = 0x5000;
/// What the delivery of a page fault touches, and its handler.
const DELIVERY: [(u64, AccessKind); 10] = [
    (0x20e0, AccessKind::Read),
    (0x1008, AccessKind::Read),
    (0x7fc0, AccessKind::Write),
    (0x7fe8, AccessKind::Write),
    (CODE, AccessKind::Fetch),
    (0x4020, AccessKind::Write),
    (0x4028, AccessKind::Write),
    (0x4040, AccessKind::Write),
    (0x1010, AccessKind::Read),
    (CODE, AccessKind::Fetch),
];

/// The machine.
pub(crate) struct Machine {
    engine: Engine<Nested<Npt4>>,
    pub(crate) ledger: Ledger,
    next_table: u64,
    /// Page faults that the guest saw since the list was last emptied.
    pub(crate) faults: Vec<GuestFault>,
    /// What the last load returned.
    pub(crate) value: u64,
}

impl Machine {
    pub(crate) fn new(host_pages: PageSize) -> Self {
        let mut host = Host::new(FRAMES + 16384);
        let mut map = MemoryMap::new(FRAMES, host_pages);
        for gfn in 0..RESIDENT {
            map.back(Gfn::new(gfn), &mut host).unwrap();
        }
        // The TLB is empty after each exit: a small one does.
        let geometry = Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 16)], &[]).unwrap();
        let nested = Nested::new(&mut host, AdBits::On, Vendor::Svm).unwrap();
        let vm = (VmSpec { map, vcpus: 1 }, nested);
        let engine = Engine::new(host, 1, &geometry, Tags::Off, vec![vm]);
        Self { engine, ledger: Ledger::sums(), next_table: 0x80_0000, faults: Vec::new(), value: 0 }
    }

    pub(crate) fn nested(&self) -> &Nested<Npt4> {
        self.engine.regime(VmId::FIRST)
    }

    pub(crate) fn stats(&self) -> NestedStats {
        *self.nested().stats()
    }

    /// All exits so far.
    pub(crate) fn exits(&self) -> u64 {
        self.ledger.counters.total_exits()
    }

    /// Panics where the tables are not what they have to be.
    pub(crate) fn check(&self) {
        let wrong = self.nested().audit(self.engine.machine(), self.engine.map(VmId::FIRST));
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.engine.poke(VmId::FIRST, Gpa::new(at), value);
    }

    pub(crate) fn show(&self, at: u64) -> u64 {
        self.engine.peek(VmId::FIRST, Gpa::new(at))
    }

    /// Steps 1 to 4 of the recordings' machine, and its first marker.
    pub(crate) fn boot(&mut self) {
        for page in 0..16 {
            self.map(page << 12, page << 12);
        }
        self.set(PML4B, self.show(PML4A));
        for page in 0..0x200_0000 >> 12 {
            self.map(dm(page << 12), page << 12);
        }
        let slot = e(0, DIRECT_MAP >> 39 & 511);
        self.set(PML4B + slot, self.show(PML4A + slot));
        for (at, table) in [
            (e(PML4A, 1), PDPT_A),
            (PDPT_A, PD_A),
            (PD_A, PT_A),
            (e(PD_A, 1), PT_A1),
            (e(PML4B, 1), PDPT_B),
            (PDPT_B, PD_B),
            (PD_B, PT_B),
        ] {
            self.set(at, table | PWUA);
        }
        self.event(cr3_load(PML4A).into());
        self.touch(CODE, AccessKind::Fetch);
        self.marker();
    }

    fn map(&mut self, virt: u64, phys: u64) {
        let mut table = PML4A;
        for shift in [39, 30, 21] {
            let at = e(table, virt >> shift & 511);
            if self.show(at) == 0 {
                self.set(at, self.next_table | PWUAD);
                self.next_table += 4096;
            }
            table = self.show(at) & !0xfff;
        }
        self.set(e(table, virt >> 12 & 511), phys | PWAD);
    }

    pub(crate) fn touch(&mut self, at: u64, kind: AccessKind) {
        let access = [Acc::supervisor(Gva::new(at), kind)];
        let (done, stop) = self.engine.accesses(VcpuId::FIRST, &access, Horizon::Open, &mut self.ledger);
        assert_eq!(done, 1, "the kernel's own page {at:#x}: {stop:?}");
    }

    fn marker(&mut self) {
        self.event(Control::Trap(Trap::PortIo).into());
    }

    /// Carries out an event; a fault is delivered, and false returned.
    fn event(&mut self, event: Event) -> bool {
        match self.engine.event(VcpuId::FIRST, &event, &mut self.ledger) {
            Ok(value) => {
                self.value = value.unwrap_or(self.value);
                true
            }
            Err(Refusal::GuestFault(fault)) => {
                self.faults.push(fault);
                DELIVERY.iter().for_each(|(at, kind)| self.touch(*at, *kind));
                false
            }
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    /// One instruction of an operation. After an exit the next one is fetched anew.
    fn instruction(&mut self, event: Event) -> bool {
        let exits = self.exits();
        let done = self.event(event);
        if self.exits() != exits {
            self.touch(CODE, AccessKind::Fetch);
        }
        done
    }

    fn store(&mut self, at: u64, op: StoreOp) -> bool {
        self.instruction(Event::Store { via: Gva::new(at), op, ip: Gva::new(CODE) })
    }

    /// One operation of the guest, from marker to marker.
    pub(crate) fn run(&mut self, op: Op) {
        self.touch(CODE, AccessKind::Fetch);
        (0..4).for_each(|i| self.touch(0x4000 + 8 * i, AccessKind::Read));
        match op {
            Op::Rds(at, n) => {
                let _ = (0..n).all(|i| self.instruction(Event::Load { gva: Gva::new(at + (i << 12)) }));
            }
            Op::Wrs(at, n) => {
                let _ = (0..n).all(|i| self.store(at + (i << 12), mov(Width::B8, 1)));
            }
            Op::Wr(at, op) => {
                self.store(at, op);
            }
            Op::Ptes(at, value, n) => {
                let step = if value == 0 { 0 } else { 4096 };
                let _ = (0..n).all(|i| self.store(at + 8 * i, mov(Width::B8, value + step * i)));
            }
            Op::Invlpgs(at, n) => {
                let _ = (0..n).all(|i| self.instruction(Control::Invlpg(Gva::new(at + (i << 12))).into()));
            }
            Op::Do(control) => {
                self.instruction(control.into());
            }
        }
        self.touch(CODE, AccessKind::Fetch);
        self.marker();
    }

    pub(crate) fn host(&mut self, event: HostEvent) {
        self.engine.host(&event, &mut self.ledger);
    }
}

pub(crate) const fn cr3_load(root: u64) -> Control {
    Control::Cr3(Cr3::flushing(Gpa::new(root)))
}

/// The frames of `bytes` bytes from `at` on.
pub(crate) fn frames(at: u64, bytes: u64) -> GfnRange {
    GfnRange { start: Gpa::new(at).frame(), frames: bytes >> 12 }
}
