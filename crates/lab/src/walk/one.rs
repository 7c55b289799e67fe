//! Walks in one dimension: of an operating system's tables, of shadow tables.

use memvirt_addr::{Addr, Frame, Gpa, GuestVirt, Gva, Hpa, Level, PageSize};
use memvirt_nested::{CacheHit, Dimension, Probe, Reference, Update};
use memvirt_pagetable::{
    Attrs, Entry, Ept, Format, FrameAllocator, FramePool, Mapper, PhysMem, TableAttrs, TableMem, Walk,
};
use memvirt_platform::{Caches, Mmu, Partial};
use memvirt_tlb::Tag;

use super::build::{FRAMES, HOST_POOL, USER_PAGE, address, check_page, no_room};
use super::record::{Formats, Log, RecordedWalk, hex};
use super::{CacheState, PDPTES, WalkSpec, is_pae, made};
use crate::error::LabError;

/// Builds tables of format `F` in a machine's memory and walks them.
pub(super) fn one_dimension<F: Format<In = GuestVirt>>(
    spec: &WalkSpec,
    dimension: Dimension,
    page: PageSize,
) -> Result<RecordedWalk, LabError> {
    check_page::<F>(page, "guest")?;
    let gva = address::<F>(spec)?;
    let mut mem = PhysMem::<F::Out>::new(HOST_POOL + FRAMES);
    let mut pool = FramePool::new(Frame::<F::Out>::new(HOST_POOL), FRAMES);
    let mut mapper =
        Mapper::<F, _>::create(&mut mem, &mut pool, TableAttrs::USER).ok_or_else(|| no_room("no frame is left"))?;
    let root = mapper.root();
    let frame = pool.allocate(page).ok_or_else(|| no_room("no page is left"))?;
    mapper.map(gva.align_down(page), frame, page, USER_PAGE, &mut pool).map_err(no_room)?;

    let (start, at_cr3_load) = start::<F>(&mem, root, gva)?;
    let mut hardware = Hardware::<F> { mem: &mut mem, dimension, log: Log::default() };
    let at = match spec.caches {
        CacheState::Off => hardware.walk(gva, start, ()),
        CacheState::Cold(geometry) => hardware.walk(gva, start, Mmu::new(&geometry).walk(Tag::default(), 0).0),
        CacheState::Warm(geometry) => {
            let mut mmu = Mmu::new(&geometry);
            hardware.walk(gva, start, mmu.walk(Tag::default(), 0).0);
            hardware.log = Log::default();
            hardware.walk(gva, start, mmu.walk(Tag::default(), 0).0)
        }
    };
    let at = at.ok_or_else(|| LabError::Walk("the walk ended without a page".to_owned()))?;
    let rows = Formats::<F, Ept<4>>::rows(&hardware.log, gva);
    let regime = if dimension == Dimension::Shadow { "shadow" } else { "native" };
    let levels = start.0.number();
    Ok(made(spec, regime, (levels, 0), (hex(gva), hex(at)), &hardware.log, rows, at_cr3_load))
}

/// A table to start from.
type Start<S> = (Level, Partial<S>);

/// Where walks start, and how many entries the load of CR3 has read for that. PAE: the four PDPTEs are registers (SDM volume 3,
/// section 4.4.1; AMD alike outside of virtual machines), so walks start one level lower.
fn start<F: Format<In = GuestVirt>>(
    mem: &PhysMem<F::Out>,
    root: Frame<F::Out>,
    gva: Gva,
) -> Result<(Start<F::Out>, usize), LabError> {
    let perms = Attrs::PERMISSIONS;
    if !is_pae::<F>() {
        return Ok(((F::ROOT, Partial { table: root, perms }), 0));
    }
    match Walk::<F, _>::step(mem, root, F::ROOT, gva).entry {
        Entry::Table { next, .. } => Ok(((Level::L2, Partial { table: next, perms }), PDPTES)),
        _ => Err(no_room("the PDPTE names no page directory")),
    }
}

/// The hardware that walks, with or without caches.
struct Hardware<'m, F: Format> {
    mem: &'m mut PhysMem<F::Out>,
    dimension: Dimension,
    log: Log,
}

impl<F: Format<In = GuestVirt>> Hardware<'_, F> {
    /// Walks, sets accessed bits as it goes; where `gva` lies.
    fn walk(&mut self, gva: Gva, start: Start<F::Out>, mut caches: impl Caches) -> Option<Addr<F::Out>> {
        let (mut level, Partial { mut table, mut perms }) = start;
        if let Some((at, entry)) = caches.guest::<F::Out>(gva) {
            self.log.cached(CacheHit::Walk(self.dimension, at));
            level = at.below()?;
            (table, perms) = (entry.table, entry.perms);
        }
        loop {
            match self.read(table, level, gva) {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    caches.keep_guest(gva, level, Partial { table: next, perms });
                    (table, level) = (next, level.below()?);
                }
                Entry::Leaf { frame, size, .. } => {
                    return Some(frame.align_down(size).base().wrapping_add(gva.page_offset(size)));
                }
                Entry::Absent | Entry::Reserved => return None,
            }
        }
    }

    fn read(&mut self, table: Frame<F::Out>, level: Level, gva: Gva) -> Entry<F::Out> {
        let step = Walk::<F, _>::step(&*self.mem, table, level, gva);
        // On the bare machine guest-physical addresses are the machine's.
        let entry_at = Hpa::new_truncate(step.entry_at.as_u64());
        let gpa = Gpa::new_truncate(step.entry_at.as_u64());
        let dimension = self.dimension;
        // There is nothing but the entry itself that a reference could serve.
        self.log.reference(&Reference { dimension, guest_level: None, level, entry_at, gpa, raw: step.raw });
        let set = F::accessed_bit(level) & !step.raw;
        if set != 0 {
            self.mem.write_entry(step.entry_at, step.raw | set);
            self.log.update(&Update { dimension, level, entry_at, set });
        }
        step.entry
    }
}
