//! Reading a whole tree: translation, depth-first iteration over entries, leaves and tables, and counts.
//!
//! [`Tree`] is a read-only view of the tables under one root; [`Mapper`](crate::Mapper) changes them. Nothing here
//! allocates, and memory is only read through [`TableMem`]. A table that two entries point to is visited twice: a tree that
//! shares tables (recursive mappings, page-table isolation) is looked at by ranges.

use core::fmt;
use core::ops::{Bound, RangeBounds};

use memvirt_addr::{Addr, Frame, Level, PageSize};

use crate::{Attrs, Entry, Format, Step, TableMem, Walk};

/// A leaf: a page of the input space and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<F: Format> {
    /// The first address of the page.
    pub at: Addr<F::In>,
    /// The first frame it maps to.
    pub frame: Frame<F::Out>,
    /// Its size.
    pub size: PageSize,
    /// The attributes of the leaf itself, not ANDed over the walk.
    pub attrs: Attrs,
    /// Where the leaf entry lies.
    pub entry_at: Addr<F::Out>,
}

impl<F: Format> Mapping<F> {
    /// The mapping that `step` of a walk for `at` ends in; `None` where the step is no leaf.
    #[must_use]
    #[inline]
    pub fn of(at: Addr<F::In>, step: &Step<F>) -> Option<Self> {
        match step.entry {
            Entry::Leaf { frame, size, attrs } => {
                Some(Self { at: at.align_down(size), frame, size, attrs, entry_at: step.entry_at })
            }
            _ => None,
        }
    }
}

/// The tables under one root, read-only.
pub struct Tree<'m, F: Format, M> {
    mem: &'m M,
    root: Frame<F::Out>,
}

impl<F: Format, M> Clone for Tree<'_, F, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format, M> Copy for Tree<'_, F, M> {}

impl<F: Format, M> fmt::Debug for Tree<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree<{}>({:?})", F::NAME, self.root)
    }
}

impl<'m, F: Format, M: TableMem<F::Out>> Tree<'m, F, M> {
    /// The tree whose root table lies in frame `root`.
    #[must_use]
    #[inline]
    pub const fn new(mem: &'m M, root: Frame<F::Out>) -> Self {
        Self { mem, root }
    }

    /// The frame of the root table.
    #[must_use]
    pub const fn root(self) -> Frame<F::Out> {
        self.root
    }

    /// Where `at` lies, the attributes of its leaf (its own, not ANDed over the walk) and the page's size; `None` where
    /// nothing is mapped, an entry has reserved bits or the format does not cover the address.
    #[must_use]
    #[inline]
    pub fn translate(self, at: Addr<F::In>) -> Option<(Addr<F::Out>, Attrs, PageSize)> {
        let found = self.mapping(at)?;
        let offset = at.page_offset(found.size);
        Some((found.frame.offset(offset >> 12).at(offset), found.attrs, found.size))
    }

    /// The leaf that maps `at`, if there is one.
    #[must_use]
    #[inline]
    pub fn mapping(self, at: Addr<F::In>) -> Option<Mapping<F>> {
        if !F::covers(at) {
            return None;
        }
        Mapping::of(at, &self.descend(at, Level::L1))
    }

    /// The step at which the walk for `at` ends, or the one at level `until` where it gets that far.
    #[must_use]
    #[inline]
    pub fn descend(self, at: Addr<F::In>, until: Level) -> Step<F> {
        let mut table = self.root;
        let mut level = F::ROOT;
        loop {
            let step = Walk::<F, M>::step(self.mem, table, level, at);
            match (step.entry, level.below()) {
                (Entry::Table { next, .. }, Some(below)) if level > until => (table, level) = (next, below),
                _ => return step,
            }
        }
    }

    /// Every entry that is not absent and whose span meets `range`, depth first, a table's entry before those of the table.
    ///
    /// With each comes the first address it covers.
    pub fn entries(self, range: impl RangeBounds<Addr<F::In>>) -> Entries<'m, F, M> {
        let span = span::<F>(&range);
        let (next, last) = span.unwrap_or((0, 0));
        Entries { mem: self.mem, tables: [self.root; 5], level: F::ROOT, next, last, done: span.is_none() }
    }

    /// The leaves whose pages meet `range`, by ascending address (upper half last). `leaves(..)` is all of them.
    pub fn leaves(self, range: impl RangeBounds<Addr<F::In>>) -> Leaves<'m, F, M> {
        Leaves(self.entries(range))
    }

    /// Every leaf: `leaves(..)`.
    pub fn iter(self) -> Leaves<'m, F, M> {
        self.leaves(..)
    }

    /// The frame of every table with its level, the root first, then depth first.
    pub fn tables(self) -> impl Iterator<Item = (Frame<F::Out>, Level)> + use<'m, F, M> {
        let below = self.entries(..).filter_map(|(_, step)| match step.entry {
            Entry::Table { next, .. } => step.level.below().map(|level| (next, level)),
            _ => None,
        });
        core::iter::once((self.root, F::ROOT)).chain(below)
    }

    /// Tables by level and leaves by size.
    #[must_use]
    pub fn count(self) -> TableCount {
        let mut count = TableCount::default();
        count.tables[slot(F::ROOT)] = 1;
        for (_, step) in self.entries(..) {
            match (step.entry, step.level.below()) {
                (Entry::Table { .. }, Some(below)) => count.tables[slot(below)] += 1,
                (Entry::Leaf { size, .. }, _) => count.leaves[slot(size.level())] += 1,
                _ => {}
            }
        }
        count
    }
}

