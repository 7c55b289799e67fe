//! One cold walk of a proposal, reference by reference: real tables are built in simulated memory, the hypervisor fills what it
//! has to, and the walk that then finds everything is recorded. For whoever draws walks or counts their references.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, GuestVirt, Gva, Hfn, Hpa, Level, PageSize};
use memvirt_ops::VcpuId;
use memvirt_ops::VmId;
use memvirt_ops::arch::{Control, Cr3, GfnRange};
use memvirt_pagetable::{
    Attrs, Format, FrameAllocator, FramePool, Guest4, LeafArena, LongMode, Mapper, TableAttrs, walk,
};
use memvirt_platform::{
    Cpu, Cx, GuestMem, Horizon, Host, Ledger, Listener, MemoryMap, Mmu, MmuGeometry, Outcome, Probe, Reference, Regime,
    Regs, Request, Tags, Vcpu,
};
use memvirt_tlb::Geometry;

use crate::agile::{Agile, Switching};
use crate::direct::{DirectSegment, GuestSegment, Mode};
use crate::flat::Flat;
use crate::register::RegisterWalk;

/// Whose walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Design {
    /// A flat nested table.
    Flat,
    /// Agile paging with this many levels nested, 0 to 4.
    Agile(u8),
    /// A direct segment of the host.
    VmmDirect,
    /// A direct segment of the guest, which covers the page walked for.
    GuestDirect,
    /// Both.
    DualDirect,
    /// Registers that name leaf tables, loaded.
    Register,
}

/// A walk to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkOf {
    /// Whose.
    pub design: Design,
    /// Levels of the guest's tables: 4 or 5.
    pub guest_levels: u8,
    /// The guest's page.
    pub guest_page: PageSize,
    /// The host's page behind all of guest memory.
    pub host_page: PageSize,
    /// The address, canonical with that many levels.
    pub address: Gva,
}

/// A walk that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its references, in order.
    pub references: Vec<Reference>,
    /// Where the address lies in host memory.
    pub reached: Hpa,
}

/// Why there is no such walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWalk {
    /// The design is modelled for guests of four levels only.
    FourLevelsOnly,
    /// The address is not canonical with that many levels, or there are no tables of so many.
    NotCanonical,
    /// More levels are to be nested than there are.
    TooManyLevels,
    /// The simulated machine has no room for it.
    NoMemory,
}

impl core::fmt::Display for NoWalk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::FourLevelsOnly => "this design is modelled for guests of 4 levels only",
            Self::NotCanonical => "the address is not canonical with that many guest levels (4 or 5)",
            Self::TooManyLevels => "agile paging nests at most the 4 levels there are",
            Self::NoMemory => "the simulated machine has no room for the tables",
        })
    }
}

impl core::error::Error for NoWalk {}

/// Builds the tables and makes the walk.
///
/// # Errors
///
/// [`NoWalk`].
pub fn cold_walk(of: &WalkOf) -> Result<Recorded, NoWalk> {
    walk_of(of, How::Shown)
}

/// The same walk by a CPU with walk caches of this shape, which `earlier` walks for the same address have filled: `probe` is told
/// every reference and every hit of the last one. Where the address lies in host memory.
///
/// # Errors
///
/// [`NoWalk`].
pub fn cached_walk(
    of: &WalkOf,
    geometry: &MmuGeometry,
    earlier: u32,
    probe: Box<dyn Probe + Send>,
) -> Result<Hpa, NoWalk> {
    walk_of(of, How::Cached { geometry, earlier, probe }).map(|recorded| recorded.reached)
}

/// How the last walk is made.
enum How<'a> {
    /// Without caches, its references kept.
    Shown,
    /// With caches, told to somebody else.
    Cached { geometry: &'a MmuGeometry, earlier: u32, probe: Box<dyn Probe + Send> },
}

