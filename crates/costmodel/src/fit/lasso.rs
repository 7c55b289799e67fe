//! Lasso: least squares with a price on the sum of the coefficients' sizes, by coordinate descent.
//!
//! The objective is that of Friedman, Hastie and Tibshirani (J. Stat. Software 33, 2010) and of scikit-learn:
//! |y - b0 - X b|^2 / (2 n) + penalty * sum |b_j|, with the columns of X centred and scaled to variance 1. Covariances are
//! computed once, so that a sweep costs the square of the number of columns, not the number of runs.

use super::data::Data;
use super::error::FitError;
use super::quality::Quality;
use super::validate::folds;

/// Sweeps over all coefficients at most, for one penalty.
const MAX_SWEEPS: usize = 1_000;
/// A sweep that changes no coefficient by more than this share of the observations' deviation ends the descent.
const TOLERANCE: f64 = 1e-8;
/// Penalties tried, evenly spaced in their logarithm.
const PENALTIES: usize = 40;
/// The smallest penalty tried, as a share of the least one that leaves no coefficient.
const SMALLEST: f64 = 1e-4;

/// A fit under one penalty.
#[derive(Clone, Debug, PartialEq)]
pub struct Lasso {
    /// What is predicted where all columns are zero.
    pub intercept: f64,
    /// A coefficient for each column, many of them zero.
    pub coefficients: Vec<f64>,
    /// The price of a unit of coefficient, for columns of variance 1.
    pub penalty: f64,
    /// How well it fits the data that it was fitted to.
    pub quality: Quality,
}

/// The penalties tried, and how each did on runs that it had not seen.
#[derive(Clone, Debug, PartialEq)]
pub struct LassoPath {
    /// From the largest to the smallest.
    pub penalties: Vec<f64>,
    /// The mean squared error of each on the runs left out.
    pub errors: Vec<f64>,
    /// The fit to all runs under the penalty that did best.
    pub best: Lasso,
}

impl Lasso {
    /// Fits under one penalty.
    ///
    /// # Errors
    ///
    /// Where rows differ in length, hold no numbers, or are fewer than 2.
    pub fn fit(data: &Data, penalty: f64) -> Result<Self, FitError> {
        let system = System::new(data)?;
        let mut scaled = vec![0.0; system.columns()];
        system.descend(penalty, &mut scaled);
        Ok(system.result(data, penalty, &scaled))
    }

    /// Fits under the penalty that predicts best in `k`-fold cross-validation.
    ///
    /// # Errors
    ///
    /// Where rows differ in length, hold no numbers, or are fewer than `k` or 3.
    pub fn cross_validated(data: &Data, k: usize, seed: u64) -> Result<LassoPath, FitError> {
        if data.len() < k.max(3) {
            return Err(FitError::TooFew { observations: data.len(), unknowns: k.max(3) });
        }
        let whole = System::new(data)?;
        let penalties = whole.penalties();
        let mut errors = vec![0.0; penalties.len()];
        for fold in folds(data.len(), k, seed) {
            let (train, test) = (data.pick(&fold.train), data.pick(&fold.test));
            let system = System::new(&train)?;
            let mut scaled = vec![0.0; system.columns()];
            for (penalty, error) in penalties.iter().zip(&mut errors) {
                system.descend(*penalty, &mut scaled);
                let predicted = system.result(&train, *penalty, &scaled).predict(&test.inputs);
                *error += test.observed.iter().zip(&predicted).map(|(y, f)| (y - f).powi(2)).sum::<f64>();
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "fewer runs than 2^52")]
        errors.iter_mut().for_each(|error| *error /= data.len() as f64);
        // The larger penalty where two do equally well: the simpler model.
        let best = (0..errors.len()).fold(0, |best, i| if errors[i] < errors[best] { i } else { best });
        let mut scaled = vec![0.0; whole.columns()];
        penalties[..=best].iter().for_each(|penalty| whole.descend(*penalty, &mut scaled));
        let best = whole.result(data, penalties[best], &scaled);
        Ok(LassoPath { penalties, errors, best })
    }

    /// The predictions for rows of columns.
    #[must_use]
    pub fn predict(&self, rows: &[Vec<f64>]) -> Vec<f64> {
        let one = |row: &Vec<f64>| row.iter().zip(&self.coefficients).map(|(x, c)| x * c).sum::<f64>();
        rows.iter().map(|row| self.intercept + one(row)).collect()
    }
}

