//! Giving tables back: pruning empty ones, collapsing a table into a large leaf, tearing a tree down.
//!
//! Each table is unlinked before its frame goes back to the allocator, so a walk never meets a freed frame. A table is empty
//! when all its words are zero: an absent entry that carries software's bits (a swap slot) keeps it alive. Trees that share
//! tables must exclude the shared ones by range, or they would be freed twice.

use core::ops::{Range, RangeBounds};

use memvirt_addr::{Addr, Frame, Level, PageSize};

use crate::map::obstacle;
use crate::tree::{Mapping, span};
use crate::{Attrs, Entry, Format, FrameAllocator, MapError, Mapper, Step, TableMem};

/// What a teardown stores in the tables it frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teardown {
    /// Zero in every entry, leaves before the tables that hold them: a kernel's unmap at process exit.
    ClearEntries,
    /// Zero in the root's slots only; the tables below are freed as they are.
    Unlink,
}

/// A table on the way down: its frame, its level and the linear address that its first entry covers.
#[derive(Clone, Copy)]
struct At<F: Format> {
    table: Frame<F::Out>,
    level: Level,
    base: u64,
}

impl<F: Format> At<F> {
    /// The linear address that entry `index` covers first.
    const fn first(self, index: usize) -> u64 {
        self.base + index as u64 * self.level.entry_bytes()
    }

    /// The table that entry `index` of this one points to.
    const fn child(self, index: usize, next: Frame<F::Out>, level: Level) -> Self {
        Self { table: next, level, base: self.first(index) }
    }

    /// The entries that meet the span, which meets the table.
    #[expect(clippy::cast_possible_truncation, reason = "indices are below 512")]
    fn indices(self, (first, last): (u64, u64)) -> Range<usize> {
        let from = first.saturating_sub(self.base) >> self.level.entry_shift();
        let to = last.saturating_sub(self.base) >> self.level.entry_shift();
        from as usize..(to as usize).min(F::entries(self.level) - 1) + 1
    }
}

impl<F: Format, M: TableMem<F::Out>> Mapper<'_, F, M> {
    /// Frees the empty tables whose span meets `range`, lower ones first, and says how many; the root stays.
    pub fn prune(&mut self, range: impl RangeBounds<Addr<F::In>>, alloc: &mut impl FrameAllocator<F::Out>) -> u64 {
        let Some(span) = span::<F>(&range) else { return 0 };
        let root = At { table: self.root, level: F::ROOT, base: 0 };
        self.prune_below(root, span, alloc)
    }

    fn prune_below(&mut self, at: At<F>, span: (u64, u64), alloc: &mut impl FrameAllocator<F::Out>) -> u64 {
        let Some(below) = at.level.below() else { return 0 };
        let mut freed = 0;
        for index in at.indices(span) {
            let step = self.entry(at, index);
            let Entry::Table { next, .. } = step.entry else { continue };
            freed += self.prune_below(at.child(index, next, below), span, alloc);
            if self.is_empty(next, below) {
                self.store(step.entry_at, step.raw, 0);
                alloc.free(next, PageSize::Size4K);
                freed += 1;
            }
        }
        freed
    }

    /// Puts one leaf of `size` in the place of the table that covers `at`, in one store, then frees that table and those
    /// below it. `visit` sees the smaller leaves first: their contents are the caller's to move.
    ///
    /// Says how many tables were freed.
    ///
    /// # Errors
    ///
    /// [`MapError`], as for [`Mapper::map`], and [`MapError::NothingToCollapse`] where there is no table; nothing has changed
    /// then and `visit` was not called.
    pub fn collapse(
        &mut self,
        at: Addr<F::In>,
        frame: Frame<F::Out>,
        size: PageSize,
        attrs: Attrs,
        alloc: &mut impl FrameAllocator<F::Out>,
        mut visit: impl FnMut(Mapping<F>),
    ) -> Result<u64, MapError> {
        let (step, raw) = self.prepare(at, frame, size, attrs)?;
        if !matches!(step.entry, Entry::Table { .. }) {
            let nothing = MapError::NothingToCollapse { at: at.as_u64(), level: step.level };
            return Err(obstacle(at, size, &step).unwrap_or(nothing));
        }
        let last = Addr::new_truncate(at.as_u64() | (size.bytes() - 1));
        self.tree().leaves(at..=last).for_each(&mut visit);
        self.store(step.entry_at, step.raw, raw);
        let here = At { table: step.entry_at.frame(), level: step.level, base: 0 };
        Ok(self.free_under(here, 0, &step, Teardown::Unlink, alloc, &mut |_| {}))
    }

    /// Takes the tree down: every table below the root, save those under the root slots `keep` (the kernel's half, say), goes
    /// back to `alloc`, lower ones first; `visit` sees each leaf on the way. Says how many tables were freed.
    ///
    /// The root stays, with the kept slots in it: [`FrameAllocator::free`] it when no CPU uses it any more.
    pub fn free_tree(
        &mut self,
        alloc: &mut impl FrameAllocator<F::Out>,
        keep: Range<usize>,
        how: Teardown,
        mut visit: impl FnMut(Mapping<F>),
    ) -> u64 {
        let root = At { table: self.root, level: F::ROOT, base: 0 };
        let mut freed = 0;
        for index in (0..F::entries(F::ROOT)).filter(|index| !keep.contains(index)) {
            let step = self.entry(root, index);
            if how == Teardown::Unlink {
                self.store(step.entry_at, step.raw, 0);
            }
            freed += self.free_under(root, index, &step, how, alloc, &mut visit);
        }
        freed
    }

    /// Frees what entry `index` of `at` leads to; `step` is that entry as it was before it was unlinked.
    fn free_under(
        &mut self,
        at: At<F>,
        index: usize,
        step: &Step<F>,
        how: Teardown,
        alloc: &mut impl FrameAllocator<F::Out>,
        visit: &mut impl FnMut(Mapping<F>),
    ) -> u64 {
        let mut freed = 0;
        if let (Entry::Table { next, .. }, Some(below)) = (step.entry, at.level.below()) {
            let table = at.child(index, next, below);
            for index in 0..F::entries(below) {
                let step = self.entry(table, index);
                freed += self.free_under(table, index, &step, how, alloc, visit);
            }
        }
        if let Some(leaf) = Mapping::of(F::input(at.first(index)), step) {
            visit(leaf);
        }
        if how == Teardown::ClearEntries {
            self.store(step.entry_at, step.raw, 0);
        }
        if let Entry::Table { next, .. } = step.entry {
            alloc.free(next, PageSize::Size4K);
            freed += 1;
        }
        freed
    }

    fn entry(&self, at: At<F>, index: usize) -> Step<F> {
        let entry_at = at.table.entry(index);
        let raw = self.mem.read_entry(entry_at);
        Step { level: at.level, entry_at, raw, entry: F::decode(raw, at.level) }
    }

    fn is_empty(&self, table: Frame<F::Out>, level: Level) -> bool {
        (0..F::entries(level)).all(|index| self.mem.read_entry(table.entry(index)) == 0)
    }
}
