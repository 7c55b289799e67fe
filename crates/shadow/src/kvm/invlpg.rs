//! INVLPG and its kin: one address, in the current root and in previous ones.
//!
//! Only an unsync page can hold an entry that is out of date. Linux 6.1 zaps that entry and at once prefetches what the
//! guest's table says now; Linux 6.12 compares it in place and installs nothing. Source: spec A10; `FNAME(invlpg)` (6.1),
//! `__kvm_mmu_invalidate_addr` (6.12) in `arch/x86/kvm/mmu`.

use memvirt_addr::Gva;
use memvirt_platform::Cx;
use memvirt_tlb::Tag;

use super::Kvm;
use super::config::Kernel;
use super::lists::SpteRef;
use super::prefetch::Logged;
use super::spte::Spte;
use super::vcpu::Root;

impl Kvm {
    /// Invalidates one address in the current root and all previous ones.
    pub(crate) fn invalidate_everywhere(&mut self, cx: &mut Cx<'_>, gva: Gva) {
        let mmu = self.vcpu(cx);
        let (root, previous) = (mmu.root, mmu.previous);
        for root in core::iter::once(root).chain(previous) {
            self.invalidate_in(cx, gva, root);
        }
        self.flush_own_page(cx, gva);
        // A page that is global for the guest may be cached under other PCIDs; those without a root here are flushed when one
        // is loaded for them.
        let pcids = cx.regs().pcid_enable;
        for root in previous.into_iter().filter(|root| root.is_valid() && pcids) {
            let tag = Tag::new(cx.tag().vpid(), (root.pgd & 0xfff) as u16);
            cx.cpu().flush_page(tag, gva);
        }
    }

    /// Invalidates one address in one root, and in the hardware's TLB.
    pub(crate) fn invalidate_address(&mut self, cx: &mut Cx<'_>, gva: Gva, root: Root) {
        self.invalidate_in(cx, gva, root);
        self.flush_own_page(cx, gva);
    }

    fn flush_own_page(&self, cx: &mut Cx<'_>, gva: Gva) {
        let tag = cx.tag();
        cx.cpu().flush_page(tag, gva);
    }

    /// Invalidates one address in the tables of one root.
    pub(crate) fn invalidate_in(&mut self, cx: &mut Cx<'_>, gva: Gva, root: Root) {
        if self.vcpu(cx).mmio.is_some_and(|cached| cached.page == gva.frame().number()) {
            self.vcpu_mut(cx).mmio = None;
        }
        if !root.is_valid() {
            return;
        }
        self.locked = true;
        for at in self.shadow_path(cx, root.page, gva).iter() {
            let page = &self.pages[at.page()];
            let (unsync, marked) = (page.unsync, page.unsync_children > 0);
            if unsync {
                self.invalidate_entry(cx, at);
            }
            if !marked {
                return;
            }
        }
    }

    fn invalidate_entry(&mut self, cx: &mut Cx<'_>, at: SpteRef) {
        let old = self.spte(cx, at);
        match self.config.kernel {
            Kernel::V6_1 => {
                self.zap_entry(cx, at);
                self.flush_if(cx, old.is_present());
                let gpte = self.guest_entry(cx, at);
                self.prefetch_entry(cx, at, gpte, Logged::Take);
            }
            Kernel::V6_12 => {
                let flush = old != Spte::ABSENT && self.sync_entry(cx, at);
                self.flush_if(cx, flush);
            }
        }
    }
}
