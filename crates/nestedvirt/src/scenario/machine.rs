//! The machine that scenarios run on: L2's kernel and process, driven through the engine.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Level};
use memvirt_ops::arch::{Control, Cr3, Event, GfnRange, HostEvent, StoreOp, Trap, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Format;
use memvirt_platform::{
    Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Stop, Tags, VmSpec, WalkRefs, Work,
};
use memvirt_tlb::Geometry;

use super::{Happening, Nested01State, Spec};
use crate::format::Guest;
use crate::hypervisor::Nesting;
use crate::world::Counts;

/// 8 GiB.
pub(super) const HOST_FRAMES: u64 = 1 << 21;
/// L2's root table.
const ROOT: u64 = 1;
/// The first of the tables that the fault will fill.
const FRESH: u64 = 64;
/// The pages that fork write-protects.
const FORKED: u64 = 64;
/// Present, writable, accessed: of the kernel.
const KERNEL: u64 = 0x23;
/// Present, writable, user, accessed.
const USER: u64 = 0x27;
const DIRTY: u64 = 0x40;
const WRITE: u64 = 0x2;

/// Where things lie in L2, for tables of `N` levels. One region is what an entry of the root covers.
pub(super) struct Layout<const N: u8>;

impl<const N: u8> Layout<N> {
    const REGION: u64 = 1 << (12 + 9 * (N as u32 - 1));
    /// The first frame for the process: in a region of guest-physical memory that nothing else lies in.
    const DATA: u64 = Self::REGION >> 12;
    /// Frames of L2's memory, whole GiB.
    pub(super) const MEMORY: u64 = (Self::DATA + 512).next_multiple_of(1 << 18);

    /// The kernel's alias of a guest-physical address below 2 MiB.
    fn alias(at: Gpa) -> Gva {
        Gva::new(Self::REGION + at.as_u64())
    }

    /// The address that the process touches: another index at every level.
    fn touched() -> Gva {
        let below = (1..N).map(|level| (u64::from(level) + 2) << (12 + 9 * (u32::from(level) - 1)));
        Gva::new(2 * Self::REGION + below.sum::<u64>())
    }
}

pub(super) struct Machine<R, const N: u8> {
    pub(super) engine: Engine<R>,
    out: Ledger,
}

impl<R: Regime + Nesting, const N: u8> Machine<R, N> {
    /// L2 runs its kernel: a direct map of the first 2 MiB, which it has been using.
    pub(super) fn boot(host: Host, map: MemoryMap, regime: R, spec: &Spec) -> Option<Self> {
        let vms = vec![(VmSpec { map, vcpus: 1 }, regime)];
        let engine = Engine::new(host, 1, &Geometry::default(), Tags::On, vms);
        let mut machine = Self { engine, out: Ledger::sums() };
        machine.lay_direct_map();
        if spec.ept01 == Nested01State::Warm && !machine.prefault() {
            return None;
        }
        machine.control(Control::Cr3(Cr3::flushing(Gfn::new(ROOT).base())))?;
        for table in 1..=u64::from(N) {
            machine
                .engine
                .event(
                    VcpuId::FIRST,
                    &Event::Load { gva: Layout::<N>::alias(Gfn::new(table).base()) },
                    &mut machine.out,
                )
                .ok()?;
        }
        for table in FRESH..FRESH + u64::from(N) {
            machine.store(Gfn::new(table).base(), StoreOp::RepStos { value: 0, count: 512 })?;
        }
        Some(machine)
    }

    fn lay_direct_map(&mut self) {
        let vm = VmId::FIRST;
        self.engine.poke(vm, Gfn::new(ROOT).entry(1), (ROOT + 1) << 12 | KERNEL);
        for table in 2..u64::from(N) {
            self.engine.poke(vm, Gfn::new(table).entry(0), (table + 1) << 12 | KERNEL);
        }
        for index in 0..512u16 {
            let at = Gfn::new(u64::from(N)).entry(usize::from(index));
            self.engine.poke(vm, at, u64::from(index) << 12 | KERNEL | DIRTY);
        }
    }

    fn prefault(&mut self) -> bool {
        self.engine.intervene(VcpuId::FIRST, &mut self.out, |regime, cx| {
            let kernel = GfnRange { start: Gfn::new(0), frames: 512 };
            let data = GfnRange { start: Gfn::new(Layout::<N>::DATA), frames: FORKED };
            regime.prefault_guest(cx, kernel) && regime.prefault_guest(cx, data) && regime.prefault_heap(cx, 512)
        })
    }

    pub(super) fn counts(&self) -> Counts {
        self.engine.regime(VmId::FIRST).world().counts
    }

    pub(super) fn act(&mut self, act: impl FnOnce(&mut R)) {
        self.engine.intervene(VcpuId::FIRST, &mut self.out, |regime, _| act(regime));
    }

    fn note(&mut self, what: &str) {
        self.act(|regime| regime.world_mut().note(what));
    }

    fn touch(&mut self, at: Gva, kind: AccessKind) -> Stop {
        self.engine.accesses(VcpuId::FIRST, &[Acc::user(at, kind)], Horizon::Open, &mut self.out).1
    }

    fn touch_all(&mut self, pages: u64) -> Option<()> {
        let stop =
            (0..pages).map(|page| self.touch(Layout::<N>::touched().wrapping_add(page << 12), AccessKind::Write));
        stop.into_iter().all(|stop| stop == Stop::Done).then_some(())
    }

    fn store(&mut self, at: Gpa, op: StoreOp) -> Option<()> {
        let store = Event::Store { via: Layout::<N>::alias(at), op, ip: Gva::ZERO };
        self.engine.event(VcpuId::FIRST, &store, &mut self.out).ok().map(|_| ())
    }

    fn control(&mut self, control: Control) -> Option<()> {
        self.engine.event(VcpuId::FIRST, &control.into(), &mut self.out).ok().map(|_| ())
    }

    /// The table of `level` on the way to the page that the process touches.
    fn table(level: u8) -> Gfn {
        Gfn::new(if level == N { ROOT } else { FRESH + u64::from(N - 1 - level) })
    }

    /// Where the leaf entry of the `page`-th page of the process lies.
    fn leaf_at(page: u64) -> Gpa {
        let index = Guest::<N>::index(Layout::<N>::touched(), Level::L1) as u64 + page;
        Self::table(1).at(index * 8)
    }

    /// The whole fault: the touch, the kernel's stores, the second touch.
    pub(super) fn fault(&mut self) -> Option<()> {
        let at = Layout::<N>::touched();
        self.note(&format!("its process stores to {at:?} for the first time"));
        if !matches!(self.touch(at, AccessKind::Write), Stop::GuestFault(_)) {
            return None;
        }
        for level in (1..=N).rev() {
            self.note(&format!("its kernel stores the entry of level {level}"));
            let index = Guest::<N>::index(at, Level::from_number(level)?);
            let value = match level {
                1 => Layout::<N>::DATA << 12 | USER | DIRTY,
                _ => Self::table(level - 1).base().as_u64() | USER,
            };
            self.store(Self::table(level).entry(index), StoreOp::Mov { width: Width::B8, value })?;
        }
        self.note("its kernel returns, its process tries again");
        let done = self.touch(at, AccessKind::Write) == Stop::Done;
        self.note("its process goes on");
        done.then_some(())
    }

    /// The references of one walk with nothing cached.
    pub(super) fn cold_walk(&mut self) -> Option<WalkRefs> {
        self.engine.intervene(VcpuId::FIRST, &mut self.out, |_, cx| _ = cx.flush_vm(&mut Work::default()));
        let before = self.out.counters.refs;
        (self.touch(Layout::<N>::touched(), AccessKind::Read) == Stop::Done).then_some(())?;
        let after = self.out.counters.refs;
        Some(WalkRefs {
            guest: after.guest - before.guest,
            shadow: after.shadow - before.shadow,
            host: after.host - before.host,
        })
    }

    /// Maps the `page`-th page of the process.
    fn map_page(&mut self, page: u64) -> Option<()> {
        let value = (Layout::<N>::DATA + page) << 12 | USER | DIRTY;
        self.store(Self::leaf_at(page), StoreOp::Mov { width: Width::B8, value })
    }

    pub(super) fn prepare(&mut self, what: Happening) -> Option<()> {
        if what == Happening::Fork64 {
            (1..FORKED).try_for_each(|page| self.map_page(page))?;
            self.touch_all(FORKED)?;
        }
        Some(())
    }

    pub(super) fn perform(&mut self, what: Happening) -> Option<()> {
        match what {
            Happening::NeighbourFault => {
                let at = Layout::<N>::touched().wrapping_add(1 << 12);
                matches!(self.touch(at, AccessKind::Write), Stop::GuestFault(_)).then_some(())?;
                self.map_page(1)?;
                self.touch_all(2)
            }
            Happening::Cr3Load => self.control(Control::Cr3(Cr3::flushing(Gfn::new(ROOT).base()))),
            Happening::Invlpg => self.control(Control::Invlpg(Layout::<N>::touched())),
            Happening::Hypercall => self.control(Control::Trap(Trap::Hypercall)),
            Happening::Fork64 => {
                (0..FORKED).try_for_each(|page| self.store(Self::leaf_at(page), StoreOp::And { mask: !WRITE }))?;
                self.control(Control::Cr3(Cr3::flushing(Gfn::new(ROOT).base())))
            }
            Happening::L1Swap => {
                let range = GfnRange { start: Gfn::new(Layout::<N>::DATA), frames: 1 };
                self.engine.host(&HostEvent::Unmap(VmId::FIRST, range), &mut self.out);
                self.touch_all(1)
            }
            Happening::L0Swap => {
                let frame = self.engine.regime(VmId::FIRST).l1().frame_of(Gfn::new(Layout::<N>::DATA))?;
                self.engine.intervene(VcpuId::FIRST, &mut self.out, |regime, cx| regime.take_from_l1(cx, &[frame]));
                self.touch_all(1)
            }
        }
    }
}
