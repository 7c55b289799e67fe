//! The report: a folder with a page, figures and the data behind them.

use std::fs;
use std::path::Path;

use crate::comparison::Comparison;
use crate::error::LabError;

/// Writes the report of `comparison` into the folder `dir`, which is made where it does not exist.
///
/// # Errors
///
/// [`LabError::Write`] where the folder or a file cannot be written.
pub fn write_report(dir: &Path, comparison: &Comparison) -> Result<(), LabError> {
    fs::create_dir_all(dir).map_err(|source| LabError::Write { path: dir.to_owned(), source })?;
    for (name, text) in [("comparison.json", comparison.to_json()?), ("comparison.csv", comparison.to_csv()?)] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|source| LabError::Write { path, source })?;
    }
    Ok(())
}
