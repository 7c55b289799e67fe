//! [`Tlb`]: two levels of arrays, the lookup that runs over accesses, and the fill after a walk.
//!
//! # Invariant
//!
//! Of two live entries that overlap and that one process sees both, either both are the same translation (one in each
//! level), or neither exists. [`Tlb::fill`] establishes it by dropping what the new entry meets; a copy from the second
//! level to the first keeps it. So the order in which arrays are probed changes no result.

use alloc::boxed::Box;

use memvirt_addr::{Acc, Gva, PageSize};

use crate::array::Array;
use crate::entry::{Entry, Key, Packed, denied_to};
use crate::geometry::{CacheLevel, FracturedInvlpg, Geometry, GigabytePages, Inclusion, Sizes};
use crate::pieces::Pieces;
use crate::ready::Ready;
use crate::small::SmallPages;
use crate::stats::Stats;
use crate::tag::Tag;

const NONE: u8 = u8::MAX;

/// A two-level translation lookaside buffer.
///
/// See the crate's page for what it models. Nothing allocates after [`Tlb::new`].
pub struct Tlb {
    pub(crate) l1: Level,
    pub(crate) l2: Level,
    /// One tick for each access and each fill; stamps of 0 mark empty slots, so the first tick is 1.
    pub(crate) clock: u64,
    /// The size whose first-level array hit last: the next access most likely hits there too.
    pub(crate) likely: PageSize,
    pub(crate) small: SmallPages,
    pub(crate) pieces: Pieces,
    pub(crate) stats: Stats,
    pub(crate) fractured: FracturedInvlpg,
    pub(crate) inclusion: Inclusion,
    pub(crate) gigabyte: GigabytePages,
    /// The process whose entries the fronts hold.
    runs_for: Tag,
    /// Whether the last lookup missed: the next one may well miss too.
    pub(crate) missed: bool,
    /// What was looked up when the last miss found no entry at all, for the process that `runs_for` names, and the clock then.
    absent: (Key, u64),
}

/// The arrays of one level.
pub(crate) struct Level {
    pub(crate) arrays: Box<[Array]>,
    /// Which array holds a size: an index, or [`NONE`]. Index 0 is not used.
    array_of: [u8; 4],
    /// Sizes that entries may be live of: no others need a look.
    pub(crate) maybe_live: Sizes,
}

impl Level {
    fn new(geometry: &Geometry, level: CacheLevel) -> Self {
        let replacement = geometry.replacement(level);
        let arrays = geometry.arrays(level).iter().zip(0..);
        let arrays: Box<[Array]> = arrays.map(|(array, index)| Array::new(array, level, replacement, index)).collect();
        let mut array_of = [NONE; 4];
        for (index, array) in (0..NONE).zip(&arrays) {
            for size in array.sizes.iter() {
                array_of[size as usize] = index;
            }
        }
        Self { arrays, array_of, maybe_live: Sizes::NONE }
    }

    #[inline]
    pub(crate) fn array_of(&self, size: PageSize) -> Option<&Array> {
        self.arrays.get(usize::from(self.array_of[size as usize]))
    }

    #[inline]
    pub(crate) fn array_of_mut(&mut self, size: PageSize) -> Option<&mut Array> {
        self.arrays.get_mut(usize::from(self.array_of[size as usize]))
    }

    /// The entry a process sees for a 4 KiB page, of whatever size.
    #[inline]
    fn find(&self, tag: Tag, page: u64) -> Option<(PageSize, usize)> {
        if self.maybe_live == Sizes::only(PageSize::Size4K) {
            return self.find_sized(tag, page, PageSize::Size4K);
        }
        self.find_any(tag, page)
    }

    #[inline]
    fn find_sized(&self, tag: Tag, page: u64, size: PageSize) -> Option<(PageSize, usize)> {
        Some((size, self.array_of(size)?.find(Key::new(tag.vpid(), size, page), tag.pcid())?))
    }

    #[inline(never)]
    fn find_any(&self, tag: Tag, page: u64) -> Option<(PageSize, usize)> {
        self.maybe_live.iter().find_map(|size| self.find_sized(tag, page, size))
    }

    /// Looks which sizes are live, after a flush.
    pub(crate) fn note_live(&mut self) {
        let live = |size: &PageSize| self.array_of(*size).is_some_and(|array| array.live(*size) > 0);
        self.maybe_live = PageSize::ALL.into_iter().filter(live).fold(Sizes::NONE, Sizes::with);
    }

