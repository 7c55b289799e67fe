//! Parameters that data cannot tell apart: some of them can be moved together without any prediction moving, so that each alone may
//! have any value. A fit still returns one, which says where it began and nothing else.
//!
//! Such directions are the null space of the derivatives of the weighted residuals by the free parameters, at the fit.

use nalgebra::{DMatrix, DVector};

use crate::lang::{Model, Param};

use super::assess::{Options, Task};
use super::data::Data;
use super::error::FitError;

/// How far a parameter is moved for its derivative, as a share of its size. Far enough that a part of a millionth of a prediction
/// stands clear of rounding, near enough that a curve is straight.
const STEP: f64 = 1e-4;
/// A direction whose effect is below this share of the greatest is none.
const NULL: f64 = 1e-6;
/// A parameter whose own effect is below this share of the predictions moves nothing: it is idle, not tied.
const IDLE: f64 = 1e-10;
/// A parameter takes part in a direction with more than this.
const PART: f64 = 1e-4;

/// The groups of free parameters that are determined together alone, at `params` (all of the model's, in the order of the file):
/// `[["p", "q"]]` for `p + q`, or for `p * q`, of which the data say no more. Priors determine where they pull, that is where the
/// options say how noisy the data are.
///
/// # Errors
///
/// Where the model has no such output, or cannot be evaluated for a run.
pub fn tied(
    model: &Model,
    output: &str,
    data: &Data,
    params: &[f64],
    options: &Options,
) -> Result<Vec<Vec<String>>, FitError> {
    let task = Task::new(model, output, options)?;
    let at: Vec<f64> = task.free.iter().map(|i| params[*i]).collect();
    let predicted = task.predict(params, &data.inputs)?;
    let size = data.observed.iter().zip(&predicted).map(|(y, f)| (options.weighting.weight(*y) * f).powi(2));
    let size = size.sum::<f64>().sqrt();
    let (mut columns, mut names) = (Vec::new(), Vec::new());
    for (free, i) in task.free.iter().enumerate() {
        let param = &model.params()[*i];
        let (below, above) = ends(param, at[free]);
        let residuals = |value: f64| {
            let mut moved = at.clone();
            moved[free] = value;
            task.residuals(data, &moved).map(DVector::from_vec)
        };
        let column = (residuals(above)? - residuals(below)?) / (2.0 * STEP);
        let effect = column.norm();
        // What cannot be moved, or moves nothing, is no part of a direction.
        if effect > IDLE * size && effect.is_finite() {
            columns.push(column / effect);
            names.push(&param.name);
        }
    }
    Ok(groups(&columns).into_iter().map(|group| group.into_iter().map(|i| names[i].clone()).collect()).collect())
}

/// Where a parameter is moved to for its derivative, within its bounds.
fn ends(param: &Param, value: f64) -> (f64, f64) {
    let size = value.abs().max(param.value.abs());
    let size = if size > 0.0 { size } else { 1.0 };
    let within = |value: f64| value.max(param.range.least).min(param.range.most);
    (within(value - STEP * size), within(value + STEP * size))
}

/// The columns, of length 1 each, that take part in combinations that are nothing; those of one combination are a group.
fn groups(columns: &[DVector<f64>]) -> Vec<Vec<usize>> {
    if columns.len() < 2 {
        return Vec::new();
    }
    // With fewer rows than columns, rows of zeros make the directions that no row sees appear among the singular vectors.
    let rows = columns[0].len().max(columns.len());
    let matrix = DMatrix::from_fn(rows, columns.len(), |row, column| columns[column].get(row).copied().unwrap_or(0.0));
    let svd = matrix.svd(false, true);
    let Some(directions) = svd.v_t else { return Vec::new() };
    let greatest = svd.singular_values.max();
    let mut onto = DMatrix::zeros(columns.len(), columns.len());
    for (value, direction) in svd.singular_values.iter().zip(directions.row_iter()) {
        if *value < NULL * greatest {
            onto += direction.transpose() * direction;
        }
    }
    // Which singular vectors span the null space is a matter of chance; the projection onto it is not.
    let mut found: Vec<Vec<usize>> = Vec::new();
    for i in 0..columns.len() {
        let near = |j: &usize| onto[(i, *j)].abs() > PART;
        if (0..columns.len()).filter(|j| *j != i).any(|j| near(&j)) {
            let (with, mut rest): (Vec<_>, Vec<_>) = found.into_iter().partition(|group| group.iter().any(near));
            rest.push(with.into_iter().flatten().chain([i]).collect());
            found = rest;
        }
    }
    found.iter_mut().for_each(|group| group.sort_unstable());
    found.sort_unstable();
    found
}
