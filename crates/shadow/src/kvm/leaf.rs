//! Making, changing and dropping entries of shadow tables, with everything that must follow.
//!
//! Every leaf is in the reverse map of the guest frame it maps, every link in the list of parents of the page it leads to.
//! The functions here keep both. Source: spec A3, A5, A6; `make_spte`, `mmu_set_spte`, `mmu_spte_update`,
//! `mmu_page_zap_pte`, `rmap_write_protect` in `arch/x86/kvm/mmu`.

use memvirt_addr::Hfn;
use memvirt_platform::Cx;

use super::Kvm;
use super::lists::{Cursor, Head, SpteRef};
use super::page::PageId;
use super::role::Access;
use super::spte::{Mmio, Spte};

/// More leaves of one guest frame than this are all zapped.
const RMAP_RECYCLE_THRESHOLD: usize = 1000;

/// Who wants a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Maker {
    /// A fault by this kind of access; `host_writable` is what the host granted.
    Fault { write: bool, host_writable: bool },
    /// Prefetching.
    Prefetch,
}

/// What the guest and the host say about a page to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) gfn: u64,
    pub(crate) access: Access,
    /// The host frame; `None` where there is no memory: MMIO.
    pub(crate) frame: Option<Hfn>,
}

/// How a leaf is to be made.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    old: Spte,
    accessed: bool,
    /// Whether tables that the leaf would make writable may become unsync.
    unsync: Unsync,
    host_writable: bool,
}

/// What may happen to shadowed tables when a writable leaf for their frame is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsync {
    /// They become unsync.
    Allowed,
    /// They stay what they are; only where all are unsync already may the leaf be writable.
    IfAlready,
    /// The leaf must not be writable.
    Forbidden,
}

/// What came of setting a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Set {
    /// It changed.
    Fixed,
    /// It was right already.
    Spurious,
    /// The store has to be emulated: the page is a table that must stay protected.
    WriteProtected,
    /// The page is no memory.
    Mmio,
}

impl Kvm {
    pub(crate) fn spte(&self, cx: &Cx<'_>, at: SpteRef) -> Spte {
        self.pages.read(&cx.host.mem, at)
    }

    pub(crate) fn store_spte(&self, cx: &mut Cx<'_>, at: SpteRef, spte: Spte) {
        cx.host.mem.write(self.pages.at(at), spte.0);
    }

    /// The page that a link leads to.
    pub(crate) fn child_of(&self, link: Spte) -> PageId {
        self.pages.of_table(link.frame())
    }

    /// Builds a leaf. The second value tells whether a shadowed table forced it to be read-only. (`make_spte`)
    fn make_leaf(&mut self, page: PageId, target: &Target, frame: Hfn, recipe: Recipe) -> (Spte, bool) {
        let level = self.pages[page].level();
        let mut spte = Spte(Spte::MMU_PRESENT | Spte::P | frame.base().as_u64());
        for (given, bit) in [
            (recipe.accessed, Spte::A),
            (!target.access.has(Access::EXEC), Spte::NX),
            (target.access.has(Access::USER), Spte::U),
            (level > 1, Spte::LARGE),
            (recipe.host_writable, Spte::HOST_WRITABLE),
        ] {
            if given {
                spte = spte.with(bit);
            }
        }
        if !(recipe.host_writable && target.access.has(Access::WRITE)) {
            return (spte, false);
        }
        // A leaf that was writable needs no look at shadowed tables, and no D: whoever made it writable saw to both.
        if !recipe.old.is_writable() {
            if !self.try_to_unsync(target.gfn, recipe.unsync) {
                return (spte, true);
            }
            spte = spte.with(Spte::D);
        }
        self.slot.mark_dirty(target.gfn);
        (spte.with(Spte::W | Spte::MMU_WRITABLE), false)
    }

