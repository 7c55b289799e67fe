//! A small guest for tests: memory, tables written by hand, a direct map through which stores to tables go, and a walker that
//! knows nothing of the library's.

#![expect(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may panic; 512 indices")]

pub(crate) mod steps;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, PageSize, PfCode, Privilege};
use memvirt_ops::arch::{Control, Cr3, Event, GuestFault, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_oracle::{Checked, Tally};
use memvirt_platform::{
    Engine, ExitReason, Horizon, Host, Ledger, MemoryMap, MmuGeometry, Platform, Refusal, Regime, Stop, Tags, VmSpec,
};
use memvirt_shadow::*;
use memvirt_tlb::Geometry;

pub(crate) const P: u64 = 1;
pub(crate) const W: u64 = 2;
pub(crate) const U: u64 = 4;
pub(crate) const A: u64 = 0x20;
pub(crate) const D: u64 = 0x40;
pub(crate) const PS: u64 = 0x80;
pub(crate) const NX: u64 = 1 << 63;
pub(crate) const PHYS: u64 = 0x000f_ffff_ffff_f000;

/// Where all of guest memory is mapped for the kernel.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// The instruction that stores, unless a test says otherwise.
pub(crate) const IP: u64 = 0x5000;

pub(crate) const CPU: VcpuId = VcpuId::FIRST;

/// What a regime says about itself in tests.
pub(crate) trait Audited: Regime {
    fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String>;
}

macro_rules! audited {
    ($($policy:ty),*) => {
        $(impl Audited for $policy {
            fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
                self.audit(host, map)
            }
        })*
    };
}

audited!(WriteProtect, InvlpgOnly, LazyFill, Vbox, Vtlb, Xen);

/// The memory of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) frames: u64,
    pub(crate) host_page: PageSize,
    /// Page size of the guest's direct map.
    pub(crate) direct_map: PageSize,
    /// The walk caches of its CPUs.
    pub(crate) caches: Option<MmuGeometry>,
}

pub(crate) const SMALL: Memory =
    Memory { frames: 2048, host_page: PageSize::Size4K, direct_map: PageSize::Size4K, caches: None };

pub(crate) struct Lab<R> {
    /// The machine, with the oracle beside it.
    pub(crate) checked: Checked<Engine<R>>,
    pub(crate) out: Ledger,
    pub(crate) memory: Memory,
    /// The vCPU that acts.
    pub(crate) cpu: VcpuId,
    pub(crate) vcpus: u16,
    next: u64,
}

/// The page that an access must reach, by the guest's tables as they are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    Page { gfn: Gfn, writable: bool },
    Fault(PfCode),
}

impl<R: Audited> Lab<R> {
    /// A guest with its direct map in `root`, a frame that it may choose; tables for it are taken from the end of memory.
    pub(crate) fn new(memory: Memory, vcpus: u16, regime: impl FnOnce(&MemoryMap) -> R) -> Self {
        Self::with_tags(memory, vcpus, Tags::On, regime)
    }

    pub(crate) fn with_tags(memory: Memory, vcpus: u16, tags: Tags, regime: impl FnOnce(&MemoryMap) -> R) -> Self {
        Self::with_host(memory, vcpus, tags, |_, map| regime(map))
    }

    /// The same for regimes that reserve host memory.
    pub(crate) fn with_host(
        memory: Memory,
        vcpus: u16,
        tags: Tags,
        regime: impl FnOnce(&mut Host, &mut MemoryMap) -> R,
    ) -> Self {
        let mut map = MemoryMap::new(memory.frames, memory.host_page);
        let mut host = Host::new(4 * memory.frames + 4096);
        let regime = regime(&mut host, &mut map);
        let vm = (VmSpec { map, vcpus }, regime);
        let mut engine = Engine::new(host, usize::from(vcpus), &Geometry::default(), tags, vec![vm]);
        if let Some(caches) = &memory.caches {
            engine = engine.with_walk_caches(caches);
        }
        let checked = Checked::new(engine, vec![VmId::FIRST; usize::from(vcpus)]);
        Self { checked, out: Ledger::sums(), memory, cpu: CPU, vcpus, next: memory.frames }
    }

    /// The machine itself.
    pub(crate) fn engine(&self) -> &Engine<R> {
        self.checked.inner()
    }

    /// The policy.
    pub(crate) fn policy(&self) -> &R {
        self.engine().regime(VmId::FIRST)
    }

    /// What the oracle has judged so far.
    pub(crate) fn tally(&self) -> Tally {
        *self.checked.tally()
    }

    /// Demands that the oracle has found nothing wrong.
    pub(crate) fn sound(&self) {
        assert_eq!(self.tally().violations(), 0, "{:#?}", self.checked.violations());
    }

