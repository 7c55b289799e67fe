//! The oracle: a TLB as sets of ways, and for each set the list of its ways in order of use, most recent first. Slow and
//! obvious, and written apart from the crate: addresses are compared as numbers, nothing is packed.

use memvirt_addr::{Acc, AccessKind, Gva, PageSize, Privilege};
use memvirt_tlb::{
    ArrayGeometry, CacheLevel, Entry, Geometry, GigabytePages, Inclusion, KeepGlobal, Perms, Replacement, Stats, Tag,
};

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

/// Which way of a set goes next, by the textbook.
pub(crate) struct NaiveOrder {
    replacement: Replacement,
    /// Ways in order of use (LRU) or of filling (FIFO), most recent first.
    recent: Vec<usize>,
    /// For each node of the tree, root first, whether the second half goes next.
    second_goes: Vec<bool>,
}

impl NaiveOrder {
    pub(crate) fn new(replacement: Replacement, ways: usize) -> Self {
        Self { replacement, recent: (0..ways).collect(), second_goes: vec![false; ways] }
    }

    pub(crate) fn used(&mut self, way: usize) {
        self.recent.retain(|held| *held != way);
        self.recent.insert(0, way);
        let (mut first, mut count, mut node) = (0, self.recent.len(), 0);
        while count > 1 && self.replacement == Replacement::TreePlru {
            count /= 2;
            let in_second = way >= first + count;
            self.second_goes[node] = !in_second;
            node = 2 * node + 1 + usize::from(in_second);
            first += if in_second { count } else { 0 };
        }
    }

    pub(crate) fn hit(&mut self, way: usize) {
        if matches!(self.replacement, Replacement::Lru | Replacement::TreePlru) {
            self.used(way);
        }
    }

    /// The way to replace; `random` is the state of the array's generator.
    pub(crate) fn victim(&self, random: &mut u64) -> usize {
        let ways = self.recent.len();
        match self.replacement {
            Replacement::Lru | Replacement::Fifo => self.recent[ways - 1],
            Replacement::Random { .. } => draw(random, ways),
            Replacement::TreePlru => {
                let (mut first, mut count, mut node) = (0, ways, 0);
                while count > 1 {
                    count /= 2;
                    let second = self.second_goes[node];
                    first += if second { count } else { 0 };
                    node = 2 * node + 1 + usize::from(second);
                }
                first
            }
        }
    }
}

/// SplitMix64, scaled to a number below `bound`.
fn draw(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let a = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (u128::from(b ^ (b >> 31)) * bound as u128 / (1 << 64)) as usize
}

struct NaiveSet {
    ways: Vec<Option<Held>>,
    order: NaiveOrder,
}

struct NaiveArray {
    geometry: ArrayGeometry,
    sets: Vec<NaiveSet>,
    random: u64,
}

impl NaiveArray {
    fn new(geometry: &ArrayGeometry, replacement: Replacement, index: u64) -> Self {
        let ways = geometry.ways as usize;
        let set = || NaiveSet { ways: vec![None; ways], order: NaiveOrder::new(replacement, ways) };
        let random = if let Replacement::Random { seed } = replacement { seed.wrapping_add(index) } else { 0 };
        Self { geometry: *geometry, sets: (0..geometry.entries / geometry.ways).map(|_| set()).collect(), random }
    }

    fn insert(&mut self, new: Held) -> Option<Held> {
        let number = span(&new.entry, new.entry.size).0 / new.entry.size.bytes();
        let count = self.sets.len() as u64;
        let set = &mut self.sets[(number % count) as usize];
        let empty = set.ways.iter().position(Option::is_none);
        let way = empty.unwrap_or_else(|| set.order.victim(&mut self.random));
        set.order.used(way);
        set.ways[way].replace(new)
    }

    fn drop_where(&mut self, condemned: impl Fn(&Held) -> bool) -> u64 {
        let mut dropped = 0;
        for way in self.sets.iter_mut().flat_map(|set| &mut set.ways) {
            if way.as_ref().is_some_and(&condemned) {
                *way = None;
                dropped += 1;
            }
        }
        dropped
    }

    fn all(&self) -> impl Iterator<Item = &Held> {
        self.sets.iter().flat_map(|set| set.ways.iter().flatten())
    }

    fn use_entry(&mut self, tag: Tag, acc: Acc) -> Option<Held> {
        let hits = |held: &Held| held.covers(acc.gva()) && held.visible_to(tag) && held.permits(acc);
        for set in &mut self.sets {
            if let Some(way) = set.ways.iter().position(|way| way.as_ref().is_some_and(hits)) {
                set.order.hit(way);
                return set.ways[way];
            }
        }
        None
    }
}

pub(crate) struct NaiveTlb {
    l1: Vec<NaiveArray>,
    l2: Vec<NaiveArray>,
    pub(crate) stats: Stats,
    inclusion: Inclusion,
    pub(crate) gigabyte: GigabytePages,
    pub(crate) fractured_drops_vpid: bool,
}

