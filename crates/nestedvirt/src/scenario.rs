//! Events executed on a fresh machine, step by step: one page fault of L2 and a few others.
//!
//! L2 is a kernel and a process, driven through [`Engine`] as every guest is: its accesses, its stores to its own tables through
//! a direct map, its CR3 loads. Nothing here counts; [`World`](crate::World) does.
//!
//! **The fault.** A process of L2 stores to a page for the first time. Nothing of the way to it exists: all `N` entries of its
//! tables, from the root's down, are absent. L2's kernel stores them one by one, root first, into tables that it cleared
//! earlier; then the process tries again. The frame it gets is one that L1 has never mapped for L2 and that no table of EPT12
//! but the root covers: the worst case, as in Huang et al., SOSP 2023, section 2.2. L2's kernel has its direct map in SPT12 or
//! EPT02 already. Frames are cleared beforehand, not between fault and retry.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Level, PageSize};
use memvirt_ops::arch::{Control, Cr3, Event, GfnRange, HostEvent, StoreOp, Trap, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Format;
use memvirt_platform::{Engine, Horizon, Host, Ledger, MemoryMap, Platform, Regime, Stop, Tags, VmSpec, WalkRefs};
use memvirt_tlb::Geometry;

use crate::config::{Arrangement, Config};
use crate::ept_on_ept::EptOnEpt;
use crate::format::Guest;
use crate::hypervisor::Nesting;
use crate::shadow_on_ept::ShadowOnEpt;
use crate::world::{Counts, Step};

/// Whether L0 has given L1 its memory before the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nested01State {
    /// EPT01 maps all of L1 that the fault needs. What the published counts take for granted.
    Warm,
    /// L0 backs and maps each frame of L1 when it is first touched.
    Cold,
}

/// What is to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Who keeps which tables.
    pub arrangement: Arrangement,
    /// The levels of L2's tables, and of EPT12: 2 to 5. Others are taken for the nearest.
    pub levels: u8,
    /// The hypervisors' switches.
    pub config: Config,
    /// Whether L1's memory is there.
    pub ept01: Nested01State,
}

impl Spec {
    /// The published case: [`Config::PUBLISHED`], EPT01 warm.
    #[must_use]
    pub const fn published(arrangement: Arrangement, levels: u8) -> Self {
        Self { arrangement, levels, config: Config::PUBLISHED, ept01: Nested01State::Warm }
    }
}

/// What one fault did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Everything that happened, in order.
    pub steps: Vec<Step>,
    /// The sums.
    pub counts: Counts,
    /// The references of one walk for the page after that, with all caches cold.
    pub walk: WalkRefs,
}

/// Executes the fault.
#[must_use]
pub fn one_fault(spec: &Spec) -> Option<Fault> {
    dispatch(spec, FaultRun)
}

/// Something else that L2 or a hypervisor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    /// A fault on the page beside one that is mapped: one entry to fill.
    NeighbourFault,
    /// L2 loads CR3.
    Cr3Load,
    /// INVLPG.
    Invlpg,
    /// A hypercall of L2 to its hypervisor.
    Hypercall,
    /// What fork does to the parent: 64 leaf entries lose their write permission, then a flush by CR3 load.
    Fork64,
    /// L1 takes a page from L2, and L2 touches it again.
    L1Swap,
    /// L0 takes a page from L1 in which L2's page lies, and L2 touches it again.
    L0Swap,
}

impl Happening {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::NeighbourFault, Self::Cr3Load, Self::Invlpg, Self::Hypercall, Self::Fork64, Self::L1Swap, Self::L0Swap];

    /// The stable key in results.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::NeighbourFault => "neighbour_fault",
            Self::Cr3Load => "cr3_load",
            Self::Invlpg => "invlpg",
            Self::Hypercall => "hypercall",
            Self::Fork64 => "fork_64",
            Self::L1Swap => "l1_swap",
            Self::L0Swap => "l0_swap",
        }
    }

    /// In words.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::NeighbourFault => "fault on the page beside a mapped one",
            Self::Cr3Load => "CR3 load",
            Self::Invlpg => "INVLPG",
            Self::Hypercall => "hypercall to L1",
            Self::Fork64 => "fork: 64 entries lose W, then a CR3 load",
            Self::L1Swap => "L1 takes a page from L2; L2 touches it",
            Self::L0Swap => "L0 takes a page from L1; L2 touches it",
        }
    }
}

