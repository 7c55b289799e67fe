//! Tables that drift, the marks that lead to them, and how they are brought in step. Source: `mmu_try_to_unsync_pages`,
//! `mmu_unsync_walk`, `mmu_sync_children`, `sync_page`, `FNAME(invlpg)` of Linux 6.1.

use memvirt_addr::{Gfn, Gva};
use memvirt_pagetable::Attrs;

use super::fetch::{granted, shadowable};
use super::pages::{HISTORY, Unsync};
use super::{ACCESS, Id, Kvm, Slot, Spte, index};
use crate::around::Around;

/// How many pages one walk collects at most.
const BATCH: usize = 16;

/// Pages met by a walk over marks, parents before children, each with its index in its parent.
pub(super) type Batch = Vec<(Id, u16)>;

impl Kvm {
    /// Whether a writable leaf for `frame` may exist; tables drift for it where that is allowed.
    pub(super) fn may_drift(&mut self, frame: Gfn, how: Unsync) -> bool {
        if self.tracked(frame) {
            return false;
        }
        for id in self.tables_of(frame).collect::<Vec<_>>() {
            let drifts = self.pages.get(&id).is_some_and(|page| page.unsync);
            match how {
                Unsync::Forbidden => return false,
                _ if drifts => {}
                Unsync::IfAlready => return false,
                Unsync::Allowed => self.unsync(id),
            }
        }
        true
    }

    fn unsync(&mut self, id: Id) {
        self.unsynced = true;
        if let Some(page) = self.pages.get_mut(&id) {
            page.unsync = true;
        }
        self.mark_parents(id);
    }

    fn mark_parents(&mut self, id: Id) {
        let parents = self.pages.get(&id).map(|page| page.parents.clone()).unwrap_or_default();
        parents.into_iter().for_each(|slot| self.mark_unsync(slot));
    }

    /// Marks an entry, and those above unless they must be marked already.
    pub(super) fn mark_unsync(&mut self, (id, index): Slot) {
        let Some(page) = self.pages.get_mut(&id) else { return };
        if page.marks.insert(index) && page.marks.len() == 1 {
            self.mark_parents(id);
        }
    }

    /// Collects pages that drift below `top`, and those on the way, until the batch is full; `None` where nothing is marked.
    pub(super) fn collect(&mut self, top: Id) -> Option<Batch> {
        if self.pages.get(&top)?.marks.is_empty() {
            return None;
        }
        let mut batch = vec![(top, 0)];
        (self.collect_below(top, &mut batch) != Some(0)).then_some(batch)
    }

    /// How many leaf tables that drift were found below `id`; `None` where the batch ran full.
    fn collect_below(&mut self, id: Id, batch: &mut Batch) -> Option<u32> {
        let mut found = 0;
        let marks: Vec<u16> = self.pages.get(&id)?.marks.iter().copied().collect();
        for index in marks {
            let child = match self.entry((id, index)) {
                Some(Spte::Link(child)) => child,
                _ => {
                    self.unmark(id, index);
                    continue;
                }
            };
            let Some(page) = self.pages.get(&child) else { continue };
            let (marked, drifts) = (!page.marks.is_empty(), page.unsync);
            if !marked && !drifts {
                self.unmark(id, index);
                continue;
            }
            found += u32::from(!marked);
            if !(drifts && batch.iter().any(|(known, _)| *known == child)) {
                batch.push((child, index));
                if batch.len() == BATCH {
                    return None;
                }
            }
            if marked {
                match self.collect_below(child, batch)? {
                    0 => self.unmark(id, index),
                    below => found += below,
                }
            }
        }
        Some(found)
    }

    fn unmark(&mut self, id: Id, index: u16) {
        if let Some(page) = self.pages.get_mut(&id) {
            page.marks.remove(&index);
        }
    }

