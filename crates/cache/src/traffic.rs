//! What references were for, and which level served them.

use memvirt_addr::Level;

/// The level of the hierarchy that held a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Served {
    /// The CPU's first level.
    L1,
    /// The CPU's second level.
    L2,
    /// The last level, shared by the CPUs.
    Llc,
    /// Memory.
    Dram,
}

impl Served {
    /// All levels, nearest first.
    pub const ALL: [Self; 4] = [Self::L1, Self::L2, Self::Llc, Self::Dram];

    /// The stable key in results.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Llc => "llc",
            Self::Dram => "dram",
        }
    }
}

/// What a reference reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// What the program asked for.
    Data,
    /// An entry of a guest table (on the bare machine: of the operating system's).
    Guest {
        /// The level of the entry.
        level: Level,
    },
    /// An entry of a shadow table.
    Shadow {
        /// The level of the entry.
        level: Level,
    },
    /// An entry of a nested table.
    Nested {
        /// The guest level whose entry's address is being translated; `None` for the walk for the data's address, the last.
        serves: Option<Level>,
        /// The level of the entry.
        level: Level,
    },
}

const LEVELS: usize = Level::ALL.len();

impl Purpose {
    /// How many there are.
    pub const COUNT: usize = 1 + 2 * LEVELS + (LEVELS + 1) * LEVELS;

    /// An entry of a guest table.
    #[must_use]
    pub const fn guest(level: Level) -> Self {
        Self::Guest { level }
    }

    /// An entry of a shadow table.
    #[must_use]
    pub const fn shadow(level: Level) -> Self {
        Self::Shadow { level }
    }

    /// An entry of a nested table.
    #[must_use]
    pub const fn nested(serves: Option<Level>, level: Level) -> Self {
        Self::Nested { serves, level }
    }

    /// A number below [`Purpose::COUNT`], different for each.
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        match self {
            Self::Data => 0,
            Self::Guest { level } => level as usize,
            Self::Shadow { level } => LEVELS + level as usize,
            Self::Nested { serves, level } => {
                let row = match serves {
                    None => 0,
                    Some(serves) => serves as usize,
                };
                (row + 2) * LEVELS + level as usize
            }
        }
    }

    /// Every purpose, data first, then guest, shadow and nested tables, leaves first.
    pub fn all() -> impl Iterator<Item = Self> {
        let guest = Level::ALL.into_iter().map(Self::guest);
        let shadow = Level::ALL.into_iter().map(Self::shadow);
        let rows = core::iter::once(None).chain(Level::ALL.into_iter().map(Some));
        let nested = rows.flat_map(|serves| Level::ALL.into_iter().map(move |level| Self::nested(serves, level)));
        core::iter::once(Self::Data).chain(guest).chain(shadow).chain(nested)
    }
}

/// How many references of each purpose each level served. A miss of a level is what the levels beyond it served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic([[u64; Served::ALL.len()]; Purpose::COUNT]);

impl Default for Traffic {
    fn default() -> Self {
        Self([[0; Served::ALL.len()]; Purpose::COUNT])
    }
}

impl Traffic {
    #[inline]
    pub(crate) fn count(&mut self, purpose: Purpose, served: Served) {
        self.0[purpose.index()][served as usize] += 1;
    }

    /// References of a purpose that a level served: its hits.
    #[must_use]
    pub const fn of(&self, purpose: Purpose, served: Served) -> u64 {
        self.0[purpose.index()][served as usize]
    }

    /// References of a purpose.
    #[must_use]
    pub fn references(&self, purpose: Purpose) -> u64 {
        self.0[purpose.index()].iter().sum()
    }

    /// References of a purpose that a level did not hold, though they came to it.
    #[must_use]
    pub fn misses(&self, purpose: Purpose, level: Served) -> u64 {
        self.0[purpose.index()][level as usize + 1..].iter().sum()
    }

    /// The same less what an earlier state had counted.
    ///
    /// # Panics
    ///
    /// In checked builds, where `earlier` is not an earlier state of the same counts.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut left = *self;
        for (row, old) in left.0.iter_mut().zip(&earlier.0) {
            for (count, old) in row.iter_mut().zip(old) {
                *count -= old;
            }
        }
        left
    }
}

impl core::ops::AddAssign<&Self> for Traffic {
    fn add_assign(&mut self, other: &Self) {
        for (row, more) in self.0.iter_mut().zip(&other.0) {
            for (count, more) in row.iter_mut().zip(more) {
                *count += more;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_have_numbers_of_their_own() {
        let mut seen = [false; Purpose::COUNT];
        for purpose in Purpose::all() {
            assert!(!core::mem::replace(&mut seen[purpose.index()], true), "{purpose:?}");
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn misses_are_what_lies_beyond() {
        let mut traffic = Traffic::default();
        for served in [Served::L1, Served::L2, Served::Dram, Served::Dram] {
            traffic.count(Purpose::Data, served);
        }
        let before = traffic;
        traffic.count(Purpose::Data, Served::Llc);
        assert_eq!(
            [Served::L1, Served::L2, Served::Llc, Served::Dram].map(|at| traffic.misses(Purpose::Data, at)),
            [4, 3, 2, 0]
        );
        assert_eq!(traffic.since(&before).of(Purpose::Data, Served::Llc), 1);
        assert_eq!(traffic.since(&before).references(Purpose::Data), 1);
    }
}
