//! Supplying what the shadow lacks: tables linked down to the leaf, the leaf, its neighbours. Source: `FNAME(fetch)`, `pte_prefetch`
//! of Linux 6.1.

use memvirt_addr::{Gfn, Level};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};

use super::pages::{Recipe, Role, Set, Unsync};
use super::{ACCESS, Id, Kvm, Slot, Spte, index};
use crate::around::Around;
use crate::path::Way;

/// Entries that are filled together.
const GROUP: u16 = 8;

impl Kvm {
    /// Builds the path of an access and its leaf; whether a table forbids the store.
    pub(super) fn fetch(&mut self, way: &Way, around: &Around<'_>) -> bool {
        let Some(root) = self.root else { return false };
        let (address, top) = (way.page << 12, way.leaf_level());
        // Each of the guest's entries is read once more before anything rests on it.
        self.work.guest_entries_read += way.refs();
        let (mut page, mut access) = (root.page, ACCESS);
        for (_, next, level, attrs) in way.tables() {
            access &= attrs;
            page = self.child(page, (address, level), next, access, around);
        }
        access &= way.leaf_attrs();
        if !way.write && !way.leaf_attrs().contains(Attrs::DIRTY) {
            access -= Attrs::WRITE;
        }
        let slot = self.descend(page, way, top, access, around);
        let recipe = Recipe { accessed: true, unsync: Unsync::Allowed };
        let (set, protected) = self.set_leaf(slot, way.frame, access, recipe);
        if set == Set::Changed {
            self.neighbours(slot, around);
        }
        protected && way.write
    }

    /// The page below an entry, the one that is there where it shadows the right table.
    fn child(&mut self, page: Id, (address, level): (u64, u8), next: Gfn, access: Attrs, around: &Around<'_>) -> Id {
        self.used(page);
        let slot = (page, index(address, level));
        if let Some(child) = self.linked(slot, next) {
            return child;
        }
        let child = self.page(next, Role { level: level - 1, access, direct: false }, around);
        if self.pages.get(&child).is_some_and(|page| !page.marks.is_empty()) {
            self.sync_below(child, around);
        }
        self.link(slot, child);
        child
    }

    fn linked(&self, slot: Slot, gfn: Gfn) -> Option<Id> {
        match self.entry(slot) {
            Some(Spte::Link(child)) => self.pages.get(&child).filter(|page| page.gfn == gfn).map(|_| child),
            _ => None,
        }
    }

    /// From the page that holds the guest's leaf down to the entry of level 1.
    fn descend(&mut self, mut page: Id, way: &Way, top: u8, access: Attrs, around: &Around<'_>) -> Slot {
        for level in (2..=top).rev() {
            self.used(page);
            let slot = (page, index(way.page << 12, level));
            let first = Gfn::new(way.frame.number() >> (9 * (level - 1)) << (9 * (level - 1)));
            if let Some(Spte::Link(child)) = self.entry(slot)
                && self.pages.get(&child).is_some_and(|page| page.access != access)
            {
                // The guest's large page has become dirty, or clean.
                self.clear(slot);
                self.flush_if(true);
            }
            page = self.linked(slot, first).unwrap_or_else(|| {
                let child = self.page(first, Role { level: level - 1, access, direct: true }, around);
                self.link(slot, child);
                child
            });
        }
        self.used(page);
        (page, index(way.page << 12, 1))
    }

    /// Fills what is around a leaf and needs nothing from the guest or the host.
    fn neighbours(&mut self, leaf: Slot, around: &Around<'_>) {
        let Some(page) = self.pages.get(&leaf.0) else { return };
        let (first, gfn, access) = (leaf.1 & !(GROUP - 1), page.gfn, page.access);
        if page.direct {
            return self.pieces(leaf, first, gfn, access);
        }
        for slot in (first..first + GROUP).map(|index| (leaf.0, index)) {
            if slot != leaf && self.entry(slot).is_none() && !self.fill_alone(slot, around) {
                return;
            }
        }
    }

    /// Fills one entry from the guest's if that needs nothing; whether it was filled.
    pub(super) fn fill_alone(&mut self, slot: Slot, around: &Around<'_>) -> bool {
        self.work.guest_entries_read += 1;
        let (gfn, page) = self.pages.get(&slot.0).map_or((Gfn::new(0), Attrs::empty()), |page| (page.gfn, page.access));
        let Some((frame, attrs)) = shadowable(gfn, slot.1, around) else {
            self.clear(slot);
            return false;
        };
        let access = granted(page, attrs);
        self.backed.contains(&frame) && {
            let recipe = Recipe { accessed: false, unsync: Unsync::IfAlready };
            let _ = self.set_leaf(slot, frame, access, recipe);
            true
        }
    }

    /// A large page has no entries of its own that could forbid anything: runs of absent entries, as far as the host has the pages.
    fn pieces(&mut self, leaf: Slot, first: u16, gfn: Gfn, access: Attrs) {
        let mut index = first;
        while index < first + GROUP {
            let absent = |at: &u16| *at != leaf.1 && self.entry((leaf.0, *at)).is_none();
            let end = (index..first + GROUP).find(|at| !absent(at)).unwrap_or(first + GROUP);
            for at in index..end {
                let frame = gfn.offset(u64::from(at));
                if !self.backed.contains(&frame) {
                    if at > index {
                        break;
                    }
                    return;
                }
                let recipe = Recipe { accessed: false, unsync: Unsync::IfAlready };
                let _ = self.set_leaf((leaf.0, at), frame, access, recipe);
            }
            index = end + 1;
        }
    }
}

/// The frame and attributes of an entry of the guest's leaf table, where it can be shadowed without a fault.
pub(super) fn shadowable(table: Gfn, index: u16, around: &Around<'_>) -> Option<(Gfn, Attrs)> {
    match Guest4::decode((around.peek)(table.entry(usize::from(index))), Level::L1) {
        Entry::Leaf { frame, attrs, .. } if attrs.contains(Attrs::ACCESSED) => Some((frame, attrs)),
        _ => None,
    }
}

/// What a leaf table's page and the guest's entry grant together.
pub(super) fn granted(page: Attrs, entry: Attrs) -> Attrs {
    let access = page & entry;
    if entry.contains(Attrs::DIRTY) { access } else { access - Attrs::WRITE }
}
