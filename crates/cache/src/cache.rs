//! [`Cache`]: one level, as contiguous sets of line numbers, each set in order of use.
//!
//! No time stamps and no tags apart: a set *is* its LRU stack (Mattson et al., 1970), the most recently used line first. A
//! reference pushes its line in front and moves the others back up to where the line stood, in one pass over the set.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;

use crate::shape::Shape;

/// The number of no line: addresses have at most 52 bits.
const EMPTY: u64 = u64::MAX;

/// How a line's number selects its set.
#[derive(Clone, Copy)]
enum Sets {
    /// A power of two: by the low bits.
    Mask(u64),
    /// Any other number: by the remainder.
    Modulo(u64),
}

/// A set-associative cache with LRU replacement that holds numbers of lines.
///
/// ```
/// use memvirt_cache::{Cache, Shape};
///
/// let mut cache = Cache::new(Shape::new(128, 2, 64)?); // one set of two ways
/// assert_eq!([1, 2, 1, 3, 2].map(|line| cache.touch(line)), [false, false, true, false, false]);
/// assert!(cache.holds(3) && !cache.holds(1));
/// # Ok::<(), memvirt_cache::ShapeError>(())
/// ```
#[derive(Clone)]
pub struct Cache {
    sets: Sets,
    ways: usize,
    lines: Box<[u64]>,
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let (sets, ways) = (u64::from(shape.sets()), shape.ways() as usize);
        Self {
            sets: if sets.is_power_of_two() { Sets::Mask(sets - 1) } else { Sets::Modulo(sets) },
            ways,
            lines: vec![EMPTY; shape.sets() as usize * ways].into_boxed_slice(),
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "below the number of sets")]
    fn first_of(&self, line: u64) -> usize {
        let set = match self.sets {
            Sets::Mask(mask) => line & mask,
            Sets::Modulo(sets) => line % sets,
        };
        set as usize * self.ways
    }

    /// References a line: whether it was there. Afterwards it is, as the most recently used of its set; where it was not, the
    /// least recently used line of a full set is gone.
    #[inline]
    pub fn touch(&mut self, line: u64) -> bool {
        let first = self.first_of(line);
        let set = &mut self.lines[first..first + self.ways];
        let mut carried = line;
        for slot in set {
            core::mem::swap(slot, &mut carried);
            if carried == line {
                return true;
            }
        }
        false
    }

    /// Whether a line is there; no use is noted.
    #[must_use]
    pub fn holds(&self, line: u64) -> bool {
        let first = self.first_of(line);
        self.lines[first..first + self.ways].contains(&line)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.lines.iter().filter(|line| **line != EMPTY).count();
        write!(f, "Cache({} ways, {live} of {} lines live)", self.ways, self.lines.len())
    }
}
