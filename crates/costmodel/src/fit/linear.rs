//! Linear least squares by singular values, after scaling the columns: counts of millions stand beside shares.

use nalgebra::{DMatrix, DVector};

use super::data::{Data, Weighting};
use super::error::FitError;
use super::quality::Quality;

/// Below this share of the largest singular value (of the scaled columns) a direction is not determined by the data.
const RANK_TOLERANCE: f64 = 1e-10;

/// A linear least-squares fit: observation = sum of coefficient times column.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// A coefficient for each column.
    pub coefficients: Vec<f64>,
    /// The standard error of each coefficient, from the residuals; not a number where there are as many coefficients as
    /// observations.
    pub standard_errors: Vec<f64>,
    /// Observation less prediction, for each row.
    pub residuals: Vec<f64>,
    /// The largest by the smallest singular value of the scaled columns.
    pub condition: f64,
    /// How well it fits.
    pub quality: Quality,
}

impl Linear {
    /// Fits; a column of ones stands for an intercept.
    ///
    /// # Errors
    ///
    /// Where rows differ in length, hold no numbers, are too few, or do not determine every coefficient.
    pub fn fit(data: &Data, weighting: Weighting) -> Result<Self, FitError> {
        data.check()?;
        let (rows, columns) = (data.len(), data.inputs.first().map_or(0, Vec::len));
        if rows < columns || columns == 0 {
            return Err(FitError::TooFew { observations: rows, unknowns: columns });
        }
        let weights: Vec<f64> = data.observed.iter().map(|y| weighting.weight(*y)).collect();
        let raw = DMatrix::from_fn(rows, columns, |i, j| data.inputs[i][j] * weights[i]);
        let scales: Vec<f64> = raw.column_iter().map(|column| column.norm()).collect();
        if scales.contains(&0.0) {
            let rank = scales.iter().filter(|scale| **scale > 0.0).count();
            return Err(FitError::Rank { rank, unknowns: columns });
        }
        let scaled = DMatrix::from_fn(rows, columns, |i, j| raw[(i, j)] / scales[j]);
        let target = DVector::from_fn(rows, |i, _| data.observed[i] * weights[i]);
        Self::solve(data, &scaled, &scales, &target)
    }

    fn solve(data: &Data, scaled: &DMatrix<f64>, scales: &[f64], target: &DVector<f64>) -> Result<Self, FitError> {
        let (rows, columns) = scaled.shape();
        let svd = scaled.clone().svd(true, true);
        let (Some(u), Some(v_t)) = (&svd.u, &svd.v_t) else {
            return Err(FitError::Diverged("no singular values were found".to_owned()));
        };
        let singular = &svd.singular_values;
        let (largest, smallest) = (singular.max(), singular.min());
        let rank = singular.iter().filter(|value| **value > RANK_TOLERANCE * largest).count();
        if rank < columns {
            return Err(FitError::Rank { rank, unknowns: columns });
        }
        let rotated = u.tr_mul(target).component_div(singular);
        let solution = v_t.tr_mul(&rotated);
        let left = (target - scaled * &solution).norm_squared();
        #[expect(clippy::cast_precision_loss, reason = "fewer runs than 2^52")]
        let variance = left / (rows - columns) as f64;
        let spread = |j: usize| (0..columns).map(|k| (v_t[(k, j)] / singular[k]).powi(2)).sum::<f64>();
        let coefficients: Vec<f64> = solution.iter().zip(scales).map(|(value, scale)| value / scale).collect();
        let predicted = predict(&coefficients, &data.inputs);
        Ok(Self {
            standard_errors: (0..columns).map(|j| (variance * spread(j)).sqrt() / scales[j]).collect(),
            residuals: data.observed.iter().zip(&predicted).map(|(y, f)| y - f).collect(),
            condition: largest / smallest,
            quality: Quality::of(&data.observed, &predicted),
            coefficients,
        })
    }

    /// The predictions for rows of columns.
    #[must_use]
    pub fn predict(&self, rows: &[Vec<f64>]) -> Vec<f64> {
        predict(&self.coefficients, rows)
    }
}

fn predict(coefficients: &[f64], rows: &[Vec<f64>]) -> Vec<f64> {
    rows.iter().map(|row| row.iter().zip(coefficients).map(|(x, c)| x * c).sum()).collect()
}
