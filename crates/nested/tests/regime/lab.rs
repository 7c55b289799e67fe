//! A guest whose kernel maps all of memory at [`DIRECT_MAP`] and whose tables are written by hand, with the oracle beside it.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, PageSize};
use memvirt_nested::{AdBits, DirtyLogging, End, Nested, NestedStats, SecondStage, Walker};
use memvirt_ops::arch::{Control, Cr3, Event, GuestFault, HostEvent, StoreOp, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_oracle::Checked;
use memvirt_pagetable::Guest4;
use memvirt_platform::{
    Cx, Engine, ExitReason, Horizon, Host, Ledger, MemoryMap, MmuGeometry, Outcome, Platform, Reached, Refusal, Regime,
    Request, Stop, TableBytes, Tags, Vendor, VmSpec,
};
use memvirt_tlb::Geometry;

pub(crate) const P: u64 = 1;
pub(crate) const W: u64 = 2;
pub(crate) const U: u64 = 4;
pub(crate) const A: u64 = 0x20;
pub(crate) const D: u64 = 0x40;
pub(crate) const PS: u64 = 0x80;
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
pub(crate) const VM: VmId = VmId::FIRST;
pub(crate) const CPU: VcpuId = VcpuId::FIRST;
/// The guest's first root, and where the tables of the direct map lie.
pub(crate) const ROOT: u64 = 1;
const DIRECT_TABLES: u64 = 100;

/// What lies below the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) frames: u64,
    pub(crate) host_page: PageSize,
    pub(crate) vcpus: u16,
    pub(crate) tags: Tags,
    pub(crate) ad: AdBits,
    pub(crate) vendor: Vendor,
    pub(crate) logging: DirtyLogging,
    pub(crate) caches: Option<MmuGeometry>,
}

impl Setup {
    pub(crate) const SMALL: Self = Self {
        frames: 2048,
        host_page: PageSize::Size4K,
        vcpus: 1,
        tags: Tags::On,
        ad: AdBits::On,
        vendor: Vendor::Vmx,
        logging: DirtyLogging::WriteProtect,
        caches: None,
    };
    pub(crate) const LARGE: Self = Self { host_page: PageSize::Size2M, ..Self::SMALL };
}

/// The regime, and a second look at each violation that it handled.
#[derive(Debug)]
pub(crate) struct Watch<H> {
    pub(crate) inner: Nested<H>,
    ad: AdBits,
    /// Violations that were there again right after they had been handled.
    pub(crate) unhealed: u64,
}

impl<H: SecondStage> Watch<H> {
    fn look(&self, cx: &mut Cx<'_>, request: &Request<'_>) -> End {
        let regs = *cx.regs();
        Walker::<Guest4, H, ()>::new(&mut cx.host.mem, self.inner.root(), self.ad, &mut ()).walk(&regs, request.acc)
    }
}

impl<H: SecondStage> Regime for Watch<H> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        // A look of ours would set dirty bits behind the back of hardware's log.
        let may_look = self.inner.dirty_logging() != Some(DirtyLogging::ModificationLog);
        let before = may_look.then(|| self.look(cx, request));
        let fixed = self.inner.stats().pf_fixed;
        let outcome = self.inner.miss(cx, request);
        // Where the host had to exchange its page of zeros, nothing was fixed yet.
        if let (Some(End::Violation(first)), true) = (before, self.inner.stats().pf_fixed > fixed)
            && let End::Violation(second) = self.look(cx, request)
        {
            self.unhealed += u64::from((first.gpa, first.want) == (second.gpa, second.want));
        }
        outcome
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        self.inner.control(cx, control)
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.inner.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        self.inner.table_bytes()
    }
}

pub(crate) struct Lab<H> {
    pub(crate) checked: Checked<Engine<Watch<H>>>,
    pub(crate) out: Ledger,
    pub(crate) setup: Setup,
}

