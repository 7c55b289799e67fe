//! The walk caches against lists, in both dimensions.

use memvirt_addr::{Addr, GuestPhys, GuestVirt, Level, Space};
use memvirt_tlb::{Replacement, Shape, Tag, WalkCache, WalkGeometry, WalkStats};
use proptest::prelude::*;

use crate::naive::NaiveCache;

#[derive(Clone, Debug)]
enum Op {
    Lookup(Tag, u64),
    Fill(Tag, u64, Level, u64),
    FlushPage(Tag, u64),
    FlushTag(Tag),
    FlushVpid(u16),
    FlushAll,
}

fn tag() -> impl Strategy<Value = Tag> {
    (0u16..2, prop::sample::select(vec![0u16, 1, 0xfff])).prop_map(|(vpid, pcid)| Tag::new(vpid, pcid))
}

/// A few addresses that share upper levels in every way, up to the top of each space.
fn address() -> impl Strategy<Value = u64> {
    (prop::sample::select(vec![0u64, 1, 0xff]), 0u64..2, 0u64..3, 0u64..5, 0u64..0x1000)
        .prop_map(|(l5, l4, l3, l2, low)| l5 << 48 | l4 << 39 | l3 << 30 | l2 << 21 | low)
}

fn op() -> impl Strategy<Value = Op> {
    let level = prop::sample::select(Level::ALL.to_vec());
    prop_oneof![
        10 => (tag(), address()).prop_map(|(t, a)| Op::Lookup(t, a)),
        10 => (tag(), address(), level, any::<u64>()).prop_map(|(t, a, l, v)| Op::Fill(t, a, l, v)),
        1 => (tag(), address()).prop_map(|(t, a)| Op::FlushPage(t, a)),
        1 => tag().prop_map(Op::FlushTag),
        1 => (0u16..2).prop_map(Op::FlushVpid),
        1 => Just(Op::FlushAll),
    ]
}

/// Entries, ways and policy of one level, if it has a cache.
pub(crate) fn shape() -> impl Strategy<Value = (u32, u32, Replacement)> {
    (0u32..3, prop::sample::select(vec![1u32, 2, 3, 4, 20]), any::<u64>(), 0..4).prop_map(
        |(sets, ways, seed, policy)| {
            let replacement = match policy {
                0 => Replacement::Fifo,
                1 => Replacement::Random { seed },
                2 if ways.is_power_of_two() => Replacement::TreePlru,
                _ => Replacement::Lru,
            };
            (ways << sets, ways, replacement)
        },
    )
}

/// What is looked up at a level: whose, and the number of the region that an entry covers.
type Region = (Tag, u64);

struct Naive {
    levels: Vec<(Level, NaiveCache<Region, u64>)>,
    stats: WalkStats,
}

impl Naive {
    fn lookup(&mut self, tag: Tag, address: u64) -> Option<(Level, u64)> {
        let found = self.probe(tag, address);
        match found {
            None => self.stats.misses += 1,
            Some((level, _)) => {
                self.stats.hits[usize::from(level.number()) - 2] += 1;
                let (_, cache) = self.levels.iter_mut().find(|(l, _)| *l == level).expect("the level that hit");
                cache.hit((tag, address / level.entry_bytes()));
            }
        }
        found
    }

    fn probe(&self, tag: Tag, address: u64) -> Option<(Level, u64)> {
        self.levels.iter().find_map(|(level, cache)| {
            let wanted = (tag, address / level.entry_bytes());
            cache.all().find(|(key, _)| *key == wanted).map(|(_, value)| (*level, value))
        })
    }

    fn flush(&mut self, condemned: impl Fn(Level, Tag, u64) -> bool) {
        self.stats.flushes += 1;
        for (level, cache) in &mut self.levels {
            self.stats.flushed_entries += cache.drop_where(|(tag, region), _| condemned(*level, *tag, *region));
        }
    }

    fn apply(&mut self, op: &Op) -> Option<(Level, u64)> {
        match *op {
            Op::Lookup(tag, address) => return self.lookup(tag, address),
            Op::Fill(tag, address, level, value) => {
                if let Some((_, cache)) = self.levels.iter_mut().find(|(l, _)| *l == level) {
                    let region = address / level.entry_bytes();
                    self.stats.evictions += u64::from(cache.put((tag, region), region, value).is_some());
                }
            }
            Op::FlushPage(tag, address) => {
                self.flush(|level, held, region| held == tag && region == address / level.entry_bytes());
            }
            Op::FlushTag(tag) => self.flush(|_, held, _| held == tag),
            Op::FlushVpid(vpid) => self.flush(|_, held, _| held.vpid() == vpid),
            Op::FlushAll => self.flush(|_, _, _| true),
        }
        None
    }
}

