//! References of page walks: closed forms for cold walks, expectations for warm ones.
//!
//! Sources: Bhargava et al., ASPLOS 2008 (cold); Barr, Cox and Rixner, ISCA 2010 (what a walk cache saves). A cold count is
//! exact. A warm count is as good as its hit rates: predict them from the stream ([`stack`](crate::stack)), or call the result
//! what it is, an identity.

/// The size of a page, by the level of the table that maps it (1: 4 KiB, 2: 2 MiB, 3: 1 GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeafLevel {
    /// 4 KiB.
    One,
    /// 2 MiB.
    Two,
    /// 1 GiB.
    Three,
}

impl LeafLevel {
    /// The level, from 1.
    #[must_use]
    pub const fn level(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// Tables of one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// How many levels they have; 0 where there are none.
    pub depth: u32,
    /// The page at their end.
    pub leaf: LeafLevel,
}

impl Tables {
    /// Entries read from the root to the page, none of them cached.
    #[must_use]
    pub const fn references(self) -> u32 {
        if self.depth == 0 { 0 } else { self.depth + 1 - self.leaf.level() }
    }
}

/// References of a cold walk through guest tables whose every frame, and the data's, is found through `host` tables:
/// (g + 1)(h + 1) - 1.
#[must_use]
pub const fn cold(guest: Tables, host: Tables) -> u32 {
    (guest.references() + 1) * (host.references() + 1) - 1
}

/// References of a cold walk where each guest table frame, and the data, has host pages of its own size: `frames` holds the host
/// references for each guest table from the root down, `data` those for the data.
#[must_use]
pub fn cold_mixed(frames: &[u32], data: u32) -> u32 {
    frames.iter().map(|host| host + 1).sum::<u32>() + data
}

/// Hit rates of a walk cache of one dimension: `shares[i]` is the share of walks whose longest match skips the upper i levels, so
/// that `depth - i` entries are left to read. The shares sum to 1; the rest of them beyond the depth counts as the last entry.
///
/// Gives the entries read by an average walk.
#[must_use]
pub fn warm(tables: Tables, shares: &[f64]) -> f64 {
    let all = tables.references();
    let left =
        |skipped: usize| f64::from(all.saturating_sub(u32::try_from(skipped).unwrap_or(u32::MAX)).max(all.min(1)));
    shares.iter().enumerate().map(|(skipped, share)| share * left(skipped)).sum()
}

/// References of an average two-dimensional walk with caches.
///
/// `guest_reads` guest entries are read ([`warm`]); the frame of each is found in the nested TLB with probability `frame_hits`,
/// that of the data with probability `data_hits`, and otherwise by a host walk that reads `host_reads` entries.
#[must_use]
pub fn warm_nested(guest_reads: f64, host_reads: f64, frame_hits: f64, data_hits: f64) -> f64 {
    guest_reads * (1.0 + (1.0 - frame_hits) * host_reads) + (1.0 - data_hits) * host_reads
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAVES: [LeafLevel; 3] = [LeafLevel::One, LeafLevel::Two, LeafLevel::Three];

    #[test]
    fn cold_walks_have_the_published_lengths() {
        let table = [[24, 19, 14], [19, 15, 11], [14, 11, 8]];
        for (guest, row) in LEAVES.iter().zip(table) {
            for (host, expected) in LEAVES.iter().zip(row) {
                let tables = |leaf: &LeafLevel| Tables { depth: 4, leaf: *leaf };
                assert_eq!(cold(tables(guest), tables(host)), expected, "{guest:?} {host:?}");
            }
        }
        let four = Tables { depth: 4, leaf: LeafLevel::One };
        let five = Tables { depth: 5, leaf: LeafLevel::One };
        let none = Tables { depth: 0, leaf: LeafLevel::One };
        let flat = Tables { depth: 1, leaf: LeafLevel::One };
        assert_eq!([cold(five, five), cold(five, four), cold(four, five)], [35, 29, 29]);
        assert_eq!([cold(four, none), cold(five, none), cold(none, four), cold(four, flat)], [4, 5, 4, 9]);
    }

    #[test]
    fn frames_with_pages_of_their_own_are_summed() {
        assert_eq!(cold_mixed(&[4, 4, 4, 4], 4), 24);
        assert_eq!(cold_mixed(&[3, 3, 3, 3], 4), 20);
        assert_eq!(cold_mixed(&[], 4), 4);
    }

    #[test]
    fn a_warm_walk_lies_between_one_reference_and_a_cold_walk() {
        let four = Tables { depth: 4, leaf: LeafLevel::One };
        assert!((warm(four, &[1.0]) - 4.0).abs() < 1e-12);
        assert!((warm(four, &[0.0, 0.0, 0.0, 1.0]) - 1.0).abs() < 1e-12);
        assert!((warm(four, &[0.25, 0.25, 0.25, 0.25]) - 2.5).abs() < 1e-12);
        // No cache holds the leaf entry: a walk reads one entry at least.
        assert!((warm(four, &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]) - 1.0).abs() < 1e-12);
        assert!((warm_nested(4.0, 4.0, 0.0, 0.0) - 24.0).abs() < 1e-12);
        assert!((warm_nested(1.0, 4.0, 1.0, 1.0) - 1.0).abs() < 1e-12);
    }
}