    /// Replaces a leaf by one for the same page; returns whether a flush is due. (`mmu_spte_update`)
    pub(crate) fn update_leaf(&mut self, cx: &mut Cx<'_>, at: SpteRef, new: Spte) -> bool {
        let old = self.spte(cx, at);
        self.store_spte(cx, at, new);
        if old.needs_flush(new) {
            self.work.entries_cleared += 1;
            return true;
        }
        self.work.entries_set += 1;
        false
    }

    /// Installs a leaf. (`mmu_set_spte`)
    pub(crate) fn set_leaf(&mut self, cx: &mut Cx<'_>, at: SpteRef, target: &Target, maker: Maker) -> Set {
        let level = self.pages[at.page()].level();
        let mut old = self.spte(cx, at);
        let (mut flush, mut was_mapped) = (false, false);
        if old.is_present() {
            if !old.is_leaf(level) {
                self.drop_link(cx, at, self.child_of(old));
                flush = true;
            } else if target.frame != Some(old.frame()) {
                self.drop_leaf(cx, at);
                flush = true;
            } else {
                was_mapped = true;
            }
            if flush {
                old = Spte::ABSENT;
            }
        }
        let Some(frame) = target.frame else {
            self.stats.pf_mmio_spte_created += 1;
            let mmio = Mmio { gfn: target.gfn, access: target.access, generation: self.mmio_generation };
            self.store_spte(cx, at, Spte::mmio(mmio));
            self.flush_if(cx, flush);
            return Set::Mmio;
        };
        let (recipe, write) = match maker {
            Maker::Fault { write, host_writable } => {
                (Recipe { old, accessed: true, unsync: Unsync::Allowed, host_writable }, write)
            }
            Maker::Prefetch => (Recipe { old, accessed: false, unsync: Unsync::IfAlready, host_writable: true }, false),
        };
        let (spte, protected) = self.make_leaf(at.page(), target, frame, recipe);
        let mut outcome = if old == spte { Set::Spurious } else { Set::Fixed };
        if outcome == Set::Fixed {
            flush |= self.update_leaf(cx, at, spte);
        }
        if protected && write {
            outcome = Set::WriteProtected;
        }
        self.flush_if(cx, flush);
        self.pages[at.page()].set_translation(at.index(), target.gfn, target.access);
        if !was_mapped {
            self.add_to_rmap(cx, at, target.gfn);
        }
        outcome
    }

    /// Recomputes the permissions of a leaf in place, as a sync does; returns whether a flush is due.
    pub(crate) fn remake_leaf(&mut self, cx: &mut Cx<'_>, at: SpteRef, gfn: u64, access: Access) -> bool {
        let old = self.spte(cx, at);
        let target = Target { gfn, access, frame: Some(old.frame()) };
        let recipe = Recipe { old, accessed: false, unsync: Unsync::Forbidden, host_writable: old.is_host_writable() };
        let (spte, _) = self.make_leaf(at.page(), &target, old.frame(), recipe);
        self.update_leaf(cx, at, spte)
    }

    fn add_to_rmap(&mut self, cx: &mut Cx<'_>, at: SpteRef, gfn: u64) {
        let level = self.pages[at.page()].level();
        *self.leaf_gauge(level) += 1;
        let count = self.lists.add(self.slot.rmap_mut(gfn, level), at);
        self.stats.max_mmu_rmap_size = self.stats.max_mmu_rmap_size.max(count as u64);
        if count > RMAP_RECYCLE_THRESHOLD {
            self.zap_rmap(cx, gfn, level);
            self.flush_remote(cx);
        }
    }

    fn leaf_gauge(&mut self, level: u8) -> &mut u64 {
        match level {
            1 => &mut self.stats.pages_4k,
            2 => &mut self.stats.pages_2m,
            _ => &mut self.stats.pages_1g,
        }
    }

