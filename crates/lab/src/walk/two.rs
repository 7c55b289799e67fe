//! Walks in two dimensions: the guest's tables, each reference to them translated by the nested ones.

use memvirt_addr::{Acc, AccessKind, Gpa, GuestPhys, GuestVirt, Gva};
use memvirt_nested::{AdBits, End, SecondStage, Walker};
use memvirt_ops::arch::Cr3;
use memvirt_pagetable::{Format, FrameAllocator, FramePool, Guest4, LongMode, Mapper, Pae, TableAttrs};
use memvirt_platform::{Caches, Mmu, Regs};
use memvirt_tlb::Tag;

use super::build::{FRAMES, GUEST_POOL, Host, USER_PAGE, address, check_page, no_room};
use super::record::{Formats, Log, RecordedWalk, hex};
use super::spec::{CacheState, GuestPaging, NestedFormat, WalkSpec};
use super::{PDPTES, is_pae, made};
use crate::error::LabError;

pub(super) fn nested<H: SecondStage>(
    spec: &WalkSpec,
    guest: Option<GuestPaging>,
    format: NestedFormat,
) -> Result<RecordedWalk, LabError> {
    check_page::<H>(spec.host_page, "host")?;
    match guest {
        Some(GuestPaging::Four) => two_dimensions::<LongMode<4>, H>(spec, format),
        Some(GuestPaging::Five) => two_dimensions::<LongMode<5>, H>(spec, format),
        Some(GuestPaging::Pae) => two_dimensions::<Pae, H>(spec, format),
        None => unpaged::<H>(spec),
    }
}

/// Makes a walk as often as the caches ask for, and records the last.
fn recorded(
    caches: CacheState,
    mut walk: impl FnMut(&mut Log, Option<&mut Mmu>) -> Result<End, LabError>,
) -> Result<(Log, memvirt_nested::Mapped), LabError> {
    let (mut mmu, repeat) = match caches {
        CacheState::Off => (None, false),
        CacheState::Cold(geometry) => (Some(Mmu::new(&geometry)), false),
        CacheState::Warm(geometry) => (Some(Mmu::new(&geometry)), true),
    };
    if repeat {
        walk(&mut Log::default(), mmu.as_mut())?;
    }
    let mut log = Log::default();
    match walk(&mut log, mmu.as_mut())? {
        End::Mapped(mapped) => Ok((log, mapped)),
        end => Err(LabError::Walk(format!("the walk ended in {end:?}"))),
    }
}

fn two_dimensions<G, H>(spec: &WalkSpec, format: NestedFormat) -> Result<RecordedWalk, LabError>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    check_page::<G>(spec.guest_page, "guest")?;
    let gva = address::<G>(spec)?;
    let mut host = Host::new(spec.host_page);
    let mut guest_pool = FramePool::new(memvirt_addr::Gfn::new(GUEST_POOL), FRAMES);
    let mut mapper = Mapper::<G, _>::create(&mut host, &mut guest_pool, TableAttrs::USER)
        .ok_or_else(|| no_room("no guest frame is left"))?;
    let guest_root = mapper.root();
    let data = guest_pool.allocate(spec.guest_page).ok_or_else(|| no_room("no guest page is left"))?;
    mapper.map(gva.align_down(spec.guest_page), data, spec.guest_page, USER_PAGE, &mut guest_pool).map_err(no_room)?;
    host.back(data.base().wrapping_add(gva.page_offset(spec.guest_page)));
    let root = host.nested_tables::<H>()?;
    let regs = Regs::kernel(Cr3::flushing(guest_root.base()));

    let mut at_cr3_load = 0;
    let registers: Option<[u64; PDPTES]> = if is_pae::<G>() && format == NestedFormat::Ept {
        let mut load = Log::default();
        let loaded = Walker::<G, H, _>::new(&mut host.mem, root, AdBits::On, &mut load).load_registers(regs.cr3.root);
        at_cr3_load = load.references().count();
        Some(loaded.map_err(|end| LabError::Walk(format!("the load of CR3 ended in {end:?}")))?)
    } else {
        None
    };
    let acc = Acc::user(gva, AccessKind::Read);
    let (log, mapped) = recorded(spec.caches, |log, mmu| {
        let walker = Walker::<G, H, _>::new(&mut host.mem, root, AdBits::On, log);
        let entry = registers.map(|entries| entries[G::index(gva, G::ROOT)]);
        Ok(match mmu {
            None => make(walker, &regs, acc, entry),
            Some(mmu) => make(walker.with_caches(mmu.walk(Tag::default(), 0).0), &regs, acc, entry),
        })
    })?;
    let rows = Formats::<G, H>::rows(&log, gva);
    let guest_levels = G::ROOT.number() - u8::from(registers.is_some());
    let at = hex(mapped.frame.at(gva.as_u64()));
    Ok(made(spec, "nested", (guest_levels, H::ROOT.number()), (hex(gva), at), &log, rows, at_cr3_load))
}

/// One walk, from a register where there is one.
fn make<G, H, C>(mut walker: Walker<'_, G, H, Log, C>, regs: &Regs, acc: Acc, entry: Option<u64>) -> End
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
    C: Caches,
{
    match entry {
        Some(entry) => walker.walk_from_register(regs, acc, entry),
        None => walker.walk(regs, acc),
    }
}

/// A guest that does not page: its addresses are guest-physical.
fn unpaged<H: SecondStage>(spec: &WalkSpec) -> Result<RecordedWalk, LabError> {
    let address = spec.address.unwrap_or(0x3456_7abc);
    let gpa = Gpa::try_new(address).ok().filter(|gpa| H::covers(*gpa)).ok_or_else(|| {
        LabError::Walk(format!("address {address:#x} is too wide for {} nested levels", H::ROOT.number()))
    })?;
    let mut host = Host::new(spec.host_page);
    host.back(gpa);
    let root = host.nested_tables::<H>()?;
    let (log, mapped) = recorded(spec.caches, |log, mmu| {
        let walker = Walker::<Guest4, H, _>::new(&mut host.mem, root, AdBits::On, log);
        Ok(match mmu {
            None => { walker }.walk_unpaged(gpa, AccessKind::Read),
            Some(mmu) => walker.with_caches(mmu.walk(Tag::default(), 0).0).walk_unpaged(gpa, AccessKind::Read),
        })
    })?;
    let rows = Formats::<Guest4, H>::rows(&log, Gva::ZERO);
    let at = hex(mapped.frame.at(gpa.as_u64()));
    Ok(made(spec, "nested", (0, H::ROOT.number()), (hex(gpa), at), &log, rows, 0))
}
