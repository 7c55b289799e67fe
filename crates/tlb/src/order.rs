//! [`Order`]: which entry of a set goes next.
//!
//! Each array keeps one word of state per slot or per set, whose meaning depends on the policy:
//!
//! * *stamps* (one word a slot): the time of the last use; the least goes. A use is one store that depends on nothing,
//!   which the hot path wants, and any number of ways works.
//! * *list* (one word a set, up to 16 ways): the ways as 4-bit numbers, most recent first. The last goes, found without a
//!   search; a use moves a number to the front.
//! * *tree* (one word a set): the bits of a binary tree over the ways, each pointing to the half used less recently.
//! * *random*: no state but a generator.
//!
//! Stamps and lists both give true LRU (or FIFO, where only filling counts as use). An emptied slot becomes the next to
//! go; with trees and random the caller offers the first empty way itself.

use alloc::boxed::Box;
use alloc::vec;

use crate::geometry::{CacheLevel, Replacement};

/// Ways whose numbers fit into one word of a list.
const LIST_WAYS: usize = 16;
const EACH_NIBBLE: u64 = 0x1111_1111_1111_1111;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stamps,
    List,
    Tree,
    Random,
}

pub(crate) struct Order {
    pub(crate) kind: Kind,
    /// Whether a hit counts as use.
    pub(crate) hits_count: bool,
    ways: usize,
    pub(crate) state: Box<[u64]>,
    random: SplitMix64,
}

impl Order {
    /// The order of sets of `ways`, with `words` words of state: at least one for each slot of the array.
    ///
    /// Arrays of the first level keep LRU and FIFO in stamps whatever the ways, for the hot path's sake.
    pub(crate) fn new(replacement: Replacement, words: usize, ways: usize, level: CacheLevel, index: u64) -> Self {
        let listed = ways <= LIST_WAYS && level == CacheLevel::L2;
        let (kind, seed) = match replacement {
            Replacement::Lru | Replacement::Fifo => (if listed { Kind::List } else { Kind::Stamps }, 0),
            Replacement::TreePlru => (Kind::Tree, 0),
            Replacement::Random { seed } => (Kind::Random, seed.wrapping_add(index)),
        };
        let initial = if kind == Kind::List { 0xfedc_ba98_7654_3210 } else { 0 };
        Self {
            kind,
            hits_count: matches!(replacement, Replacement::Lru | Replacement::TreePlru),
            ways,
            state: vec![initial; words].into(),
            random: SplitMix64(seed),
        }
    }

    /// Whether [`Order::replace`] finds empty slots by itself.
    #[inline]
    pub(crate) fn knows_empty(&self) -> bool {
        matches!(self.kind, Kind::Stamps | Kind::List)
    }

    /// Notes that an access hit in a way.
    #[inline]
    pub(crate) fn hit(&mut self, set: usize, way: usize, now: u64) {
        if self.hits_count {
            self.used(set, way, now);
        }
    }

    /// Notes that a way was filled (or used, where uses count).
    #[inline]
    pub(crate) fn used(&mut self, set: usize, way: usize, now: u64) {
        match self.kind {
            Kind::Stamps => self.state[set * self.ways + way] = now,
            Kind::List => self.state[set] = to_front(self.state[set], way as u64),
            Kind::Tree => self.state[set] = point_away(self.state[set], self.ways, way),
            Kind::Random => {}
        }
    }

    /// Notes that a way was emptied.
    pub(crate) fn emptied(&mut self, set: usize, way: usize) {
        match self.kind {
            Kind::Stamps => self.state[set * self.ways + way] = 0,
            Kind::List => self.state[set] = to_back(self.state[set], way as u64, self.ways),
            Kind::Tree | Kind::Random => {}
        }
    }

    /// As [`Order::replace`], for the usual cases of policies that find empty slots by themselves.
    #[inline]
    pub(crate) fn replace_full(&mut self, set: usize, now: u64) -> Option<usize> {
        match self.kind {
            Kind::List => {
                let word = self.state.get_mut(set)?;
                let (list, way) = last_to_front(*word, self.ways);
                *word = list;
                Some(way)
            }
            Kind::Stamps if self.ways == 4 => {
                let stamps = self.state.as_chunks_mut::<4>().0.get_mut(set)?;
                let way = oldest(stamps);
                stamps[way] = now;
                Some(way)
            }
            _ => None,
        }
    }

    /// Chooses the way that goes next and notes that it was filled.
    #[inline]
    pub(crate) fn replace(&mut self, set: usize, now: u64) -> usize {
        if self.kind == Kind::List {
            let (list, way) = last_to_front(self.state[set], self.ways);
            self.state[set] = list;
            return way;
        }
        if self.kind == Kind::Stamps {
            let stamps = &mut self.state[set * self.ways..(set + 1) * self.ways];
            let way = oldest(stamps);
            stamps[way] = now;
            return way;
        }
        let way = match self.kind {
            Kind::Tree => pointed_to(self.state[set], self.ways),
            _ => self.random.below(self.ways),
        };
        self.used(set, way, now);
        way
    }

