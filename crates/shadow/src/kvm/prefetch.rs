//! Prefetching: when a leaf was set, its neighbours in the aligned group of eight are set too.
//!
//! Prefetched entries are not accessed, never make a table unsync, and stop at the first guest entry that would need a fault
//! of its own. Source: spec A4 (step 8); `pte_prefetch`, `prefetch_gpte`, `direct_pte_prefetch_many` in `arch/x86/kvm/mmu`.

use memvirt_addr::Gfn;
use memvirt_platform::Cx;

use super::Kvm;
use super::gpte::Gpte;
use super::leaf::{Maker, Target};
use super::lists::SpteRef;
use super::role::Access;

/// The size of a group (`PTE_PREFETCH_NUM`).
const GROUP: usize = 8;

impl Kvm {
    /// Prefetches around a leaf of level 1.
    pub(crate) fn prefetch_around(&mut self, cx: &mut Cx<'_>, leaf: SpteRef) {
        let page = &self.pages[leaf.page()];
        if page.level() > 1 {
            return;
        }
        if page.role.is_direct() {
            self.prefetch_direct(cx, leaf);
            return;
        }
        let first = leaf.index() & !(GROUP - 1);
        for index in first..first + GROUP {
            let at = SpteRef::new(leaf.page(), index);
            if index == leaf.index() || self.spte(cx, at).is_present() {
                continue;
            }
            let gpte = self.guest_entry(cx, at);
            if !self.prefetch_entry(cx, at, gpte, Logged::Skip) {
                return;
            }
        }
    }

    /// Sets one leaf from a guest entry if that needs nothing from the guest or the host; returns whether it was set.
    pub(crate) fn prefetch_entry(&mut self, cx: &mut Cx<'_>, at: SpteRef, gpte: Gpte, logged: Logged) -> bool {
        if !self.drop_unless_shadowable(cx, at, gpte) {
            return false;
        }
        let gfn = gpte.gfn(1);
        let access = gpte.protect_clean(self.pages[at.page()].role.access().and(gpte.access()));
        if self.refuses_prefetch(gfn, access, logged) {
            return false;
        }
        let Some(frame) = self.resident(cx, gfn) else { return false };
        self.set_leaf(cx, at, &Target { gfn, access, frame: Some(frame) }, Maker::Prefetch);
        true
    }

    fn refuses_prefetch(&self, gfn: u64, access: Access, logged: Logged) -> bool {
        let writable = access.has(Access::WRITE) && logged == Logged::Skip;
        !self.slot.contains(gfn) || writable && self.slot.is_logging()
    }

    /// The frame behind `gfn` if the host can give it, writable, without a fault.
    fn resident(&self, cx: &Cx<'_>, gfn: u64) -> Option<memvirt_addr::Hfn> {
        let backed = cx.map.lookup(Gfn::new(gfn))?;
        (!self.slot.is_zero_page(gfn)).then_some(backed.frame)
    }

    /// A direct page has no guest entries that could forbid anything: runs of absent entries are set, each as far as the
    /// host's pages are resident.
    fn prefetch_direct(&mut self, cx: &mut Cx<'_>, leaf: SpteRef) {
        let first = leaf.index() & !(GROUP - 1);
        let mut index = first;
        while index < first + GROUP {
            let end = self.absent_run(cx, leaf, index, first + GROUP);
            if end > index && !self.prefetch_run(cx, leaf, index, end) {
                return;
            }
            index = end + 1;
        }
    }

    fn absent_run(&self, cx: &Cx<'_>, leaf: SpteRef, start: usize, end: usize) -> usize {
        let absent =
            |index: &usize| *index != leaf.index() && !self.spte(cx, SpteRef::new(leaf.page(), *index)).is_present();
        start + (start..end).take_while(absent).count()
    }

    /// Returns false where not even the first page of the run could be had.
    fn prefetch_run(&mut self, cx: &mut Cx<'_>, leaf: SpteRef, start: usize, end: usize) -> bool {
        for index in start..end {
            let page = &self.pages[leaf.page()];
            let (gfn, access) = (page.gfn_of(index), page.role.access());
            if self.refuses_prefetch(gfn, access, Logged::Skip) {
                return false;
            }
            let Some(frame) = self.resident(cx, gfn) else { return index > start };
            let at = SpteRef::new(leaf.page(), index);
            self.set_leaf(cx, at, &Target { gfn, access, frame: Some(frame) }, Maker::Prefetch);
        }
        true
    }
}

/// Whether a writable page may be prefetched while dirty logging is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Logged {
    /// No: a store has to be noticed.
    Skip,
    /// Yes: the entry replaces one that was there.
    Take,
}
