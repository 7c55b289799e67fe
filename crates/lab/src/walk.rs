//! One cold page walk, reference by reference: real tables are built in simulated memory, and the walkers of
//! `memvirt-pagetable` and `memvirt-nested` read them.
//!
//! With `g` guest levels and `h` nested ones, large pages counted, a walk in two dimensions makes (g+1)(h+1)-1 references
//! (Bhargava et al., ASPLOS 2008). Nothing here uses that formula: what is reported is what was read.

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind, Addr, Frame, Gpa, GuestPhys, GuestVirt, Gva, Hfn, HostPhys, Hpa, Level, PageSize};
use memvirt_nested::{AdBits, Dimension, End, Reference, SecondStage, Walker};
use memvirt_ops::arch::Cr3;
use memvirt_pagetable::{
    Attrs, Entry, Ept, Format, FrameAllocator, FramePool, LongMode, Mapper, PhysMem, TableAttrs, TableMem, walk,
};
use memvirt_platform::Regs;
use serde::Serialize;

use crate::error::LabError;

/// How many levels tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// Four.
    Four,
    /// Five.
    Five,
}

impl Levels {
    const fn number(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }
}

/// The format of nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFormat {
    /// Intel EPT.
    Ept,
    /// AMD NPT.
    Npt,
}

/// What the hardware walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// The tables of an operating system without a hypervisor.
    Native(Levels),
    /// Shadow tables; a page is as large as the smaller of the guest's and the host's.
    Shadow(Levels),
    /// The guest's tables and the nested ones.
    Nested {
        /// The guest's levels; `None` where it does not page.
        guest: Option<Levels>,
        /// The levels of the nested tables.
        host: Levels,
        /// Their format.
        format: NestedFormat,
    },
}

/// A walk to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkSpec {
    /// The tables.
    pub tables: Tables,
    /// The guest's page.
    pub guest_page: PageSize,
    /// The host's page; without a second dimension it matters to shadow tables only.
    pub host_page: PageSize,
    /// The address to walk for; where `None`, one with another index at every level.
    pub address: Option<u64>,
}

/// One memory reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalkReference {
    /// Its number, from 1.
    pub step: usize,
    /// `guest`, `shadow` or `nested`: whose table was read.
    pub dimension: &'static str,
    /// What the reference is for: the entry itself, or the guest entry or data whose address is being translated.
    pub serves: String,
    /// The level of the entry; 1 is the lowest.
    pub level: u8,
    /// The name of the table.
    pub table: &'static str,
    /// The index of the entry in its table.
    pub index: usize,
    /// The guest-physical address of a guest entry, or the one that a nested entry helps to translate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_physical: Option<String>,
    /// Where the entry lies in the machine's memory.
    pub address: String,
    /// Its raw bits.
    pub entry: String,
    /// What it says.
    pub says: String,
}

/// A walk that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColdWalk {
    /// `memvirt/walk/1`.
    pub schema: &'static str,
    /// `native`, `shadow` or `nested`.
    pub regime: &'static str,
    /// Levels of the guest's (or shadow) tables.
    pub guest_levels: u8,
    /// Levels of the nested tables; 0 without.
    pub host_levels: u8,
    /// The guest's page.
    pub guest_page: &'static str,
    /// The host's page.
    pub host_page: &'static str,
    /// The address that was walked for.
    pub guest_virtual: String,
    /// Where it lies in the machine's memory.
    pub host_physical: String,
    /// References made.
    pub total: usize,
    /// The references in order.
    pub references: Vec<WalkReference>,
}

