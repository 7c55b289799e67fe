//! Roots: making them, caching three besides the current one, letting go of them.
//!
//! A root is an ordinary shadow page that vCPUs hold by a count. A root that falls out of a vCPU's cache stays in the hash
//! and is found again without a miss. Source: spec A1; `mmu_alloc_root`, `fast_pgd_switch`, `kvm_mmu_free_roots`,
//! `kvm_mmu_load`, `kvm_mmu_free_obsolete_roots` in `arch/x86/kvm/mmu/mmu.c`.

use memvirt_platform::Cx;

use super::Kvm;
use super::role::Role;
use super::vcpu::{Requests, Root};
use super::zap::Zapped;

impl Kvm {
    /// Makes the root of the current CR3, and syncs it. (`kvm_mmu_load`)
    pub(crate) fn load_root(&mut self, cx: &mut Cx<'_>) {
        let gfn = cx.regs().cr3.root.frame().number();
        if !self.slot.contains(gfn) || !self.top_up(cx) {
            self.vcpu_mut(cx).dummy_root = true;
            return;
        }
        self.locked = true;
        self.make_pages_available(cx);
        let role = self.vcpu(cx).role;
        let page = self.get_page(cx, gfn, role);
        self.pages[page].root_count += 1;
        self.vcpu_mut(cx).root = Root { pgd: Self::pgd(cx), page };
        self.sync_root(cx);
    }

    fn usable(&self, root: Root, pgd: u64, role: Role) -> bool {
        root.is_valid() && root.pgd == pgd && self.pages[root.page].role == role
    }

    /// Switches to the root of `pgd` if it is cached; otherwise leaves the vCPU without one. (`kvm_mmu_new_pgd`)
    pub(crate) fn switch_root(&mut self, cx: &mut Cx<'_>, pgd: u64) {
        self.vcpu_mut(cx).dummy_root = false;
        if !self.find_cached(cx, pgd) {
            return;
        }
        let mmu = self.vcpu_mut(cx);
        mmu.requests.make(Requests::LOAD_PGD);
        mmu.mmio = None;
        let page = mmu.root.page;
        self.pages[page].write_flooding = 0;
    }

    fn find_cached(&mut self, cx: &mut Cx<'_>, pgd: u64) -> bool {
        let role = self.vcpu(cx).role;
        if !self.vcpu(cx).root.is_valid() {
            return self.find_without_current(cx, pgd, role);
        }
        if self.usable(self.vcpu(cx).root, pgd, role) {
            return true;
        }
        for i in 0..self.vcpu(cx).previous.len() {
            let mmu = self.vcpu_mut(cx);
            core::mem::swap(&mut mmu.root, &mut mmu.previous[i]);
            let root = mmu.root;
            if self.usable(root, pgd, role) {
                return true;
            }
        }
        let oldest = core::mem::replace(&mut self.vcpu_mut(cx).root, Root::NONE);
        self.free_roots(cx, &[oldest]);
        false
    }

    fn find_without_current(&mut self, cx: &mut Cx<'_>, pgd: u64, role: Role) -> bool {
        let previous = self.vcpu(cx).previous;
        let Some(i) = previous.iter().position(|root| self.usable(*root, pgd, role)) else { return false };
        let mmu = self.vcpu_mut(cx);
        mmu.root = previous[i];
        mmu.previous[i..].rotate_left(1);
        if let Some(last) = mmu.previous.last_mut() {
            *last = Root::NONE;
        }
        true
    }

    /// Lets go of roots that the vCPU no longer names. (`kvm_mmu_free_roots`)
    pub(crate) fn free_roots(&mut self, cx: &mut Cx<'_>, roots: &[Root]) {
        let mut zapped = Zapped::new();
        self.locked |= roots.iter().any(|root| root.is_valid());
        for root in roots.iter().filter(|root| root.is_valid()) {
            let page = &mut self.pages[root.page];
            page.root_count -= 1;
            if page.root_count == 0 && page.role.is_invalid() {
                self.zap_page(cx, root.page, &mut zapped);
            }
        }
        self.free_zapped(cx, &mut zapped);
    }

    /// Lets go of the roots for which `condemned` holds: previous ones first, then the current one.
    pub(crate) fn free_roots_where(&mut self, cx: &mut Cx<'_>, condemned: impl Fn(&Self, Root, Which) -> bool) {
        let mmu = self.vcpu(cx);
        let mut gone = [Root::NONE; 4];
        for (i, root) in mmu.previous.into_iter().enumerate() {
            if root.is_valid() && condemned(self, root, Which::Previous) {
                gone[i] = root;
            }
        }
        if mmu.root.is_valid() && condemned(self, mmu.root, Which::Current) {
            gone[3] = mmu.root;
        }
        let mmu = self.vcpu_mut(cx);
        for (i, root) in mmu.previous.iter_mut().enumerate() {
            if gone[i].is_valid() {
                *root = Root::NONE;
            }
        }
        if gone[3].is_valid() {
            mmu.root = Root::NONE;
        }
        self.free_roots(cx, &gone);
    }

    /// Lets go of every root that was zapped.
    pub(crate) fn free_obsolete_roots(&mut self, cx: &mut Cx<'_>) {
        self.free_roots_where(cx, |kvm, root, _| kvm.is_obsolete(root.page));
    }

    /// Lets go of previous roots marked as reaching unsync pages: freeing them is how a full flush syncs them.
    pub(crate) fn free_unsync_previous_roots(&mut self, cx: &mut Cx<'_>) {
        self.free_roots_where(cx, |kvm, root, which| which == Which::Previous && kvm.has_unsync(root.page));
    }

    /// Lets go of all roots. (`kvm_mmu_unload`)
    pub(crate) fn unload(&mut self, cx: &mut Cx<'_>) {
        self.free_roots_where(cx, |_, _, _| true);
        let mmu = self.vcpu_mut(cx);
        mmu.mmio = None;
        mmu.dummy_root = false;
    }

    /// Starts over under the paging mode of the current registers. (`kvm_mmu_reset_context`)
    pub(crate) fn reset_context(&mut self, cx: &mut Cx<'_>) {
        self.unload(cx);
        self.vcpu_mut(cx).role = Role::root(cx.regs());
    }
}

/// Which of a vCPU's roots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    /// The one that hardware walks.
    Current,
    /// A cached one.
    Previous,
}
