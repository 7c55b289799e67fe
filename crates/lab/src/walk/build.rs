//! The tables that are walked, built in simulated memory.

use std::collections::BTreeMap;
use std::fmt::Display;

use memvirt_addr::{Gpa, GuestPhys, GuestVirt, Gva, Hfn, HostPhys, Hpa, PageSize};
use memvirt_nested::SecondStage;
use memvirt_pagetable::{Attrs, Format, FrameAllocator, FramePool, Mapper, PhysMem, TableAttrs, TableMem};

use super::WalkSpec;
use crate::error::LabError;

/// Where guest memory begins to be handed out, and host memory: far apart, so that addresses tell where they belong.
pub(super) const GUEST_POOL: u64 = (16 << 20) >> 12;
/// See [`GUEST_POOL`].
pub(super) const HOST_POOL: u64 = (8 << 30) >> 12;
/// Room for three pages of 1 GiB and their alignment.
pub(super) const FRAMES: u64 = (6 << 30) >> 12;
/// What a user's page permits.
pub(super) const USER_PAGE: Attrs = Attrs::RWX.union(Attrs::USER);

/// The tables cannot be built.
pub(super) fn no_room<E: Display>(error: E) -> LabError {
    LabError::Walk(format!("cannot build the tables: {error}"))
}

/// The address to walk for: canonical in the format, with an offset within the page.
pub(super) fn address<F: Format<In = GuestVirt>>(spec: &WalkSpec) -> Result<Gva, LabError> {
    let usual = match F::ROOT.number() {
        5 => 0x00aa_7f12_3456_7abc,
        4 => 0x0000_7f12_3456_7abc,
        _ => 0x9f52_3abc,
    };
    let raw = spec.address.unwrap_or(usual);
    Gva::try_new(raw).ok().filter(|gva| F::covers(*gva)).ok_or_else(|| {
        let levels = F::ROOT.number();
        LabError::Walk(match levels {
            3 => format!("address {raw:#x} is wider than the 32 bits of PAE; give at most 0xffffffff"),
            _ => format!(
                "address {raw:#x} is not canonical with {levels} levels; bits above {} must repeat bit {}",
                9 * levels + 11,
                9 * levels + 11
            ),
        })
    })
}

/// A format has no leaves of this size.
pub(super) fn check_page<F: Format>(page: PageSize, whose: &str) -> Result<(), LabError> {
    if F::has_leaves(page.level()) {
        return Ok(());
    }
    let accepted: Vec<_> = PageSize::ALL.into_iter().filter(|size| F::has_leaves(size.level())).collect();
    let accepted = accepted.iter().map(|size| size.name()).collect::<Vec<_>>().join(" or ");
    Err(LabError::Walk(format!("{} has no pages of {page}; give --{whose}-page {accepted}", F::NAME)))
}

/// The host: its memory, its allocator, and the host page behind each page of guest memory in use.
pub(super) struct Host {
    pub(super) mem: PhysMem<HostPhys>,
    pool: FramePool<HostPhys>,
    pages: BTreeMap<u64, Hfn>,
    size: PageSize,
}

impl Host {
    pub(super) fn new(size: PageSize) -> Self {
        let pool = FramePool::new(Hfn::new(HOST_POOL), FRAMES);
        Self { mem: PhysMem::new(HOST_POOL + FRAMES), pool, pages: BTreeMap::new(), size }
    }

    /// Where a guest-physical address lies, where a host page backs it.
    fn at(&self, gpa: Gpa) -> Option<Hpa> {
        let frame = self.pages.get(&gpa.align_down(self.size).as_u64())?;
        Some(frame.base().wrapping_add(gpa.page_offset(self.size)))
    }

    /// Puts a host page behind a guest-physical address.
    pub(super) fn back(&mut self, gpa: Gpa) {
        let page = gpa.align_down(self.size).as_u64();
        if !self.pages.contains_key(&page)
            && let Some(frame) = self.pool.allocate(self.size)
        {
            self.pages.insert(page, frame);
        }
    }

    /// Maps every page that is backed in nested tables of format `H`; their root.
    pub(super) fn nested_tables<H: SecondStage>(&mut self) -> Result<Hfn, LabError> {
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
