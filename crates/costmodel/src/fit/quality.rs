//! How well predictions meet observations.

/// Relative errors below this count as this much in the geometric mean: one exact prediction must not make it vanish.
pub const GEOMETRIC_FLOOR: f64 = 1e-4;

/// How well predictions meet observations.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Quality {
    /// How many observations there are.
    pub observations: usize,
    /// The share of the observations' variance about *their mean* that the predictions explain: 1 - `ss_res` / `ss_tot`.
    /// Negative where the mean alone predicts better. Of observations that are all alike it is 1 where they are met, else
    /// minus infinity.
    pub r_squared: f64,
    /// The root of the mean squared residual, in the unit of the observations.
    pub rms_residual: f64,
    /// The largest relative error.
    pub max_relative: f64,
    /// The geometric mean of the relative errors, each at least [`GEOMETRIC_FLOOR`], or the largest where that is less.
    pub geometric_mean_relative: f64,
}

/// The size of the error as a share of the observation; of an observed 0, 0 where it is met and infinity where not. No prediction
/// (not a number) is infinitely wrong.
#[must_use]
pub fn relative_error(observed: f64, predicted: f64) -> f64 {
    let error = miss(observed, predicted);
    if error == 0.0 { 0.0 } else { error / observed.abs() }
}

/// The size of the error.
fn miss(observed: f64, predicted: f64) -> f64 {
    let error = (predicted - observed).abs();
    if error.is_nan() { f64::INFINITY } else { error }
}

impl Quality {
    /// Of predictions for the same observations, in the same order. Without any, every figure is that of a perfect fit.
    ///
    /// # Panics
    ///
    /// Where there are not as many predictions as observations.
    #[must_use]
    pub fn of(observed: &[f64], predicted: &[f64]) -> Self {
        assert_eq!(observed.len(), predicted.len(), "a prediction for each observation");
        #[expect(clippy::cast_precision_loss, reason = "fewer runs than 2^52")]
        let count = observed.len().max(1) as f64;
        let mean = observed.iter().sum::<f64>() / count;
        let pairs = || observed.iter().zip(predicted);
        let residual: f64 = pairs().map(|(y, f)| miss(*y, *f).powi(2)).sum();
        let total: f64 = observed.iter().map(|y| (y - mean) * (y - mean)).sum();
        let r_squared = match (residual > 0.0, total > 0.0) {
            (false, _) => 1.0,
            (true, true) => 1.0 - residual / total,
            (true, false) => f64::NEG_INFINITY,
        };
        let errors = || pairs().map(|(y, f)| relative_error(*y, *f));
        let logs: f64 = errors().map(|error| libm::log(error.max(GEOMETRIC_FLOOR))).sum();
        let max_relative = errors().fold(0.0, f64::max);
        // The floor must not lift the mean above the largest error.
        let geometric = if observed.is_empty() { 0.0 } else { libm::exp(logs / count).min(max_relative) };
        Self {
            observations: observed.len(),
            r_squared,
            rms_residual: (residual / count).sqrt(),
            max_relative,
            geometric_mean_relative: geometric,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_squared_is_about_the_mean() {
        // By hand: mean 2, ss_tot = 1 + 0 + 1 = 2, ss_res = 0.25 + 0 + 0.25 = 0.5.
        let quality = Quality::of(&[1.0, 2.0, 3.0], &[1.5, 2.0, 2.5]);
        assert!((quality.r_squared - 0.75).abs() < 1e-15);
        assert!((quality.rms_residual - (0.5f64 / 3.0).sqrt()).abs() < 1e-15);
        assert!((quality.max_relative - 0.5).abs() < 1e-15);
        // The mean itself explains nothing; worse than the mean is negative.
        assert!(Quality::of(&[1.0, 2.0, 3.0], &[2.0; 3]).r_squared.abs() < 1e-15);
        assert!((Quality::of(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]).r_squared + 3.0).abs() < 1e-15);
    }

    #[test]
    fn the_geometric_mean_survives_exact_predictions() {
        let quality = Quality::of(&[100.0, 100.0], &[101.0, 104.0]);
        assert!((quality.geometric_mean_relative - 0.02).abs() < 1e-12);
        let exact = Quality::of(&[100.0, 100.0], &[100.0, 101.0]);
        assert!((exact.geometric_mean_relative - (0.01f64 * GEOMETRIC_FLOOR).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_geometric_mean_is_never_above_the_largest_error() {
        let exact = Quality::of(&[100.0, 100.0], &[100.0, 100.0]);
        assert!(exact.max_relative == 0.0 && exact.geometric_mean_relative == 0.0, "{exact:?}");
    }

    #[test]
    fn no_prediction_is_no_success() {
        let quality = Quality::of(&[1.0, 2.0], &[1.0, f64::NAN]);
        assert!(quality.r_squared.is_infinite() && quality.r_squared < 0.0, "{quality:?}");
        assert!(quality.max_relative.is_infinite() && quality.geometric_mean_relative.is_infinite(), "{quality:?}");
    }

    #[test]
    fn an_observed_zero_is_met_or_missed_without_bound() {
        assert!(relative_error(0.0, 0.0).abs() < 1e-300);
        assert!(relative_error(0.0, 1.0).is_infinite());
        assert!((Quality::of(&[5.0, 5.0], &[5.0, 5.0]).r_squared - 1.0).abs() < 1e-15);
        assert!(Quality::of(&[5.0, 5.0], &[5.0, 6.0]).r_squared.is_infinite());
    }
}
