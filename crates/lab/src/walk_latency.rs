//! What a two-dimensional walk's time goes to, and what walks of other designs would cost with the same latencies.
//!
//! All figures are sums over recorded references (mode `cycles`), so they say what a design saves where the caches hold what the
//! whole walk put there. What each counts, in the words of the artifact of SagePTE (2024), `Simulator/scripts/parse_walk_stats.py`,
//! where these forms come from; levels count from the leaf:
//!
//! | part | references |
//! |---|---|
//! | last host walk | nested entries of every level for the data's own address (`UDH1` to `UDH4`), hits in walk caches included |
//! | without it | everything else (SagePTE) |
//! | three references | the guest's leaf, the nested leaf for the table it lies in, the nested leaf for the data (DMT) |
//! | flattened | guest and nested tables with two levels in one: guest levels 1 and 3, nested levels 1 and 3 for both and for the data, 8 references (FPT) |
//! | flat | guest entries of every level, one nested leaf for each and one for the data, 9 references |
//! | flat, data's own left out | the same without the last, 8 references |
//!
//! Hits in the TLB's second level and accessed and dirty bits are no part of a walk's latency here, as they are none there.

use memvirt_machine::{RunResult, ServedReferences};

use crate::comparison::ratio;

/// Cycles of all walks of a run, and of those references of them that a design needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkLatency {
    /// How many walks.
    pub walks: u64,
    /// All references, and the hits in walk caches.
    pub total: u64,
    /// The last host walk.
    pub last_host_walk: u64,
    /// Its leaf reference alone.
    pub last_host_leaf: u64,
    /// The three leaf references.
    pub three_references: u64,
    /// Tables of two levels in one.
    pub flattened: u64,
    /// A flat nested table.
    pub flat: u64,
    /// The same without the reference for the data.
    pub flat_without_data: u64,
}

impl WalkLatency {
    /// The parts of a run's walks; `None` where it made no two-dimensional ones, or nothing was followed to the caches.
    #[must_use]
    pub fn of(result: &RunResult) -> Option<Self> {
        let rows = || result.cycles.references.iter().filter(|row| row.is_of_a_walk());
        let sum = |wanted: &dyn Fn(&ServedReferences) -> bool| -> u64 {
            rows().filter(|row| wanted(row)).map(|row| row.cycles).sum()
        };
        let lowest = |wanted: &dyn Fn(&ServedReferences) -> bool| {
            rows().filter(|row| wanted(row)).filter_map(|row| row.level).min()
        };
        let is_guest = |row: &ServedReferences| row.dimension == "guest";
        let guest_leaf = lowest(&is_guest)?;
        let host_leaf = lowest(&ServedReferences::is_of_the_last_host_walk)?;
        let is_host_leaf = |row: &ServedReferences| row.dimension == "nested" && row.level == Some(host_leaf);
        // Every second level, the leaf's among them.
        let kept = |level: Option<u8>, leaf: u8| level.is_none_or(|level| (level - leaf).is_multiple_of(2));
        let last_host_leaf = sum(&|row| row.is_of_the_last_host_walk() && is_host_leaf(row));
        let flat = sum(&|row| is_guest(row) || is_host_leaf(row));
        Some(Self {
            walks: result.walks,
            total: sum(&|_| true),
            last_host_walk: sum(&ServedReferences::is_of_the_last_host_walk),
            last_host_leaf,
            three_references: sum(&|row| is_guest(row) && row.level == Some(guest_leaf))
                + sum(&|row| is_host_leaf(row) && row.serves.is_none_or(|serves| serves == guest_leaf)),
            flattened: sum(&|row| is_guest(row) && kept(row.level, guest_leaf))
                + sum(&|row| row.dimension == "nested" && kept(row.level, host_leaf) && kept(row.serves, guest_leaf)),
            flat,
            flat_without_data: flat - last_host_leaf,
        })
    }

    /// A part as a fraction of the whole.
    #[must_use]
    pub fn share(&self, part: u64) -> f64 {
        if self.total == 0 { 0.0 } else { ratio(part, self.total) }
    }

    /// How many times faster walks of only `part` are. Leaving out a share `s` gives 1 / (1 - s).
    #[must_use]
    pub fn speedup(&self, part: u64) -> f64 {
        ratio(self.total, part)
    }

    /// Cycles of the average walk.
    #[must_use]
    pub fn per_walk(&self) -> f64 {
        if self.walks == 0 { 0.0 } else { ratio(self.total, self.walks) }
    }

    /// Name and speed-up of each design.
    pub fn designs(&self) -> impl Iterator<Item = (&'static str, f64)> + use<> {
        let designs = [
            ("without the last host walk", self.total - self.last_host_walk),
            ("3 references: guest leaf, its host leaf, the data's", self.three_references),
            ("8 references: two levels of tables in one", self.flattened),
            ("9 references: flat nested table", self.flat),
            ("8 of these, the data's own left out", self.flat_without_data),
        ];
        let of = *self;
        designs.into_iter().map(move |(name, part)| (name, of.speedup(part)))
    }
}

/// How many times faster a program is that spends the fraction `walking` of its time in walks, where walks become `speedup` times
/// faster: 1 / ((1 - f) + f / s).
#[must_use]
pub fn end_to_end(walking: f64, speedup: f64) -> f64 {
    1.0 / ((1.0 - walking) + walking / speedup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_end_to_end_speedups_follow_from_the_walks() {
        // SagePTE artifact (2024), GUPS with 4 KiB pages: walk-time share 0.9628; walk speed-ups 1.7919, 1.3087, 1.2806.
        for (walk, whole) in [(1.7919, 1.7406), (1.3087, 1.2938), (1.2806, 1.2674)] {
            assert!((end_to_end(0.9628, walk) - whole).abs() < 5e-4, "{walk}: {}", end_to_end(0.9628, walk));
        }
        // And the share of the last host walk from its four parts.
        let share = (0.9145 + 1.1898 + 7.7618 + 34.3257) / 100.0;
        assert!((1.0 / (1.0 - share) - 1.7919_f64).abs() < 5e-4);
    }
}