    /// A fresh frame from the end of memory.
    pub(crate) fn frame(&mut self) -> u64 {
        self.next -= 1;
        self.next
    }

    /// Writes an entry before the guest runs.
    pub(crate) fn boot(&mut self, table: u64, index: usize, raw: u64) {
        self.checked.poke(VmId::FIRST, Gfn::new(table).entry(index), raw);
    }

    pub(crate) fn peek(&self, table: u64, index: usize) -> u64 {
        self.checked.peek(VmId::FIRST, Gfn::new(table).entry(index))
    }

    /// Makes the direct map under `root`, before the guest runs.
    pub(crate) fn boot_direct_map(&mut self, root: u64) {
        let size = self.memory.direct_map;
        let mut gfn = 0;
        while gfn < self.memory.frames {
            let large = if size == PageSize::Size4K { 0 } else { PS };
            self.boot_map(root, DIRECT_MAP + (gfn << 12), size, gfn << 12 | P | W | A | D | large | NX, P | W | A);
            gfn += size.frames();
        }
    }

    /// Maps one page before the guest runs; missing tables are made with `upper`.
    pub(crate) fn boot_map(&mut self, root: u64, gva: u64, size: PageSize, leaf: u64, upper: u64) {
        let mut table = root;
        for level in (size as u8 + 1..=4).rev() {
            let index = index_of(gva, level);
            let mut raw = self.peek(table, index);
            if raw & P == 0 {
                raw = self.frame() << 12 | upper;
                self.boot(table, index, raw);
            }
            table = (raw & PHYS) >> 12;
        }
        self.boot(table, index_of(gva, size as u8), leaf);
    }

    /// The table of `level` that `gva` leads to, as the guest kernel knows it.
    pub(crate) fn table(&self, root: u64, gva: u64, level: u8) -> u64 {
        let mut table = root;
        for above in (level + 1..=4).rev() {
            table = (self.peek(table, index_of(gva, above)) & PHYS) >> 12;
        }
        table
    }

    pub(crate) fn control(&mut self, control: Control) {
        self.control_on(self.cpu, control);
    }

    pub(crate) fn control_on(&mut self, v: VcpuId, control: Control) {
        self.checked.event(v, &Event::Control(control), &mut self.out).unwrap();
    }

    pub(crate) fn cr3(&mut self, root: u64) {
        self.control(Control::Cr3(Cr3::flushing(Gfn::new(root).base())));
    }

    pub(crate) fn invlpg(&mut self, gva: u64) {
        self.control(Control::Invlpg(Gva::new(gva)));
    }

    pub(crate) fn host(&mut self, event: HostEvent) {
        self.checked.host(&event, &mut self.out);
    }

    /// A store through some alias.
    pub(crate) fn store_op(&mut self, gva: u64, op: StoreOp) -> Result<(), GuestFault> {
        self.store_from(gva, op, IP)
    }

    pub(crate) fn store_from(&mut self, gva: u64, op: StoreOp, ip: u64) -> Result<(), GuestFault> {
        let event = Event::Store { via: Gva::new(gva), op, ip: Gva::new(ip) };
        match self.checked.event(self.cpu, &event, &mut self.out) {
            Ok(_) => Ok(()),
            Err(Refusal::GuestFault(fault)) => Err(fault),
            Err(Refusal::HostOutOfMemory) => panic!("out of host memory"),
        }
    }

    pub(crate) fn store(&mut self, gva: u64, value: u64) -> Result<(), GuestFault> {
        self.store_op(gva, StoreOp::Mov { width: Width::B8, value })
    }

    /// A store to a table entry through the direct map.
    pub(crate) fn set(&mut self, table: u64, index: usize, raw: u64) {
        self.store(DIRECT_MAP + (table << 12) + 8 * index as u64, raw).unwrap();
    }

    /// A supervisor load.
    pub(crate) fn load(&mut self, gva: u64) -> Result<u64, GuestFault> {
        match self.checked.event(self.cpu, &Event::Load { gva: Gva::new(gva) }, &mut self.out) {
            Ok(value) => Ok(value.unwrap()),
            Err(Refusal::GuestFault(fault)) => Err(fault),
            Err(Refusal::HostOutOfMemory) => panic!("out of host memory"),
        }
    }

    /// A plain access.
    pub(crate) fn access(&mut self, acc: Acc) -> Result<(), GuestFault> {
        self.access_on(self.cpu, acc)
    }

    pub(crate) fn access_on(&mut self, v: VcpuId, acc: Acc) -> Result<(), GuestFault> {
        match self.checked.accesses(v, &[acc], Horizon::Open, &mut self.out) {
            (1, Stop::Done) => Ok(()),
            (0, Stop::GuestFault(fault)) => Err(fault),
            other => panic!("{acc:?}: {other:?}"),
        }
    }

