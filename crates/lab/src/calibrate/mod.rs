//! A user's cost model fitted to a table of runs, for example one that a [plan](crate::plan) wrote: `memvirt model calibrate`.
//!
//! `rows` takes the model's inputs and the observation from the columns of a CSV file, with file and line of whatever cannot be
//! used; the fit, its intervals and its errors on runs that it has not seen are those of [`memvirt_costmodel::fit`]. How memvirt's
//! own models meet its own runs is another question: [`fits`](crate::fits).

mod error;
mod rows;
#[cfg(test)]
mod tests;

use std::path::Path;

use memvirt_costmodel::Model;
use memvirt_costmodel::fit::{Assessment, Options, assess, folds, group_folds, tied};
use memvirt_costmodel::lang::Prior;
use serde::Serialize;

pub use error::CalibrateError;

use rows::Rows;

/// What is fitted to what.
#[derive(Clone, Debug)]
pub struct Calibration<'a> {
    /// The model.
    pub model: &'a Model,
    /// The CSV file; its first line names the columns.
    pub table: &'a Path,
    /// The column that holds what was observed.
    pub observed: &'a str,
    /// The model's output that predicts it; where it is not said, the one of that name, or the only one.
    pub output: Option<&'a str>,
    /// Inputs, and the columns that hold them where their names differ.
    pub columns: &'a [(String, String)],
    /// Columns and what must stand in them for a row to count; all must hold.
    pub conditions: &'a [(String, String)],
    /// The column whose values tell which rows belong together: they are predicted together.
    pub group: Option<&'a str>,
    /// Weighting, folds, resamples, seed. Groups are those of `group`.
    pub options: Options,
}

/// An input and the column it was taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// The input.
    pub input: String,
    /// The column.
    pub column: String,
}

/// The row that is predicted worst by a fit that has not seen it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Worst {
    /// Its line in the file, from 1.
    pub line: u64,
    /// What was observed.
    pub observed: f64,
    /// What was predicted.
    pub predicted: f64,
}

/// What is about to be fitted, for whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Parameters that the fit may choose.
    pub params: usize,
    /// Rows that it is fitted to.
    pub rows: usize,
    /// Folds, each predicted by a fit to the others.
    pub folds: usize,
    /// Resamples for the intervals.
    pub resamples: usize,
}

/// A fitted model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    /// The model's name.
    pub model: String,
    /// The output that was fitted.
    pub output: String,
    /// Its unit: that of the observations.
    pub unit: String,
    /// The column of the observations.
    pub observed: String,
    /// Where each input came from.
    pub inputs: Vec<Taken>,
    /// How many rows were fitted to.
    pub rows: usize,
    /// How many rows the conditions left out.
    pub left_out: usize,
    /// How many folds each of which was predicted from the others.
    pub folds: usize,
    /// Parameters, intervals, errors.
    pub assessment: Assessment,
    /// Parameters on which no row depends: their values are those of the file, and say nothing.
    pub idle: Vec<String>,
    /// Groups of parameters that the rows cannot tell apart: only what they give together is determined, and each alone is where the
    /// fit happened to end. They have no intervals, as those in `idle` have none.
    pub tied: Vec<Vec<String>>,
    /// Where the fit is worst.
    pub worst: Option<Worst>,
}