impl<H: SecondStage> Lab<H> {
    /// The direct map hangs in `ROOT`, its tables in frames from 100 on, in pages of 4 KiB.
    pub(crate) fn new(setup: Setup) -> Self {
        let mut host = Host::new(4 * setup.frames + 8192);
        let map = MemoryMap::new(setup.frames, setup.host_page);
        let nested = Nested::<H>::new(&mut host, setup.ad, setup.vendor).unwrap().with_dirty_logging(setup.logging);
        let regime = Watch { inner: nested, ad: setup.ad, unhealed: 0 };
        let vm = (VmSpec { map, vcpus: setup.vcpus }, regime);
        let cpus = usize::from(setup.vcpus);
        let mut engine = Engine::new(host, cpus, &Geometry::default(), setup.tags, vec![vm]);
        if let Some(caches) = &setup.caches {
            engine = engine.with_walk_caches(caches);
        }
        let checked = Checked::new(engine, vec![VM; cpus]);
        let mut lab = Self { checked, out: Ledger::sums(), setup };
        lab.poke(ROOT, index_of(DIRECT_MAP, 4), DIRECT_TABLES << 12 | P | W | A);
        lab.poke(DIRECT_TABLES, index_of(DIRECT_MAP, 3), (DIRECT_TABLES + 1) << 12 | P | W | A);
        for gfn in 0..setup.frames {
            let table = DIRECT_TABLES + 2 + gfn / 512;
            lab.poke(table, gfn as usize % 512, gfn << 12 | P | W | A | D);
            lab.poke(DIRECT_TABLES + 1, gfn as usize / 512, table << 12 | P | W | A);
        }
        (0..setup.vcpus).for_each(|v| lab.control_on(VcpuId(v), cr3(ROOT)));
        lab
    }

    pub(crate) fn engine(&self) -> &Engine<Watch<H>> {
        self.checked.inner()
    }

    pub(crate) fn nested(&self) -> &Nested<H> {
        &self.engine().regime(VM).inner
    }

    pub(crate) fn stats(&self) -> NestedStats {
        *self.nested().stats()
    }

    pub(crate) fn poke(&mut self, table: u64, index: usize, raw: u64) {
        self.checked.poke(VM, Gfn::new(table).entry(index), raw);
    }

    pub(crate) fn peek(&self, table: u64, index: usize) -> u64 {
        self.checked.peek(VM, Gfn::new(table).entry(index))
    }

    pub(crate) fn control_on(&mut self, v: VcpuId, control: Control) {
        self.checked.event(v, &Event::Control(control), &mut self.out).unwrap();
    }

    pub(crate) fn host(&mut self, event: HostEvent) {
        self.checked.host(&event, &mut self.out);
    }

    pub(crate) fn access(&mut self, v: VcpuId, acc: Acc) -> Result<(), GuestFault> {
        match self.checked.accesses(v, &[acc], Horizon::Open, &mut self.out) {
            (1, Stop::Done) => Ok(()),
            (0, Stop::GuestFault(fault)) => Err(fault),
            other => panic!("{acc:?}: {other:?}"),
        }
    }

    /// An access of the kernel to frame `gfn` through the direct map.
    pub(crate) fn direct(&mut self, gfn: u64, kind: AccessKind) {
        self.access(CPU, Acc::supervisor(Gva::new(direct(gfn, 0)), kind)).unwrap();
    }

    pub(crate) fn store(&mut self, v: VcpuId, gva: u64, value: u64) -> Result<(), GuestFault> {
        let op = StoreOp::Mov { width: Width::B8, value };
        let event = Event::Store { via: Gva::new(gva), op, ip: Gva::new(0x5000) };
        match self.checked.event(v, &event, &mut self.out) {
            Ok(_) => Ok(()),
            Err(Refusal::GuestFault(fault)) => Err(fault),
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    /// How often `act` exits for `reason`.
    pub(crate) fn exits(&mut self, reason: ExitReason, act: impl FnOnce(&mut Self)) -> u64 {
        let before = self.out.counters.exits_for(reason);
        act(self);
        self.out.counters.exits_for(reason) - before
    }

    pub(crate) fn reached(&self, v: VcpuId, gva: u64) -> Option<Reached> {
        self.checked.reached(v, Gva::new(gva))
    }

    /// Demands that tables, books and translations are sound.
    pub(crate) fn sound(&self) {
        let wrong = self.nested().audit(self.engine().machine(), self.engine().map(VM));
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(self.checked.tally().violations(), 0, "{:#?}", self.checked.violations());
        assert_eq!(self.engine().regime(VM).unhealed, 0, "a violation that was fixed came back");
    }

    /// What the guest's frame holds now.
    pub(crate) fn contents(&self, gfn: u64) -> [u64; 512] {
        let frame = Gpa::new(gfn << 12);
        core::array::from_fn(|i| self.checked.peek(VM, frame.frame().entry(i)))
    }
}

pub(crate) const fn cr3(root: u64) -> Control {
    Control::Cr3(Cr3::flushing(Gpa::new(root << 12)))
}

/// The direct map's address of a word.
pub(crate) const fn direct(gfn: u64, index: usize) -> u64 {
    DIRECT_MAP + (gfn << 12) + 8 * index as u64
}

/// The index that `gva` selects in a table of `level`.
pub(crate) const fn index_of(gva: u64, level: u32) -> usize {
    (gva >> (12 + 9 * (level - 1))) as usize & 511
}
