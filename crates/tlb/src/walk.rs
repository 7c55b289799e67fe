//! [`WalkCache`]: the paging-structure caches, which let a walk start below the root.
//!
//! For each level above the leaf a cache of entries that point to a table (Intel SDM volume 3, section 4.10.3: PML5E, PML4E,
//! PDPTE and PDE caches; AMD calls them page-walk caches). An entry of level `L` is found by the address bits that select
//! it from the root down, and holds the table it leads to, at level `L - 1`. Walks use the deepest hit.
//!
//! One type serves both dimensions of a nested walk: over guest-virtual addresses for the guest's tables, over
//! guest-physical ones for the hypervisor's. The neighbours are [`Tlb`](crate::Tlb) and [`NestedTlb`](crate::NestedTlb).

use core::fmt;
use core::marker::PhantomData;

use memvirt_addr::{Addr, Level, Space};

use crate::assoc::{Assoc, Shape};
use crate::tag::Tag;

/// Which levels a [`WalkCache`] holds entries of, and how many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WalkGeometry {
    /// By level number less 2: PDE, PDPTE, PML4E, PML5E.
    shapes: [Option<Shape>; 4],
}

impl WalkGeometry {
    /// No cache: every walk starts at the root.
    pub const NONE: Self = Self { shapes: [None; 4] };

    /// The same, with a cache of this shape for table-pointing entries of `level`.
    ///
    /// Level 1 entries map pages and are the TLB's: for [`Level::L1`] nothing changes.
    #[must_use]
    pub fn with(mut self, level: Level, shape: Shape) -> Self {
        if let Some(place) = index(level).and_then(|at| self.shapes.get_mut(at)) {
            *place = Some(shape);
        }
        self
    }

    /// The shape of a level's cache.
    #[must_use]
    pub fn shape(&self, level: Level) -> Option<Shape> {
        index(level).and_then(|at| self.shapes[at])
    }
}

/// What a [`WalkCache`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WalkStats {
    /// Lookups that used an entry of level 2, 3, 4 and 5.
    pub hits: [u64; 4],
    /// Lookups that found nothing at any level.
    pub misses: u64,
    /// Live entries lost to newer ones.
    pub evictions: u64,
    /// Flush operations, of any scope.
    pub flushes: u64,
    /// Entries that flushes dropped.
    pub flushed_entries: u64,
}

/// Caches of upper-level entries of a radix table over addresses of space `S`.
///
/// `V` is what the entry says: the frame of the next table as a number, or with it the permissions so far.
///
/// ```
/// use memvirt_addr::{GuestVirt, Gva, Level};
/// use memvirt_tlb::{Shape, Tag, WalkCache, WalkGeometry};
///
/// # fn main() -> Result<(), memvirt_tlb::ShapeError> {
/// let geometry = WalkGeometry::NONE.with(Level::L2, Shape::new(32, 4)?).with(Level::L3, Shape::new(4, 4)?);
/// let mut cache = WalkCache::<GuestVirt>::new(&geometry);
/// let (tag, gva) = (Tag::default(), Gva::new(0x7f12_3456_7000));
/// cache.fill(tag, gva, Level::L3, 0x50);
/// cache.fill(tag, gva, Level::L2, 0x60);
/// assert_eq!(cache.lookup(tag, gva), Some((Level::L2, 0x60))); // go on at level 1, in the table in frame 0x60
/// let neighbour = Gva::new(0x7f12_3476_7000); // another 2 MiB of the same GiB
/// assert_eq!(cache.lookup(tag, neighbour), Some((Level::L3, 0x50)));
/// # Ok(())
/// # }
/// ```
pub struct WalkCache<S: Space, V: Copy = u64> {
    levels: [Option<Assoc<V>>; 4],
    stats: WalkStats,
    space: PhantomData<S>,
}

const LEVELS: [Level; 4] = [Level::L2, Level::L3, Level::L4, Level::L5];

fn index(level: Level) -> Option<usize> {
    usize::from(level.number()).checked_sub(2)
}

