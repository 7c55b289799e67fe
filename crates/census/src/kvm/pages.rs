//! Shadow pages and their entries: found, made, changed, zapped. Source: `kvm_mmu_find_shadow_page`, `mmu_set_spte`,
//! `__kvm_mmu_prepare_zap_page` of Linux 6.1.

use memvirt_addr::Gfn;
use memvirt_pagetable::Attrs;

use super::{ACCESS, Id, Kvm, Page, Slot, Spte};
use crate::around::Around;

/// A frame that is mapped more often than this loses all its entries (`RMAP_RECYCLE_THRESHOLD`).
const MOST_ALIASES: usize = 1000;

/// What no leaf loses without a flush.
pub(super) const HISTORY: Attrs = Attrs::WRITE.union(Attrs::ACCESSED).union(Attrs::DIRTY);

/// What may happen to tables for whose frame a writable leaf is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsync {
    Allowed,
    /// Only where all drift already may the leaf be writable.
    IfAlready,
    Forbidden,
}

/// How a leaf is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    pub(super) accessed: bool,
    pub(super) unsync: Unsync,
}

/// What came of setting a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    Changed,
    Same,
}

/// Which page is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) level: u8,
    pub(super) access: Attrs,
    pub(super) direct: bool,
}

impl Kvm {
    /// The shadows of a guest table, newest first.
    pub(super) fn tables_of(&self, frame: Gfn) -> impl Iterator<Item = Id> + '_ {
        let ids = self.by_frame.get(&frame).into_iter().flatten().rev().copied();
        ids.filter(|id| self.pages.get(id).is_some_and(|page| !page.direct && !page.invalid))
    }

    /// The page of `gfn` under a role, found or made.
    pub(super) fn page(&mut self, gfn: Gfn, role: Role, around: &Around<'_>) -> Id {
        let mut zapped = Vec::new();
        let mut found = None;
        for id in self.by_frame.get(&gfn).cloned().unwrap_or_default().into_iter().rev() {
            let Some(page) = self.pages.get(&id).filter(|page| !page.invalid) else { continue };
            if (page.level, page.access, page.direct) == (role.level, role.access, role.direct) {
                found = Some(id);
                break;
            }
            if role.level > 1 && page.unsync {
                self.zap(id, &mut zapped);
            }
        }
        if let Some(id) = found {
            if self.pages.get(&id).is_some_and(|page| page.unsync) {
                let changed = self.compare(id, around);
                self.flush_if(changed);
            }
            self.used(id);
        }
        self.free(&mut zapped);
        found.unwrap_or_else(|| self.make(gfn, role))
    }

    fn make(&mut self, gfn: Gfn, role: Role) -> Id {
        self.work.tables_allocated += 1;
        let id = self.next;
        self.next += 1;
        let Role { level, access, direct } = role;
        self.pages.insert(
            id,
            Page {
                gfn,
                level,
                access,
                direct,
                entries: std::collections::BTreeMap::new(),
                parents: std::collections::BTreeSet::new(),
                unsync: false,
                marks: std::collections::BTreeSet::new(),
                stores: 0,
                held: 0,
                invalid: false,
            },
        );
        self.by_frame.entry(gfn).or_default().push(id);
        if !direct {
            let protected = self.protect(gfn);
            self.flush_if(protected);
        }
        id
    }

    /// Every leaf over a table becomes read-only; whether a flush is due.
    pub(super) fn protect(&mut self, frame: Gfn) -> bool {
        let mut flush = false;
        for slot in self.mapped.get(&frame).cloned().unwrap_or_default() {
            self.work.rmap_visited += 1;
            if let Some(Spte::Leaf(of, attrs)) = self.entry(slot)
                && attrs.contains(Attrs::WRITE)
            {
                flush |= self.update(slot, Some(attrs), (of, attrs - Attrs::WRITE));
            }
        }
        flush
    }

    /// Replaces a leaf by one of the same page; whether a flush is due. Source: `mmu_spte_update`.
    fn update(&mut self, (id, index): Slot, old: Option<Attrs>, (frame, new): (Gfn, Attrs)) -> bool {
        if let Some(page) = self.pages.get_mut(&id) {
            page.entries.insert(index, Spte::Leaf(frame, new));
        }
        let flush = old.is_some_and(|old| !new.contains(old & HISTORY));
        *(if flush { &mut self.work.entries_cleared } else { &mut self.work.entries_set }) += 1;
        flush
    }

    /// The bits of a leaf; whether a table forbade that it be writable. Source: `make_spte`.
    fn recipe(&mut self, frame: Gfn, access: Attrs, old: Option<Attrs>, recipe: Recipe) -> (Attrs, bool) {
        let mut attrs = access & (Attrs::USER | Attrs::EXEC);
        if recipe.accessed {
            attrs |= Attrs::ACCESSED;
        }
        if !access.contains(Attrs::WRITE) {
            return (attrs, false);
        }
        if !old.is_some_and(|old| old.contains(Attrs::WRITE)) {
            if !self.may_drift(frame, recipe.unsync) {
                return (attrs, true);
            }
            attrs |= Attrs::DIRTY;
        }
        (attrs | Attrs::WRITE, false)
    }

    /// Installs a leaf; whether it changed, and whether a table forbade stores. Source: `mmu_set_spte`.
    pub(super) fn set_leaf(&mut self, slot: Slot, frame: Gfn, access: Attrs, how: Recipe) -> (Set, bool) {
        let mut flush = false;
        let old = match self.entry(slot) {
            Some(Spte::Leaf(held, attrs)) if held == frame => Some(attrs),
            Some(_) => {
                self.clear(slot);
                flush = true;
                None
            }
            None => None,
        };
        let (new, protected) = self.recipe(frame, access & ACCESS, old, how);
        let set = if old == Some(new) { Set::Same } else { Set::Changed };
        if set == Set::Changed {
            flush |= self.update(slot, old, (frame, new));
        }
        self.flush_if(flush);
        if old.is_none() {
            let mapped = self.mapped.entry(frame).or_default();
            let others = mapped.len();
            mapped.insert(slot);
            if others > MOST_ALIASES {
                self.drop_mappings(frame);
            }
        }
        (set, protected)
    }

    /// Makes a leaf anew in place, as a comparison does; whether a flush is due.
    pub(super) fn remake(&mut self, slot: Slot, frame: Gfn, access: Attrs) -> bool {
        let Some(Spte::Leaf(_, old)) = self.entry(slot) else { return false };
        let recipe = Recipe { accessed: false, unsync: Unsync::Forbidden };
        let (new, _) = self.recipe(frame, access & ACCESS, Some(old), recipe);
        self.update(slot, Some(old), (frame, new))
    }

    fn drop_mappings(&mut self, frame: Gfn) {
        for (id, index) in self.mapped.remove(&frame).unwrap_or_default() {
            self.work.rmap_visited += 1;
            self.work.entries_cleared += 1;
            if let Some(page) = self.pages.get_mut(&id) {
                page.entries.remove(&index);
            }
        }
        self.flush_if(true);
    }

    /// Clears an entry, whatever it is. Source: `mmu_page_zap_pte`.
    pub(super) fn clear(&mut self, (id, index): Slot) {
        let Some(old) = self.pages.get_mut(&id).and_then(|page| page.entries.remove(&index)) else { return };
        self.work.entries_cleared += 1;
        match old {
            Spte::Link(child) => {
                if let Some(page) = self.pages.get_mut(&child) {
                    page.parents.remove(&(id, index));
                }
            }
            Spte::Leaf(frame, _) => {
                if let Some(slots) = self.mapped.get_mut(&frame) {
                    slots.remove(&(id, index));
                }
            }
        }
    }

    /// Points an entry to a page. Source: `link_shadow_page`.
    pub(super) fn link(&mut self, slot: Slot, child: Id) {
        if self.entry(slot).is_some() {
            self.clear(slot);
            self.flush_if(true);
        }
        self.work.entries_set += 1;
        if let Some(page) = self.pages.get_mut(&slot.0) {
            page.entries.insert(slot.1, Spte::Link(child));
        }
        let Some(page) = self.pages.get_mut(&child) else { return };
        page.parents.insert(slot);
        if page.unsync || !page.marks.is_empty() {
            self.mark_unsync(slot);
        }
    }

    /// Zaps a page; those below that drift go with it. [`Kvm::free`] has to follow.
    pub(super) fn zap(&mut self, id: Id, zapped: &mut Vec<Id>) {
        while let Some(batch) = self.collect(id) {
            self.each_drifting(&batch, |kvm, page| {
                kvm.zap(page, zapped);
                true
            });
        }
        let entries: Vec<u16> =
            self.pages.get(&id).map(|page| page.entries.keys().copied().collect()).unwrap_or_default();
        entries.into_iter().for_each(|index| self.clear((id, index)));
        let parents = self.pages.get(&id).map(|page| page.parents.clone()).unwrap_or_default();
        parents.into_iter().for_each(|slot| self.clear(slot));
        let Some(page) = self.pages.get_mut(&id) else { return };
        page.unsync = false;
        if page.held == 0 {
            zapped.push(id);
        } else if !page.invalid {
            self.requests |= Self::OBSOLETE;
        }
        page.invalid = true;
    }

    /// Frees what was zapped, after a flush; whether there was anything.
    pub(super) fn free(&mut self, zapped: &mut Vec<Id>) -> bool {
        if zapped.is_empty() {
            return false;
        }
        self.flush_if(true);
        for id in zapped.drain(..) {
            let Some(page) = self.pages.remove(&id) else { continue };
            self.work.tables_freed += 1;
            if let Some(ids) = self.by_frame.get_mut(&page.gfn) {
                ids.retain(|other| *other != id);
            }
        }
        true
    }
}