    /// Clears an entry of the last level and, if it was a leaf, takes it out of the reverse map. (`drop_spte`)
    pub(crate) fn drop_leaf(&mut self, cx: &mut Cx<'_>, at: SpteRef) {
        let old = self.spte(cx, at);
        self.store_spte(cx, at, Spte::ABSENT);
        if old.is_present() {
            let (gfn, level) = (self.pages[at.page()].gfn_of(at.index()), self.pages[at.page()].level());
            self.work.entries_cleared += 1;
            *self.leaf_gauge(level) -= 1;
            self.lists.remove(self.slot.rmap_mut(gfn, level), at);
        }
    }

    /// Drops all leaves of `level` that map `gfn`; returns whether there were any.
    pub(crate) fn zap_rmap(&mut self, cx: &mut Cx<'_>, gfn: u64, level: u8) -> bool {
        let head = self.slot.rmap(gfn, level);
        let mut cursor = Cursor::new(head);
        while let Some(at) = cursor.next(&self.lists) {
            self.work.rmap_visited += 1;
            self.work.entries_cleared += 1;
            self.store_spte(cx, at, Spte::ABSENT);
            *self.leaf_gauge(level) -= 1;
        }
        self.lists.clear(self.slot.rmap_mut(gfn, level));
        !head.is_empty()
    }

    /// Clears a link and takes it out of the child's list of parents.
    pub(crate) fn drop_link(&mut self, cx: &mut Cx<'_>, at: SpteRef, child: PageId) {
        self.work.entries_cleared += 1;
        self.links.remove(&mut self.pages[child].parents, at);
        self.store_spte(cx, at, Spte::ABSENT);
    }

    /// Clears an entry, whatever it is. (`mmu_page_zap_pte`)
    pub(crate) fn zap_entry(&mut self, cx: &mut Cx<'_>, at: SpteRef) {
        let old = self.spte(cx, at);
        if !old.is_present() {
            if old != Spte::ABSENT {
                self.store_spte(cx, at, Spte::ABSENT);
            }
        } else if old.is_leaf(self.pages[at.page()].level()) {
            self.drop_leaf(cx, at);
        } else {
            self.drop_link(cx, at, self.child_of(old));
        }
    }

    /// Points an entry to a page. What the entry was before goes, with a flush. (`link_shadow_page`)
    pub(crate) fn link(&mut self, cx: &mut Cx<'_>, at: SpteRef, child: PageId) {
        if self.spte(cx, at).is_present() {
            self.zap_entry(cx, at);
            self.flush_remote(cx);
        }
        self.work.entries_set += 1;
        self.store_spte(cx, at, Spte::link(self.pages[child].table));
        self.links.add(&mut self.pages[child].parents, at);
        if self.pages[child].unsync || self.pages[child].unsync_children > 0 {
            self.mark_unsync(at);
        }
    }

    /// Makes every leaf that maps `gfn`, of whatever size, read-only because the frame is a shadowed table; returns whether
    /// a flush is due.
    pub(crate) fn write_protect_gfn(&mut self, cx: &mut Cx<'_>, gfn: u64) -> bool {
        if !self.slot.contains(gfn) {
            return false;
        }
        let mut flush = false;
        for level in 1..=3 {
            flush |= self.write_protect_rmap(cx, self.slot.rmap(gfn, level), Spte::W | Spte::MMU_WRITABLE);
        }
        flush
    }

    /// Takes the bits `W` (dirty logging), or `W` and `MMU_WRITABLE` (tables), from all leaves of a list; returns whether a
    /// flush is due.
    pub(crate) fn write_protect_rmap(&mut self, cx: &mut Cx<'_>, head: Head, bits: u64) -> bool {
        let mut flush = false;
        let mut cursor = Cursor::new(head);
        while let Some(at) = cursor.next(&self.lists) {
            self.work.rmap_visited += 1;
            let old = self.spte(cx, at);
            if old.0 & bits != 0 {
                flush |= self.update_leaf(cx, at, old.without(bits));
            }
        }
        flush
    }
}
