//! Zapping shadow pages.
//!
//! A zapped page loses its entries and its parents at once and is freed after a flush. Unsync pages below it go with it;
//! other children are only unlinked. A page that some vCPU still holds as a root becomes invalid and is freed when the last
//! vCPU lets go of it, which counts as a second zap. Source: spec A9; `__kvm_mmu_prepare_zap_page`,
//! `kvm_mmu_commit_zap_page` in `arch/x86/kvm/mmu/mmu.c`.

use memvirt_addr::PageSize;
use memvirt_platform::Cx;

use super::Kvm;
use super::lists::SpteRef;
use super::page::PageId;
use super::unsync::Visited;
use super::vcpu::Requests;

/// Pages zapped and not yet freed.
#[derive(Debug, Default)]
pub(crate) struct Zapped(Vec<PageId>);

impl Zapped {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a zap took along.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZapCount {
    /// Pages now waiting to be freed, the page itself included where nobody holds it.
    pub(crate) pages: u64,
    /// Whether pages below went, so that the list of pages has changed under whoever walks it.
    pub(crate) children: bool,
}

impl Kvm {
    /// Whether a page may no longer be found or used.
    pub(crate) fn is_obsolete(&self, id: PageId) -> bool {
        self.pages[id].role.is_invalid() || self.pages[id].generation != self.generation
    }

    /// Whether the page is a usable shadow of the guest table in `gfn`.
    pub(crate) fn is_table_page(&self, id: PageId, gfn: u64) -> bool {
        self.pages[id].gfn == gfn && self.pages[id].has_gptes() && !self.is_obsolete(id)
    }

    /// Zaps a page. [`Kvm::free_zapped`] has to follow.
    pub(crate) fn zap_page(&mut self, cx: &mut Cx<'_>, id: PageId, zapped: &mut Zapped) -> ZapCount {
        self.stats.mmu_shadow_zapped += 1;
        let children = self.zap_unsync_children(cx, id, zapped);
        self.unlink_children(cx, id);
        while let Some(parent) = self.links.first(self.pages[id].parents) {
            self.drop_link(cx, parent, id);
        }
        let was_invalid = self.pages[id].role.is_invalid();
        if !was_invalid && self.pages[id].has_gptes() {
            self.unaccount_table(id);
        }
        if self.pages[id].unsync {
            self.clear_unsync(id);
        }
        self.pages.unlist(id);
        let held = self.pages[id].root_count > 0;
        if held {
            if !self.is_obsolete(id) {
                self.request_all(cx, Requests::FREE_OBSOLETE_ROOTS);
            }
        } else {
            zapped.0.push(id);
            self.pages.used -= 1;
        }
        let page = &mut self.pages[id];
        page.role = page.role.invalidated();
        ZapCount { pages: children + u64::from(!held), children: children > 0 }
    }

    fn zap_unsync_children(&mut self, cx: &mut Cx<'_>, id: PageId, zapped: &mut Zapped) -> u64 {
        let mut count = 0;
        while let Some(batch) = self.collect_unsync(cx, id) {
            self.for_each_unsync(&batch, |kvm, page, _| {
                kvm.zap_page(cx, page, zapped);
                count += 1;
                Visited::Done
            });
        }
        count
    }

    fn unlink_children(&mut self, cx: &mut Cx<'_>, id: PageId) {
        for index in self.pages.occupied(&cx.host.mem, id) {
            self.zap_entry(cx, SpteRef::new(id, index));
        }
    }

    /// Frees what was zapped, after a flush; returns whether there was anything. (`kvm_mmu_commit_zap_page`)
    pub(crate) fn free_zapped(&mut self, cx: &mut Cx<'_>, zapped: &mut Zapped) -> bool {
        if zapped.is_empty() {
            return false;
        }
        self.flush_remote(cx);
        for id in zapped.0.drain(..) {
            self.work.tables_freed += 1;
            let table = self.pages.remove(id);
            cx.host.free(table, PageSize::Size4K);
        }
        true
    }

    /// Frees what was zapped or, where nothing was, flushes if that is due. (`kvm_mmu_remote_flush_or_zap`)
    pub(crate) fn free_zapped_or_flush(&mut self, cx: &mut Cx<'_>, zapped: &mut Zapped, flush: bool) {
        if !self.free_zapped(cx, zapped) {
            self.flush_if(cx, flush);
        }
    }
}