    /// Notes that all slots of a set are empty. With none taken, a list gives all in any order.
    pub(crate) fn clear(&mut self, set: usize) {
        if self.kind == Kind::Stamps {
            self.state[set * self.ways..(set + 1) * self.ways].fill(0);
        }
    }
}

/// The way with the least stamp, the first of equals, without a branch per way: they would not be predicted.
#[inline(always)]
fn oldest(stamps: &[u64]) -> usize {
    let (mut way, mut least) = (0, u64::MAX);
    for (at, stamp) in stamps.iter().enumerate() {
        let less = *stamp < least;
        way = core::hint::select_unpredictable(less, at, way);
        least = (*stamp).min(least);
    }
    way
}

/// The bits below position `at` of a list.
#[inline]
const fn below(at: u32) -> u64 {
    (1 << (4 * at)) - 1
}

/// The position of `way`, which is in the list.
#[inline]
const fn position(list: u64, way: u64) -> u32 {
    let differs = list ^ (way * EACH_NIBBLE);
    // The lowest nibble that is zero is found exactly; above it the borrow may mark others.
    (differs.wrapping_sub(EACH_NIBBLE) & !differs & (EACH_NIBBLE << 3)).trailing_zeros() / 4
}

/// Moves `way`, which is in the list, to the front.
#[inline]
pub(crate) const fn to_front(list: u64, way: u64) -> u64 {
    let differs = list ^ (way * EACH_NIBBLE);
    // The lowest bit marks the nibble that is `way`; all bits up to it are those that move.
    let found = differs.wrapping_sub(EACH_NIBBLE) & !differs & (EACH_NIBBLE << 3);
    let moved = found ^ found.wrapping_sub(1);
    list ^ (list ^ (list << 4 | way)) & moved
}

/// The last of `ways`.
#[inline]
pub(crate) const fn last_of(list: u64, ways: usize) -> usize {
    (list >> (4 * (ways - 1)) & 15) as usize
}

/// Moves the last of `ways` to the front, and says which it is.
#[inline]
pub(crate) const fn last_to_front(list: u64, ways: usize) -> (u64, usize) {
    let last = 4 * (ways - 1);
    let way = list >> last & 15;
    let before = (1 << last) - 1;
    let behind = !(before << 4 | 15);
    (list & behind | (list & before) << 4 | way, way as usize)
}

const fn to_back(list: u64, way: u64, ways: usize) -> u64 {
    let before = below(position(list, way));
    let last = 4 * (ways - 1);
    let used = ((1 << last) - 1) << 4 | 15;
    let behind = list & used & !(before << 4 | 15);
    list & !used | behind >> 4 | list & before | way << last
}

/// Sets the tree bits on the path to `way` so that they point to the other side. Node 1 is the root, the children of
/// `n` are `2n` and `2n + 1`, a set bit points to the second.
#[inline]
pub(crate) const fn point_away(mut tree: u64, ways: usize, way: usize) -> u64 {
    let mut node = ways + way;
    while node > 1 {
        let second = node & 1;
        node /= 2;
        tree = tree & !(1 << node) | ((second ^ 1) as u64) << node;
    }
    tree
}

/// The way that the tree bits lead to.
#[inline]
const fn pointed_to(tree: u64, ways: usize) -> usize {
    let mut node = 1;
    while node < ways {
        node = 2 * node + (tree >> node & 1) as usize;
    }
    node - ways
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: 8 bytes of state, and the same
/// numbers everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    /// A number below `bound`.
    #[expect(clippy::cast_possible_truncation, reason = "the high half of a product is below the bound")]
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn ways_of(list: u64, ways: usize) -> Vec<u64> {
        (0..ways).map(|at| list >> (4 * at) & 15).collect()
    }

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn a_list_word_is_a_list(ways in 1usize..=16, moves in prop::collection::vec((0u64..16, any::<bool>()), 0..60)) {
            let mut word = 0xfedc_ba98_7654_3210;
            let mut plain: Vec<u64> = (0..ways as u64).collect();
            for (way, front) in moves.into_iter().map(|(way, front)| (way % ways as u64, front)) {
                plain.retain(|held| *held != way);
                if front {
                    word = to_front(word, way);
                    plain.insert(0, way);
                } else {
                    word = to_back(word, way, ways);
                    plain.push(way);
                }
                prop_assert_eq!(ways_of(word, ways), plain.clone());
                let (moved, last) = last_to_front(word, ways);
                prop_assert_eq!(last as u64, plain[ways - 1]);
                prop_assert_eq!(moved, to_front(word, last as u64));
            }
        }
    }

    #[test]
    fn a_tree_never_gives_up_the_way_just_used() {
        for ways in [2usize, 4, 8, 64] {
            let mut tree = 0;
            for way in (0..ways).chain((0..ways).rev()) {
                tree = point_away(tree, ways, way);
                assert_ne!(pointed_to(tree, ways), way);
            }
        }
        assert_eq!(pointed_to(0, 1), 0);
    }

    #[test]
    fn uses_in_turn_make_a_tree_give_up_the_first() {
        let tree = (0..8).fold(0, |tree, way| point_away(tree, 8, way));
        assert_eq!(pointed_to(tree, 8), 0);
    }
}
