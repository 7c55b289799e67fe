//! Experiment plans: grids of runs as files (`models/plans/*.toml`), carried out into one tidy table.
//!
//! A [`Plan`] is a list of grids; a grid gives each axis one value or several, and stands for every combination. Axes are the
//! flags of `memvirt run`, so each combination, a [`Point`], is one command, and that command stands with its row. [`PlanRun`]
//! runs what the table does not hold yet and keeps the rest: an interrupted plan goes on where it was.
//!
//! Neighbours: [`Experiment`](crate::Experiment) carries out a point; the columns of a row are those of `docs/results.md`.

mod axis;
mod builtin;
mod error;
mod parse;
mod point;
mod run;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::ffi::OsStr;
use std::path::Path;

use memvirt_textfile::TextError;

pub use builtin::Builtin;
pub use error::PlanError;
pub use point::Point;
pub use run::{Outlook, PlanDone, PlanProgress, PlanRun};
pub use table::{Row, Table};

use value::Value;

/// An axis of a grid and its values.
#[derive(Clone, Debug, PartialEq)]
pub struct AxisValues {
    /// Its name: a flag of `memvirt run` with `_` for `-`, or `set.` and the path of a field of the workload's generator.
    pub name: String,
    /// What it is set to, one after the other, as in the file.
    pub values: Vec<String>,
    raw: Vec<Value>,
}

/// Every combination of some values.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The axes, the slowest first.
    pub axes: Vec<AxisValues>,
    points: Vec<Point>,
}

impl Grid {
    /// The points, the last axis changing fastest.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }
}

/// How much of a plan is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All of it.
    Full,
    /// The short form that its file gives: `[grid.quick]`.
    Quick,
}

/// A checked plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    name: String,
    title: String,
    about: String,
    full: Vec<Grid>,
    quick: Option<Vec<Grid>>,
}

impl Plan {
    /// Bytes of the largest plan file that is read.
    pub const MAX_FILE_BYTES: u64 = memvirt_textfile::MAX_BYTES;
    /// The most runs of a plan.
    pub const MAX_POINTS: usize = 100_000;

    /// The plans that are built in.
    pub fn builtin() -> impl ExactSizeIterator<Item = &'static Builtin> {
        builtin::ALL.iter()
    }

    /// What a user names: a path where the argument has a separator or ends in `.toml`, a built-in plan otherwise.
    ///
    /// # Errors
    ///
    /// [`PlanError`] where there is no such plan, or its file is not one.
    pub fn resolve(argument: &OsStr) -> Result<Self, PlanError> {
        let path = Path::new(argument);
        let is_path =
            path.components().count() > 1 || path.is_absolute() || path.extension().is_some_and(|e| e == "toml");
        if is_path {
            return Self::load(path);
        }
        let name = argument.to_string_lossy();
        match builtin::ALL.iter().find(|builtin| builtin.name == name) {
            Some(builtin) => builtin.plan(),
            None => {
                let known: Vec<_> = builtin::ALL.iter().map(|builtin| builtin.name).collect();
                Err(PlanError::Unknown { name: name.into_owned(), known: known.join(", ") })
            }
        }
    }

    /// The plan file at a path.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, is no text, or holds no valid plan.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let text = memvirt_textfile::read(path).map_err(|error| match error {
            TextError::Read(source) => PlanError::Read { path: path.to_owned(), source },
            other => PlanError::NotAPlan { path: path.to_owned(), reason: other.to_string() },
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads the text of a plan file; `file` stands for it in errors.
    ///
    /// # Errors
    ///
    /// [`PlanError::Field`] with line, field and what is accepted.
    pub fn parse(file: &str, text: &str) -> Result<Self, PlanError> {
        parse::parse(file, text)
    }

    /// Its name: lower-case letters, digits and `-`. The stem of the table's file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What it is for.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The grids.
    ///
    /// # Errors
    ///
    /// [`PlanError::NoQuick`] where the short form is asked for and the file gives none.
    pub fn grids(&self, size: Size) -> Result<&[Grid], PlanError> {
        match (size, &self.quick) {
            (Size::Full, _) => Ok(&self.full),
            (Size::Quick, Some(grids)) => Ok(grids),
            (Size::Quick, None) => Err(PlanError::NoQuick { name: self.name.clone() }),
        }
    }

    /// Every run, in the order of the table; what two grids have in common stands once.
    ///
    /// # Errors
    ///
    /// As [`grids`](Self::grids).
    pub fn points(&self, size: Size) -> Result<Vec<Point>, PlanError> {
        let mut seen = std::collections::BTreeSet::new();
        let all = self.grids(size)?.iter().flat_map(Grid::points);
        Ok(all.filter(|point| seen.insert(point.command())).cloned().collect())
    }

    /// The same plan with one axis at other values, in every grid: what a command varies.
    ///
    /// # Errors
    ///
    /// [`PlanError::Field`] where there is no such axis, or it does not take a value.
    pub fn with_axis(&self, name: &str, values: &[&str]) -> Result<Self, PlanError> {
        let values: Vec<_> = values.iter().map(|value| Value::Text((*value).to_owned())).collect();
        let vary = |grids: &[Grid]| -> Result<Vec<Grid>, PlanError> {
            let each = grids.iter().map(|grid| {
                let mut axes: Vec<_> = grid.axes.iter().filter(|axis| axis.name != name).cloned().collect();
                axes.push(AxisValues::new(name, values.clone()));
                Grid::of(axes).map_err(|(field, message)| PlanError::Field {
                    file: self.name.clone(),
                    line: 1,
                    field,
                    message,
                })
            });
            each.collect()
        };
        let quick = self.quick.as_deref().map(vary).transpose()?;
        Ok(Self { full: vary(&self.full)?, quick, ..self.clone() })
    }
}