fn walk_of(of: &WalkOf, how: How<'_>) -> Result<Recorded, NoWalk> {
    match (of.design, of.guest_levels) {
        (Design::Flat, 4) => record::<Guest4, _>(of, how, |host, map| Flat::<Guest4>::new(host, map)),
        (Design::Flat, 5) => record::<LongMode<5>, _>(of, how, |host, map| Flat::<LongMode<5>>::new(host, map)),
        (Design::Agile(5..), _) => Err(NoWalk::TooManyLevels),
        (Design::Agile(lowest), 4) => {
            record::<Guest4, _>(of, how, |host, map| Agile::new(host, map, Switching::Levels(lowest)))
        }
        (Design::VmmDirect, 4) => record::<Guest4, _>(of, how, |host, map| DirectSegment::new(host, map, Mode::Vmm)),
        (Design::GuestDirect, 4) => {
            record::<Guest4, _>(of, how, |host, map| DirectSegment::new(host, map, Mode::Guest(segment(of))))
        }
        (Design::DualDirect, 4) => {
            record::<Guest4, _>(of, how, |host, map| DirectSegment::new(host, map, Mode::Dual(segment(of))))
        }
        (Design::Register, 4) => record::<Guest4, _>(of, how, |host, map| RegisterWalk::new(host, map, ARENA)),
        (_, 5) => Err(NoWalk::FourLevelsOnly),
        _ => Err(NoWalk::NotCanonical),
    }
}

/// The guest's segment: the page of the address, where [`guest_tables`] puts it.
fn segment(of: &WalkOf) -> GuestSegment {
    let (base, pages) = (of.address.align_down(of.guest_page), of.guest_page.frames());
    let mut pool = pool(of.design);
    // The root comes first, the page second.
    let to = pool.allocate(PageSize::Size4K).and_then(|_| pool.allocate(of.guest_page)).unwrap_or(FIRST);
    GuestSegment { base, pages, to, perms: Attrs::PERMISSIONS }
}

/// A regime whose walk can be shown.
trait Shown: Regime {
    /// Makes one walk that is known to find the translation.
    fn record(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, seen: &mut Vec<Reference>);
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>> Shown for Flat<G> {
    fn record(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, seen: &mut Vec<Reference>) {
        let _ = self.show(cx, request, seen);
    }
}

impl Shown for DirectSegment {
    fn record(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, seen: &mut Vec<Reference>) {
        let _ = self.show(cx, request, seen);
    }
}

impl Shown for RegisterWalk {
    fn record(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, seen: &mut Vec<Reference>) {
        let _ = self.show(cx, request, seen);
    }
}

impl Shown for Agile {
    fn record(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, seen: &mut Vec<Reference>) {
        let _ = self.show(cx, request, seen);
    }
}

/// Guest memory: room for three pages of 1 GiB and their alignment.
const FRAMES: u64 = (4 << 30) >> 12;
/// Where the guest's frames begin to be handed out.
const FIRST: Gfn = Gfn::new((16 << 20) >> 12);
/// How often an access may start again: once for each table and its neighbours.
const MOST_EXITS: u32 = 64;

/// Where the guest keeps leaf tables: one block below the rest.
const ARENA: GfnRange = GfnRange { start: Gfn::new(512), frames: 512 };

/// The guest's frames.
#[derive(Debug)]
struct Pool {
    frames: FramePool<GuestPhys>,
    arena: LeafArena<GuestPhys>,
}

impl FrameAllocator<GuestPhys> for Pool {
    fn allocate(&mut self, size: PageSize) -> Option<Gfn> {
        self.frames.allocate(size)
    }

    fn allocate_table(&mut self, level: Level, parent: Gfn, index: usize) -> Option<Gfn> {
        let leaf = (level == Level::L1).then(|| self.arena.leaf_table(parent, index)).flatten();
        leaf.or_else(|| self.frames.allocate(PageSize::Size4K))
    }

    fn free(&mut self, frame: Gfn, size: PageSize) {
        if !self.arena.freed(frame) {
            self.frames.free(frame, size);
        }
    }

