//! Two stages of translation made one: the shadow of somebody else's tables.
//!
//! L1 makes SPT12 of L2's tables and its own map; L0 makes EPT02 of EPT12 and its own map. Both are this: for each table of the
//! source at each level a page of the hypervisor's own, for each leaf of a large source page *direct* pages of 4 KiB leaves. A
//! source table that has a page is *followed*: whoever owns it must not be able to store to it unseen. Entries keep the source's
//! own permissions, which hardware ANDs along the walk. A page that the last entry above it lets go is freed, and its table is
//! not followed any more; roots stay until they are stored to as data or everything is dropped.

mod drop;
mod fill;

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::{Addr, Frame, Level, Space};
use memvirt_pagetable::{Attrs, Entry, Format};
use memvirt_platform::Work;

use crate::config::{Config, Linking};
use crate::walk::Path;

/// What a hypervisor that merges can do: with the source's tables in `M`, with its own in `D`. `None` means that memory has run
/// out.
pub(crate) trait Keeper<M: Space, D: Space> {
    /// Reads an entry of a source table.
    fn source(&mut self, at: Addr<M>) -> Option<u64>;
    /// Reads an entry of its own.
    fn load(&mut self, at: Addr<D>) -> Option<u64>;
    /// Writes an entry of its own.
    fn store(&mut self, at: Addr<D>, value: u64) -> Option<()>;
    /// A cleared frame for a table.
    fn allocate(&mut self) -> Option<Frame<D>>;
    /// A table's frame is no longer used.
    fn free(&mut self, frame: Frame<D>);
    /// Stores to a source table have to trap from now on, besides those through the merged tables themselves; or no more.
    fn guard(&mut self, table: Frame<M>, on: bool);
    /// The frame behind a frame of the source, given now where there was none.
    fn target(&mut self, frame: Frame<M>) -> Option<Frame<D>>;
    /// What a leaf permits that stands for a source leaf with these attributes.
    fn leaf(attrs: Attrs) -> Attrs;
    /// Whether the source's leaf may be followed before it was used.
    fn may_foresee(attrs: Attrs) -> bool;
    /// The sums of what is done.
    fn work(&mut self) -> &mut Work;
}

/// Whether a translation that hardware may have cached went away or got narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Change {
    Kept,
    Lost,
}

impl Change {
    pub(crate) const fn or(self, other: Self) -> Self {
        if matches!(self, Self::Lost) { Self::Lost } else { other }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Follows a source table.
    Table,
    /// A piece of a large page of the source.
    Direct,
}

/// A page of merged tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageId(u32);

type Slot = (PageId, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target<M: Space> {
    Child(PageId),
    Leaf(Frame<M>),
}

#[derive(Debug)]
struct Page<M: Space, D: Space> {
    source: Frame<M>,
    level: Level,
    kind: Kind,
    frame: Frame<D>,
    parents: BTreeSet<Slot>,
    entries: BTreeMap<u16, Target<M>>,
    /// How many vCPUs run on it.
    pins: u32,
}

/// Source tables of format `S` followed by tables of format `T`.
#[derive(Debug)]
pub(crate) struct Merge<S: Format, T: Format> {
    pages: BTreeMap<PageId, Page<S::Out, T::Out>>,
    index: BTreeMap<(Frame<S::Out>, Level, Kind), PageId>,
    /// Where each source frame is mapped.
    leaves: BTreeMap<Frame<S::Out>, BTreeSet<Slot>>,
    next: u32,
    config: Config,
}

/// One translation to be filled in.
#[derive(Debug)]
pub(crate) struct Fill<'a, S: Format, D: Space> {
    pub(crate) at: Addr<S::In>,
    pub(crate) path: &'a Path<S>,
    /// The frame that the source gives, and the one behind it.
    pub(crate) frames: (Frame<S::Out>, Frame<D>),
}

impl<S, T> Merge<S, T>
where
    S: Format,
    T: Format<In = S::In>,
{
    pub(crate) fn new(config: Config) -> Self {
        Self { pages: BTreeMap::new(), index: BTreeMap::new(), leaves: BTreeMap::new(), next: 0, config }
    }

    /// How many tables there are.
    pub(crate) fn tables(&self) -> u64 {
        self.pages.len() as u64
    }

    /// The frames of all tables.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame<T::Out>> {
        self.pages.values().map(|page| page.frame)
    }

    /// The source tables that are followed.
    pub(crate) fn followed(&self) -> impl Iterator<Item = Frame<S::Out>> {
        self.index.keys().filter(|(_, _, kind)| *kind == Kind::Table).map(|(frame, ..)| *frame)
    }