/// Builds the tables and walks them.
///
/// # Errors
///
/// [`LabError::Walk`] for an address that the tables cannot translate.
pub fn cold_walk(spec: &WalkSpec) -> Result<ColdWalk, LabError> {
    use Levels::{Five, Four};
    use NestedFormat::{Ept as Intel, Npt as Amd};
    match spec.tables {
        Tables::Native(Four) => one_dimension::<LongMode<4>>(spec, "native", spec.guest_page),
        Tables::Native(Five) => one_dimension::<LongMode<5>>(spec, "native", spec.guest_page),
        Tables::Shadow(Four) => {
            one_dimension::<LongMode<4, GuestVirt, HostPhys>>(spec, "shadow", spec.guest_page.min(spec.host_page))
        }
        Tables::Shadow(Five) => {
            one_dimension::<LongMode<5, GuestVirt, HostPhys>>(spec, "shadow", spec.guest_page.min(spec.host_page))
        }
        Tables::Nested { guest, host: Four, format: Intel } => nested::<Ept<4>>(spec, guest, Four),
        Tables::Nested { guest, host: Five, format: Intel } => nested::<Ept<5>>(spec, guest, Five),
        Tables::Nested { guest, host: Four, format: Amd } => {
            nested::<LongMode<4, GuestPhys, HostPhys>>(spec, guest, Four)
        }
        Tables::Nested { guest, host: Five, format: Amd } => {
            nested::<LongMode<5, GuestPhys, HostPhys>>(spec, guest, Five)
        }
    }
}

/// Where guest memory begins to be handed out, and host memory: far apart, so that addresses tell where they belong.
const GUEST_POOL: u64 = (16 << 20) >> 12;
const HOST_POOL: u64 = (8 << 30) >> 12;
/// Room for three pages of 1 GiB and their alignment.
const FRAMES: u64 = (6 << 30) >> 12;
const USER_PAGE: Attrs = Attrs::RWX.union(Attrs::USER);

fn no_room<E: std::fmt::Display>(error: E) -> LabError {
    LabError::Walk(format!("cannot build the tables: {error}"))
}

/// The address to walk for: canonical in the format, with an offset within the page.
fn address<F: Format<In = GuestVirt>>(spec: &WalkSpec) -> Result<Gva, LabError> {
    let usual = if F::ROOT == Level::L5 { 0x00aa_7f12_3456_7abc } else { 0x0000_7f12_3456_7abc };
    let raw = spec.address.unwrap_or(usual);
    Gva::try_new(raw).ok().filter(|gva| F::covers(*gva)).ok_or_else(|| {
        let levels = F::ROOT.number();
        LabError::Walk(format!(
            "address {raw:#x} is not canonical with {levels} levels; bits above {} must repeat bit {}",
            9 * levels + 11,
            9 * levels + 11
        ))
    })
}

fn one_dimension<F: Format<In = GuestVirt>>(
    spec: &WalkSpec,
    regime: &'static str,
    page: PageSize,
) -> Result<ColdWalk, LabError> {
    let gva = address::<F>(spec)?;
    let mut mem = PhysMem::<F::Out>::new(HOST_POOL + FRAMES);
    let mut pool = FramePool::new(Frame::<F::Out>::new(HOST_POOL), FRAMES);
    let mut mapper =
        Mapper::<F, _>::create(&mut mem, &mut pool, TableAttrs::USER).ok_or_else(|| no_room("no frame is left"))?;
    let root = mapper.root();
    let frame = pool.allocate(page).ok_or_else(|| no_room("no page is left"))?;
    mapper.map(gva.align_down(page), frame, page, USER_PAGE, &mut pool).map_err(no_room)?;
    let path = walk::<F, _>(&mem, root, gva);
    let dimension = if regime == "shadow" { "shadow" } else { "guest" };
    let references = path
        .steps()
        .enumerate()
        .map(|(i, step)| WalkReference {
            step: i + 1,
            dimension,
            serves: entry_name(step.level).to_owned(),
            level: step.level.number(),
            table: table_name(step.level),
            index: F::index(gva, step.level),
            guest_physical: None,
            address: hex(step.entry_at),
            entry: raw(step.raw),
            says: says(&step.entry),
        })
        .collect();
    let at = path.frame_of(gva).map(|frame| frame.at(gva.as_u64()));
    Ok(made(spec, regime, (F::ROOT.number(), 0), hex(gva), at.map(hex), references))
}