    fn allocated(&self) -> u64 {
        self.frames.allocated()
    }
}

fn pool(design: Design) -> Pool {
    let frames = FramePool::new(FIRST, FRAMES - FIRST.number());
    let arena = if design == Design::Register { ARENA.frames } else { 0 };
    Pool { frames, arena: LeafArena::new(ARENA.start, arena) }
}

struct Machine<R> {
    host: Host,
    map: MemoryMap,
    vcpus: Vec<Vcpu>,
    cpus: Vec<Cpu>,
    out: Ledger,
    regime: R,
}

impl<R: Shown> Machine<R> {
    fn with<T>(&mut self, act: impl FnOnce(&mut R, &mut Cx<'_>) -> T) -> T {
        let Self { host, map, vcpus, cpus, out, regime } = self;
        let mut cx = Cx {
            me: VcpuId::FIRST,
            vm: VmId::FIRST,
            vcpus,
            cpus,
            host,
            map,
            out,
            horizon: Horizon::Open,
            tags: Tags::On,
            at: 0,
        };
        act(regime, &mut cx)
    }

    /// Lets the hypervisor fill what the access needs; the host frame reached then.
    fn settle(&mut self, request: &Request<'_>) -> Option<Hfn> {
        for _ in 0..MOST_EXITS {
            match self.with(|regime, cx| regime.miss(cx, request)) {
                Outcome::Filled(entry) => return Some(entry.frame_of(request.acc.gva())),
                Outcome::Retry => {}
                _ => return None,
            }
        }
        None
    }
}

impl<R: Shown> Machine<R> {
    /// Walks with caches, told to `probe` after the first `earlier` times.
    fn cached(&mut self, request: &Request<'_>, geometry: &MmuGeometry, earlier: u32, probe: Box<dyn Probe + Send>) {
        self.cpus[0].mmu = Some(Box::new(Mmu::new(geometry)));
        for _ in 0..earlier {
            self.with(|regime, cx| regime.miss(cx, request));
        }
        if let Some(mmu) = &mut self.cpus[0].mmu {
            mmu.listener = Listener::Other(probe);
        }
        self.with(|regime, cx| regime.miss(cx, request));
    }
}

fn record<G, R>(
    of: &WalkOf,
    how: How<'_>,
    regime: impl FnOnce(&mut Host, &mut MemoryMap) -> Option<R>,
) -> Result<Recorded, NoWalk>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    R: Shown,
{
    let gva = of.address;
    if !G::covers(gva) {
        return Err(NoWalk::NotCanonical);
    }
    let mut host = Host::new(8 * FRAMES);
    let mut map = MemoryMap::new(FRAMES, of.host_page);
    let regime = regime(&mut host, &mut map).ok_or(NoWalk::NoMemory)?;
    let root = guest_tables::<G>(of, &mut GuestMem { host: &mut host, map: &mut map }).ok_or(NoWalk::NoMemory)?;
    let cpus = vec![Cpu::new(&Geometry::default())];
    let regs = Regs::kernel(Cr3::flushing(Gpa::ZERO));
    let vcpus = vec![Vcpu { vm: VmId::FIRST, cpu: 0, regs, vpid: 1 }];
    let mut machine = Machine { host, map, vcpus, cpus, out: Ledger::sums(), regime };
    let load = Control::Cr3(Cr3::flushing(root.base()));
    machine.with(|regime, cx| regime.control(cx, &load)).map_err(|_| NoWalk::NoMemory)?;

    let acc = Acc::user(gva, AccessKind::Read);
    let request = Request { acc, store: None, ip: Gva::ZERO, element: 0 };
    let frame = machine.settle(&request).ok_or(NoWalk::NoMemory)?;
    let mut references = Vec::new();
    match how {
        How::Shown => machine.with(|regime, cx| regime.record(cx, &request, &mut references)),
        How::Cached { geometry, earlier, probe } => machine.cached(&request, geometry, earlier, probe),
    }
    Ok(Recorded { references, reached: frame.at(gva.as_u64()) })
}

/// Maps the page of the address in tables of the guest's; their root.
fn guest_tables<G>(of: &WalkOf, mem: &mut GuestMem<'_>) -> Option<Gfn>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
{
    let mut pool = pool(of.design);
    let tables = TableAttrs::USER.with(Attrs::ACCESSED);
    let mut mapper = Mapper::<G, _>::create(mem, &mut pool, tables)?;
    let data = pool.allocate(of.guest_page)?;
    let attrs = Attrs::RWX | Attrs::USER | Attrs::ACCESSED;
    mapper.map(of.address.align_down(of.guest_page), data, of.guest_page, attrs, &mut pool).ok()?;
    let root = mapper.root();
    walk::<G, _>(mem, root, of.address).frame_of(of.address).map(|_| root)
}
