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
use memvirt_costmodel::fit::{Assessment, Options, assess};
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
        let output = self.output_name()?;
        let rows = Rows::read(self)?;
        let free: Vec<_> = self.model.params().iter().filter(|param| param.prior != Prior::Fixed).collect();
        let parts = if self.group.is_some() { rows.groups() } else { rows.data.len() };
        // Each fold leaves some rows out, and the rest must still determine every parameter.
        if rows.data.len() < free.len() + 1 || parts < 2 {
            return Err(CalibrateError::TooFew {
                file: self.table.to_owned(),
                rows: rows.data.len(),
                parts,
                params: free.iter().map(|param| param.name.clone()).collect(),
            });
        }
        rows.evaluate(self)?;
        let enough = |folds: &usize| self.group.is_some() || parts - parts.div_ceil(*folds) >= free.len();
        let asked = self.options.folds.clamp(2, parts);
        let folds = (asked..=parts).find(enough).unwrap_or(parts);
        let groups = if self.group.is_some() { rows.group.clone() } else { Vec::new() };
        let options = Options { folds, groups, ..self.options.clone() };
        let assessment = assess(self.model, &output, &rows.data, None, &options)
            .map_err(|source| CalibrateError::Fit { file: self.table.to_owned(), source })?;
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
            worst: rows.worst(&assessment.unseen),
            assessment,
        })
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
