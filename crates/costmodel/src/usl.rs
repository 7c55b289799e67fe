//! The Universal Scalability Law (Gunther 1993): capacity relative to one, C(N) = N / (1 + s (N - 1) + k N (N - 1)), where s is
//! contention (waiting for something shared) and k coherency (each has to do with each).

use crate::fit::{Bound, FitError, Quality, nonlinear};

/// The law's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Usl {
    /// Throughput of one.
    pub one: f64,
    /// Contention, s.
    pub contention: f64,
    /// Coherency, k.
    pub coherency: f64,
}

impl Usl {
    /// The throughput of `n`.
    #[must_use]
    pub fn throughput(&self, n: f64) -> f64 {
        self.one * n / (1.0 + self.contention * (n - 1.0) + self.coherency * n * (n - 1.0))
    }

    /// The number with the greatest throughput, sqrt((1 - s) / k); infinite where throughput never falls.
    #[must_use]
    pub fn peak(&self) -> f64 {
        if self.coherency > 0.0 { ((1.0 - self.contention).max(0.0) / self.coherency).sqrt() } else { f64::INFINITY }
    }

    /// Fits the law to throughputs of several numbers, by relative residuals; parameters stay at or above 0, contention at or
    /// below 1.
    ///
    /// # Errors
    ///
    /// Where there are fewer than 3 points, or one is not positive.
    pub fn fit(points: &[(f64, f64)]) -> Result<(Self, Quality), FitError> {
        if let Some(row) = points.iter().position(|(n, x)| !(*n >= 1.0 && *x > 0.0 && n.is_finite() && x.is_finite())) {
            return Err(FitError::NotFinite { row, value: points[row].1 });
        }
        let first = points.iter().map(|(n, x)| x / n).fold(0.0, f64::max);
        let nonnegative = Bound { least: 0.0, most: f64::INFINITY };
        let bounds = [nonnegative, Bound { least: 0.0, most: 1.0 }, nonnegative];
        let law = |p: &[f64]| Self { one: p[0], contention: p[1], coherency: p[2] };
        let residuals = |p: &[f64]| Ok(points.iter().map(|(n, x)| law(p).throughput(*n) / x - 1.0).collect());
        let fit = nonlinear(&[first, 0.05, 1e-3], &bounds, residuals)?;
        let law = law(&fit.params);
        let observed: Vec<f64> = points.iter().map(|(_, x)| *x).collect();
        let predicted: Vec<f64> = points.iter().map(|(n, _)| law.throughput(*n)).collect();
        Ok((law, Quality::of(&observed, &predicted)))
    }
}
