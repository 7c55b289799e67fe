//! Confidence intervals by resampling runs (Efron's percentile intervals).

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// An interval of confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How many resamples it rests on: those that could be fitted.
    pub resamples: usize,
}

impl Interval {
    /// Whether a value lies within, both ends included.
    #[must_use]
    pub fn contains(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// Draws `resamples` times as many of `runs` runs, with replacement, has `estimate` computed from the positions drawn, and gives
/// for each figure of the estimate the interval that holds the share `level` of its values. A resample that has no estimate
/// (all runs alike, say) is left out. Empty where none has one.
///
/// Each resample has a random stream of its own, so the result does not depend on the order in which they are computed.
#[must_use]
pub fn bootstrap(
    runs: usize,
    resamples: usize,
    level: f64,
    seed: u64,
    estimate: impl Fn(&[usize]) -> Option<Vec<f64>>,
) -> Vec<Interval> {
    let mut figures: Vec<Vec<f64>> = Vec::new();
    for resample in 0..resamples {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(resample as u64);
        let picks: Vec<usize> = (0..runs).map(|_| rng.random_range(0..runs)).collect();
        let Some(estimate) = estimate(&picks) else { continue };
        figures.resize(estimate.len(), Vec::new());
        figures.iter_mut().zip(estimate).for_each(|(figure, value)| figure.push(value));
    }
    figures.into_iter().map(|values| interval(values, level)).collect()
}

fn interval(mut values: Vec<f64>, level: f64) -> Interval {
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - level.clamp(0.0, 1.0)) / 2.0;
    Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail), resamples: values.len() }
}

/// Linear between the sorted values; there is one at least.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "fewer resamples than 2^52")]
    let place = share * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the slice")]
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0];
        for (share, expected) in [(0.0, 1.0), (0.5, 3.0), (0.625, 3.5), (1.0, 5.0)] {
            assert!((quantile(&values, share) - expected).abs() < 1e-12, "{share}");
        }
        assert!((quantile(&[7.0], 0.3) - 7.0).abs() < 1e-12);
    }
}