/// Executes `what` after the fault; what that alone counted.
#[must_use]
pub fn happening(spec: &Spec, what: Happening) -> Option<Counts> {
    dispatch(spec, HappeningRun(what))
}

/// Something to be done on a machine of any depth and arrangement.
trait Run {
    type Result;
    fn run<R: Regime + Nesting, const N: u8>(self, machine: Machine<R, N>) -> Option<Self::Result>;
}

struct FaultRun;

impl Run for FaultRun {
    type Result = Fault;

    fn run<R: Regime + Nesting, const N: u8>(self, mut machine: Machine<R, N>) -> Option<Fault> {
        let before = machine.counts();
        machine.act(|regime| regime.world_mut().record());
        machine.fault()?;
        let counts = machine.counts().since(&before);
        let steps = machine.engine.regime(VmId::FIRST).world().steps().to_vec();
        Some(Fault { steps, counts, walk: machine.cold_walk()? })
    }
}

struct HappeningRun(Happening);

impl Run for HappeningRun {
    type Result = Counts;

    fn run<R: Regime + Nesting, const N: u8>(self, mut machine: Machine<R, N>) -> Option<Counts> {
        machine.fault()?;
        machine.prepare(self.0)?;
        let before = machine.counts();
        machine.perform(self.0)?;
        Some(machine.counts().since(&before))
    }
}

fn dispatch<T: Run>(spec: &Spec, run: T) -> Option<T::Result> {
    match spec.levels {
        0..=2 => arranged::<T, 2>(spec, run),
        3 => arranged::<T, 3>(spec, run),
        4 => arranged::<T, 4>(spec, run),
        _ => arranged::<T, 5>(spec, run),
    }
}

fn arranged<T: Run, const N: u8>(spec: &Spec, run: T) -> Option<T::Result> {
    let mut host = Host::new(HOST_FRAMES);
    let map = MemoryMap::new(Layout::<N>::MEMORY, PageSize::Size1G);
    match spec.arrangement {
        Arrangement::EptOnEpt => {
            let regime = EptOnEpt::<N>::new(&mut host, &map, spec.config)?;
            run.run(Machine::<_, N>::boot(host, map, regime, spec)?)
        }
        shadow => {
            let regime = ShadowOnEpt::<N>::new(&mut host, &map, shadow, spec.config)?;
            run.run(Machine::<_, N>::boot(host, map, regime, spec)?)
        }
    }
}

/// 8 GiB.
const HOST_FRAMES: u64 = 1 << 21;
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
struct Layout<const N: u8>;

impl<const N: u8> Layout<N> {
    const REGION: u64 = 1 << (12 + 9 * (N as u32 - 1));
    /// The first frame for the process: in a region of guest-physical memory that nothing else lies in.
    const DATA: u64 = Self::REGION >> 12;
    /// Frames of L2's memory, whole GiB.
    const MEMORY: u64 = (Self::DATA + 512).next_multiple_of(1 << 18);

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

struct Machine<R, const N: u8> {
    engine: Engine<R>,
    out: Ledger,
}

impl<R: Regime + Nesting, const N: u8> Machine<R, N> {
    /// L2 runs its kernel: a direct map of the first 2 MiB, which it has been using.
    fn boot(host: Host, map: MemoryMap, regime: R, spec: &Spec) -> Option<Self> {
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

    fn counts(&self) -> Counts {
        self.engine.regime(VmId::FIRST).world().counts
    }

    fn act(&mut self, act: impl FnOnce(&mut R)) {
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
    fn fault(&mut self) -> Option<()> {
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
    fn cold_walk(&mut self) -> Option<WalkRefs> {
        self.engine
            .intervene(VcpuId::FIRST, &mut self.out, |_, cx| _ = cx.flush_vm(&mut memvirt_platform::Work::default()));
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

    fn prepare(&mut self, what: Happening) -> Option<()> {
        if what == Happening::Fork64 {
            (1..FORKED).try_for_each(|page| self.map_page(page))?;
            self.touch_all(FORKED)?;
        }
        Some(())
    }

    fn perform(&mut self, what: Happening) -> Option<()> {
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

#[cfg(test)]
mod tests;
