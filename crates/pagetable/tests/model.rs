//! The mapper against a naive model: a map from page to frame and a set of tables, changed by the plain meaning of each
//! operation. Random sequences, every format; after each step the outcome, the translation, the counts and the frames held
//! must agree, and no frame may be freed twice or leak.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test harness over small numbers")]

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::{Addr, Frame, GuestPhys, HostPhys, Level, PageSize, Space};
use memvirt_pagetable::{
    Attrs, Ept, Format, FrameAllocator, FramePool, LongMode, LookupError, MapError, Mapper, Pae, PhysMem, SplitError,
    TableAttrs, Teardown,
};
use proptest::prelude::*;

/// A pool that knows who holds what, and has few frames.
#[derive(Debug)]
struct Strict<S: Space> {
    pool: FramePool<S>,
    held: BTreeSet<Frame<S>>,
    left: u64,
}

impl<S: Space> FrameAllocator<S> for Strict<S> {
    fn allocate(&mut self, size: PageSize) -> Option<Frame<S>> {
        self.left = self.left.checked_sub(1)?;
        let frame = self.pool.allocate(size)?;
        assert!(self.held.insert(frame), "{frame:?} given out twice");
        Some(frame)
    }

    fn free(&mut self, frame: Frame<S>, size: PageSize) {
        assert!(self.held.remove(&frame), "{frame:?} freed twice");
        self.left += 1;
        self.pool.free(frame, size);
    }

    fn allocated(&self) -> u64 {
        self.pool.allocated()
    }
}

/// A page of the model: size, first frame, attributes.
type Page = (PageSize, u64, Attrs);

/// Pages by linear address; tables below the root by level and first linear address.
#[derive(Clone, Debug, Default)]
struct Model {
    root: u8,
    pages: BTreeMap<u64, Page>,
    tables: BTreeSet<(u8, u64)>,
}

/// Bytes that a table of `level` covers.
const fn span(level: u8) -> u64 {
    1 << (12 + 9 * level as u64)
}

impl Model {
    fn page(&self, at: u64) -> Option<(u64, Page)> {
        let (start, page) = self.pages.range(..=at).next_back()?;
        (at - start < page.0.bytes()).then_some((*start, *page))
    }

    fn missing(&self, at: u64, down_to: u8) -> Vec<(u8, u64)> {
        (down_to..self.root)
            .map(|level| (level, at & !(span(level) - 1)))
            .filter(|key| !self.tables.contains(key))
            .collect()
    }

    /// What stands in the way of a leaf, where there is no table for smaller pages.
    fn in_the_way(&self, at: u64, raw: u64, size: PageSize) -> Option<MapError> {
        match self.page(at)? {
            (_, (found, ..)) if found > size => Some(MapError::HugeInTheWay { at: raw, size: found }),
            (_, (found, ..)) if found == size => Some(MapError::AlreadyMapped { at: raw, level: size.level() }),
            _ => None,
        }
    }

    /// The level of the entry at which a walk for `at` that finds no leaf ends.
    fn ends_at(&self, at: u64) -> Level {
        let missing = self.missing(at, 1).iter().map(|(level, _)| level + 1).max();
        Level::from_number(missing.unwrap_or(1)).unwrap()
    }

    fn has_table(&self, level: u8, at: u64) -> bool {
        self.tables.contains(&(level, at & !(span(level) - 1)))
    }

    fn split(&mut self, at: u64, to: PageSize) {
        while let Some((start, (size, frame, attrs))) = self.page(at).filter(|(_, page)| page.0 > to) {
            let small = PageSize::ALL[size as usize - 2];
            self.tables.insert((small as u8, start));
            for index in 0..512 {
                self.pages.insert(start + index * small.bytes(), (small, frame + index * small.frames(), attrs));
            }
        }
    }

    fn prune(&mut self, first: u64, last: u64) -> u64 {
        let before = self.tables.len();
        for level in 1..self.root {
            let inside = |key: u64, start: u64| key & !(span(level) - 1) == start;
            let (pages, tables) = (&self.pages, self.tables.clone());
            self.tables.retain(|(found, start)| {
                *found != level
                    || start + span(level) - 1 < first
                    || *start > last
                    || pages.keys().any(|page| inside(*page, *start))
                    || tables_below(&tables, level, *start)
            });
        }
        (before - self.tables.len()) as u64
    }
}