const fn slot(level: Level) -> usize {
    level.number() as usize - 1
}

/// The bits of an input address that the tables of `F` see; orders addresses as the entries lie in the tables.
fn linear<F: Format>(at: Addr<F::In>) -> u64 {
    at.as_u64() & (u64::MAX >> (64 - F::input_bits()))
}

/// First and last linear address of a range, cut to what the format covers; `None` where it is empty.
pub(crate) fn span<F: Format>(range: &impl RangeBounds<Addr<F::In>>) -> Option<(u64, u64)> {
    let first = match range.start_bound() {
        Bound::Included(at) => linear_up::<F>(*at)?,
        Bound::Excluded(at) => linear_up::<F>(*at)?.checked_add(u64::from(F::covers(*at)))?,
        Bound::Unbounded => 0,
    };
    let last = match range.end_bound() {
        Bound::Included(at) => linear_down::<F>(*at)?,
        Bound::Excluded(at) if F::covers(*at) => linear::<F>(*at).checked_sub(1)?,
        Bound::Excluded(at) => linear_down::<F>(*at)?,
        Bound::Unbounded => u64::MAX >> (64 - F::input_bits()),
    };
    (first <= last).then_some((first, last))
}

/// The linear address of the first covered address not below `at`; `None` where there is none.
fn linear_up<F: Format>(at: Addr<F::In>) -> Option<u64> {
    if F::covers(at) {
        return Some(linear::<F>(at));
    }
    let upper = F::upper_half()?;
    (at < upper).then(|| linear::<F>(upper))
}

/// The linear address of the last covered address not above `at`, which is not covered itself.
fn linear_down<F: Format>(at: Addr<F::In>) -> Option<u64> {
    if F::covers(at) {
        return Some(linear::<F>(at));
    }
    match F::upper_half() {
        Some(upper) if at < upper => linear::<F>(upper).checked_sub(1),
        _ => Some(u64::MAX >> (64 - F::input_bits())),
    }
}

/// Iterator of [`Tree::entries`].
#[derive(Debug)]
pub struct Entries<'m, F: Format, M> {
    mem: &'m M,
    /// The table being read at each level, leaf level first.
    tables: [Frame<F::Out>; 5],
    level: Level,
    /// Linear address of the next entry to read at `level`.
    next: u64,
    /// The last linear address of interest.
    last: u64,
    done: bool,
}

impl<F: Format, M: TableMem<F::Out>> Entries<'_, F, M> {
    /// Goes past the entry just read, up through the tables that end with it.
    fn advance(&mut self) {
        self.next = (self.next | (self.level.entry_bytes() - 1)) + 1;
        self.done = self.next > self.last;
        while let Some(above) = self.level.above() {
            if self.level == F::ROOT || self.next & (above.entry_bytes() - 1) != 0 {
                break;
            }
            self.level = above;
        }
    }
}

impl<F: Format, M: TableMem<F::Out>> Iterator for Entries<'_, F, M> {
    type Item = (Addr<F::In>, Step<F>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let level = self.level;
            let at = F::input(self.next & !(level.entry_bytes() - 1));
            let step = Walk::<F, M>::step(self.mem, self.tables[slot(level)], level, at);
            match (step.entry, level.below()) {
                (Entry::Table { next, .. }, Some(below)) => {
                    self.tables[slot(below)] = next;
                    self.level = below;
                    return Some((at, step));
                }
                (Entry::Absent, _) => self.advance(),
                _ => {
                    self.advance();
                    return Some((at, step));
                }
            }
        }
        None
    }
}

/// Iterator of [`Tree::leaves`].
#[derive(Debug)]
pub struct Leaves<'m, F: Format, M>(Entries<'m, F, M>);

impl<F: Format, M: TableMem<F::Out>> Iterator for Leaves<'_, F, M> {
    type Item = Mapping<F>;

    fn next(&mut self) -> Option<Mapping<F>> {
        self.0.by_ref().find_map(|(at, step)| Mapping::of(at, &step))
    }
}

/// What a tree consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCount {
    /// Tables by level, level 1 first; the root is one of them.
    pub tables: [u64; 5],
    /// Leaves by size: 4K, 2M, 1G.
    pub leaves: [u64; 3],
}

impl TableCount {
    /// Tables of `level`.
    #[must_use]
    pub const fn tables_at(&self, level: Level) -> u64 {
        self.tables[slot(level)]
    }

    /// Leaves of `size`.
    #[must_use]
    pub const fn leaves_of(&self, size: PageSize) -> u64 {
        self.leaves[slot(size.level())]
    }

    /// All tables, the root included.
    #[must_use]
    pub fn all_tables(&self) -> u64 {
        self.tables.iter().sum()
    }

    /// Bytes of memory that the tables take: one 4 KiB frame each, also where the root has fewer entries.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.all_tables() * PageSize::Size4K.bytes()
    }

    /// Bytes of the input space that are mapped.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        PageSize::ALL.iter().map(|size| self.leaves_of(*size) * size.bytes()).sum()
    }
}
