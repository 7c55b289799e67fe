//! Hit rates of caches with least-recently-used replacement, predicted from the stream alone.
//!
//! The stack distance of an access is the number of distinct other keys since the last access to the same key (Mattson et al.,
//! IBM Systems Journal 9, 1970): a fully associative cache of n entries hits where it is below n. Distances are counted exactly,
//! in logarithmic time, by a Fenwick tree over the positions of last accesses (Bennett and Kruskal, 1975). A set-associative
//! cache is predicted by the binomial model (Smith 1978; Hill and Smith, IEEE ToC 38, 1989), or exactly by a stack for each set.

use std::collections::{BTreeSet, HashMap};

/// Slots of the tree before positions are packed; doubled as keys grow in number.
const SLOTS: usize = 1 << 12;

/// Counts stack distances of a stream.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The slot of each key's last access. Never iterated in its own order.
    last: HashMap<u64, usize>,
    /// A Fenwick tree over slots: 1 where a slot is some key's last access.
    tree: Vec<u32>,
    /// Slots of what was invalidated and not yet replaced: they count as accesses do.
    holes: BTreeSet<usize>,
    next: usize,
    distances: Distances,
}

/// How often each stack distance occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distances {
    /// By distance, from 0.
    counts: Vec<u64>,
    /// First accesses, which no cache can hit.
    first: u64,
}

impl Default for Stack {
    fn default() -> Self {
        Self {
            last: HashMap::new(),
            tree: vec![0; SLOTS + 1],
            holes: BTreeSet::new(),
            next: 0,
            distances: Distances::default(),
        }
    }
}

impl Stack {
    /// Counts an access. Gives its distance, `None` for the first access to `key`.
    pub fn access(&mut self, key: u64) -> Option<u64> {
        if self.next + 1 == self.tree.len() {
            self.pack();
        }
        let slot = self.next;
        self.next += 1;
        let previous = self.last.insert(key, slot);
        let distance = previous.map(|previous| {
            let marks = (self.last.len() + self.holes.len()) as u64;
            // All marks but those before `previous`, and but that of `key` itself.
            marks - self.sum(previous)
        });
        // The key takes the place of the last hole above it, and leaves it where it was itself.
        match (self.holes.last().copied().filter(|hole| previous.is_none_or(|at| *hole > at)), previous) {
            (Some(hole), at) => {
                self.holes.remove(&hole);
                self.add(hole, false);
                self.holes.extend(at);
            }
            (None, Some(at)) => self.add(at, false),
            (None, None) => {}
        }
        self.add(slot, true);
        self.distances.count(distance);
        distance
    }

    /// Invalidates a key: what comes next takes its place, in caches of any size that held it.
    pub fn remove(&mut self, key: u64) -> bool {
        let slot = self.last.remove(&key);
        self.holes.extend(slot);
        slot.is_some()
    }

    /// Invalidates every key for which `condemned` holds.
    pub fn remove_where(&mut self, condemned: impl Fn(u64) -> bool) {
        let holes = &mut self.holes;
        // In whatever order: the holes are the same.
        self.last.retain(|key, slot| {
            let goes = condemned(*key);
            holes.extend(goes.then_some(*slot));
            !goes
        });
        if self.last.is_empty() {
            // Holes above nothing are in nobody's way.
            self.holes.clear();
            self.tree = vec![0; SLOTS + 1];
            self.next = 0;
        }
    }

    /// Counts from 0 again; what was accessed stays in order.
    pub fn restart(&mut self) {
        self.distances = Distances::default();
    }

    /// What was counted so far.
    #[must_use]
    pub fn distances(&self) -> &Distances {
        &self.distances
    }

    /// How many keys there are.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.last.len()
    }

    /// Last accesses up to `slot`, itself included.
    fn sum(&self, slot: usize) -> u64 {
        let (mut i, mut total) = (slot + 1, 0);
        while i > 0 {
            total += u64::from(self.tree[i]);
            i &= i - 1;
        }
        total
    }

    fn add(&mut self, slot: usize, set: bool) {
        let mut i = slot + 1;
        while i < self.tree.len() {
            self.tree[i] = if set { self.tree[i] + 1 } else { self.tree[i] - 1 };
            i += i & i.wrapping_neg();
        }
    }

    /// Moves last accesses to the lowest slots, in their order.
    fn pack(&mut self) {
        let mut slots: Vec<_> = self.last.iter().map(|(key, slot)| (*slot, Some(*key))).collect();
        slots.extend(core::mem::take(&mut self.holes).into_iter().map(|slot| (slot, None)));
        slots.sort_unstable();
        self.tree = vec![0; (2 * slots.len()).max(SLOTS) + 1];
        self.next = slots.len();
        for (slot, (_, key)) in slots.into_iter().enumerate() {
            match key {
                Some(key) => _ = self.last.insert(key, slot),
                None => _ = self.holes.insert(slot),
            }
            self.add(slot, true);
        }
    }
}

