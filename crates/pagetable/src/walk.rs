//! The one-dimensional walk: one memory reference at a time, root first.
//!
//! [`Walk`] is an iterator whose items are the thing being counted: `walk.count()` *is* the cost of a cold walk. [`walk`]
//! collects one into a [`Path`], which holds every entry read and the permissions accumulated over them, and says how the
//! walk ended. A walk changes nothing; setting accessed and dirty bits is the caller's decision
//! ([`Path::missing_accessed`], [`Path::leaf`]).

use memvirt_addr::{Addr, Frame, Level, PageSize};

use crate::{Attrs, Entry, Format, TableMem};

/// One memory reference of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<F: Format> {
    /// The level of the entry.
    pub level: Level,
    /// Where the entry lies.
    pub entry_at: Addr<F::Out>,
    /// Its raw bits.
    pub raw: u64,
    /// What they mean.
    pub entry: Entry<F::Out>,
}

/// A walk in progress. Ends after a leaf, an absent or a reserved entry.
#[derive(Debug)]
pub struct Walk<'m, F: Format, M> {
    mem: &'m M,
    at: Addr<F::In>,
    table: Option<Frame<F::Out>>,
    level: Level,
}

impl<'m, F: Format, M: TableMem<F::Out>> Walk<'m, F, M> {
    /// A walk for `at` from the root table in frame `root`. Address bits above those that the tables translate are ignored, as
    /// hardware checks them before it walks ([`Format::covers`]).
    #[must_use]
    #[inline]
    pub fn new(mem: &'m M, root: Frame<F::Out>, at: Addr<F::In>) -> Self {
        Self { mem, at, table: Some(root), level: F::ROOT }
    }

    /// One reference: reads the entry for `at` in `table`, a table of `level`.
    #[must_use]
    #[inline]
    pub fn step(mem: &M, table: Frame<F::Out>, level: Level, at: Addr<F::In>) -> Step<F> {
        let entry_at = table.entry(F::index(at, level));
        let raw = mem.read_entry(entry_at);
        Step { level, entry_at, raw, entry: F::decode(raw, level) }
    }
}

impl<F: Format, M: TableMem<F::Out>> Iterator for Walk<'_, F, M> {
    type Item = Step<F>;

    #[inline]
    fn next(&mut self) -> Option<Step<F>> {
        let (table, level) = (self.table.take()?, self.level);
        let step = Self::step(self.mem, table, level, self.at);
        if let (Entry::Table { next, .. }, Some(below)) = (step.entry, level.below()) {
            self.table = Some(next);
            self.level = below;
        }
        Some(step)
    }
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked<F: Format> {
    /// At a leaf.
    Mapped {
        /// The first frame of the page.
        frame: Frame<F::Out>,
        /// Its size.
        size: PageSize,
    },
    /// At an absent entry of this level.
    Absent(Level),
    /// At an entry of this level with reserved bits.
    Reserved(Level),
}

/// Every entry that a walk read, as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Path<F: Format> {
    /// Where each entry lies and its raw bits, root first. Meanings are decoded again when asked for: few callers ask for all.
    reads: [(Addr<F::Out>, u64); 5],
    len: u8,
    /// The permissions of all present entries, ANDed.
    pub perms: Attrs,
    /// How the walk ended.
    pub end: Walked<F>,
}

impl<F: Format> Path<F> {
    /// The references in order, root first.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = Step<F>> {
        self.reads[..usize::from(self.len)].iter().enumerate().filter_map(|(depth, (entry_at, raw))| {
            let level = Level::from_number(F::ROOT.number() - u8::try_from(depth).ok()?)?;
            Some(Step { level, entry_at: *entry_at, raw: *raw, entry: F::decode(*raw, level) })
        })
    }

    /// How many references the walk made.
    #[must_use]
    pub const fn refs(&self) -> u32 {
        self.len as u32
    }

    /// The leaf's step, where there is one.
    #[must_use]
    pub fn leaf(&self) -> Option<Step<F>> {
        self.steps().next_back().filter(|step| matches!(step.entry, Entry::Leaf { .. }))
    }

    /// The steps whose entry is present and has its accessed bit clear.
    pub fn missing_accessed(&self) -> impl Iterator<Item = Step<F>> {
        self.steps().filter(|step| step.entry.is_present() && !step.raw & F::accessed_bit(step.level) != 0)
    }

    /// The frame that `at`, the address walked, reaches; `None` where nothing is mapped.
    #[must_use]
    pub fn frame_of(&self, at: Addr<F::In>) -> Option<Frame<F::Out>> {
        match self.end {
            Walked::Mapped { frame, size } => Some(frame.offset(at.page_offset(size) >> 12)),
            Walked::Absent(_) | Walked::Reserved(_) => None,
        }
    }
}

/// Walks the tables under `root` for `at` and returns every entry read.
#[must_use]
#[inline]
pub fn walk<F: Format, M: TableMem<F::Out>>(mem: &M, root: Frame<F::Out>, at: Addr<F::In>) -> Path<F> {
    let mut path =
        Path { reads: [(Addr::ZERO, 0); 5], len: 0, perms: Attrs::PERMISSIONS, end: Walked::Absent(F::ROOT) };
    let (mut table, mut level) = (root, F::ROOT);
    loop {
        let step = Walk::<F, M>::step(mem, table, level, at);
        path.reads[usize::from(path.len)] = (step.entry_at, step.raw);
        path.len += 1;
        path.end = match (step.entry, level.below()) {
            (Entry::Table { next, attrs }, Some(below)) => {
                path.perms &= attrs;
                (table, level) = (next, below);
                continue;
            }
            (Entry::Leaf { frame, size, attrs }, _) => {
                path.perms &= attrs;
                Walked::Mapped { frame, size }
            }
            (Entry::Absent, _) => Walked::Absent(level),
            (Entry::Reserved | Entry::Table { .. }, _) => Walked::Reserved(level),
        };
        return path;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Guest4, PhysMem};
    use memvirt_addr::{Gfn, GuestPhys, Gva};

    fn tiny() -> PhysMem<GuestPhys> {
        let mut mem = PhysMem::new(64);
        let gva = Gva::new(0x40_0000_1000);
        for (table, level) in [(1, Level::L4), (2, Level::L3), (3, Level::L2)] {
            let at = Gfn::new(table).entry(gva.index(level));
            mem.write(at, ((table + 1) << 12) | 0x7);
        }
        mem.write(Gfn::new(4).entry(gva.index(Level::L1)), (9 << 12) | 0x27);
        mem
    }

    #[test]
    fn a_cold_walk_reads_four_entries() {
        let mem = tiny();
        let gva = Gva::new(0x40_0000_1234);
        assert_eq!(Walk::<Guest4, _>::new(&mem, Gfn::new(1), gva).count(), 4);
        let path = walk::<Guest4, _>(&mem, Gfn::new(1), gva);
        assert_eq!(path.frame_of(gva), Some(Gfn::new(9)));
        assert_eq!(path.missing_accessed().count(), 3);
        assert!(path.perms.contains(Attrs::USER | Attrs::WRITE));
    }

    #[test]
    fn an_absent_entry_ends_the_walk_where_it_is() {
        let mem = tiny();
        let path = walk::<Guest4, _>(&mem, Gfn::new(1), Gva::new(0x40_0020_0000));
        assert_eq!((path.refs(), path.end), (3, Walked::Absent(Level::L2)));
        assert!(path.leaf().is_none());
    }
}