/// What selects an entry of `level`: the address bits above those that the entry covers.
fn number<S: Space>(at: Addr<S>, level: Level) -> u64 {
    let address = at.as_u64() << (64 - S::BITS) >> (64 - S::BITS);
    address >> level.entry_shift()
}

impl<S: Space, V: Copy> WalkCache<S, V> {
    /// Empty caches of this shape.
    #[must_use]
    pub fn new(geometry: &WalkGeometry) -> Self {
        let levels = geometry.shapes.map(|shape| shape.map(Assoc::new));
        Self { levels, stats: WalkStats::default(), space: PhantomData }
    }

    /// The deepest cached entry on the way to `at`, with its level: the walk goes on one level below. Its use is noted.
    /// `None`: the walk starts at the root.
    pub fn lookup(&mut self, tag: Tag, at: Addr<S>) -> Option<(Level, V)> {
        for ((level, cache), hits) in LEVELS.into_iter().zip(&mut self.levels).zip(&mut self.stats.hits) {
            if let Some(value) = cache.as_mut().and_then(|cache| cache.get(tag, number(at, level), |_| true)) {
                *hits += 1;
                return Some((level, value));
            }
        }
        self.stats.misses += 1;
        None
    }

    /// What [`WalkCache::lookup`] would return, without side effects.
    #[must_use]
    pub fn probe(&self, tag: Tag, at: Addr<S>) -> Option<(Level, V)> {
        let mut caches = LEVELS.into_iter().zip(&self.levels);
        caches.find_map(|(level, cache)| Some((level, cache.as_ref()?.peek(tag, number(at, level))?)))
    }

    /// Caches the entry of `level` on the way to `at`, which points to a table. An entry cached for the same place is
    /// replaced. Levels without a cache take nothing.
    pub fn fill(&mut self, tag: Tag, at: Addr<S>, level: Level, value: V) {
        if let Some(cache) = index(level).and_then(|index| self.levels[index].as_mut()) {
            self.stats.evictions += u64::from(cache.put(tag, number(at, level), value).is_some());
        }
    }

    /// Drops the entries on the way to `at`, at each level: INVLPG of an AMD processor with EFER.TCE set (APM volume 2,
    /// section 3.1.7). Intel's INVLPG drops all entries of the PCID: [`WalkCache::flush_tag`].
    pub fn flush_page(&mut self, tag: Tag, at: Addr<S>) {
        let caches = LEVELS.into_iter().zip(&mut self.levels);
        let dropped = caches.map(|(level, cache)| cache.as_mut().is_some_and(|c| c.remove(tag, number(at, level))));
        let dropped = dropped.map(u64::from).sum();
        self.count_flush(dropped);
    }

    /// Drops the entries of one tag: a CR3 load, INVPCID types 0 and 1, and INVLPG (SDM volume 3, section 4.10.4.1). No
    /// entry of these caches is global.
    pub fn flush_tag(&mut self, tag: Tag) {
        self.flush_where(|held| held == tag);
    }

    /// Drops the entries of a VPID, ASID or EPT root: INVVPID, INVEPT, a new ASID.
    pub fn flush_vpid(&mut self, vpid: u16) {
        self.flush_where(|held| held.vpid() == vpid);
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        self.flush_where(|_| true);
    }

    fn flush_where(&mut self, condemned: impl Fn(Tag) -> bool) {
        let caches = self.levels.iter_mut().flatten();
        let dropped = caches.map(|cache| cache.remove_where(|held| condemned(held.tag))).sum();
        self.count_flush(dropped);
    }

    fn count_flush(&mut self, dropped: u64) {
        self.stats.flushes += 1;
        self.stats.flushed_entries += dropped;
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> WalkStats {
        self.stats
    }

    /// The counts so far, which start again at 0; the contents stay.
    pub fn take_stats(&mut self) -> WalkStats {
        core::mem::take(&mut self.stats)
    }
}

impl<S: Space, V: Copy> fmt::Debug for WalkCache<S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalkCache").field("space", &S::NAME).field("stats", &self.stats).finish_non_exhaustive()
    }
}
