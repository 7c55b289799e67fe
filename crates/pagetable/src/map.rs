//! Changing a tree: map, unmap, replace, protect, split.
//!
//! [`Mapper`] stores through [`TableMem::write_entry`] and [`TableMem::clear`] only, one entry at a time and never a value
//! that is already there, so a caller that wraps the memory sees each store that a kernel would make. New tables are cleared
//! before they are linked, and linked root first; a split table is filled before it replaces the leaf: a concurrent walk
//! sees the old or the new translation. An operation that fails has stored nothing and holds no frame. Nothing allocates but
//! the caller's [`FrameAllocator`]. Tables are freed in [`free`](crate::free). No flush is implied by anything here.

use core::fmt;
use core::ops::RangeBounds;

use memvirt_addr::{Addr, Frame, Level, PageSize};

use crate::tree::{Leaves, Mapping, TableCount, Tree};
use crate::{Attrs, Entry, Format, FrameAllocator, LookupError, MapError, SplitError, Step, TableMem};

/// What entries that point to tables permit and carry. The caller chooses: leaves may not permit more than the tables above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableAttrs(Attrs);

impl TableAttrs {
    /// Everything, user mode included; the leaves decide. What kernels use for user memory.
    pub const USER: Self = Self(Attrs::RWX.union(Attrs::USER));
    /// Everything, for supervisor mode only.
    pub const SUPERVISOR: Self = Self(Attrs::RWX);
    /// Everything, in EPT.
    pub const EPT: Self = Self(Attrs::RWX);

    /// These attributes.
    #[must_use]
    pub const fn new(attrs: Attrs) -> Self {
        Self(attrs)
    }

    /// With `more` besides, as in `TableAttrs::USER.with(Attrs::ACCESSED)`.
    #[must_use]
    pub const fn with(self, more: Attrs) -> Self {
        Self(self.0.union(more))
    }

    /// The attributes.
    #[must_use]
    pub const fn attrs(self) -> Attrs {
        self.0
    }
}

/// The most tables one operation makes: levels 1 to 4 under a 5-level root.
const MOST_TABLES: usize = 4;

/// The tables under one root, to be changed.
///
/// Tables that exist keep their attributes: a mapper with [`TableAttrs::USER`] does not widen tables made for the supervisor.
pub struct Mapper<'m, F: Format, M> {
    pub(crate) mem: &'m mut M,
    pub(crate) root: Frame<F::Out>,
    tables: TableAttrs,
}

impl<F: Format, M> fmt::Debug for Mapper<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapper<{}>({:?}, {:?})", F::NAME, self.root, self.tables)
    }
}

impl<'m, F: Format, M: TableMem<F::Out>> Mapper<'m, F, M> {
    /// A mapper for the tree whose root table lies in frame `root`; new tables are linked with `tables`.
    #[must_use]
    pub const fn new(mem: &'m mut M, root: Frame<F::Out>, tables: TableAttrs) -> Self {
        Self { mem, root, tables }
    }

    /// A mapper for a new, empty tree; `None` where `alloc` has no frame for the root.
    #[must_use]
    pub fn create(mem: &'m mut M, alloc: &mut impl FrameAllocator<F::Out>, tables: TableAttrs) -> Option<Self> {
        let root = alloc.allocate(PageSize::Size4K)?;
        mem.clear(root);
        Some(Self::new(mem, root, tables))
    }

    /// The same tree, with new tables linked with `tables` from now on.
    #[must_use]
    pub const fn with_table_attrs(mut self, tables: TableAttrs) -> Self {
        self.tables = tables;
        self
    }

    /// The frame of the root table.
    #[must_use]
    pub const fn root(&self) -> Frame<F::Out> {
        self.root
    }

