//! The order of use within the sets of a cache, entries lost to invalidations included.
//!
//! A set-associative cache with least-recently-used replacement is a stack for each set (Mattson et al., 1970; Hill and Smith,
//! 1989): an access hits where fewer distinct keys of its set than there are ways were used since. One pass says so for every number
//! of ways up to a depth. An invalidated entry leaves a hole, which the next newcomer fills before anything has to go; what is hit
//! below a hole leaves the hole in its own place. That keeps the order right for every number of ways at once.

/// What has been used last in each set.
#[derive(Clone, Debug)]
pub struct SetOrder {
    /// By set, the last used first; `None` for a hole.
    sets: Vec<Vec<Option<u64>>>,
    depth: usize,
}

impl SetOrder {
    /// Nothing used yet. Orders of more than `depth` keys are cut off: enough for caches of so many ways.
    ///
    /// # Panics
    ///
    /// Where there are no sets.
    #[must_use]
    pub fn new(sets: usize, depth: usize) -> Self {
        assert!(sets > 0, "a cache has a set");
        Self { sets: vec![Vec::new(); sets], depth }
    }

    fn set(&mut self, number: u64) -> &mut Vec<Option<u64>> {
        let sets = self.sets.len() as u64;
        // Below the number of sets, which is a usize.
        let set = usize::try_from(number % sets).unwrap_or(0);
        &mut self.sets[set]
    }

    /// How many keys and holes of the set were used since `key`: below the number of ways, it is there. The set is `number` modulo
    /// the number of sets.
    #[must_use]
    pub fn distance(&self, number: u64, key: u64) -> Option<usize> {
        let set = usize::try_from(number % self.sets.len() as u64).unwrap_or(0);
        self.sets[set].iter().position(|held| *held == Some(key))
    }

    /// Uses a key; gives its distance before.
    pub fn touch(&mut self, number: u64, key: u64) -> Option<usize> {
        let depth = self.depth;
        let set = self.set(number);
        let place = set.iter().position(|held| *held == Some(key));
        let hole = set.iter().position(Option::is_none).filter(|hole| place.is_none_or(|place| *hole < place));
        match (place, hole) {
            (Some(place), Some(hole)) => {
                set[place] = None;
                set[..=hole].rotate_right(1);
            }
            (Some(place), None) => set[..=place].rotate_right(1),
            (None, Some(hole)) => set[..=hole].rotate_right(1),
            (None, None) => {
                set.insert(0, None);
                set.truncate(depth);
            }
        }
        if let Some(first) = set.first_mut() {
            *first = Some(key);
        }
        place
    }

    /// Invalidates a key; whether it was there.
    pub fn remove(&mut self, number: u64, key: u64) -> bool {
        let set = self.set(number);
        let place = set.iter_mut().find(|held| **held == Some(key));
        place.is_some_and(|place| place.take().is_some())
    }

    /// Invalidates every key for which `condemned` holds.
    pub fn remove_where(&mut self, condemned: impl Fn(u64) -> bool) {
        for set in self.sets.iter_mut().filter(|set| !set.is_empty()) {
            set.iter_mut().for_each(|held| *held = held.filter(|key| !condemned(*key)));
            // Below the last key there is nothing to be in the way of.
            while set.last().is_some_and(Option::is_none) {
                set.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    /// A cache as hardware has it: an empty way is taken first, else the least recently used one.
    struct Cache {
        ways: Vec<Option<(u64, u64)>>,
        clock: u64,
    }

    impl Cache {
        fn access(&mut self, key: u64) -> bool {
            self.clock += 1;
            if let Some(held) = self.ways.iter_mut().flatten().find(|held| held.0 == key) {
                held.1 = self.clock;
                return true;
            }
            let empty = self.ways.iter().position(Option::is_none);
            let oldest = || (0..self.ways.len()).min_by_key(|way| self.ways[*way].map(|held| held.1)).unwrap();
            let way = empty.unwrap_or_else(oldest);
            self.ways[way] = Some((key, self.clock));
            false
        }
    }

    #[test]
    fn one_pass_says_what_every_cache_does_invalidations_included() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut order = SetOrder::new(1, 12);
        let mut caches: Vec<Cache> = (1..=12).map(|ways| Cache { ways: vec![None; ways], clock: 0 }).collect();
        for _ in 0..20_000 {
            let key = rng.random_range(0..20);
            if rng.random_range(0..6) == 0 {
                order.remove(0, key);
                for cache in &mut caches {
                    cache.ways.iter_mut().for_each(|way| *way = way.filter(|held| held.0 != key));
                }
                continue;
            }
            if rng.random_range(0..300) == 0 {
                order.remove_where(|key| key % 3 != 0);
                for cache in &mut caches {
                    cache.ways.iter_mut().for_each(|way| *way = way.filter(|held| held.0 % 3 == 0));
                }
            }
            let distance = order.touch(0, key);
            for cache in &mut caches {
                let ways = cache.ways.len();
                assert_eq!(cache.access(key), distance.is_some_and(|distance| distance < ways), "{ways} ways");
            }
        }
    }

    #[test]
    fn sets_do_not_meet() {
        let mut order = SetOrder::new(2, 4);
        for key in [0, 1, 3, 5, 7, 9] {
            assert_eq!(order.touch(key, key), None);
        }
        assert_eq!((order.distance(0, 0), order.distance(1, 1), order.distance(3, 3)), (Some(0), None, Some(3)));
        assert!(order.remove(3, 3) && !order.remove(3, 3));
        assert_eq!(order.touch(5, 5), Some(2));
    }
}