    pub(crate) fn frame(&self, page: PageId) -> Option<Frame<T::Out>> {
        self.pages.get(&page).map(|page| page.frame)
    }

    /// Whether the frame holds a source table that is followed.
    pub(crate) fn is_followed(&self, frame: Frame<S::Out>) -> bool {
        self.tables_in(frame).next().is_some()
    }

    /// The highest level at which a source table is followed.
    pub(crate) fn level_of(&self, frame: Frame<S::Out>) -> Option<Level> {
        self.tables_in(frame).map(|(level, _)| level).max()
    }

    fn tables_in(&self, frame: Frame<S::Out>) -> impl Iterator<Item = (Level, PageId)> {
        let range = (frame, Level::L1, Kind::Table)..=(frame, Level::L5, Kind::Direct);
        self.index
            .range(range)
            .filter(|((_, _, kind), _)| *kind == Kind::Table)
            .map(|((_, level, _), id)| (*level, *id))
    }

    fn first_in(&self, frame: Frame<S::Out>) -> Option<PageId> {
        self.tables_in(frame).next().map(|(_, id)| id)
    }

    pub(crate) fn pin(&mut self, page: PageId) {
        if let Some(page) = self.pages.get_mut(&page) {
            page.pins += 1;
        }
    }

    pub(crate) fn unpin(&mut self, page: PageId) {
        if let Some(page) = self.pages.get_mut(&page) {
            page.pins = page.pins.saturating_sub(1);
        }
    }

    /// Whether a vCPU runs on the table in `frame`.
    pub(crate) fn is_root(&self, frame: Frame<S::Out>) -> bool {
        self.tables_in(frame).any(|(_, id)| self.pages.get(&id).is_some_and(|page| page.pins > 0))
    }

    /// The page that follows the root table in `frame`.
    pub(crate) fn root<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        frame: Frame<S::Out>,
    ) -> Option<(PageId, Change)> {
        self.table(k, frame, S::ROOT)
    }

    /// The page that follows the table in `frame`, made now where there is none.
    fn table<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        frame: Frame<S::Out>,
        level: Level,
    ) -> Option<(PageId, Change)> {
        if let Some(id) = self.index.get(&(frame, level, Kind::Table)) {
            return Some((*id, Change::Kept));
        }
        let fresh = !self.is_followed(frame);
        let id = self.create(k, frame, level, Kind::Table)?;
        let mut change = Change::Kept;
        if fresh {
            k.guard(frame, true);
            change = self.forbid_stores(k, frame)?;
        }
        if self.config.linking == Linking::Eager {
            for index in 0..512u16 {
                let raw = k.source(frame.entry(usize::from(index)))?;
                change = change.or(self.follow(k, (id, index), S::decode(raw, level))?);
            }
        }
        Some((id, change))
    }

    /// Links the page of the table that an entry of the source points to.
    fn follow<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K, slot: Slot, entry: Entry<S::Out>) -> Option<Change> {
        let (Entry::Table { next, attrs }, Some(below)) = (entry, self.pages.get(&slot.0)?.level.below()) else {
            return Some(Change::Kept);
        };
        let (child, change) = self.table(k, next, below)?;
        Some(change.or(self.link(k, slot, child, attrs)?))
    }

    fn create<K: Keeper<S::Out, T::Out>>(
        &mut self,
        k: &mut K,
        source: Frame<S::Out>,
        level: Level,
        kind: Kind,
    ) -> Option<PageId> {
        let frame = k.allocate()?;
        let id = PageId(self.next);
        self.next += 1;
        let page = Page { source, level, kind, frame, parents: BTreeSet::new(), entries: BTreeMap::new(), pins: 0 };
        self.pages.insert(id, page);
        self.index.insert((source, level, kind), id);
        k.work().tables_allocated += 1;
        Some(id)
    }

    /// Takes the permission to store from every leaf over `frame`.
    fn forbid_stores<K: Keeper<S::Out, T::Out>>(&mut self, k: &mut K, frame: Frame<S::Out>) -> Option<Change> {
        let mut change = Change::Kept;
        for slot in self.leaves.get(&frame).into_iter().flatten() {
            let Some(page) = self.pages.get(&slot.0) else { continue };
            let at = page.frame.entry(usize::from(slot.1));
            let entry = T::decode(k.load(at)?, page.level);
            if entry.attrs().contains(Attrs::WRITE) {
                k.store(at, T::encode(entry.map_attrs(|attrs| attrs - Attrs::WRITE), page.level))?;
                k.work().entries_cleared += 1;
                change = Change::Lost;
            }
        }
        Some(change)
    }
}
