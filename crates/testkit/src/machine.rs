//! The recorded machine: its memory at the start, and what its guest touches for every operation.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize};
use memvirt_ops::arch::{Control, Event, GuestFault, HostEvent, StoreOp, Trap, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{
    Engine, Horizon, Host, Ledger, MemoryMap, MmuGeometry, Platform, Refusal, Regime, Tags, VmSpec,
};
use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};

use crate::op::*;

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
#[derive(Debug)]
pub struct Machine<R> {
    engine: Engine<R>,
    me: VcpuId,
    /// What was counted.
    pub ledger: Ledger,
    next_table: u64,
    /// Page faults that the guest saw since the list was last emptied.
    pub faults: Vec<GuestFault>,
    /// What the last load returned.
    pub value: u64,
}

impl<R: Regime> Machine<R> {
    /// A machine with `vcpus` vCPUs, its first 64 MiB resident in host pages of this size, under the regime that `make` makes.
    ///
    /// # Panics
    ///
    /// Where the host is too small, which it is not.
    #[must_use]
    pub fn new(host_pages: PageSize, vcpus: u16, tags: Tags, make: impl FnOnce(&mut Host) -> R) -> Self {
        let mut host = Host::new(FRAMES + 16384);
        let mut map = MemoryMap::new(FRAMES, host_pages);
        for gfn in 0..RESIDENT {
            assert!(map.back(Gfn::new(gfn), &mut host).is_some(), "the host is large enough");
        }
        // The TLB is empty after each exit: a small one does.
        let geometry = Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 16)], &[]).unwrap_or_default();
        let regime = make(&mut host);
        let engine = Engine::new(host, usize::from(vcpus), &geometry, tags, vec![(VmSpec { map, vcpus }, regime)]);
        Self { engine, me: VcpuId::FIRST, ledger: Ledger::sums(), next_table: 0x80_0000, faults: Vec::new(), value: 0 }
    }

    /// The same with walk caches.
    #[must_use]
    pub fn with_walk_caches(self, geometry: &MmuGeometry) -> Self {
        Self { engine: self.engine.with_walk_caches(geometry), ..self }
    }

    /// The regime.
    #[must_use]
    pub fn regime(&self) -> &R {
        self.engine.regime(VmId::FIRST)
    }

    /// The host.
    #[must_use]
    pub const fn host_memory(&self) -> &Host {
        self.engine.machine()
    }

    /// The machine's memory map.
    #[must_use]
    pub fn map_of_memory(&self) -> &MemoryMap {
        self.engine.map(VmId::FIRST)
    }

    /// All exits so far.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.ledger.counters.total_exits()
    }

    /// Lets vCPU `number` run from now on.
    pub fn switch_to(&mut self, number: u16) {
        self.me = VcpuId(number);
    }

    /// The first marker of a further vCPU, under the first root.
    pub fn start(&mut self, number: u16) {
        self.switch_to(number);
        self.event(cr3_load(PML4A).into());
        self.touch(CODE, AccessKind::Fetch);
        self.marker();
    }

    /// Writes guest memory before its tables are in use, or as the host.
    pub fn set(&mut self, at: u64, value: u64) {
        self.engine.poke(VmId::FIRST, Gpa::new(at), value);
    }

    /// Eight bytes of guest memory.
    #[must_use]
    pub fn show(&self, at: u64) -> u64 {
        self.engine.peek(VmId::FIRST, Gpa::new(at))
    }

    /// Steps 1 to 4 of the recordings' machine, and its first marker.
    pub fn boot(&mut self) {
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
        self.start(0);
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

    /// One access of the kernel to a page of its own.
    ///
    /// # Panics
    ///
    /// Where it faults.
    pub fn touch(&mut self, at: u64, kind: AccessKind) {
        let access = [Acc::supervisor(Gva::new(at), kind)];
        let (done, stop) = self.engine.accesses(self.me, &access, Horizon::Open, &mut self.ledger);
        assert_eq!(done, 1, "the kernel's own page {at:#x}: {stop:?}");
    }

    /// One access of user mode; returns false where the guest saw a page fault.
    pub fn user(&mut self, at: u64, kind: AccessKind) -> bool {
        let access = [Acc::user(Gva::new(at), kind)];
        self.engine.accesses(self.me, &access, Horizon::Open, &mut self.ledger).0 == 1
    }

    fn marker(&mut self) {
        self.event(Control::Trap(Trap::PortIo).into());
    }

    /// Carries out an event; a fault is delivered, and false returned.
    fn event(&mut self, event: Event) -> bool {
        match self.engine.event(self.me, &event, &mut self.ledger) {
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
    pub fn run(&mut self, op: Op) {
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

    /// Something the host does.
    pub fn host(&mut self, event: HostEvent) {
        self.engine.host(&event, &mut self.ledger);
    }
}