    /// Finds the entry a process sees for a page and, if it permits the access, notes its use.
    #[inline]
    fn look(&mut self, tag: Tag, page: u64, denied_to: u64, now: u64) -> Look {
        let Some((size, slot)) = self.find(tag, page) else { return Look::Absent };
        let Some(array) = self.array_of_mut(size) else { return Look::Absent };
        let packed = array.packed(slot);
        if packed.data.0 & denied_to != 0 {
            return Look::Denied;
        }
        array.hit(slot, now);
        Look::Hit(packed)
    }

    /// Stores an entry where the level caches its size; returns what that evicted.
    #[inline]
    fn insert(&mut self, new: &Packed, now: u64, seen: bool) -> Option<Packed> {
        self.maybe_live = self.maybe_live.with(new.key.size());
        self.array_of_mut(new.key.size())?.insert(new, now, seen)
    }
}

/// What one level says to an access.
enum Look {
    Hit(Packed),
    Denied,
    Absent,
}

impl Tlb {
    /// An empty TLB of this shape.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        Self {
            l1: Level::new(geometry, CacheLevel::L1),
            l2: Level::new(geometry, CacheLevel::L2),
            clock: 0,
            likely: PageSize::Size4K,
            small: SmallPages::default(),
            pieces: Pieces::default(),
            stats: Stats::default(),
            fractured: geometry.fractured,
            inclusion: geometry.inclusion,
            gigabyte: geometry.gigabyte,
            runs_for: Tag::default(),
            missed: false,
            absent: (Key::default(), 0),
        }
    }

    /// Looks up one access: counts it, notes the use of the entry that hit, copies it into the first level where only
    /// the second had it. `None`: a miss, for the caller to walk.
    pub fn lookup(&mut self, tag: Tag, acc: Acc) -> Option<Entry> {
        self.look_as(tag);
        self.lookup_packed(tag, acc).map(|packed| packed.entry())
    }

    pub(crate) fn lookup_packed(&mut self, tag: Tag, acc: Acc) -> Option<Packed> {
        let (page, denied_to) = (acc.page_bits(12), denied_to(acc));
        self.clock += 1;
        let now = self.clock;
        // Both levels hold the same for a page, if both hold it: what one denies the other cannot permit.
        let mut look = self.l1.look(tag, page, denied_to, now);
        if let Look::Hit(packed) = look {
            self.likely = packed.key.size();
            self.stats.l1_hits += 1;
            return Some(packed);
        }
        if let Look::Absent = look {
            look = self.l2.look(tag, page, denied_to, now);
        }
        if let Look::Hit(packed) = look {
            self.stats.l2_hits += 1;
            self.insert_l1(&packed, now, true);
            return Some(packed);
        }
        self.stats.misses += 1;
        self.missed = true;
        if let Look::Absent = look {
            self.absent = (Key::new(tag.vpid(), PageSize::Size4K, page), now);
        }
        None
    }

    /// Makes the hot path run for this process.
    #[inline]
    pub(crate) fn look_as(&mut self, tag: Tag) {
        if self.runs_for != tag {
            self.runs_for = tag;
            self.l1.arrays.iter_mut().for_each(Array::clear_front);
        }
    }

    /// What is cached for an address now, without side effects.
    #[must_use]
    pub fn probe(&self, tag: Tag, gva: Gva) -> Option<Entry> {
        [&self.l1, &self.l2].into_iter().find_map(|level| {
            let (size, slot) = level.find(tag, gva.frame().number())?;
            Some(level.array_of(size)?.packed(slot).entry())
        })
    }

    /// Caches a translation, as the last act of a walk, in each level that holds its size.
    ///
    /// Entries for the same page, or for a page that overlaps it in any size, that the tag (for a global entry: any
    /// PCID of its VPID) sees are replaced by it.
    ///
    /// A 1 GiB entry is not cached by this where the machine splits those ([`GigabytePages::Split`]): [`Tlb::fill_at`]
    /// knows which piece to take.
    pub fn fill(&mut self, tag: Tag, entry: Entry) {
        self.fill_packed(tag, &Packed::new(tag.vpid(), tag.pcid(), &entry));
    }

    pub(crate) fn fill_packed(&mut self, tag: Tag, new: &Packed) {
        if !self.just_missed(tag, new) {
            self.drop_overlapping(new);
        }
        if self.gigabyte == GigabytePages::Split && new.key.size() == PageSize::Size1G {
            return;
        }
        self.clock += 1;
        let now = self.clock;
        self.small.note(new);
        self.pieces.note(new);
        if let Some(old) = self.l2.insert(new, now, false) {
            self.stats.l2_evictions += 1;
            self.evicted_from_l2(&old);
        }
        let seen = tag == self.runs_for;
        self.insert_l1(new, now, seen);
    }

    /// [`Tlb::fill`] with what was made ready for this process, if anything was.
    #[inline]
    pub fn fill_ready(&mut self, tag: Tag, ready: Ready) {
        if ready.is_some() {
            self.fill_packed(tag, &ready.packed());
        }
    }

    /// Whether the last operation was a lookup that found no entry at all for just this 4 KiB page, so that none can
    /// overlap the new one.
    #[inline]
    fn just_missed(&self, tag: Tag, new: &Packed) -> bool {
        self.absent == (new.key, self.clock) && self.runs_for == tag && !new.data.is_global()
    }

    /// Caches the translation of `gva`, as [`Tlb::fill`] does, or where the machine splits 1 GiB pages the 2 MiB piece that
    /// holds `gva`.
    pub fn fill_at(&mut self, tag: Tag, gva: Gva, entry: Entry) {
        match self.gigabyte {
            GigabytePages::Whole => self.fill(tag, entry),
            GigabytePages::Split => self.fill(tag, entry.narrowed(gva, PageSize::Size2M)),
        }
    }

    #[inline]
    fn insert_l1(&mut self, new: &Packed, now: u64, seen: bool) {
        self.likely = new.key.size();
        self.stats.l1_evictions += u64::from(self.l1.insert(new, now, seen).is_some());
    }

    fn evicted_from_l2(&mut self, old: &Packed) {
        if self.inclusion == Inclusion::Inclusive
            && let Some(array) = self.l1.array_of_mut(old.key.size())
        {
            // What the first level holds for this key and this process is the same entry, if anything.
            self.stats.back_invalidations += array.remove_key(old.key, old.data.pcid(), old.data.is_global());
        }
    }

    /// Drops entries that overlap `new` and that some process sees besides it.
    fn drop_overlapping(&mut self, new: &Packed) {
        let (key, pcid, global) = (new.key, new.data.pcid(), new.data.is_global());
        for level in [&mut self.l1, &mut self.l2] {
            for size in PageSize::ALL.into_iter().filter(|size| *size >= key.size()) {
                if let Some(array) = level.array_of_mut(size)
                    && array.live(size) > 0
                {
                    array.remove_key(Key::new(key.vpid(), size, key.page()), pcid, global);
                }
            }
        }
        if key.size() > PageSize::Size4K && self.small.must_be_noted() {
            for array in self.l1.arrays.iter().chain(&self.l2.arrays) {
                array.iter().for_each(|held| self.small.note(held));
            }
        }
        if self.small.maybe_in(key) {
            self.drop_smaller(key, pcid, global);
        }
    }

    /// Drops the smaller entries inside the page of `key`, and lets the filter forget it if nothing else needs it.
    fn drop_smaller(&mut self, key: Key, pcid: u16, global: bool) {
        let mut others = false;
        for array in self.l1.arrays.iter_mut().chain(&mut self.l2.arrays) {
            if array.live_below(key.size()) == 0 {
                continue;
            }
            array.remove_where(|held| {
                let smaller = held.key.size() < key.size();
                let inside = Key::new(held.key.vpid(), key.size(), held.key.page()) == key;
                let condemned = smaller && inside && held.data.meets(pcid, global);
                others |= smaller && !condemned && SmallPages::same_region(held.key, key);
                condemned
            });
        }
        if !others {
            self.small.forget(key);
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The counts so far, which start again at 0; the contents stay.
    pub fn take_stats(&mut self) -> Stats {
        core::mem::take(&mut self.stats)
    }

    /// Every live entry with its tag, array by array, for inspection and checks. An entry in both levels comes twice.
    pub fn entries(&self) -> impl Iterator<Item = (CacheLevel, Tag, Entry)> {
        let of = |level: &'_ Level, name| {
            level
                .arrays
                .iter()
                .flat_map(Array::iter)
                .map(move |packed| (name, Tag::new(packed.key.vpid(), packed.data.pcid()), packed.entry()))
                .collect::<alloc::vec::Vec<_>>()
        };
        of(&self.l1, CacheLevel::L1).into_iter().chain(of(&self.l2, CacheLevel::L2))
    }
}