impl Distances {
    fn count(&mut self, distance: Option<u64>) {
        let Some(distance) = distance else {
            self.first += 1;
            return;
        };
        let at = usize::try_from(distance).unwrap_or(usize::MAX);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
    }

    /// How often each distance occurred, by distance from 0.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Accesses to keys that were never accessed before.
    #[must_use]
    pub fn first_accesses(&self) -> u64 {
        self.first
    }

    /// All accesses.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.first + self.counts.iter().sum::<u64>()
    }

    /// Hits of a fully associative cache with `entries` entries: exact.
    #[must_use]
    pub fn hits(&self, entries: usize) -> u64 {
        self.counts.iter().take(entries).sum()
    }

    /// The expected hits of a cache with `sets` sets of `ways` ways, were keys spread over the sets at random: of the d distinct
    /// keys since the last access, binomially many fell into the same set, and fewer than `ways` let the access hit.
    ///
    /// # Panics
    ///
    /// Where there are no sets.
    #[must_use]
    pub fn expected_hits(&self, sets: usize, ways: usize) -> f64 {
        assert!(sets > 0, "a cache has a set");
        if sets == 1 {
            #[expect(clippy::cast_precision_loss, reason = "fewer accesses than 2^52")]
            return self.hits(ways) as f64;
        }
        // below[i]: the probability that i of the keys so far fell into the set, for i below the number of ways.
        let mut below = vec![0.0; ways];
        if let Some(none) = below.first_mut() {
            *none = 1.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "sets are few")]
        let share = 1.0 / sets as f64;
        let mut hits = 0.0;
        for count in &self.counts {
            #[expect(clippy::cast_precision_loss, reason = "fewer accesses than 2^52")]
            let count = *count as f64;
            hits += count * below.iter().sum::<f64>();
            for i in (0..ways).rev() {
                let from_below = if i == 0 { 0.0 } else { below[i - 1] };
                below[i] = below[i] * (1.0 - share) + from_below * share;
            }
        }
        hits
    }

    /// Adds the counts of another stream.
    pub fn merge(&mut self, other: &Self) {
        self.first += other.first;
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }
}

/// A stack for each set of a cache whose sets are chosen by the low bits of the key: exact for set-associative caches.
#[derive(Clone, Debug)]
pub struct SetStacks {
    stacks: Vec<Stack>,
}

impl SetStacks {
    /// Without accesses.
    ///
    /// # Panics
    ///
    /// Where there are no sets.
    #[must_use]
    pub fn new(sets: usize) -> Self {
        assert!(sets > 0, "a cache has a set");
        Self { stacks: vec![Stack::default(); sets] }
    }

    /// Counts an access; its set is the remainder by the number of sets.
    pub fn access(&mut self, key: u64) -> Option<u64> {
        let sets = self.stacks.len() as u64;
        // Below the number of sets, which is a usize.
        let set = usize::try_from(key % sets).unwrap_or(0);
        self.stacks[set].access(key)
    }

    /// The distances within sets: [`Distances::hits`] of the number of ways is exact.
    #[must_use]
    pub fn distances(&self) -> Distances {
        let mut all = Distances::default();
        self.stacks.iter().for_each(|stack| all.merge(stack.distances()));
        all
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::Stack;
    use crate::sets::SetOrder;

    #[test]
    fn holes_are_those_of_the_plain_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut stack, mut order) = (Stack::default(), SetOrder::new(1, 400));
        for i in 0..60_000u64 {
            let key = rng.random_range(0..300);
            match rng.random_range(0..10) {
                0 => assert_eq!(stack.remove(key), order.remove(0, key)),
                _ => assert_eq!(stack.access(key), order.touch(0, key).map(|d| d as u64), "access {i}"),
            }
            if i % 7_001 == 0 {
                stack.remove_where(|key| key % 4 != 0);
                order.remove_where(|key| key % 4 != 0);
            }
        }
    }
}