fn tables_below(tables: &BTreeSet<(u8, u64)>, level: u8, start: u64) -> bool {
    tables.iter().any(|(other, at)| *other < level && at & !(span(level) - 1) == start)
}

/// An operation before it is fitted to a format.
#[derive(Clone, Debug)]
struct Op {
    kind: Kind,
    indices: [u8; 5],
    to: [u8; 5],
    size: PageSize,
    frame: u64,
    attrs: u32,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Map,
    Unmap,
    Protect,
    Replace,
    Split,
    Collapse,
    Prune,
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        6 => Just(Kind::Map),
        3 => Just(Kind::Unmap),
        1 => Just(Kind::Protect),
        1 => Just(Kind::Replace),
        2 => Just(Kind::Split),
        2 => Just(Kind::Collapse),
        2 => Just(Kind::Prune),
    ];
    let size = prop::sample::select(PageSize::ALL.to_vec());
    let indices = || prop::array::uniform5(0u8..3);
    (kind, indices(), indices(), size, 0u64..1 << 38, any::<u32>())
        .prop_map(|(kind, indices, to, size, frame, attrs)| Op { kind, indices, to, size, frame, attrs })
}

/// The linear address with these picks of first, second and last index at each level.
fn linear<F: Format>(picks: [u8; 5]) -> u64 {
    let levels = Level::ALL.into_iter().filter(|level| *level <= F::ROOT);
    let bits = levels.zip(picks).map(|(level, pick)| {
        let index = [0, 1, F::entries(level) as u64 - 1][usize::from(pick)];
        index << level.entry_shift()
    });
    bits.sum::<u64>() & (u64::MAX >> (64 - F::input_bits()))
}

/// The mapper and the model, side by side.
struct Pair<'m, F: Format> {
    mapper: Mapper<'m, F, PhysMem<F::Out>>,
    pool: Strict<F::Out>,
    model: Model,
}