impl Calibration<'_> {
    /// Fits.
    ///
    /// # Errors
    ///
    /// [`CalibrateError`], with file, line and column where a cell is at fault, and the mend.
    pub fn run(&self) -> Result<Calibrated, CalibrateError> {
        self.run_observed(|_| ())
    }

    /// Fits; `begins` is told what once the table has been read.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_observed(&self, begins: impl FnOnce(Begun)) -> Result<Calibrated, CalibrateError> {
        let output = self.output_name()?;
        let rows = Rows::read(self)?;
        let free: Vec<_> = self.model.params().iter().filter(|param| param.prior != Prior::Fixed).collect();
        let parts = if self.group.is_some() { rows.groups() } else { rows.data.len() };
        let split = |k: usize| {
            let seed = self.options.seed;
            if self.group.is_some() { group_folds(&rows.group, k, seed) } else { folds(rows.data.len(), k, seed) }
        };
        // Each fold leaves some rows out, and the rest must still determine every parameter: smaller folds where need be.
        let enough = |k: &usize| split(*k).iter().all(|fold| fold.train.len() >= free.len());
        let asked = self.options.folds.clamp(2, parts.max(2));
        let possible = (rows.data.len() > free.len()).then(|| (asked..=parts).find(enough)).flatten();
        let Some(folds) = possible else {
            return Err(CalibrateError::TooFew {
                file: self.table.to_owned(),
                rows: rows.data.len(),
                parts,
                params: free.iter().map(|param| param.name.clone()).collect(),
            });
        };
        rows.evaluate(self)?;
        begins(Begun { params: free.len(), rows: rows.data.len(), folds, resamples: self.options.resamples });
        let options = Options { folds, groups: rows.group.clone(), ..self.options.clone() };
        let wrong = |source| CalibrateError::Fit { file: self.table.to_owned(), source };
        let mut assessment = assess(self.model, &output, &rows.data, None, &options).map_err(wrong)?;
        let values: Vec<f64> = assessment.params.iter().map(|param| param.fitted).collect();
        let tied = tied(self.model, &output, &rows.data, &values, &options).map_err(wrong)?;
        let idle = self.idle(&rows, &output, &values);
        for param in &mut assessment.params {
            // Resamples agree on what no row can tell: they all begin at the value in the file.
            if idle.iter().chain(tied.iter().flatten()).any(|name| *name == param.name) {
                param.interval = None;
            }
        }
        let unit = self.model.outputs().find(|value| value.name == output).map(|value| value.unit.text.clone());
        Ok(Calibrated {
            model: self.model.name().to_owned(),
            output,
            unit: unit.unwrap_or_default(),
            observed: self.observed.to_owned(),
            inputs: rows.taken.clone(),
            rows: rows.data.len(),
            left_out: rows.left_out,
            folds,
            idle,
            tied,
            worst: rows.worst(&assessment.unseen),
            assessment,
        })
    }

    /// Free parameters that can be moved by a hundredth without any prediction moving.
    fn idle(&self, rows: &Rows, output: &str, values: &[f64]) -> Vec<String> {
        let meant = self.model.outputs().position(|value| value.name == output).unwrap_or(0);
        let at = |params: &[f64]| {
            let each = rows.data.inputs.iter().map(|row| Some(self.model.evaluate(row, params).ok()?[meant]));
            each.collect::<Vec<_>>()
        };
        let still = |i: &usize| {
            let (range, value) = (self.model.params()[*i].range, values[*i]);
            let step = 0.01 * value.abs().max(1e-3);
            let mut moved = values.to_vec();
            moved[*i] = if value + step <= range.most { value + step } else { (value - step).max(range.least) };
            at(&moved) == at(values)
        };
        let params = self.model.params().iter().enumerate().filter(|(_, param)| param.prior != Prior::Fixed);
        params.filter(|(i, _)| still(i)).map(|(_, param)| param.name.clone()).collect()
    }

    fn output_name(&self) -> Result<String, CalibrateError> {
        let known: Vec<String> = self.model.outputs().map(|value| value.name.clone()).collect();
        let asked = self.output.unwrap_or(self.observed);
        let meant = known.iter().find(|name| rows::alike(name, asked));
        match (meant, self.output, &known[..]) {
            (Some(name), ..) => Ok(name.clone()),
            (None, None, [only]) => Ok(only.clone()),
            _ => Err(CalibrateError::Output { model: self.model.name().to_owned(), asked: asked.to_owned(), known }),
        }
    }
}
