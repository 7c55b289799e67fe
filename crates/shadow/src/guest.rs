//! The hypervisor's own walk of the guest's tables, after a fault.
//!
//! It reads guest memory through the memory map (tables outside memory read as absent), decides whether the guest itself
//! forbids the access, and if not sets the accessed and dirty bits that hardware would have set. A walk that ends in a guest
//! fault sets nothing. Source: KVM's `paging_tmpl.h` (`walk_addr_generic`, `update_accessed_dirty_bits`).

use memvirt_addr::{Acc, Gfn, Gva, PageSize, PfCode};
use memvirt_pagetable::{Attrs, Format, Guest4, Path, TableMem, Walked, walk};
use memvirt_platform::{Cx, Work};

/// Where the guest's tables lead.
#[derive(Debug)]
pub(crate) struct GuestPage {
    /// Every entry on the way.
    pub(crate) path: Path<Guest4>,
    /// The frame that the address lies in.
    pub(crate) gfn: Gfn,
    /// The size of the guest's page.
    pub(crate) size: PageSize,
    /// The leaf's own attributes.
    pub(crate) attrs: Attrs,
}

impl GuestPage {
    /// What all entries of the walk permit together; the guest's "clean" rule is not in it.
    pub(crate) const fn perms(&self) -> Attrs {
        self.path.perms
    }

    /// Whether the walk reads a table in `gfn`. To unshadow it would not help: it is needed to translate the access itself.
    pub(crate) fn leads_through(&self, gfn: Gfn) -> bool {
        self.path.steps().any(|step| step.entry_at.frame() == gfn)
    }

    /// Sets A on all levels, and D in the leaf for a store.
    pub(crate) fn mark_used(&mut self, cx: &mut Cx<'_>, acc: Acc) {
        let mut guest = cx.guest();
        for step in self.path.steps() {
            let leaf = matches!(step.entry, memvirt_pagetable::Entry::Leaf { .. });
            let dirty = if leaf && acc.is_write() { Guest4::RAW_DIRTY } else { 0 };
            let bits = Guest4::RAW_ACCESSED | dirty;
            if step.raw & bits != bits {
                guest.write_entry(step.entry_at, step.raw | bits);
            }
        }
        self.attrs |= Attrs::ACCESSED;
        if acc.is_write() {
            self.attrs |= Attrs::DIRTY;
        }
    }
}

/// Walks the guest's tables under the current CR3.
pub(crate) fn read_path(cx: &mut Cx<'_>, gva: Gva, work: &mut Work) -> Path<Guest4> {
    let root = cx.regs().cr3.root.frame();
    let path = walk::<Guest4, _>(&cx.guest(), root, gva);
    work.guest_entries_read += u64::from(path.refs());
    path
}

/// What the guest's tables say about an access: a page, or the fault that the guest must see.
pub(crate) fn translate(cx: &Cx<'_>, path: &Path<Guest4>, acc: Acc) -> Result<GuestPage, PfCode> {
    match (path.end, path.leaf(), path.frame_of(acc.gva())) {
        (Walked::Mapped { size, .. }, Some(leaf), Some(gfn)) if cx.regs().permits(path.perms, acc) => {
            Ok(GuestPage { path: *path, gfn, size, attrs: leaf.entry.attrs() })
        }
        (Walked::Reserved(_), ..) => Err(PfCode::of(acc, true).with_reserved()),
        (Walked::Absent(_), ..) => Err(PfCode::of(acc, false)),
        _ => Err(PfCode::of(acc, true)),
    }
}
