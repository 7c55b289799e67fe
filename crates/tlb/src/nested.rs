//! [`NestedTlb`]: guest-physical to host-physical translations, cached inside a two-dimensional walk.
//!
//! Intel calls its content *guest-physical mappings* (SDM volume 3, section 28.3.1): they are tagged with the EPT root only,
//! shared by all VPIDs, and no guest operation drops them. AMD's nested TLB is described by Bhargava et al., "Accelerating
//! two-dimensional page walks for virtualized systems", ASPLOS 2008. The host table's upper levels have a
//! [`WalkCache`](crate::WalkCache) of their own.

use core::fmt;

use memvirt_addr::{Gfn, Gpa, Hfn, PageSize};

use crate::assoc::{Assoc, Shape};
use crate::entry::Perms;
use crate::tag::Tag;

/// One cached guest-physical page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedEntry {
    /// The first 4 KiB guest frame of the page; one that is not aligned to `size` stands for the page that holds it.
    pub page: Gfn,
    /// The first 4 KiB host frame; aligned down to `size` likewise.
    pub frame: Hfn,
    /// The size of the host's page.
    pub size: PageSize,
    /// What the host's tables permit. [`Perms::WRITE`] where a store needs no further walk: with accessed and dirty bits
    /// on, only once the dirty bit is set.
    pub perms: Perms,
}

impl NestedEntry {
    /// Where `gpa` lies, given that the page holds it.
    #[must_use]
    pub fn frame_of(&self, gpa: Gpa) -> Hfn {
        self.frame.align_down(self.size).offset(gpa.frame().number() & (self.size.frames() - 1))
    }
}

/// What a [`NestedTlb`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NestedStats {
    /// Lookups that hit.
    pub hits: u64,
    /// Lookups that found nothing, or nothing that permits the access.
    pub misses: u64,
    /// Live entries lost to newer ones.
    pub evictions: u64,
    /// Flush operations, of any scope.
    pub flushes: u64,
    /// Entries that flushes dropped.
    pub flushed_entries: u64,
}

/// A cache of guest-physical pages, of all sizes, for any number of EPT (or nested page table) roots.
///
/// At most one entry of a root covers an address: [`NestedTlb::fill`] drops what the new one overlaps.
///
/// ```
/// use memvirt_addr::{Gfn, Gpa, Hfn, PageSize};
/// use memvirt_tlb::{NestedEntry, NestedTlb, Perms, Shape};
///
/// # fn main() -> Result<(), memvirt_tlb::ShapeError> {
/// let mut cache = NestedTlb::new(Shape::new(16, 4)?);
/// let (page, frame) = (Gfn::new(0x200), Hfn::new(0x8000));
/// cache.fill(1, NestedEntry { page, frame, size: PageSize::Size2M, perms: Perms::NONE });
/// let gpa = Gpa::new(0x20_5678);
/// assert_eq!(cache.lookup(1, gpa, Perms::NONE).map(|entry| entry.frame_of(gpa)), Some(Hfn::new(0x8005)));
/// assert_eq!(cache.lookup(1, gpa, Perms::WRITE), None);
/// assert_eq!(cache.lookup(2, gpa, Perms::NONE), None);
/// # Ok(())
/// # }
/// ```
pub struct NestedTlb {
    cache: Assoc<NestedEntry>,
    /// Live entries by size; index 0 is not used.
    live: [u64; 4],
    stats: NestedStats,
}

/// Page number in units of the size: what selects the set. The size goes into the tag, see [`tag_of`].
fn number(page: Gfn, size: PageSize) -> u64 {
    page.number() >> (size.shift() - 12)
}

/// Root and size: numbers of pages of different sizes are not the same page.
fn tag_of(root: u16, size: PageSize) -> Tag {
    Tag::new(root, size as u16)
}

