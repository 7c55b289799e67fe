//! Syncing: comparing the entries of an unsync page with the guest's table again.
//!
//! Entries without a shadow entry are left alone; a changed frame drops the shadow entry, changed permissions replace it.
//! Linux 6.1 rewrites every entry, and so forgets its accessed and dirty bits, which costs a flush; Linux 6.12 leaves an
//! entry whose permissions are what they were. Source: spec A8; `sync_page` (6.1), `sync_spte` (6.12), `mmu_sync_children`,
//! `kvm_mmu_sync_roots` in `arch/x86/kvm/mmu`.

use memvirt_addr::{Gfn, Level};
use memvirt_pagetable::{Entry, Format, Guest4};
use memvirt_platform::Cx;

use super::Kvm;
use super::config::Kernel;
use super::gpte::Gpte;
use super::lists::SpteRef;
use super::page::PageId;
use super::spte::{Mmio, Spte};
use super::unsync::Visited;
use super::zap::Zapped;

/// A page of another paging mode cannot be compared with the guest's table: it has to be zapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrongMode;

impl Kvm {
    /// The guest's entry that an entry of a level-1 page shadows.
    pub(crate) fn guest_entry(&mut self, cx: &mut Cx<'_>, at: SpteRef) -> Gpte {
        self.work.guest_entries_read += 1;
        Gpte(cx.guest().read(Gfn::new(self.pages[at.page()].gfn).entry(at.index())))
    }

    /// Whether an entry may not be shadowed without a fault: absent, not accessed, or with reserved bits. What was shadowed
    /// of it goes. (`prefetch_invalid_gpte`)
    pub(crate) fn drop_unless_shadowable(&mut self, cx: &mut Cx<'_>, at: SpteRef, gpte: Gpte) -> bool {
        let good = gpte.is_accessed() && matches!(Guest4::decode(gpte.0, Level::L1), Entry::Leaf { .. });
        if !good {
            self.drop_leaf(cx, at);
        }
        good
    }

    /// Syncs one non-zero entry; returns whether a flush is due.
    pub(crate) fn sync_entry(&mut self, cx: &mut Cx<'_>, at: SpteRef) -> bool {
        self.work.entries_synced += 1;
        let gpte = self.guest_entry(cx, at);
        if !self.drop_unless_shadowable(cx, at, gpte) {
            return true;
        }
        let (gfn, page) = (gpte.gfn(1), &self.pages[at.page()]);
        let access = page.role.access().and(gpte.access());
        let access = gpte.protect_clean(access);
        let old = self.spte(cx, at);
        if let Some(mmio) = old.as_mmio() {
            let new = Mmio { gfn, access, generation: self.mmio_generation };
            self.store_spte(cx, at, if mmio.gfn == gfn { Spte::mmio(new) } else { Spte::ABSENT });
            return false;
        }
        if gfn != page.gfn_of(at.index()) {
            self.drop_leaf(cx, at);
            return true;
        }
        if self.config.kernel == Kernel::V6_12 && page.access_of(at.index()) == access {
            return false;
        }
        self.pages[at.page()].set_translation(at.index(), gfn, access);
        self.remake_leaf(cx, at, gfn, access)
    }

    /// Syncs the contents of a page; returns whether a flush is due.
    pub(crate) fn sync_page(&mut self, cx: &mut Cx<'_>, id: PageId) -> Result<bool, WrongMode> {
        if self.pages[id].role.is_direct() || !self.pages[id].role.same_mode(self.vcpu(cx).role) {
            return Err(WrongMode);
        }
        let mut flush = false;
        for index in self.pages.occupied(&cx.host.mem, id) {
            flush |= self.sync_entry(cx, SpteRef::new(id, index));
        }
        Ok(flush)
    }

    /// Syncs every unsync page below `top`, in batches: first all tables of a batch are write-protected, then compared.
    pub(crate) fn sync_children(&mut self, cx: &mut Cx<'_>, top: PageId) {
        let (mut zapped, mut flush) = (Zapped::new(), false);
        while let Some(batch) = self.collect_unsync(cx, top) {
            let mut protected = false;
            self.for_each_unsync(&batch, |kvm, page, _| {
                protected |= kvm.write_protect_gfn(cx, kvm.pages[page].gfn);
                Visited::Seen
            });
            if protected {
                self.free_zapped_or_flush(cx, &mut zapped, true);
                flush = false;
            }
            self.for_each_unsync(&batch, |kvm, page, _| {
                kvm.clear_unsync(page);
                match kvm.sync_page(cx, page) {
                    Ok(changed) => flush |= changed,
                    Err(WrongMode) => drop(kvm.zap_page(cx, page, &mut zapped)),
                }
                Visited::Done
            });
        }
        self.free_zapped_or_flush(cx, &mut zapped, flush);
    }

    /// Syncs everything that the current root reaches. (`kvm_mmu_sync_roots`)
    pub(crate) fn sync_root(&mut self, cx: &mut Cx<'_>) {
        let root = self.vcpu(cx).root;
        if !root.is_valid() {
            return;
        }
        self.vcpu_mut(cx).mmio = None;
        if self.has_unsync(root.page) {
            self.locked = true;
            self.sync_children(cx, root.page);
        }
    }

    /// Whether a root is marked as reaching unsync pages.
    pub(crate) fn has_unsync(&self, root: PageId) -> bool {
        self.pages[root].unsync || self.pages[root].unsync_children > 0
    }
}
