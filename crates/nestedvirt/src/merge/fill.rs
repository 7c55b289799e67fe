//! Entries set: the path to a page, and every link and leaf on it.

use memvirt_addr::{Addr, Frame, Level, PageSize, Space};
use memvirt_pagetable::{Attrs, Entry, Format};

use super::{Change, Fill, Keeper, Kind, Merge, PageId, Slot, Target};

impl<S, T> Merge<S, T>
where
    S: Format,
    T: Format<In = S::In>,
{
    /// Builds the path from `root` to a page, all of it.
    pub(crate) fn fill<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        root: PageId,
        fill: &Fill<'_, S, T::Out>,
    ) -> Option<Change> {
        let (mut page, mut change) = (root, Change::Kept);
        for step in &fill.path.steps {
            let slot = (page, index::<S>(fill.at, step.level));
            match step.entry {
                Entry::Table { .. } => {
                    change = change.or(self.follow(k, slot, step.entry)?);
                    page = self.child(slot)?;
                }
                Entry::Leaf { attrs, .. } => return Some(change.or(self.fill_leaf(k, slot, fill, K::leaf(attrs))?)),
                Entry::Absent | Entry::Reserved => return Some(change),
            }
        }
        Some(change)
    }

    /// The leaf, or direct pages and the leaf below them.
    fn fill_leaf<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        mut slot: Slot,
        fill: &Fill<'_, S, T::Out>,
        mut attrs: Attrs,
    ) -> Option<Change> {
        let mut change = Change::Kept;
        while let Some(level) = self.pages.get(&slot.0).map(|page| page.level).filter(|level| *level > Level::L1) {
            let below = level.below()?;
            let first = fill.frames.0.align_down(level.page_size()?);
            let known = self.index.get(&(first, below, Kind::Direct)).copied();
            let child = match known {
                Some(child) => child,
                None => self.create(k, first, below, Kind::Direct)?,
            };
            change = change.or(self.link(k, slot, child, attrs)?);
            slot = (child, index::<S>(fill.at, below));
            attrs = K::leaf(Attrs::PERMISSIONS | Attrs::DIRTY | attrs);
        }
        Some(change.or(self.set_leaf(k, slot, fill.frames, attrs)?))
    }

    pub(super) fn child(&self, slot: Slot) -> Option<PageId> {
        match self.pages.get(&slot.0)?.entries.get(&slot.1)? {
            Target::Child(child) => Some(*child),
            Target::Leaf(_) => None,
        }
    }

    pub(super) fn link<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        slot: Slot,
        child: PageId,
        attrs: Attrs,
    ) -> Option<Change> {
        let next = self.pages.get(&child)?.frame;
        let entry = |level| T::encode(Entry::Table { next, attrs: attrs & Attrs::PERMISSIONS }, level);
        let change = self.put(k, slot, Target::Child(child), entry)?;
        self.pages.get_mut(&child)?.parents.insert(slot);
        Some(change)
    }

    pub(super) fn set_leaf<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        slot: Slot,
        (source, frame): (Frame<S::Out>, Frame<T::Out>),
        attrs: Attrs,
    ) -> Option<Change> {
        let attrs = if self.is_followed(source) { attrs - Attrs::WRITE } else { attrs };
        let entry = |level| T::encode(Entry::Leaf { frame, size: PageSize::Size4K, attrs }, level);
        let change = self.put(k, slot, Target::Leaf(source), entry)?;
        self.leaves.entry(source).or_default().insert(slot);
        Some(change)
    }

    /// Writes an entry. What stood there goes first, unless it leads to the same place.
    pub(super) fn put<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        slot: Slot,
        target: Target<S::Out>,
        entry: impl Fn(Level) -> u64,
    ) -> Option<Change> {
        let mut change = Change::Kept;
        if self.pages.get(&slot.0)?.entries.get(&slot.1).is_some_and(|old| *old != target) {
            change = self.remove(k, slot)?;
        }
        let page = self.pages.get_mut(&slot.0)?;
        let (at, raw) = (page.frame.entry(usize::from(slot.1)), entry(page.level));
        let old = T::decode(k.load(at)?, page.level);
        let new = T::decode(raw, page.level);
        page.entries.insert(slot.1, target);
        let narrower = old.is_present()
            && (!(new.attrs() & Attrs::PERMISSIONS).contains(old.attrs() & Attrs::PERMISSIONS)
                || frame_of(old) != frame_of(new));
        k.store(at, raw)?;
        k.work().entries_set += 1;
        Some(if narrower { Change::Lost } else { change })
    }
}

fn index<S: Format>(at: Addr<S::In>, level: Level) -> u16 {
    u16::try_from(S::index(at, level)).unwrap_or(0)
}

fn frame_of<S: Space>(entry: Entry<S>) -> Option<Frame<S>> {
    match entry {
        Entry::Table { next, .. } => Some(next),
        Entry::Leaf { frame, .. } => Some(frame),
        Entry::Absent | Entry::Reserved => None,
    }
}