impl NestedTlb {
    /// An empty cache of this shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self { cache: Assoc::new(shape), live: [0; 4], stats: NestedStats::default() }
    }

    fn live_sizes(&self) -> impl Iterator<Item = PageSize> + use<> {
        let live = self.live;
        PageSize::ALL.into_iter().filter(move |size| live[*size as usize] > 0)
    }

    /// Looks up an address for an access that needs `need`, counts it, and notes the use of the entry that hit.
    pub fn lookup(&mut self, root: u16, gpa: Gpa, need: Perms) -> Option<NestedEntry> {
        let found = self.live_sizes().find_map(|size| {
            let permits = |held: &NestedEntry| held.perms.contains(need);
            self.cache.get(tag_of(root, size), number(gpa.frame(), size), permits)
        });
        match found {
            Some(_) => self.stats.hits += 1,
            None => self.stats.misses += 1,
        }
        found
    }

    /// What is cached for an address now, without side effects.
    #[must_use]
    pub fn probe(&self, root: u16, gpa: Gpa) -> Option<NestedEntry> {
        let mut sizes = self.live_sizes();
        sizes.find_map(|size| self.cache.peek(tag_of(root, size), number(gpa.frame(), size)))
    }

    /// Caches a page, in place of everything of this root that it overlaps.
    pub fn fill(&mut self, root: u16, entry: NestedEntry) {
        let NestedEntry { page, size, frame, .. } = entry;
        let entry = NestedEntry { page: page.align_down(size), frame: frame.align_down(size), ..entry };
        self.drop_overlapping(root, &entry);
        self.live[size as usize] += 1;
        if let Some(old) = self.cache.put(tag_of(root, size), number(page, size), entry) {
            self.live[old.value.size as usize] -= 1;
            self.stats.evictions += 1;
        }
    }

    fn drop_overlapping(&mut self, root: u16, entry: &NestedEntry) {
        for size in self.live_sizes().filter(|size| *size >= entry.size) {
            let dropped = self.cache.remove(tag_of(root, size), number(entry.page, size));
            self.live[size as usize] -= u64::from(dropped);
        }
        for size in self.live_sizes().filter(|size| *size < entry.size) {
            let dropped = self.cache.remove_where(|held| {
                held.tag == tag_of(root, size) && held.value.page.align_down(entry.size) == entry.page
            });
            self.live[size as usize] -= dropped;
        }
    }

    /// Drops what translates `gpa` for this root: an EPT violation, or a hypervisor that flushes by address.
    pub fn flush_page(&mut self, root: u16, gpa: Gpa) {
        let before = self.len();
        for size in self.live_sizes() {
            let dropped = self.cache.remove(tag_of(root, size), number(gpa.frame(), size));
            self.live[size as usize] -= u64::from(dropped);
        }
        self.count_flush(before);
    }

    /// Drops the entries of one root: INVEPT type 1, a new ASID.
    pub fn flush_root(&mut self, root: u16) {
        self.flush_where(|held| held == root);
    }

    /// Drops everything: INVEPT type 2.
    pub fn flush_all(&mut self) {
        self.flush_where(|_| true);
    }

    fn flush_where(&mut self, condemned: impl Fn(u16) -> bool) {
        let before = self.len();
        for size in self.live_sizes() {
            let mine = |held: &crate::assoc::Slot<NestedEntry>| condemned(held.tag.vpid()) && held.value.size == size;
            self.live[size as usize] -= self.cache.remove_where(mine);
        }
        self.count_flush(before);
    }

    fn count_flush(&mut self, before: u64) {
        self.stats.flushes += 1;
        self.stats.flushed_entries += before - self.len();
    }

    fn len(&self) -> u64 {
        self.live.iter().sum()
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> NestedStats {
        self.stats
    }

    /// The counts so far, which start again at 0; the contents stay.
    pub fn take_stats(&mut self) -> NestedStats {
        core::mem::take(&mut self.stats)
    }
}

impl fmt::Debug for NestedTlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NestedTlb").field("stats", &self.stats).finish_non_exhaustive()
    }
}
