//! Finding the shadow page of a guest table, or making it.
//!
//! A lookup has side effects that cost exits and flushes later: it zaps an unsync leaf page of a table that turns out to be
//! an upper-level one, it compares a found unsync page with the guest's table, and it clears the page's flooding count.
//! Making a page write-protects every alias of its table. Source: spec A2, A6; `kvm_mmu_find_shadow_page`,
//! `kvm_mmu_alloc_shadow_page`, `account_shadowed` in `arch/x86/kvm/mmu/mmu.c`.

use memvirt_addr::PageSize;
use memvirt_platform::Cx;

use super::Kvm;
use super::page::{NONE, PageId};
use super::role::Role;
use super::sync::WrongMode;
use super::zap::Zapped;

/// Tables that one fault can need at most (`PT64_ROOT_MAX_LEVEL`).
const SPARE_TABLES: usize = 5;

impl Kvm {
    /// Makes sure that tables can be allocated later without failing; returns whether the host had the frames.
    pub(crate) fn top_up(&mut self, cx: &mut Cx<'_>) -> bool {
        while self.spare.len() < SPARE_TABLES {
            let Some(frame) = cx.host.allocate(PageSize::Size4K) else { return false };
            self.spare.push(frame);
        }
        true
    }

    /// The page of `gfn` under `role`. The caller has [topped up](Self::top_up).
    pub(crate) fn get_page(&mut self, cx: &mut Cx<'_>, gfn: u64, role: Role) -> PageId {
        match self.find_page(cx, gfn, role) {
            NONE => self.make_page(cx, gfn, role),
            found => found,
        }
    }

    fn find_page(&mut self, cx: &mut Cx<'_>, gfn: u64, role: Role) -> PageId {
        let (mut zapped, mut collisions, mut found) = (Zapped::new(), 0, NONE);
        let mut id = self.pages.first_in_bucket(gfn);
        while id != NONE {
            let next = self.pages.next_in_bucket(id);
            if self.is_obsolete(id) {
                // Nobody's any more.
            } else if self.pages[id].gfn != gfn {
                collisions += 1;
            } else if self.pages[id].role != role {
                if role.level() > 1 && self.pages[id].unsync {
                    self.zap_page(cx, id, &mut zapped);
                }
            } else {
                if self.refresh(cx, id, &mut zapped).is_ok() {
                    found = id;
                }
                break;
            }
            id = next;
        }
        self.stats.mmu_cache_miss += u64::from(found == NONE);
        self.free_zapped(cx, &mut zapped);
        self.stats.max_mmu_page_hash_collisions = self.stats.max_mmu_page_hash_collisions.max(collisions);
        found
    }

    /// Makes a found page fit for use. It stays unsync: only its contents are brought up to date.
    fn refresh(&mut self, cx: &mut Cx<'_>, id: PageId, zapped: &mut Zapped) -> Result<(), WrongMode> {
        if self.pages[id].role.is_direct() {
            return Ok(());
        }
        if self.pages[id].unsync {
            match self.sync_page(cx, id) {
                Ok(changed) => self.flush_if(cx, changed),
                Err(wrong) => {
                    self.zap_page(cx, id, zapped);
                    return Err(wrong);
                }
            }
        }
        self.pages[id].write_flooding = 0;
        Ok(())
    }

    fn make_page(&mut self, cx: &mut Cx<'_>, gfn: u64, role: Role) -> PageId {
        let table = self.spare.pop().unwrap_or_else(|| {
            // The caller has topped up; a lookup takes one table.
            unreachable!("a shadow table without a frame for it")
        });
        self.work.tables_allocated += 1;
        let id = self.pages.create(gfn, role, table, self.generation);
        if self.pages[id].has_gptes() {
            self.pages.indirect += 1;
            self.slot.add_table(gfn, role.level());
            let protected = self.write_protect_gfn(cx, gfn);
            self.flush_if(cx, protected);
        }
        id
    }

    pub(crate) fn unaccount_table(&mut self, id: PageId) {
        self.pages.indirect -= 1;
        self.slot.remove_table(self.pages[id].gfn, self.pages[id].level());
    }
}
