//! [`Tlb`]: two levels of arrays, the lookup that runs over accesses, and the fill after a walk.
//!
//! # Invariant
//!
//! Of two live entries that overlap and that one process sees both, either both are the same translation (one in each
//! level), or neither exists. [`Tlb::fill`] establishes it by dropping what the new entry meets; a copy from the second
//! level to the first keeps it. So the order in which arrays are probed changes no result.

use alloc::boxed::Box;

use memvirt_addr::{Acc, Gva, PageSize};

use crate::array::{Array, HINTS, L1_SLOTS};
use crate::entry::{Entry, Key, Meta, Packed, Perms};
use crate::geometry::{CacheLevel, Geometry};
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
    likely: PageSize,
    pub(crate) small: SmallPages,
    pub(crate) stats: Stats,
}

/// The arrays of one level.
pub(crate) struct Level {
    pub(crate) arrays: Box<[Array]>,
    /// Which array holds a size: an index, or [`NONE`]. Index 0 is not used.
    array_of: [u8; 4],
}

impl Level {
    fn new(geometry: &Geometry, level: CacheLevel) -> Self {
        let arrays: Box<[Array]> = geometry.arrays(level).iter().map(|array| Array::new(array, level)).collect();
        let mut array_of = [NONE; 4];
        for (index, array) in (0..NONE).zip(&arrays) {
            for size in array.sizes.iter() {
                array_of[size as usize] = index;
            }
        }
        Self { arrays, array_of }
    }

    pub(crate) fn array_of(&self, size: PageSize) -> Option<&Array> {
        self.arrays.get(usize::from(self.array_of[size as usize]))
    }

    #[inline]
    pub(crate) fn array_of_mut(&mut self, size: PageSize) -> Option<&mut Array> {
        self.arrays.get_mut(usize::from(self.array_of[size as usize]))
    }

    /// The array that holds a size, if any entry of the size is live in it.
    #[inline]
    pub(crate) fn live_array(&self, size: PageSize) -> Option<&Array> {
        self.array_of(size).filter(|array| array.live(size) > 0)
    }

    /// The entry a process sees for a 4 KiB page, of whatever size.
    #[inline]
    fn find(&self, tag: Tag, page: u64) -> Option<(PageSize, usize)> {
        for size in PageSize::ALL {
            if let Some(array) = self.live_array(size)
                && let Some(slot) = array.find(Key::new(tag.vpid(), size, page), tag.pcid())
            {
                return Some((size, slot));
            }
        }
        None
    }

    /// Finds an entry that permits the access and notes its use.
    #[inline]
    fn use_entry(&mut self, tag: Tag, page: u64, need: Perms, now: u64) -> Option<(PageSize, Packed)> {
        let (size, slot) = self.find(tag, page)?;
        let array = self.array_of_mut(size)?;
        let packed = array.packed(slot);
        if !packed.meta.permits(tag.pcid(), need) {
            return None;
        }
        array.touch(slot, now);
        array.hint(packed.key, slot);
        Some((size, packed))
    }