impl<F: Format> Pair<'_, F> {
    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let at = linear::<F>(op.indices) & if op.size < PageSize::Size1G { !(op.size.bytes() - 1) } else { !0 };
        let fitted = F::supports(Level::L1, true) & Attrs::from_bits_truncate(op.attrs);
        let attrs = (fitted - Attrs::MEMTYPE_0 - Attrs::MEMTYPE_1 - Attrs::MEMTYPE_2) | Attrs::READ;
        match op.kind {
            Kind::Map => self.map(at & !(op.size.bytes() - 1), op, attrs),
            Kind::Unmap => self.unmap(at),
            Kind::Protect => self.change(at, None, attrs),
            Kind::Replace => self.change(at, Some(op.frame), attrs),
            Kind::Split => self.split(at, op.size),
            Kind::Collapse => self.collapse(at & !(op.size.bytes() - 1), op, attrs),
            Kind::Prune => self.prune(at, linear::<F>(op.to)),
        }?;
        self.compare(at)
    }

    fn map(&mut self, at: u64, op: &Op, attrs: Attrs) -> Result<(), TestCaseError> {
        let (input, frame, size) = (F::input(at), op.frame & !(op.size.frames() - 1), op.size);
        let (raw, level) = (input.as_u64(), size.level().number());
        let missing = self.model.missing(at, level);
        let needed = missing.len() as u8;
        let want = if !F::has_leaves(size.level()) {
            Err(MapError::UnsupportedSize { size })
        } else if level > 1 && self.model.has_table(level - 1, at) {
            Err(MapError::TableInTheWay { at: raw, level: size.level() })
        } else if let Some(error) = self.model.in_the_way(at, raw, size) {
            Err(error)
        } else if u64::from(needed) > self.pool.left {
            Err(MapError::OutOfFrames { needed })
        } else {
            self.model.tables.extend(missing);
            self.model.pages.insert(at, (size, frame, attrs));
            Ok(needed)
        };
        prop_assert_eq!(self.mapper.map(input, Frame::new(frame), size, attrs, &mut self.pool), want);
        Ok(())
    }

    fn not_mapped(&self, at: u64) -> LookupError {
        LookupError::NotMapped { at: F::input(at).as_u64(), level: self.model.ends_at(at) }
    }

    fn unmap(&mut self, at: u64) -> Result<(), TestCaseError> {
        let got = self.mapper.unmap(F::input(at));
        let want = self.model.page(at).ok_or_else(|| self.not_mapped(at));
        want.iter().for_each(|(start, _)| assert!(self.model.pages.remove(start).is_some()));
        prop_assert_eq!(
            got.map(|old| (old.at, (old.size, old.frame.number(), old.attrs))),
            want.map(|(s, p)| (F::input(s), p))
        );
        Ok(())
    }

    /// Protect, or replace where there is a new frame.
    fn change(&mut self, at: u64, frame: Option<u64>, attrs: Attrs) -> Result<(), TestCaseError> {
        let want = self.model.page(at).ok_or_else(|| self.not_mapped(at));
        let mut aligned = 0;
        if let Ok((start, page)) = want {
            aligned = frame.unwrap_or(page.1) & !(page.0.frames() - 1);
            self.model.pages.insert(start, (page.0, aligned, attrs));
        }
        let got = match frame {
            None => self.mapper.protect(F::input(at), |_| attrs),
            Some(_) => self.mapper.replace(F::input(at), Frame::new(aligned), attrs),
        };
        prop_assert_eq!(got.map(|old| (old.size, old.frame.number(), old.attrs)), want.map(|(_, page)| page));
        Ok(())
    }

    fn split(&mut self, at: u64, to: PageSize) -> Result<(), TestCaseError> {
        let needed = self.model.page(at).map(|(_, page)| (page.0 as u8).saturating_sub(to as u8));
        let want = match needed {
            None => Err(SplitError::Lookup(self.not_mapped(at))),
            Some(needed) if u64::from(needed) > self.pool.left => Err(SplitError::OutOfFrames { needed }),
            Some(needed) => {
                self.model.split(at, to);
                Ok(needed)
            }
        };
        prop_assert_eq!(self.mapper.split(F::input(at), to, &mut self.pool), want);
        Ok(())
    }

    fn collapse(&mut self, at: u64, op: &Op, attrs: Attrs) -> Result<(), TestCaseError> {
        let (raw, size, level) = (F::input(at).as_u64(), op.size, op.size.level().number());
        let frame = op.frame & !(size.frames() - 1);
        let mut leaves = Vec::new();
        let want = if !F::has_leaves(size.level()) {
            Err(MapError::UnsupportedSize { size })
        } else if level > 1 && self.model.has_table(level - 1, at) {
            let last = at + (size.bytes() - 1);
            leaves = self.model.pages.range(at..=last).map(|(start, page)| (F::input(*start), page.1)).collect();
            self.model.pages.retain(|start, _| !(at..=last).contains(start));
            let before = self.model.tables.len();
            self.model.tables.retain(|(table, start)| *table >= level || !(at..=last).contains(start));
            self.model.pages.insert(at, (size, frame, attrs));
            Ok((before - self.model.tables.len()) as u64)
        } else {
            let nothing = MapError::NothingToCollapse { at: raw, level: self.model.ends_at(at) };
            Err(self.model.in_the_way(at, raw, size).unwrap_or(nothing))
        };
        let mut seen = Vec::new();
        let visit = |leaf: memvirt_pagetable::Mapping<F>| seen.push((leaf.at, leaf.frame.number()));
        let got = self.mapper.collapse(F::input(at), Frame::new(frame), size, attrs, &mut self.pool, visit);
        prop_assert_eq!(got, want);
        prop_assert_eq!(seen, leaves);
        Ok(())
    }

    fn prune(&mut self, a: u64, b: u64) -> Result<(), TestCaseError> {
        let (first, last) = (a.min(b), a.max(b));
        let freed = self.mapper.prune(F::input(first)..=F::input(last), &mut self.pool);
        prop_assert_eq!(freed, self.model.prune(first, last));
        Ok(())
    }

    /// Translation at `at` and its neighbours, counts, and who holds which frame.
    fn compare(&self, at: u64) -> Result<(), TestCaseError> {
        let all = u64::MAX >> (64 - F::input_bits());
        for at in [at, at + 0xfff, at ^ 0x1f_f123, at ^ 0x3fff_f000].map(|at| at & all) {
            let want = self
                .model
                .page(at)
                .map(|(start, (size, frame, attrs))| (Addr::new_truncate((frame << 12) + (at - start)), attrs, size));
            prop_assert_eq!(self.mapper.translate(F::input(at)), want);
        }
        let count = self.mapper.count();
        for level in 1..self.model.root {
            let tables = self.model.tables.iter().filter(|(found, _)| *found == level).count() as u64;
            prop_assert_eq!(count.tables_at(Level::from_number(level).unwrap()), tables);
        }
        for size in PageSize::ALL {
            prop_assert_eq!(
                count.leaves_of(size),
                self.model.pages.values().filter(|page| page.0 == size).count() as u64
            );
        }
        let tables: Vec<_> = self.mapper.tables().map(|(frame, _)| frame).collect();
        prop_assert_eq!(tables.len() as u64, count.all_tables());
        prop_assert_eq!(&tables.into_iter().collect::<BTreeSet<_>>(), &self.pool.held, "leaked or lost tables");
        Ok(())
    }

    fn leaves(&self) -> Vec<(Addr<F::In>, Page)> {
        self.mapper.leaves(..).map(|leaf| (leaf.at, (leaf.size, leaf.frame.number(), leaf.attrs))).collect()
    }

    fn teardown(mut self, kept: usize, how: Teardown) -> Result<(), TestCaseError> {
        let want: Vec<_> = self.model.pages.iter().map(|(at, page)| (F::input(*at), *page)).collect();
        prop_assert_eq!(self.leaves(), want.clone());
        let mut seen = Vec::new();
        let visit =
            |leaf: memvirt_pagetable::Mapping<F>| seen.push((leaf.at, (leaf.size, leaf.frame.number(), leaf.attrs)));
        let (before, keep) = (self.pool.held.len(), kept..F::entries(F::ROOT));
        let freed = self.mapper.free_tree(&mut self.pool, keep.clone(), how, visit);
        let (stay, gone): (Vec<_>, Vec<_>) =
            want.into_iter().partition(|(at, _)| keep.contains(&F::index(*at, F::ROOT)));
        prop_assert_eq!(seen, gone);
        prop_assert_eq!(self.leaves(), stay);
        prop_assert_eq!(self.pool.held.len() as u64 + freed, before as u64);
        prop_assert_eq!(self.pool.held.len() as u64, self.mapper.count().all_tables());
        Ok(())
    }
}