fn insert(level: &mut [NaiveArray], new: Held) -> Option<Held> {
    level.iter_mut().find(|array| array.geometry.sizes.contains(new.entry.size))?.insert(new)
}

impl NaiveTlb {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let level = |level| {
            let arrays = geometry.arrays(level).iter().zip(0..);
            arrays.map(|(array, index)| NaiveArray::new(array, geometry.replacement(level), index)).collect()
        };
        Self {
            l1: level(CacheLevel::L1),
            l2: level(CacheLevel::L2),
            stats: Stats::default(),
            inclusion: Inclusion::NonInclusive,
            gigabyte: GigabytePages::Whole,
            fractured_drops_vpid: false,
        }
    }

    pub(crate) fn with_inclusion(self, inclusion: Inclusion) -> Self {
        Self { inclusion, ..self }
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
            self.stats.l1_evictions += u64::from(insert(&mut self.l1, held).is_some());
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
        if self.gigabyte == GigabytePages::Split && entry.size == PageSize::Size1G {
            return;
        }
        if let Some(old) = insert(&mut self.l2, new) {
            self.stats.l2_evictions += 1;
            if self.inclusion == Inclusion::Inclusive {
                let gone: u64 = self.l1.iter_mut().map(|array| array.drop_where(|held| *held == old)).sum();
                self.stats.back_invalidations += gone;
            }
        }
        self.stats.l1_evictions += u64::from(insert(&mut self.l1, new).is_some());
    }

    /// Fills the 2 MiB piece of a 1 GiB page, where those are split.
    pub(crate) fn fill_at(&mut self, tag: Tag, gva: Gva, entry: Entry) {
        if self.gigabyte == GigabytePages::Whole || entry.size < PageSize::Size1G {
            return self.fill(tag, entry);
        }
        let piece = address(gva) % PageSize::Size1G.bytes() / PageSize::Size2M.bytes();
        self.fill(
            tag,
            Entry {
                page: entry.page.align_down(PageSize::Size1G).offset(512 * piece),
                frame: entry.frame.align_down(PageSize::Size1G).offset(512 * piece),
                size: PageSize::Size2M,
                ..entry
            },
        );
    }

    fn flush(&mut self, condemned: impl Fn(&Held) -> bool) {
        self.stats.flushes += 1;
        let dropped: u64 = self.arrays().map(|array| array.drop_where(&condemned)).sum();
        self.stats.flushed_entries += dropped;
    }

    pub(crate) fn flush_page(&mut self, tag: Tag, gva: Gva) {
        let fractured = |held: &Held| held.tag.vpid() == tag.vpid() && held.entry.guest_size > held.entry.size;
        let any = self.l1.iter().chain(&self.l2).flat_map(NaiveArray::all).any(fractured);
        if self.fractured_drops_vpid && any {
            return self.flush_vpid(tag.vpid(), KeepGlobal::No);
        }
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

/// A set-associative cache of anything: `Key` is compared whole, its number selects the set.
pub(crate) struct NaiveCache<K, V> {
    sets: Vec<CacheSet<K, V>>,
    random: u64,
}

struct CacheSet<K, V> {
    ways: Vec<Option<(K, V)>>,
    order: NaiveOrder,
}

impl<K: PartialEq + Copy, V: Copy> NaiveCache<K, V> {
    pub(crate) fn new(entries: u32, ways: u32, replacement: Replacement) -> Self {
        let ways = ways as usize;
        let set = || CacheSet { ways: vec![None; ways], order: NaiveOrder::new(replacement, ways) };
        let random = if let Replacement::Random { seed } = replacement { seed } else { 0 };
        Self { sets: (0..entries as usize / ways).map(|_| set()).collect(), random }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (K, V)> {
        self.sets.iter().flat_map(|set| set.ways.iter().copied().flatten())
    }

    pub(crate) fn hit(&mut self, key: K) {
        for CacheSet { ways, order } in &mut self.sets {
            if let Some(way) = ways.iter().position(|held| held.is_some_and(|(k, _)| k == key)) {
                order.hit(way);
            }
        }
    }

    /// Stores a value over the one with the same key, or in an empty way, or over the victim, which is returned.
    pub(crate) fn put(&mut self, key: K, number: u64, value: V) -> Option<(K, V)> {
        let count = self.sets.len() as u64;
        let CacheSet { ways, order } = &mut self.sets[(number % count) as usize];
        let same = ways.iter().position(|held| held.is_some_and(|(k, _)| k == key));
        let free = same.or(ways.iter().position(Option::is_none));
        let way = free.unwrap_or_else(|| order.victim(&mut self.random));
        order.used(way);
        ways[way].replace((key, value)).filter(|_| free.is_none())
    }

    pub(crate) fn drop_where(&mut self, condemned: impl Fn(&K, &V) -> bool) -> u64 {
        let before = self.all().count();
        for held in self.sets.iter_mut().flat_map(|set| &mut set.ways) {
            *held = held.filter(|(k, v)| !condemned(k, v));
        }
        (before - self.all().count()) as u64
    }
}