fn made(
    spec: &WalkSpec,
    regime: &'static str,
    (guest_levels, host_levels): (u8, u8),
    guest_virtual: String,
    host_physical: Option<String>,
    references: Vec<WalkReference>,
) -> ColdWalk {
    ColdWalk {
        schema: "memvirt/walk/1",
        regime,
        guest_levels,
        host_levels,
        guest_page: spec.guest_page.name(),
        host_page: spec.host_page.name(),
        guest_virtual,
        host_physical: host_physical.unwrap_or_default(),
        total: references.len(),
        references,
    }
}

/// The host: its memory, its allocator, and the host page behind each page of guest memory in use.
struct Host {
    mem: PhysMem<HostPhys>,
    pool: FramePool<HostPhys>,
    pages: BTreeMap<u64, Hfn>,
    size: PageSize,
}

impl Host {
    fn new(size: PageSize) -> Self {
        let pool = FramePool::new(Hfn::new(HOST_POOL), FRAMES);
        Self { mem: PhysMem::new(HOST_POOL + FRAMES), pool, pages: BTreeMap::new(), size }
    }

    /// Where a guest-physical address lies, where a host page backs it.
    fn at(&self, gpa: Gpa) -> Option<Hpa> {
        let frame = self.pages.get(&gpa.align_down(self.size).as_u64())?;
        Some(frame.base().wrapping_add(gpa.page_offset(self.size)))
    }

    /// Puts a host page behind a guest-physical address.
    fn back(&mut self, gpa: Gpa) {
        let page = gpa.align_down(self.size).as_u64();
        if !self.pages.contains_key(&page)
            && let Some(frame) = self.pool.allocate(self.size)
        {
            self.pages.insert(page, frame);
        }
    }

    /// Maps every page that is backed in nested tables of format `H`; their root.
    fn nested_tables<H: SecondStage>(&mut self) -> Result<Hfn, LabError> {
        let Self { mem, pool, pages, size } = self;
        let mut mapper =
            Mapper::<H, _>::create(mem, pool, TableAttrs::new(H::TABLE)).ok_or_else(|| no_room("no frame is left"))?;
        let root = mapper.root();
        for (page, frame) in &*pages {
            mapper.map(Gpa::new_truncate(*page), *frame, *size, H::LEAF, pool).map_err(no_room)?;
        }
        Ok(root)
    }
}

/// The guest's memory, seen by the guest: each store lands in the host page behind it.
impl TableMem<GuestPhys> for Host {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.at(at).map_or(0, |hpa| self.mem.read(hpa))
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        self.back(at);
        if let Some(hpa) = self.at(at) {
            self.mem.write(hpa, value);
        }
    }
}

fn nested<H: SecondStage>(spec: &WalkSpec, guest: Option<Levels>, host: Levels) -> Result<ColdWalk, LabError> {
    match guest {
        Some(Levels::Four) => two_dimensions::<LongMode<4>, H>(spec, host),
        Some(Levels::Five) => two_dimensions::<LongMode<5>, H>(spec, host),
        None => nested_alone::<H>(spec, host),
    }
}

fn two_dimensions<G, H>(spec: &WalkSpec, levels: Levels) -> Result<ColdWalk, LabError>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    let gva = address::<G>(spec)?;
    let mut host = Host::new(spec.host_page);
    let mut guest_pool = FramePool::new(memvirt_addr::Gfn::new(GUEST_POOL), FRAMES);
    let mut mapper = Mapper::<G, _>::create(&mut host, &mut guest_pool, TableAttrs::USER)
        .ok_or_else(|| no_room("no guest frame is left"))?;
    let guest_root = mapper.root();
    let data = guest_pool.allocate(spec.guest_page).ok_or_else(|| no_room("no guest page is left"))?;
    mapper.map(gva.align_down(spec.guest_page), data, spec.guest_page, USER_PAGE, &mut guest_pool).map_err(no_room)?;
    host.back(data.base().wrapping_add(gva.page_offset(spec.guest_page)));
    let nested_root = host.nested_tables::<H>()?;

    let mut seen: Vec<Reference> = Vec::new();
    let regs = Regs::kernel(Cr3::flushing(guest_root.base()));
    let end = Walker::<G, H, _>::new(&mut host.mem, nested_root, AdBits::On, &mut seen)
        .walk(&regs, Acc::user(gva, AccessKind::Read));
    let End::Mapped(mapped) = end else {
        return Err(LabError::Walk(format!("the walk ended in {end:?}")));
    };
    let references = seen.iter().enumerate().map(|(i, reference)| row::<G, H>(i + 1, reference, gva)).collect();
    let at = hex(mapped.frame.at(gva.as_u64()));
    Ok(made(spec, "nested", (G::ROOT.number(), levels.number()), hex(gva), Some(at), references))
}