    /// The tree, read-only.
    #[must_use]
    #[inline]
    pub const fn tree(&self) -> Tree<'_, F, M> {
        Tree::new(self.mem, self.root)
    }

    /// [`Tree::translate`].
    #[must_use]
    #[inline]
    pub fn translate(&self, at: Addr<F::In>) -> Option<(Addr<F::Out>, Attrs, PageSize)> {
        self.tree().translate(at)
    }

    /// [`Tree::leaves`].
    pub fn leaves(&self, range: impl RangeBounds<Addr<F::In>>) -> Leaves<'_, F, M> {
        self.tree().leaves(range)
    }

    /// [`Tree::tables`].
    pub fn tables(&self) -> impl Iterator<Item = (Frame<F::Out>, Level)> {
        self.tree().tables()
    }

    /// [`Tree::count`].
    #[must_use]
    pub fn count(&self) -> TableCount {
        self.tree().count()
    }

    /// Maps the page of `size` at `at` to the frames from `frame` on and says how many tables that took (0 to 4).
    ///
    /// Attributes that the format cannot carry are dropped ([`Format::supports`]).
    ///
    /// # Errors
    ///
    /// [`MapError`]; nothing has changed then.
    pub fn map(
        &mut self,
        at: Addr<F::In>,
        frame: Frame<F::Out>,
        size: PageSize,
        attrs: Attrs,
        alloc: &mut impl FrameAllocator<F::Out>,
    ) -> Result<u8, MapError> {
        let (step, raw) = self.prepare(at, frame, size, attrs)?;
        if let Entry::Table { .. } = step.entry {
            return Err(MapError::TableInTheWay { at: at.as_u64(), level: step.level });
        }
        if let Some(error) = obstacle(at, size, &step) {
            return Err(error);
        }
        let (leaf_at, old, made) = self.build(step, at, size.level(), alloc)?;
        self.store(leaf_at, old, raw);
        Ok(made)
    }

    /// Checks what a new leaf would be; where the walk for it ends, and its raw bits.
    pub(crate) fn prepare(
        &self,
        at: Addr<F::In>,
        frame: Frame<F::Out>,
        size: PageSize,
        attrs: Attrs,
    ) -> Result<(Step<F>, u64), MapError> {
        if !F::covers(at) {
            return Err(MapError::NonCanonical { at: at.as_u64() });
        }
        let level = size.level();
        if level > F::ROOT || !F::has_leaves(level) {
            return Err(MapError::UnsupportedSize { size });
        }
        if !at.is_aligned(size) || !frame.is_aligned(size) {
            return Err(MapError::Misaligned { at: at.as_u64(), frame: frame.number(), size });
        }
        let raw = F::encode(Entry::Leaf { frame, size, attrs }, level);
        if !matches!(F::decode(raw, level), Entry::Leaf { .. }) {
            return Err(MapError::BadAttrs { attrs });
        }
        Ok((self.tree().descend(at, level), raw))
    }

    /// Makes the tables from the absent entry of `from` down to `until`; where the entry for `at` there lies, its raw bits,
    /// and how many tables were made.
    fn build(
        &mut self,
        from: Step<F>,
        at: Addr<F::In>,
        until: Level,
        alloc: &mut impl FrameAllocator<F::Out>,
    ) -> Result<(Addr<F::Out>, u64, u8), MapError> {
        let needed = from.level.number() - until.number();
        let attrs = self.tables.0;
        if needed > 0 && !self.links(from.level, until) {
            return Err(MapError::BadAttrs { attrs });
        }
        let frames = take(&from, at, needed, alloc).ok_or(MapError::OutOfFrames { needed })?;
        let (mut entry_at, mut raw, mut level) = (from.entry_at, from.raw, from.level);
        for next in frames.into_iter().flatten() {
            self.mem.clear(next);
            self.store(entry_at, raw, F::encode(Entry::Table { next, attrs }, level));
            level = level.below().unwrap_or(until);
            (entry_at, raw) = (next.entry(F::index(at, level)), 0);
        }
        Ok((entry_at, raw, needed))
    }

    /// Whether entries above `until`, up to `from`, can point to tables with this mapper's attributes.
    fn links(&self, from: Level, until: Level) -> bool {
        let entry = Entry::Table { next: self.root, attrs: self.tables.0 };
        let links = |level: &Level| matches!(F::decode(F::encode(entry, *level), *level), Entry::Table { .. });
        Level::ALL.iter().filter(|level| **level > until && **level <= from).all(links)
    }

    /// Removes the page that covers `at`, of whatever size, and says what it was. Tables stay, see [`Mapper::prune`].
    ///
    /// # Errors
    ///
    /// [`LookupError`]; nothing has changed then.
    pub fn unmap(&mut self, at: Addr<F::In>) -> Result<Mapping<F>, LookupError> {
        let (mapping, step) = self.leaf(at)?;
        self.store(step.entry_at, step.raw, 0);
        Ok(mapping)
    }

    /// Changes the attributes of the page that covers `at` and says what it was before. Bits that [`Attrs`] does not name
    /// (protection keys) stay; nothing is stored where nothing changes.
    ///
    /// # Errors
    ///
    /// [`LookupError`]; nothing has changed then.
    pub fn protect(&mut self, at: Addr<F::In>, change: impl FnOnce(Attrs) -> Attrs) -> Result<Mapping<F>, LookupError> {
        let (old, step) = self.leaf(at)?;
        self.rewrite(step, old, old.frame, change(old.attrs))
    }

    /// Puts another frame and other attributes into the leaf that covers `at`, in one store, and says what it was before:
    /// what a kernel does on copy-on-write.
    ///
    /// # Errors
    ///
    /// [`LookupError`]; nothing has changed then.
    pub fn replace(&mut self, at: Addr<F::In>, frame: Frame<F::Out>, attrs: Attrs) -> Result<Mapping<F>, LookupError> {
        let (old, step) = self.leaf(at)?;
        if !frame.is_aligned(old.size) {
            return Err(LookupError::Misaligned { frame: frame.number(), size: old.size });
        }
        self.rewrite(step, old, frame, attrs)
    }

    fn rewrite(
        &mut self,
        step: Step<F>,
        old: Mapping<F>,
        frame: Frame<F::Out>,
        attrs: Attrs,
    ) -> Result<Mapping<F>, LookupError> {
        let entry = Entry::Leaf { frame, size: old.size, attrs };
        let raw = F::encode(entry, step.level) | unnamed::<F>(&step);
        if !matches!(F::decode(raw, step.level), Entry::Leaf { .. }) {
            return Err(LookupError::BadAttrs { attrs });
        }
        self.store(step.entry_at, step.raw, raw);
        Ok(old)
    }

    /// Breaks the page that covers `at` into tables of smaller pages with the same attributes, until the page at `at` is no
    /// larger than `to`; says how many tables that took (0 to 2). Translations do not change.
    ///
    /// # Errors
    ///
    /// [`SplitError`]; nothing has changed then.
    pub fn split(
        &mut self,
        at: Addr<F::In>,
        to: PageSize,
        alloc: &mut impl FrameAllocator<F::Out>,
    ) -> Result<u8, SplitError> {
        let (found, mut step) = self.leaf(at)?;
        let needed = step.level.number().saturating_sub(to.level().number());
        if needed > 0 && !self.links(step.level, to.level()) {
            return Err(SplitError::BadAttrs { attrs: self.tables.0 });
        }
        let tables = take(&step, at, needed, alloc).ok_or(SplitError::OutOfFrames { needed })?;
        let mut frame = found.frame;
        for table in tables.into_iter().flatten() {
            let Some(small) = step.level.below().and_then(Level::page_size) else { break };
            self.fill(table, frame, small, &step);
            self.store(
                step.entry_at,
                step.raw,
                F::encode(Entry::Table { next: table, attrs: self.tables.0 }, step.level),
            );
            let index = F::index(at, small.level());
            frame = frame.offset(index as u64 * small.frames());
            step = self.tree().descend(at, small.level());
        }
        Ok(needed)
    }

    /// Fills `table` with pages of size `small` that together map what the leaf of `step` maps.
    fn fill(&mut self, table: Frame<F::Out>, frame: Frame<F::Out>, small: PageSize, step: &Step<F>) {
        let attrs = step.entry.attrs();
        for index in 0..F::entries(small.level()) {
            let frame = frame.offset(index as u64 * small.frames());
            let entry = Entry::Leaf { frame, size: small, attrs };
            self.mem.write_entry(table.entry(index), F::encode(entry, small.level()) | unnamed::<F>(step));
        }
    }

    /// The leaf that covers `at`.
    fn leaf(&self, at: Addr<F::In>) -> Result<(Mapping<F>, Step<F>), LookupError> {
        if !F::covers(at) {
            return Err(LookupError::NonCanonical { at: at.as_u64() });
        }
        let step = self.tree().descend(at, Level::L1);
        match Mapping::of(at, &step) {
            Some(mapping) => Ok((mapping, step)),
            None if step.entry == Entry::Reserved => Err(LookupError::Reserved { at: at.as_u64(), level: step.level }),
            None => Err(LookupError::NotMapped { at: at.as_u64(), level: step.level }),
        }
    }

    /// The one place where an entry of a live table changes.
    pub(crate) fn store(&mut self, entry_at: Addr<F::Out>, old: u64, new: u64) {
        if old != new {
            self.mem.write_entry(entry_at, new);
        }
    }
}

