//! The oracle: a TLB as a list of entries in order of use for each set, most recent first. Slow and obvious, and written
//! apart from the crate: addresses are compared as numbers, nothing is packed.

use memvirt_addr::{Acc, AccessKind, Gva, PageSize, Privilege};
use memvirt_tlb::{ArrayGeometry, CacheLevel, Entry, Geometry, KeepGlobal, Perms, Stats, Tag};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) tag: Tag,
    pub(crate) entry: Entry,
}

/// Bytes from the first up to, not including, the second.
fn span(entry: &Entry, size: PageSize) -> (u64, u64) {
    let address = (entry.page.number() << 12) & ((1 << 57) - 1);
    let first = address / size.bytes() * size.bytes();
    (first, first + size.bytes())
}

fn address(gva: Gva) -> u64 {
    gva.as_u64() & ((1 << 57) - 1)
}

impl Held {
    fn covers(&self, gva: Gva) -> bool {
        let (first, end) = span(&self.entry, self.entry.size);
        (first..end).contains(&address(gva))
    }

    fn visible_to(&self, tag: Tag) -> bool {
        self.tag.vpid() == tag.vpid() && (self.entry.global || self.tag.pcid() == tag.pcid())
    }

    fn permits(&self, acc: Acc) -> bool {
        let perms = self.entry.perms;
        (acc.privilege() == Privilege::Supervisor || perms.contains(Perms::USER))
            && match acc.kind() {
                AccessKind::Read => true,
                AccessKind::Write => perms.contains(Perms::WRITE),
                AccessKind::Fetch => perms.contains(Perms::EXEC),
            }
    }

    /// Overlaps the other, and some process sees both.
    fn meets(&self, other: &Held) -> bool {
        let ((a, b), (c, d)) = (span(&self.entry, self.entry.size), span(&other.entry, other.entry.size));
        let both_seen = self.tag.vpid() == other.tag.vpid()
            && (self.entry.global || other.entry.global || self.tag.pcid() == other.tag.pcid());
        a < d && c < b && both_seen
    }
}

struct NaiveArray {
    geometry: ArrayGeometry,
    /// Each set in order of use, most recent first.
    sets: Vec<Vec<Held>>,
}

impl NaiveArray {
    fn new(geometry: &ArrayGeometry) -> Self {
        Self { geometry: *geometry, sets: vec![Vec::new(); (geometry.entries / geometry.ways) as usize] }
    }

    fn insert(&mut self, new: Held) -> u64 {
        let number = span(&new.entry, new.entry.size).0 / new.entry.size.bytes();
        let count = self.sets.len() as u64;
        let set = &mut self.sets[(number % count) as usize];
        set.insert(0, new);
        if set.len() > self.geometry.ways as usize {
            set.pop();
            return 1;
        }
        0
    }

    fn drop_where(&mut self, condemned: impl Fn(&Held) -> bool) -> u64 {
        let mut dropped = 0;
        for set in &mut self.sets {
            let before = set.len();
            set.retain(|held| !condemned(held));
            dropped += before - set.len();
        }
        dropped as u64
    }

    fn all(&self) -> impl Iterator<Item = &Held> {
        self.sets.iter().flatten()
    }

    fn use_entry(&mut self, tag: Tag, acc: Acc) -> Option<Held> {
        for set in &mut self.sets {
            let found = set.iter().position(|h| h.covers(acc.gva()) && h.visible_to(tag) && h.permits(acc));
            if let Some(at) = found {
                let held = set.remove(at);
                set.insert(0, held);
                return Some(held);
            }
        }
        None
    }
}

pub(crate) struct NaiveTlb {
    l1: Vec<NaiveArray>,
    l2: Vec<NaiveArray>,
    pub(crate) stats: Stats,
}

fn insert(level: &mut [NaiveArray], new: Held) -> u64 {
    level.iter_mut().find(|a| a.geometry.sizes.contains(new.entry.size)).map_or(0, |array| array.insert(new))
}

impl NaiveTlb {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let level = |level| geometry.arrays(level).iter().map(NaiveArray::new).collect();
        Self { l1: level(CacheLevel::L1), l2: level(CacheLevel::L2), stats: Stats::default() }
    }

    fn arrays(&mut self) -> impl Iterator<Item = &mut NaiveArray> {
        self.l1.iter_mut().chain(&mut self.l2)
    }

    pub(crate) fn lookup(&mut self, tag: Tag, acc: Acc) -> Option<Entry> {
        if let Some(held) = self.l1.iter_mut().find_map(|array| array.use_entry(tag, acc)) {
            self.stats.l1_hits += 1;
            return Some(held.entry);
        }
        if let Some(held) = self.l2.iter_mut().find_map(|array| array.use_entry(tag, acc)) {
            self.stats.l2_hits += 1;
            self.stats.l1_evictions += insert(&mut self.l1, held);
            return Some(held.entry);
        }
        self.stats.misses += 1;
        None
    }

    pub(crate) fn probe(&self, tag: Tag, gva: Gva) -> Option<Entry> {
        let arrays = self.l1.iter().chain(&self.l2);
        arrays.flat_map(NaiveArray::all).find(|held| held.covers(gva) && held.visible_to(tag)).map(|held| held.entry)
    }

    pub(crate) fn fill(&mut self, tag: Tag, entry: Entry) {
        let new = Held { tag, entry };
        self.arrays().for_each(|array| {
            array.drop_where(|held| held.meets(&new));
        });
        self.stats.l2_evictions += insert(&mut self.l2, new);
        self.stats.l1_evictions += insert(&mut self.l1, new);
    }

    fn flush(&mut self, condemned: impl Fn(&Held) -> bool) {
        self.stats.flushes += 1;
        let dropped: u64 = self.arrays().map(|array| array.drop_where(&condemned)).sum();
        self.stats.flushed_entries += dropped;
    }

    pub(crate) fn flush_page(&mut self, tag: Tag, gva: Gva) {
        self.flush(|held| {
            let (first, end) = span(&held.entry, held.entry.guest_size);
            held.visible_to(tag) && (first..end).contains(&address(gva))
        });
    }

    pub(crate) fn flush_tag(&mut self, tag: Tag, keep: KeepGlobal) {
        self.flush(|held| {
            let mine = held.tag == tag && !held.entry.global;
            let global = held.tag.vpid() == tag.vpid() && held.entry.global;
            mine || (global && keep == KeepGlobal::No)
        });
    }

    pub(crate) fn flush_vpid(&mut self, vpid: u16, keep: KeepGlobal) {
        self.flush(|held| held.tag.vpid() == vpid && (keep == KeepGlobal::No || !held.entry.global));
    }

    pub(crate) fn flush_all(&mut self) {
        self.flush(|_| true);
    }

    /// Everything held, in an order of its own.
    pub(crate) fn entries(&self) -> Vec<(CacheLevel, Tag, Entry)> {
        let of = |level: &[NaiveArray], name: CacheLevel| -> Vec<_> {
            level.iter().flat_map(NaiveArray::all).map(|held| (name, held.tag, held.entry)).collect()
        };
        [of(&self.l1, CacheLevel::L1), of(&self.l2, CacheLevel::L2)].concat()
    }
}
