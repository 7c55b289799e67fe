//! Held against references written apart: stack distance for one set, a list in order of use for many, three lists for the
//! hierarchy.

use memvirt_addr::{Hpa, Level};
use memvirt_cache::{Cache, CacheHierarchy, CacheLevel, CoreCaches, Purpose, Served, Shape, SharedCache};
use proptest::prelude::*;

/// How many other lines were referenced since `line` was last; `None` for the first time.
fn stack_distance(past: &[u64], line: u64) -> Option<usize> {
    let since = past.iter().rposition(|other| *other == line)?;
    let mut between: Vec<_> = past[since + 1..].to_vec();
    between.sort_unstable();
    between.dedup();
    Some(between.len())
}

/// A cache as a list of (set, line), least recently used first.
struct Listed {
    sets: u64,
    ways: usize,
    order: Vec<(u64, u64)>,
}

impl Listed {
    fn new(shape: Shape) -> Self {
        Self { sets: u64::from(shape.sets()), ways: shape.ways() as usize, order: Vec::new() }
    }

    fn touch(&mut self, line: u64) -> bool {
        let key = (line % self.sets, line);
        let before = self.order.len();
        self.order.retain(|held| *held != key);
        let hit = self.order.len() < before;
        self.order.push(key);
        if self.order.iter().filter(|held| held.0 == key.0).count() > self.ways
            && let Some(oldest) = self.order.iter().position(|held| held.0 == key.0)
        {
            self.order.remove(oldest);
        }
        hit
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    (1..12u64, 1..9u32, 3..7u32).prop_map(|(sets, ways, line)| {
        Shape::new((sets * u64::from(ways)) << line, ways, 1 << line).expect("a whole number of sets")
    })
}

proptest! {
    #![proptest_config(memvirt_properties::cases(256))]

    #[test]
    fn one_set_hits_where_the_stack_distance_is_below_its_ways(
        ways in 1..40u32,
        stream in prop::collection::vec(0..60u64, 1..400),
    ) {
        let mut cache = Cache::new(Shape::new(u64::from(ways) * 64, ways, 64).expect("one set"));
        for (i, line) in stream.iter().enumerate() {
            let near = stack_distance(&stream[..i], *line).is_some_and(|distance| distance < ways as usize);
            prop_assert_eq!(cache.touch(*line), near, "reference {}", i);
        }
    }

    #[test]
    fn any_shape_equals_a_list_in_order_of_use(shape in shape(), stream in prop::collection::vec(0..200u64, 1..400)) {
        let (mut cache, mut listed) = (Cache::new(shape), Listed::new(shape));
        for line in stream {
            prop_assert_eq!(cache.holds(line), listed.order.iter().any(|held| held.1 == line));
            prop_assert_eq!(cache.touch(line), listed.touch(line));
        }
    }

    #[test]
    fn a_hierarchy_fills_every_level_that_missed(
        sizes in (1..4u64, 2..12u64, 4..40u64),
        stream in prop::collection::vec((0..2usize, 0..6000u64, 0..3u8), 1..600),
    ) {
        let level = |sets: u64, ways: u32, latency_cycles| {
            CacheLevel { shape: Shape::new(sets * u64::from(ways) * 64, ways, 64).expect("whole sets"), latency_cycles }
        };
        let (l1, l2, llc) = (level(sizes.0, 2, 4), level(sizes.1, 3, 14), level(sizes.2, 4, 54));
        let spec = CacheHierarchy::new(l1, l2, llc, 200).expect("lines alike");
        // Two CPUs with private levels, one last level.
        let mut cores = [CoreCaches::new(&spec), CoreCaches::new(&spec)];
        let mut shared = SharedCache::new(&spec);
        let mut naive = [(Listed::new(l1.shape), Listed::new(l2.shape)), (Listed::new(l1.shape), Listed::new(l2.shape))];
        let mut naive_llc = Listed::new(llc.shape);
        let (mut cycles, mut expected_cycles) = ([0u64; 2], [0u64; 2]);
        for (cpu, at, purpose) in stream {
            let purpose = [Purpose::Data, Purpose::guest(Level::L2), Purpose::nested(None, Level::L1)][usize::from(purpose)];
            let line = at >> 6;
            let near = &mut naive[cpu];
            let expected = if near.0.touch(line) {
                Served::L1
            } else if near.1.touch(line) {
                Served::L2
            } else if naive_llc.touch(line) {
                Served::Llc
            } else {
                Served::Dram
            };
            let served = cores[cpu].access(&mut shared, Hpa::new(at), purpose);
            prop_assert_eq!(served, expected);
            cycles[cpu] += u64::from(spec.latency_cycles(served));
            expected_cycles[cpu] += [4, 14, 54, 200][expected as usize];
        }
        prop_assert_eq!(cycles, expected_cycles);
        for (core, cycles) in cores.iter().zip(cycles) {
            let sum = Purpose::all().flat_map(|purpose| Served::ALL.map(|served| (purpose, served)));
            let sum: u64 = sum.map(|(p, s)| core.traffic().of(p, s) * u64::from(spec.latency_cycles(s))).sum();
            prop_assert_eq!(sum, cycles, "counts by purpose and level are the whole account");
        }
    }
}

#[test]
fn levels_with_different_lines_make_no_hierarchy() {
    let level = |line| CacheLevel { shape: Shape::new(4096, 1, line).expect("whole"), latency_cycles: 1 };
    assert!(CacheHierarchy::new(level(64), level(64), level(128), 1).is_none());
}