/// Means, scales and covariances of the data.
struct System {
    means: Vec<f64>,
    /// Standard deviations; 0 for a column that is constant, which gets no coefficient.
    scales: Vec<f64>,
    /// Correlations of columns.
    gram: Vec<Vec<f64>>,
    /// Covariances of scaled columns with the observations.
    target: Vec<f64>,
    mean: f64,
    deviation: f64,
}

#[expect(clippy::cast_precision_loss, reason = "fewer runs than 2^52")]
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

impl System {
    fn new(data: &Data) -> Result<Self, FitError> {
        data.check()?;
        if data.len() < 2 {
            return Err(FitError::TooFew { observations: data.len(), unknowns: 2 });
        }
        let columns = data.inputs[0].len();
        let column = |j: usize| data.inputs.iter().map(move |row| row[j]);
        let means: Vec<f64> = (0..columns).map(|j| mean(column(j))).collect();
        let deviation = |j: usize| mean(column(j).map(|x| (x - means[j]).powi(2))).sqrt();
        let noise = |j: usize| 1e-12 * column(j).fold(0.0, |most: f64, x| most.max(x.abs()));
        let scales: Vec<f64> =
            (0..columns).map(|j| Some(deviation(j)).filter(|d| *d > noise(j)).unwrap_or(0.0)).collect();
        let scaled = |row: &[f64], j: usize| if scales[j] > 0.0 { (row[j] - means[j]) / scales[j] } else { 0.0 };
        let rows: Vec<Vec<f64>> =
            data.inputs.iter().map(|row| (0..columns).map(|j| scaled(row, j)).collect()).collect();
        let middle = mean(data.observed.iter().copied());
        let gram = (0..columns)
            .map(|j| (0..columns).map(|k| mean(rows.iter().map(|row| row[j] * row[k]))).collect())
            .collect();
        let pairs = || rows.iter().zip(&data.observed);
        let target = (0..columns).map(|j| mean(pairs().map(|(row, y)| row[j] * (y - middle)))).collect();
        let deviation = mean(data.observed.iter().map(|y| (y - middle).powi(2))).sqrt();
        Ok(Self { means, scales, gram, target, mean: middle, deviation })
    }

    fn columns(&self) -> usize {
        self.means.len()
    }

    /// From the least penalty that leaves no coefficient downwards.
    fn penalties(&self) -> Vec<f64> {
        let most = self.target.iter().fold(0.0, |most: f64, covariance| most.max(covariance.abs()));
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let share = |i: usize| libm::pow(SMALLEST, i as f64 / (PENALTIES - 1) as f64);
        (0..PENALTIES).map(|i| most * share(i)).collect()
    }

    /// Descends from `scaled`, the coefficients of scaled columns.
    fn descend(&self, penalty: f64, scaled: &mut [f64]) {
        for _ in 0..MAX_SWEEPS {
            let mut moved: f64 = 0.0;
            for j in 0..scaled.len() {
                if self.scales[j] == 0.0 {
                    continue;
                }
                let others: f64 = self.gram[j].iter().zip(&*scaled).map(|(g, b)| g * b).sum::<f64>() - scaled[j];
                let pull = self.target[j] - others;
                let next = pull.signum() * (pull.abs() - penalty).max(0.0);
                moved = moved.max((next - scaled[j]).abs());
                scaled[j] = next;
            }
            if moved <= TOLERANCE * self.deviation {
                return;
            }
        }
    }

    fn result(&self, data: &Data, penalty: f64, scaled: &[f64]) -> Lasso {
        let unscaled = |(b, scale): (&f64, &f64)| if *scale > 0.0 { b / scale } else { 0.0 };
        let coefficients: Vec<f64> = scaled.iter().zip(&self.scales).map(unscaled).collect();
        let intercept = self.mean - coefficients.iter().zip(&self.means).map(|(b, mean)| b * mean).sum::<f64>();
        let perfect = Quality::of(&[], &[]);
        let mut lasso = Lasso { intercept, coefficients, penalty, quality: perfect };
        lasso.quality = Quality::of(&data.observed, &lasso.predict(&data.inputs));
        lasso
    }
}
