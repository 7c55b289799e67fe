//! The limit on shadow pages: the oldest ones go, however recently they were used.
//!
//! Source: spec A12; `make_mmu_pages_available`, `kvm_mmu_zap_oldest_mmu_pages`, `kvm_mmu_change_mmu_pages` in
//! `arch/x86/kvm/mmu/mmu.c`.

use memvirt_platform::Cx;

use super::Kvm;
use super::page::NONE;
use super::zap::Zapped;

/// Fewer free pages than this are too few (`KVM_MIN_FREE_MMU_PAGES`).
const MIN_FREE: u64 = 5;
/// Free pages after room was made (`KVM_REFILL_PAGES`).
const REFILL: u64 = 25;

impl Kvm {
    /// Makes room for the pages that a fault may need.
    pub(crate) fn make_pages_available(&mut self, cx: &mut Cx<'_>) {
        let available = self.max_pages.saturating_sub(self.pages.used);
        if available < MIN_FREE {
            self.zap_oldest(cx, REFILL - available);
        }
    }

    /// Zaps pages in the order in which they were made, roots in use excepted, until `wanted` are gone.
    fn zap_oldest(&mut self, cx: &mut Cx<'_>, wanted: u64) {
        let (mut zapped, mut gone) = (Zapped::new(), 0);
        let mut id = self.pages.oldest();
        while id != NONE {
            let next = self.pages.newer(id);
            if self.pages[id].root_count == 0 {
                let count = self.zap_page(cx, id, &mut zapped);
                gone += count.pages;
                if gone >= wanted {
                    break;
                }
                if count.children {
                    id = self.pages.oldest();
                    continue;
                }
            }
            id = next;
        }
        self.free_zapped(cx, &mut zapped);
        self.stats.mmu_recycled += gone;
    }

    /// Changes the limit (`KVM_SET_NR_MMU_PAGES`).
    pub(crate) fn change_limit(&mut self, cx: &mut Cx<'_>, limit: u64) {
        if self.pages.used > limit {
            self.zap_oldest(cx, self.pages.used - limit);
        }
        self.max_pages = limit.max(self.pages.used);
    }
}
