//! The nested TLB against a list.

use memvirt_addr::{Gfn, Gpa, Hfn, PageSize};
use memvirt_tlb::{NestedEntry, NestedStats, NestedTlb, Perms, Replacement, Shape};
use proptest::prelude::*;

use crate::naive::NaiveCache;
use crate::walk::shape;

#[derive(Clone, Debug)]
enum Op {
    Lookup(u16, Gpa, Perms),
    Fill(u16, NestedEntry),
    FlushPage(u16, Gpa),
    FlushRoot(u16),
    FlushAll,
}

fn gpa() -> impl Strategy<Value = Gpa> {
    (prop::sample::select(vec![0u64, 1, (1 << 22) - 1]), 0u64..3, 0u64..10, 0u64..4096)
        .prop_map(|(gib, mib2, page, offset)| Gpa::new(gib << 30 | mib2 << 21 | page << 12 | offset))
}

fn entry() -> impl Strategy<Value = NestedEntry> {
    let size = prop_oneof![6 => Just(PageSize::Size4K), 3 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)];
    (gpa(), 0u64..1 << 40, size, 0u8..8).prop_map(|(gpa, frame, size, perms)| NestedEntry {
        page: gpa.frame().align_down(size),
        frame: Hfn::new(frame).align_down(size),
        size,
        perms: Perms::from_bits(perms),
    })
}

fn op() -> impl Strategy<Value = Op> {
    let root = || prop::sample::select(vec![0u16, 1, u16::MAX]);
    prop_oneof![
        10 => (root(), gpa(), 0u8..8).prop_map(|(r, g, p)| Op::Lookup(r, g, Perms::from_bits(p))),
        10 => (root(), entry()).prop_map(|(r, e)| Op::Fill(r, e)),
        1 => (root(), gpa()).prop_map(|(r, g)| Op::FlushPage(r, g)),
        1 => root().prop_map(Op::FlushRoot),
        1 => Just(Op::FlushAll),
    ]
}

/// `(root, first byte, size)` of what is held.
type Key = (u16, u64, u64);

struct Naive {
    cache: NaiveCache<Key, NestedEntry>,
    stats: NestedStats,
}

fn key(root: u16, entry: &NestedEntry) -> Key {
    (root, entry.page.number() * 4096, entry.size.bytes())
}

fn overlap(a: Key, b: Key) -> bool {
    a.0 == b.0 && a.1 < b.1 + b.2 && b.1 < a.1 + a.2
}

impl Naive {
    fn probe(&self, root: u16, gpa: Gpa) -> Option<NestedEntry> {
        self.cache.all().find(|(key, _)| overlap(*key, (root, gpa.as_u64(), 1))).map(|(_, entry)| entry)
    }

    fn flush(&mut self, condemned: impl Fn(Key) -> bool) {
        self.stats.flushes += 1;
        self.stats.flushed_entries += self.cache.drop_where(|key, _| condemned(*key));
    }

    fn apply(&mut self, op: &Op) -> Option<NestedEntry> {
        match *op {
            Op::Lookup(root, gpa, need) => {
                let Some(entry) = self.probe(root, gpa).filter(|entry| entry.perms.contains(need)) else {
                    self.stats.misses += 1;
                    return None;
                };
                self.stats.hits += 1;
                self.cache.hit(key(root, &entry));
                return Some(entry);
            }
            Op::Fill(root, entry) => {
                let new = key(root, &entry);
                self.cache.drop_where(|held, _| overlap(*held, new));
                let number = new.1 / new.2;
                self.stats.evictions += u64::from(self.cache.put(new, number, entry).is_some());
            }
            Op::FlushPage(root, gpa) => self.flush(|held| overlap(held, (root, gpa.as_u64(), 1))),
            Op::FlushRoot(root) => self.flush(|held| held.0 == root),
            Op::FlushAll => self.flush(|_| true),
        }
        None
    }
}

fn apply(cache: &mut NestedTlb, op: &Op) -> Option<NestedEntry> {
    match *op {
        Op::Lookup(root, gpa, need) => return cache.lookup(root, gpa, need),
        Op::Fill(root, entry) => cache.fill(root, entry),
        Op::FlushPage(root, gpa) => cache.flush_page(root, gpa),
        Op::FlushRoot(root) => cache.flush_root(root),
        Op::FlushAll => cache.flush_all(),
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..memvirt_properties::cases(600) })]

    #[test]
    fn the_nested_tlb_equals_a_list(
        (entries, ways, replacement) in shape(),
        ops in prop::collection::vec(op(), 1..150),
        probes in prop::collection::vec((0u16..2, gpa()), 6),
    ) {
        let shape = Shape::new(entries, ways).and_then(|shape| shape.with_replacement(replacement));
        let mut cache = NestedTlb::new(shape.expect("valid by construction"));
        let mut naive = Naive { cache: NaiveCache::new(entries, ways, replacement), stats: NestedStats::default() };
        for op in &ops {
            prop_assert_eq!(apply(&mut cache, op), naive.apply(op), "{:?}", op);
            prop_assert_eq!(cache.stats(), naive.stats, "after {:?}", op);
            for (root, gpa) in &probes {
                prop_assert_eq!(cache.probe(*root, *gpa), naive.probe(*root, *gpa));
            }
        }
    }
}

#[test]
fn an_entry_that_lacks_the_permission_misses_until_it_is_replaced() {
    let mut cache = NestedTlb::new(Shape::new(4, 4).expect("a valid shape"));
    let clean = NestedEntry { page: Gfn::new(8), frame: Hfn::new(9), size: PageSize::Size4K, perms: Perms::NONE };
    cache.fill(1, clean);
    assert_eq!(cache.lookup(1, Gpa::new(0x8010), Perms::WRITE), None);
    cache.fill(1, NestedEntry { perms: Perms::WRITE, ..clean });
    assert!(cache.lookup(1, Gpa::new(0x8010), Perms::WRITE).is_some());
    assert_eq!((cache.stats().hits, cache.stats().misses, cache.stats().evictions), (1, 1, 0));
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    for (entries, ways) in [(0, 0), (0, 1), (1, 0), (12, 5), (12, 4), (1 << 17, 1)] {
        let refused = Shape::new(entries, ways).expect_err("no such shape");
        assert_eq!((refused.entries, refused.ways), (entries, ways));
    }
    assert!(Shape::new(12, 12).is_ok_and(|shape| shape.with_replacement(Replacement::TreePlru).is_err()));
}