    /// Calls `visit` with each leaf table of a batch; where that says so, clears the marks that led to it.
    pub(super) fn each_drifting(&mut self, batch: &Batch, mut visit: impl FnMut(&mut Self, Id) -> bool) {
        let level = |kvm: &Self, id: Id| kvm.pages.get(&id).map_or(1, |page| usize::from(page.level));
        // By level of the child, leaf first: the page above and the index in it.
        let (mut parents, mut indices) = ([None; 5], [0; 5]);
        let Some((top, _)) = batch.first() else { return };
        parents[level(self, *top).max(2) - 2] = Some(*top);
        for (page, index) in &batch[1..] {
            let at = level(self, *page);
            indices[at - 1] = *index;
            if at > 1 {
                parents[at - 2] = Some(*page);
                continue;
            }
            if !visit(self, *page) {
                continue;
            }
            for (parent, index) in parents.iter().zip(indices) {
                let Some(parent) = *parent else { break };
                self.unmark(parent, index);
                if self.pages.get(&parent).is_some_and(|page| !page.marks.is_empty()) {
                    break;
                }
            }
        }
    }

    /// Brings everything below `top` in step, in batches: first all tables of a batch are protected, then compared.
    pub(super) fn sync_below(&mut self, top: Id, around: &Around<'_>) {
        let mut flush = false;
        while let Some(batch) = self.collect(top) {
            let mut protected = false;
            self.each_drifting(&batch, |kvm, page| {
                if let Some(gfn) = kvm.pages.get(&page).map(|page| page.gfn) {
                    protected |= kvm.protect(gfn);
                }
                false
            });
            if protected {
                self.flush_if(true);
                flush = false;
            }
            self.each_drifting(&batch, |kvm, page| {
                if let Some(page) = kvm.pages.get_mut(&page) {
                    page.unsync = false;
                }
                flush |= kvm.compare(page, around);
                true
            });
        }
        self.flush_if(flush);
    }

    /// Compares a leaf table with the guest's; whether a flush is due.
    pub(super) fn compare(&mut self, id: Id, around: &Around<'_>) -> bool {
        let Some(page) = self.pages.get_mut(&id).filter(|page| !page.direct) else { return false };
        let (gfn, access) = (page.gfn, page.access);
        let (mut flush, mut left) = (false, Vec::new());
        for (index, entry) in &mut page.entries {
            // The usual one, of the same page and as writable as before, is made anew and loses its history.
            let same = match (shadowable(gfn, *index, around), &entry) {
                (Some((frame, attrs)), Spte::Leaf(held, old)) if frame == *held => {
                    let new = granted(access, attrs) & ACCESS;
                    (!new.contains(Attrs::WRITE) || old.contains(Attrs::WRITE)).then_some((frame, *old, new))
                }
                _ => None,
            };
            let Some((frame, old, new)) = same else {
                left.push(*index);
                continue;
            };
            self.work.entries_synced += 1;
            self.work.guest_entries_read += 1;
            *entry = Spte::Leaf(frame, new);
            let lost = !new.contains(old & HISTORY);
            *(if lost { &mut self.work.entries_cleared } else { &mut self.work.entries_set }) += 1;
            flush |= lost;
        }
        left.into_iter().fold(flush, |flush, index| self.compare_entry((id, index), around) | flush)
    }

    fn compare_entry(&mut self, slot: Slot, around: &Around<'_>) -> bool {
        self.work.entries_synced += 1;
        self.work.guest_entries_read += 1;
        let held = match self.entry(slot) {
            Some(Spte::Leaf(frame, _)) => Some(frame),
            _ => None,
        };
        let (gfn, page) = self.pages.get(&slot.0).map_or((Gfn::new(0), Attrs::empty()), |page| (page.gfn, page.access));
        match shadowable(gfn, slot.1, around) {
            Some((frame, attrs)) if held == Some(frame) => self.remake(slot, frame, granted(page, attrs)),
            _ => {
                self.clear(slot);
                true
            }
        }
    }

    /// Invalidates an address in the tables of one root.
    pub(super) fn invalidate(&mut self, gva: Gva, root: Id, around: &Around<'_>) {
        let mut at = Some(root);
        while let Some(id) = at {
            let Some(page) = self.pages.get(&id) else { return };
            let slot = (id, index(gva.as_u64(), page.level));
            let (drifts, marked) = (page.unsync, !page.marks.is_empty());
            at = match page.entries.get(&slot.1) {
                Some(Spte::Link(child)) => Some(*child),
                _ => None,
            };
            if drifts {
                let present = self.entry(slot).is_some();
                self.clear(slot);
                self.flush_if(present);
                let _ = self.fill_alone(slot, around);
            }
            if !marked {
                return;
            }
        }
    }
}