fn apply<S: Space>(cache: &mut WalkCache<S>, op: &Op) -> Option<(Level, u64)> {
    let at = |address| Addr::<S>::new_truncate(address);
    match *op {
        Op::Lookup(tag, address) => return cache.lookup(tag, at(address)),
        Op::Fill(tag, address, level, value) => cache.fill(tag, at(address), level, value),
        Op::FlushPage(tag, address) => cache.flush_page(tag, at(address)),
        Op::FlushTag(tag) => cache.flush_tag(tag),
        Op::FlushVpid(vpid) => cache.flush_vpid(vpid),
        Op::FlushAll => cache.flush_all(),
    }
    None
}

fn check<S: Space>(
    shapes: &[Option<(u32, u32, Replacement)>],
    ops: &[Op],
    mask: u64,
    probes: &[(Tag, u64)],
) -> Result<(), TestCaseError> {
    let mut geometry = WalkGeometry::NONE;
    let mut naive = Naive { levels: Vec::new(), stats: WalkStats::default() };
    for (level, shape) in Level::ALL[1..].iter().zip(shapes) {
        if let Some((entries, ways, replacement)) = *shape {
            let shape = Shape::new(entries, ways).and_then(|shape| shape.with_replacement(replacement));
            geometry = geometry.with(*level, shape.expect("valid by construction"));
            naive.levels.push((*level, NaiveCache::new(entries, ways, replacement)));
        }
    }
    let mut cache = WalkCache::<S>::new(&geometry);
    for op in ops {
        let op = &masked(op, mask);
        prop_assert_eq!(apply(&mut cache, op), naive.apply(op), "{:?}", op);
        prop_assert_eq!(cache.stats(), naive.stats, "after {:?}", op);
        for (tag, address) in probes {
            let address = address & mask;
            prop_assert_eq!(cache.probe(*tag, Addr::new_truncate(address)), naive.probe(*tag, address));
        }
    }
    Ok(())
}

/// The operation with its address cut to the width of the space.
fn masked(op: &Op, mask: u64) -> Op {
    match *op {
        Op::Lookup(tag, address) => Op::Lookup(tag, address & mask),
        Op::Fill(tag, address, level, value) => Op::Fill(tag, address & mask, level, value),
        Op::FlushPage(tag, address) => Op::FlushPage(tag, address & mask),
        ref other => other.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..memvirt_properties::cases(400) })]

    #[test]
    fn walk_caches_equal_lists(
        shapes in prop::collection::vec(prop::option::weighted(0.8, shape()), 4),
        ops in prop::collection::vec(op(), 1..150),
        probes in prop::collection::vec((tag(), address()), 6),
    ) {
        // Guest-virtual addresses have 57 bits, guest-physical ones 52.
        check::<GuestVirt>(&shapes, &ops, (1 << 57) - 1, &probes)?;
        check::<GuestPhys>(&shapes, &ops, (1 << 52) - 1, &probes)?;
    }
}

#[test]
fn a_walk_starts_at_the_deepest_level_that_is_cached() {
    let geometry = Level::ALL
        .iter()
        .fold(WalkGeometry::NONE, |geometry, level| geometry.with(*level, Shape::new(4, 4).expect("a valid shape")));
    assert_eq!(geometry.shape(Level::L1), None, "level 1 entries belong to the TLB");
    let mut cache = WalkCache::<GuestVirt>::new(&geometry);
    let (tag, at) = (Tag::new(1, 1), Addr::new(0x7fff_ffff_f000));
    for (level, value) in [(Level::L5, 50), (Level::L4, 40), (Level::L3, 30), (Level::L2, 20), (Level::L1, 10)] {
        cache.fill(tag, at, level, value);
        let expected = if level == Level::L1 { (Level::L2, 20) } else { (level, value) };
        assert_eq!(cache.lookup(tag, at), Some(expected));
    }
    assert_eq!(cache.stats().hits, [2, 1, 1, 1]);
    cache.flush_tag(Tag::new(1, 2));
    assert!(cache.probe(tag, at).is_some());
    cache.flush_tag(tag);
    assert_eq!(cache.probe(tag, at), None);
    assert_eq!(cache.stats().flushed_entries, 4);
}