/// What keeps a leaf of `size` from being put where `step` ended: another leaf, or reserved bits.
pub(crate) fn obstacle<F: Format>(at: Addr<F::In>, size: PageSize, step: &Step<F>) -> Option<MapError> {
    let (at, level) = (at.as_u64(), step.level);
    match step.entry {
        Entry::Leaf { size: found, .. } if found == size => Some(MapError::AlreadyMapped { at, level }),
        Entry::Leaf { size, .. } => Some(MapError::HugeInTheWay { at, size }),
        Entry::Reserved => Some(MapError::Reserved { at, level }),
        Entry::Absent | Entry::Table { .. } => None,
    }
}

/// The bits of an entry that [`Entry`] does not carry, such as protection keys.
fn unnamed<F: Format>(step: &Step<F>) -> u64 {
    step.raw & !F::encode(step.entry, step.level)
}

/// `count` frames for the tables below the entry of `from` on the way to `at`, or none at all.
fn take<F: Format>(
    from: &Step<F>,
    at: Addr<F::In>,
    count: u8,
    alloc: &mut impl FrameAllocator<F::Out>,
) -> Option<[Option<Frame<F::Out>>; MOST_TABLES]> {
    let mut frames = [None; MOST_TABLES];
    let (mut parent, mut above) = (from.entry_at.frame(), from.level);
    for place in frames.iter_mut().take(usize::from(count)) {
        let taken = above.below().and_then(|level| alloc.allocate_table(level, parent, F::index(at, above)));
        let Some(frame) = taken else {
            for frame in frames.into_iter().flatten().rev() {
                alloc.free(frame, PageSize::Size4K);
            }
            return None;
        };
        *place = Some(frame);
        (parent, above) = (frame, above.below().unwrap_or(above));
    }
    Some(frames)
}

#[cfg(test)]
mod tests;
