//! Entries that go: because the source changed, because a frame has another one behind it, because a table is none any more.

use memvirt_addr::{Frame, PageSize};
use memvirt_pagetable::{Entry, Format};

use super::{Change, Keeper, Kind, Merge, PageId, Slot, Target};
use crate::config::{Linking, OnStore};

impl<S, T> Merge<S, T>
where
    S: Format,
    T: Format<In = S::In>,
{
    /// Clears an entry. A page that nothing leads to any more goes with it.
    pub(super) fn remove<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K, slot: Slot) -> Option<Change> {
        let page = self.pages.get_mut(&slot.0)?;
        let Some(target) = page.entries.remove(&slot.1) else { return Some(Change::Kept) };
        let at = page.frame.entry(usize::from(slot.1));
        k.store(at, 0)?;
        k.work().entries_cleared += 1;
        match target {
            Target::Leaf(source) => {
                if let Some(slots) = self.leaves.get_mut(&source) {
                    slots.remove(&slot);
                    if slots.is_empty() {
                        self.leaves.remove(&source);
                    }
                }
            }
            Target::Child(child) => {
                let page = self.pages.get_mut(&child)?;
                page.parents.remove(&slot);
                if page.parents.is_empty() && page.pins == 0 {
                    self.drop_page(k, child)?;
                }
            }
        }
        Some(Change::Lost)
    }

    /// Frees a page to which nothing leads, with all below it that it alone leads to.
    pub(super) fn drop_page<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K, id: PageId) -> Option<()> {
        while let Some(index) = self.pages.get(&id)?.entries.keys().next().copied() {
            let _ = self.remove(k, (id, index))?;
        }
        let page = self.pages.remove(&id)?;
        self.index.remove(&(page.source, page.level, page.kind));
        k.free(page.frame);
        k.work().tables_freed += 1;
        if page.kind == Kind::Table && !self.is_followed(page.source) {
            k.guard(page.source, false);
        }
        Some(())
    }

    /// A followed table was stored to: entry `index` holds `raw` now.
    pub(crate) fn stored<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        table: Frame<S::Out>,
        index: u16,
        raw: u64,
    ) -> Option<Change> {
        let followers: Vec<_> = self.tables_in(table).collect();
        let mut change = Change::Kept;
        for (level, id) in followers {
            if self.pages.contains_key(&id) {
                change = change.or(self.entry_stored(k, (id, index), S::decode(raw, level))?);
            }
        }
        Some(change)
    }

    fn entry_stored<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        slot: Slot,
        entry: Entry<S::Out>,
    ) -> Option<Change> {
        let had = self.pages.get(&slot.0)?.entries.get(&slot.1).copied();
        let mut change = match (had, entry) {
            (None, _) => Change::Kept,
            (Some(Target::Child(child)), Entry::Table { next, attrs }) if self.follows(child, next) => {
                self.link(k, slot, child, attrs)?
            }
            (Some(_), _) => self.remove(k, slot)?,
        };
        if self.config.linking == Linking::Eager {
            change = change.or(self.follow(k, slot, entry)?);
        }
        if let (OnStore::Propagate, Entry::Leaf { frame, size: PageSize::Size4K, attrs }) =
            (self.config.on_store, entry)
            && K::may_foresee(attrs)
            && let Some(target) = k.target(frame)
        {
            change = change.or(self.set_leaf(k, slot, (frame, target), K::leaf(attrs))?);
        }
        Some(change)
    }

    fn follows(&self, page: PageId, table: Frame<S::Out>) -> bool {
        self.pages.get(&page).is_some_and(|page| page.kind == Kind::Table && page.source == table)
    }

    /// The source's frame has another frame behind it now, or none: every leaf over it goes.
    pub(crate) fn forget<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K, frame: Frame<S::Out>) -> Option<Change> {
        let mut change = Change::Kept;
        while let Some(slot) = self.leaves.get(&frame).and_then(|slots| slots.first().copied()) {
            change = change.or(self.remove(k, slot)?);
        }
        Some(change)
    }

    /// The frame holds data, not a table: it is not followed any more.
    pub(crate) fn unfollow<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K, frame: Frame<S::Out>) -> Option<Change> {
        let mut change = Change::Kept;
        while let Some(id) = self.first_in(frame) {
            while let Some(slot) = self.pages.get(&id).and_then(|page| page.parents.first().copied()) {
                change = change.or(self.remove(k, slot)?);
            }
            if self.pages.contains_key(&id) {
                self.drop_page(k, id)?;
                change = Change::Lost;
            }
        }
        Some(change)
    }

    /// Everything goes but roots that vCPUs run on, which are emptied.
    pub(crate) fn clear<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K) -> Option<Change> {
        let mut change = Change::Kept;
        let tops: Vec<_> = self.pages.iter().filter(|(_, page)| page.parents.is_empty()).map(|(id, _)| *id).collect();
        for id in tops {
            while let Some(index) = self.pages.get(&id).and_then(|page| page.entries.keys().next().copied()) {
                change = change.or(self.remove(k, (id, index))?);
            }
            if self.pages.get(&id).is_some_and(|page| page.pins == 0) {
                self.drop_page(k, id)?;
            }
        }
        Some(change)
    }
}
