//! Roots: the current one, three cached besides, and what is asked for before the guest runs again. Source: `fast_pgd_switch`,
//! `kvm_mmu_load`, `kvm_set_cr3`, `kvm_invalidate_pcid` of Linux 6.1.

use memvirt_addr::Gfn;
use memvirt_ops::arch::Cr3;

use super::pages::Role;
use super::{ACCESS, Id, Kvm};
use crate::around::Around;

/// A root and the CR3 that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) pgd: u64,
    pub(super) page: Id,
}

impl Kvm {
    /// Roots that were zapped are to be let go.
    pub(super) const OBSOLETE: u8 = 1;
    /// The current root is to be brought in step.
    const SYNC: u8 = 2;
    /// The same, and previous roots that reach tables that drift are to be let go.
    const FLUSH: u8 = 4;

    /// A load of CR3; `pcids` where the guest uses them.
    pub(crate) fn load(&mut self, cr3: &Cr3, pcids: bool, around: &Around<'_>) {
        let pcid = if pcids { u64::from(cr3.pcid.number()) } else { 0 };
        let pgd = cr3.root.as_u64() & !0xfff | pcid;
        if pgd != self.pgd {
            self.pgd = pgd;
            self.switch();
        }
        if !(pcids && cr3.keep) {
            self.requests |= Self::SYNC;
            if pcids {
                self.let_go(|_, root, current| !current && root.pgd & 0xfff == pcid);
            }
        }
        self.enter(around);
    }

    /// A flush of everything.
    pub(crate) fn flush(&mut self, around: &Around<'_>) {
        self.requests |= Self::FLUSH;
        self.enter(around);
    }

    fn switch(&mut self) {
        if self.root.is_none() {
            let Some(at) = self.previous.iter().position(|root| self.is_usable(*root)) else { return };
            self.root = self.previous[at].take();
            self.previous[at..].rotate_left(1);
        } else {
            let Some(at) = (0..3).find(|at| {
                std::mem::swap(&mut self.root, &mut self.previous[*at]);
                self.is_usable(self.root)
            }) else {
                let oldest = self.root.take();
                self.drop_roots(oldest.into_iter().collect());
                return;
            };
            debug_assert!(at < 3);
        }
        if let Some(root) = self.root {
            self.used(root.page);
        }
    }

    fn is_usable(&self, root: Option<Root>) -> bool {
        root.is_some_and(|root| root.pgd == self.pgd && self.pages.get(&root.page).is_some_and(|page| !page.invalid))
    }

    fn drop_roots(&mut self, roots: Vec<Root>) {
        let mut zapped = Vec::new();
        for root in roots {
            let Some(page) = self.pages.get_mut(&root.page) else { continue };
            page.held -= 1;
            if page.held == 0 && page.invalid {
                self.zap(root.page, &mut zapped);
            }
        }
        self.free(&mut zapped);
    }

    /// Lets go of the roots for which `condemned` holds; it hears which is the current one.
    fn let_go(&mut self, condemned: impl Fn(&Self, Root, bool) -> bool) {
        let mut gone = Vec::new();
        for at in 0..3 {
            if let Some(root) = self.previous[at].filter(|root| condemned(self, *root, false)) {
                gone.push(root);
                self.previous[at] = None;
            }
        }
        if let Some(root) = self.root.filter(|root| condemned(self, *root, true)) {
            gone.push(root);
            self.root = None;
        }
        self.drop_roots(gone);
    }

    fn is_marked(&self, root: Root) -> bool {
        self.pages.get(&root.page).is_some_and(|page| page.unsync || !page.marks.is_empty())
    }

    fn sync_root(&mut self, around: &Around<'_>) {
        if let Some(root) = self.root.filter(|root| self.is_marked(*root)) {
            self.sync_below(root.page, around);
        }
    }

    /// Serves what is asked for and sees to a root.
    pub(super) fn enter(&mut self, around: &Around<'_>) {
        while self.requests != 0 || self.root.is_none() && self.pgd != 0 {
            let asked = std::mem::take(&mut self.requests);
            if asked & Self::OBSOLETE != 0 {
                self.let_go(|kvm, root, _| kvm.pages.get(&root.page).is_none_or(|page| page.invalid));
            }
            if asked & Self::SYNC != 0 {
                self.sync_root(around);
            }
            if asked & Self::FLUSH != 0 {
                self.sync_root(around);
                self.let_go(|kvm, root, current| !current && kvm.is_marked(root));
            }
            if self.root.is_none() && self.pgd != 0 {
                let gfn = Gfn::new(self.pgd >> 12);
                let page = self.page(gfn, Role { level: 4, access: ACCESS, direct: false }, around);
                if let Some(page) = self.pages.get_mut(&page) {
                    page.held += 1;
                }
                self.root = Some(Root { pgd: self.pgd, page });
                self.sync_root(around);
            }
        }
    }
}
