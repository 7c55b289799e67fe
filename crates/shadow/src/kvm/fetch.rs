//! Supplying what the shadow lacks: linking tables down to the leaf and setting it.
//!
//! Down to the level of the guest's leaf, each entry has to point to the shadow of the guest's next table. Below a large
//! guest page follow direct pages, down to the size that the host allows. Source: spec A4 (steps 5 to 8), A11;
//! `FNAME(fetch)`, `kvm_mmu_hugepage_adjust`, `validate_direct_spte` in `arch/x86/kvm/mmu`.

use memvirt_addr::{Gfn, Level};
use memvirt_platform::Cx;

use super::Kvm;
use super::fault::{Fault, Handled};
use super::leaf::{Maker, Set, Target};
use super::lists::SpteRef;
use super::page::PageId;
use super::role::{Access, Backing};
use super::walk::Walker;

impl Kvm {
    pub(crate) fn fetch(
        &mut self,
        cx: &mut Cx<'_>,
        fault: &Fault,
        walker: &Walker,
        max_level: u8,
        host_writable: bool,
    ) -> Handled {
        let mut page = self.vcpu(cx).root.page;
        if self.guest_changed(cx, fault, walker, 4) {
            return Handled::Retry;
        }
        let mut level = 4;
        while level > walker.level {
            let at = self.entry_for(page, fault, level);
            self.pages[page].write_flooding = 0;
            let child_level = usize::from(level) - 1;
            let (gfn, access) = (walker.table_gfn[child_level], walker.table_access[child_level]);
            let linked = self.linked_child(cx, at, level, gfn);
            let child = linked.unwrap_or_else(|| {
                let role = self.pages[page].role.child(Backing::Table, access);
                self.get_page(cx, gfn, role)
            });
            if linked.is_none() && self.pages[child].unsync_children > 0 {
                self.sync_children(cx, child);
            }
            if self.guest_changed(cx, fault, walker, level - 1) {
                return Handled::Retry;
            }
            if linked.is_none() {
                self.link(cx, at, child);
            }
            (page, level) = (child, level - 1);
        }
        let goal = self.goal_level(cx, walker.gfn, max_level);
        let at = self.descend_direct(cx, fault, walker, page, goal);
        self.set_goal(cx, fault, walker, at, goal, host_writable)
    }

    /// The page that an entry already leads to, if that is a shadow of `gfn`. (`kvm_mmu_get_child_sp`)
    fn linked_child(&self, cx: &Cx<'_>, at: SpteRef, level: u8, gfn: u64) -> Option<PageId> {
        let entry = self.spte(cx, at);
        if !entry.is_present() || entry.is_leaf(level) {
            return None;
        }
        Some(self.child_of(entry)).filter(|child| self.pages[*child].gfn == gfn)
    }

    fn entry_for(&self, page: PageId, fault: &Fault, level: u8) -> SpteRef {
        SpteRef::new(page, fault.gva.index(Level::ALL[usize::from(level) - 1]))
    }

    /// Whether the guest's entry of `level` differs from what the walk found.
    fn guest_changed(&mut self, cx: &mut Cx<'_>, fault: &Fault, walker: &Walker, level: u8) -> bool {
        let i = usize::from(level);
        self.work.guest_entries_read += 1;
        let at = Gfn::new(walker.table_gfn[i]).entry(fault.gva.index(Level::ALL[i - 1]));
        cx.guest().read(at) != walker.entries[i].0
    }

    /// The level at which the page is mapped: no larger than the guest's page and the host's, and no shadowed table inside.
    /// (`kvm_mmu_hugepage_adjust`)
    fn goal_level(&self, cx: &Cx<'_>, gfn: u64, max_level: u8) -> u8 {
        if max_level == 1 || !self.slot.contains(gfn) || self.slot.is_logging() {
            return 1;
        }
        self.max_mapping_level(cx, gfn, max_level)
    }

    /// `kvm_mmu_max_mapping_level`.
    pub(crate) fn max_mapping_level(&self, cx: &Cx<'_>, gfn: u64, most: u8) -> u8 {
        let host = cx.map.lookup(Gfn::new(gfn)).map_or(1, |backed| backed.size.level().number());
        self.slot.level_without_tables(gfn, most).min(host)
    }

    /// Goes from the page that holds the guest's leaf down to the entry of level `goal`, through direct pages.
    fn descend_direct(
        &mut self,
        cx: &mut Cx<'_>,
        fault: &Fault,
        walker: &Walker,
        mut page: PageId,
        goal: u8,
    ) -> SpteRef {
        let mut level = walker.level;
        loop {
            let at = self.entry_for(page, fault, level);
            self.pages[page].write_flooding = 0;
            if level == goal {
                return at;
            }
            let gfn = walker.gfn & !((1 << (9 * (level - 1))) - 1);
            self.drop_wrong_direct(cx, at, level, walker.access);
            page = self.linked_child(cx, at, level, gfn).unwrap_or_else(|| {
                let role = self.pages[page].role.child(Backing::Direct, walker.access);
                let child = self.get_page(cx, gfn, role);
                self.link(cx, at, child);
                child
            });
            level -= 1;
        }
    }

    /// Unlinks a direct page of another access: the guest's large page has become dirty, or clean.
    fn drop_wrong_direct(&mut self, cx: &mut Cx<'_>, at: SpteRef, level: u8, access: Access) {
        let entry = self.spte(cx, at);
        if entry.is_present() && !entry.is_leaf(level) {
            let child = self.child_of(entry);
            if self.pages[child].role.access() != access {
                self.drop_link(cx, at, child);
                self.flush_remote(cx);
            }
        }
    }

    fn set_goal(
        &mut self,
        cx: &mut Cx<'_>,
        fault: &Fault,
        walker: &Walker,
        at: SpteRef,
        goal: u8,
        host_writable: bool,
    ) -> Handled {
        let gfn = walker.gfn & !((1 << (9 * (goal - 1))) - 1);
        let frame = cx.map.lookup(Gfn::new(gfn)).map(|backed| backed.frame);
        let target = Target { gfn, access: walker.access, frame };
        let set = self.set_leaf(cx, at, &target, Maker::Fault { write: fault.kind.write, host_writable });
        if set != Set::Spurious {
            self.prefetch_around(cx, at);
        }
        match set {
            Set::Fixed => Handled::Fixed,
            Set::Spurious => Handled::Spurious,
            Set::WriteProtected => Handled::WriteProtected,
            Set::Mmio => Handled::Mmio,
        }
    }
}