    pub(crate) fn read(&mut self, gva: u64) -> Result<(), GuestFault> {
        self.access(Acc::user(Gva::new(gva), AccessKind::Read))
    }

    pub(crate) fn write(&mut self, gva: u64) -> Result<(), GuestFault> {
        self.access(Acc::user(Gva::new(gva), AccessKind::Write))
    }

    /// How many exits `act` causes, all together.
    pub(crate) fn exits(&mut self, act: impl FnOnce(&mut Self)) -> u64 {
        let before = self.out.counters.total_exits();
        act(self);
        self.out.counters.total_exits() - before
    }

    /// How many exits `act` causes, by reason: hidden faults, reflected faults, table writes, all others.
    pub(crate) fn kinds(&mut self, act: impl FnOnce(&mut Self)) -> [u64; 4] {
        let count = |lab: &Self| {
            let of = |reason| lab.out.counters.exits_for(reason);
            let three = [ExitReason::HiddenFault, ExitReason::ReflectedFault, ExitReason::TableWrite].map(of);
            let rest = lab.out.counters.total_exits() - three.iter().sum::<u64>();
            [three[0], three[1], three[2], rest]
        };
        let before = count(self);
        act(self);
        let after = count(self);
        [0, 1, 2, 3].map(|i| after[i] - before[i])
    }

    /// What the guest's tables say now, by a walk of its own.
    pub(crate) fn truth(&self, acc: Acc) -> Truth {
        self.truth_on(self.cpu, acc)
    }

    pub(crate) fn truth_on(&self, v: VcpuId, acc: Acc) -> Truth {
        let regs = self.engine().regs(v);
        let gva = acc.gva().as_u64();
        let (user, write, fetch) =
            (acc.privilege() == Privilege::User, acc.is_write(), acc.kind() == AccessKind::Fetch);
        let code = u32::from(write) << 1 | u32::from(user) << 2 | u32::from(fetch) << 4;
        let mut table = regs.cr3.root.as_u64() >> 12;
        let (mut w, mut u, mut x) = (true, true, true);
        for level in (1..=4u8).rev() {
            let raw = self.checked.peek(VmId::FIRST, Gpa::new(table << 12 | (index_of(gva, level) as u64) << 3));
            if raw & P == 0 {
                return Truth::Fault(PfCode::from_bits(code));
            }
            let large = level > 1 && raw & PS != 0;
            let shift = 12 + 9 * (u32::from(level) - 1);
            let below = if large { ((1u64 << shift) - 1) & PHYS & !0x1000 } else { 0 };
            if large && (level == 4 || raw & below != 0) {
                return Truth::Fault(PfCode::from_bits(code | 9));
            }
            (w, u, x) = (w && raw & W != 0, u && raw & U != 0, x && raw & NX == 0);
            if level == 1 || large {
                let denied = (user && !u) || (fetch && !x) || (write && !w && (user || regs.write_protect));
                if denied {
                    return Truth::Fault(PfCode::from_bits(code | 1));
                }
                let base = (raw & PHYS) & !((1u64 << shift) - 1);
                return Truth::Page { gfn: Gfn::new((base | gva & ((1 << shift) - 1)) >> 12), writable: w };
            }
            table = (raw & PHYS) >> 12;
        }
        unreachable!()
    }

    /// Performs an access and demands that it does what the guest's tables say *now*.
    pub(crate) fn exact(&mut self, acc: Acc) {
        let truth = self.truth(acc);
        let done = self.access(acc);
        match (truth, done) {
            (Truth::Fault(code), Err(fault)) => assert_eq!((fault.gva, fault.code), (acc.gva(), code), "{acc:?}"),
            (Truth::Page { gfn, writable }, Ok(())) => {
                if let Some(reached) = self.checked.reached(self.cpu, acc.gva()) {
                    assert_eq!(Some(reached.frame), self.backing(gfn), "{acc:?} reached the wrong frame");
                    assert!(writable || !reached.writable, "{acc:?}: more than the guest's tables permit");
                }
            }
            (truth, done) => panic!("{acc:?}: tables say {truth:?}, hardware did {done:?}"),
        }
    }

    pub(crate) fn backing(&self, gfn: Gfn) -> Option<Hfn> {
        self.checked.backing(VmId::FIRST, gfn)
    }

    /// Demands that the policy's structures are sound.
    pub(crate) fn audit(&self) {
        let vm = VmId::FIRST;
        let found = self.engine().regime(vm).audit(self.engine().machine(), self.engine().map(vm));
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// The index that `gva` selects in a table of `level`.
pub(crate) fn index_of(gva: u64, level: u8) -> usize {
    (gva >> (12 + 9 * (u32::from(level) - 1))) as usize & 511
}