fn run<F: Format>(ops: &[Op], left: u64, kept: usize, how: Teardown) -> Result<(), TestCaseError> {
    let mut mem = PhysMem::new(512);
    let mut pool = Strict { pool: FramePool::new(Frame::new(1), 511), held: BTreeSet::new(), left };
    let tables = TableAttrs::new(Attrs::RWX | Attrs::USER);
    let mapper = Mapper::<F, _>::create(&mut mem, &mut pool, tables).unwrap();
    let model = Model { root: F::ROOT.number(), ..Model::default() };
    let mut pair = Pair { mapper, pool, model };
    ops.iter().try_for_each(|op| pair.step(op))?;
    pair.teardown(kept % F::entries(F::ROOT), how)
}

proptest! {
    #![proptest_config(memvirt_properties::cases(128))]
    #[test]
    fn random_sequences_agree_with_the_model(
        ops in prop::collection::vec(op(), 1..80),
        left in prop_oneof![Just(400u64), 1u64..20],
        kept in 0usize..512,
        clear: bool,
    ) {
        let how = if clear { Teardown::ClearEntries } else { Teardown::Unlink };
        run::<LongMode<4>>(&ops, left, kept, how)?;
        run::<LongMode<5>>(&ops, left, kept, how)?;
        run::<LongMode<4, GuestPhys, HostPhys>>(&ops, left, kept, how)?;
        run::<Ept<4>>(&ops, left, kept, how)?;
        run::<Ept<5>>(&ops, left, kept, how)?;
        run::<Pae>(&ops, left, kept, how)?;
    }
}