fn row<G, H>(step: usize, reference: &Reference, gva: Gva) -> WalkReference
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    let Reference { dimension, guest_level, level, entry_at, gpa, raw: bits } = *reference;
    let serves = guest_level.map_or("data".to_owned(), |level| format!("guest {}", entry_name(level)));
    let (dimension, index, says) = match dimension {
        Dimension::Guest => ("guest", G::index(gva, level), says(&G::decode(bits, level))),
        Dimension::Shadow => ("shadow", G::index(gva, level), says(&G::decode(bits, level))),
        Dimension::Host => ("nested", H::index(gpa, level), says(&H::decode(bits, level))),
    };
    WalkReference {
        step,
        dimension,
        serves,
        level: level.number(),
        table: table_name(level),
        index,
        guest_physical: Some(hex(gpa)),
        address: hex(entry_at),
        entry: raw(bits),
        says,
    }
}

/// A guest that does not page: its addresses are guest-physical.
fn nested_alone<H: SecondStage>(spec: &WalkSpec, levels: Levels) -> Result<ColdWalk, LabError> {
    let address = spec.address.unwrap_or(0x3456_7abc);
    let gpa = Gpa::try_new(address).ok().filter(|gpa| H::covers(*gpa)).ok_or_else(|| {
        LabError::Walk(format!("address {address:#x} is too wide for {} nested levels", levels.number()))
    })?;
    let mut host = Host::new(spec.host_page);
    host.back(gpa);
    let root = host.nested_tables::<H>()?;
    let path = walk::<H, _>(&host.mem, root, gpa);
    let references = path
        .steps()
        .enumerate()
        .map(|(i, step)| WalkReference {
            step: i + 1,
            dimension: "nested",
            serves: "data".to_owned(),
            level: step.level.number(),
            table: table_name(step.level),
            index: H::index(gpa, step.level),
            guest_physical: Some(hex(gpa)),
            address: hex(step.entry_at),
            entry: raw(step.raw),
            says: says(&step.entry),
        })
        .collect();
    let at = path.frame_of(gpa).map(|frame| hex(frame.at(gpa.as_u64())));
    Ok(made(spec, "nested", (0, levels.number()), hex(gpa), at, references))
}

const fn table_name(level: Level) -> &'static str {
    match level {
        Level::L5 => "PML5",
        Level::L4 => "PML4",
        Level::L3 => "PDPT",
        Level::L2 => "PD",
        Level::L1 => "PT",
    }
}

const fn entry_name(level: Level) -> &'static str {
    match level {
        Level::L5 => "PML5E",
        Level::L4 => "PML4E",
        Level::L3 => "PDPTE",
        Level::L2 => "PDE",
        Level::L1 => "PTE",
    }
}

fn hex<S: memvirt_addr::Space>(at: Addr<S>) -> String {
    format!("{:#x}", at.as_u64())
}

fn raw(bits: u64) -> String {
    format!("{bits:#018x}")
}

fn says<S: memvirt_addr::Space>(entry: &Entry<S>) -> String {
    match entry {
        Entry::Table { next, .. } => format!("table at {}", hex(next.base())),
        Entry::Leaf { frame, size, .. } => format!("{size} page at {}", hex(frame.base())),
        Entry::Absent => "nothing".to_owned(),
        Entry::Reserved => "reserved bits".to_owned(),
    }
}

#[cfg(test)]
mod tests;