    /// Stores an entry where the level caches its size; returns whether that evicted another.
    #[inline]
    pub(crate) fn insert(&mut self, new: &Packed, now: u64) -> bool {
        self.array_of_mut(new.key.size()).is_some_and(|array| array.insert(new, now))
    }
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
            stats: Stats::default(),
        }
    }

    /// Looks up the accesses of `run` in order while they hit, and returns how many did: `run.len()`, or the index of
    /// the first that missed.
    ///
    /// The miss is counted here, and completed by the caller's walk and [`Tlb::fill`]: go on with the access after it.
    ///
    /// The order of use, the counts and the contents are those of one [`Tlb::lookup`] for each access.
    #[inline]
    pub fn hits(&mut self, tag: Tag, run: &[Acc]) -> usize {
        let mut done = 0;
        while let Some(rest) = run.get(done..)
            && let Some(first) = rest.first()
        {
            let quick = self.quick_hits(tag, rest);
            if quick > 0 {
                done += quick;
            } else if self.lookup_packed(tag, *first).is_some() {
                done += 1;
            } else {
                break;
            }
        }
        done
    }

    /// The leading accesses that hit in the first level where the hints say, in the array of the likely size.
    #[inline]
    fn quick_hits(&mut self, tag: Tag, run: &[Acc]) -> usize {
        let size = self.likely;
        let clock = self.clock;
        let Some(array) = self.l1.array_of_mut(size) else { return 0 };
        let (Some(keys), Some(metas), Some(stamps)) = (
            array.keys.first_chunk::<L1_SLOTS>(),
            array.metas.first_chunk::<L1_SLOTS>(),
            array.stamps.first_chunk_mut::<L1_SLOTS>(),
        ) else {
            return 0;
        };
        let (shift, context, pcid) = (size.shift(), Key::context(tag.vpid(), size), tag.pcid());
        let mut now = clock;
        for acc in run {
            let number = acc.page_bits(shift);
            #[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of hints")]
            let slot = usize::from(array.hints[number as usize % HINTS]) % L1_SLOTS;
            let held = keys[slot] == number << Key::PAGE_SHIFT | context;
            if !held || !Meta(metas[slot]).permits(pcid, Perms::needed_by(*acc)) {
                break;
            }
            now += 1;
            stamps[slot] = now;
        }
        let count = now - clock;
        self.clock = now;
        self.stats.l1_hits += count;
        #[expect(clippy::cast_possible_truncation, reason = "at most run.len()")]
        {
            count as usize
        }
    }

    /// Looks up one access: counts it, notes the use of the entry that hit, copies it into the first level where only
    /// the second had it. `None`: a miss, for the caller to walk.
    pub fn lookup(&mut self, tag: Tag, acc: Acc) -> Option<Entry> {
        self.lookup_packed(tag, acc).map(|packed| packed.entry())
    }

    fn lookup_packed(&mut self, tag: Tag, acc: Acc) -> Option<Packed> {
        let (page, need) = (acc.page_bits(12), Perms::needed_by(acc));
        self.clock += 1;
        let now = self.clock;
        if let Some((size, packed)) = self.l1.use_entry(tag, page, need, now) {
            self.likely = size;
            self.stats.l1_hits += 1;
            return Some(packed);
        }
        if let Some((_, packed)) = self.l2.use_entry(tag, page, need, now) {
            self.stats.l2_hits += 1;
            self.insert_l1(&packed, now);
            return Some(packed);
        }
        self.stats.misses += 1;
        None
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
    pub fn fill(&mut self, tag: Tag, entry: Entry) {
        let new = Packed::new(tag.vpid(), tag.pcid(), &entry);
        self.clock += 1;
        let now = self.clock;
        self.drop_overlapping(&new);
        if entry.size < PageSize::Size1G {
            self.small.note(&new);
        }
        self.stats.l2_evictions += u64::from(self.l2.insert(&new, now));
        self.insert_l1(&new, now);
    }

    fn insert_l1(&mut self, new: &Packed, now: u64) {
        self.likely = new.key.size();
        self.stats.l1_evictions += u64::from(self.l1.insert(new, now));
    }

    /// Drops entries of other sizes that overlap `new` and that some process sees besides it.
    fn drop_overlapping(&mut self, new: &Packed) {
        let (key, pcid, global) = (new.key, new.meta.pcid(), new.meta.is_global());
        for level in [&mut self.l1, &mut self.l2] {
            for size in PageSize::ALL.into_iter().filter(|size| *size > key.size()) {
                if let Some(array) = level.array_of_mut(size)
                    && array.live(size) > 0
                {
                    array.remove_key(Key::new(key.vpid(), size, key.page()), pcid, global);
                }
            }
        }
        if key.size() > PageSize::Size4K && self.small.maybe_in(key) {
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
            array.remove_where(|held, meta| {
                let shift = key.size().shift() - held.size().shift().min(key.size().shift());
                let inside = held.size() < key.size() && held.number() >> shift == key.number();
                let condemned = inside && held.vpid() == key.vpid() && meta.meets(pcid, global);
                others |= !condemned && held.size() < key.size() && SmallPages::same_region(held, key);
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
                .map(move |packed| (name, Tag::new(packed.key.vpid(), packed.meta.pcid()), packed.entry()))
                .collect::<alloc::vec::Vec<_>>()
        };
        of(&self.l1, CacheLevel::L1).into_iter().chain(of(&self.l2, CacheLevel::L2))
    }
}
