//! The report: a folder with one page, its figures as SVG files, and the data behind them.
//!
//! The page needs no network and no other file: figures stand in it as inline SVG. Whoever writes a larger report adds
//! sections and figures here; there is one writer.

pub(crate) mod chart;
mod figures;
mod full;
mod html;
mod page;
pub(crate) mod paint;
pub(crate) mod xy;

use std::fs;
use std::io;
use std::path::Path;

use crate::comparison::Comparison;
use crate::error::LabError;
use crate::table::csv_line;
pub(crate) use figures::Figure;
pub use full::write_full_report;

/// Writes the report of `comparison` into the folder `dir`, which is made where it does not exist:
///
/// * `index.html`, the page;
/// * `comparison.json` and `comparison.csv`, the results;
/// * `figures/NAME.svg` and `figures/NAME.csv`, each figure and its data.
///
/// Other files in the folder are left alone. The same comparison gives the same bytes.
///
/// # Errors
///
/// [`LabError::Write`] where the folder or a file cannot be written.
pub fn write_report(dir: &Path, comparison: &Comparison) -> Result<(), LabError> {
    let figures = figures::figures(comparison)?;
    write_figures(dir, &figures)?;
    write(&dir.join("comparison.json"), &comparison.to_json()?)?;
    write(&dir.join("comparison.csv"), &comparison.to_csv()?)?;
    write(&dir.join("index.html"), &page::page(comparison, &figures))
}

/// Writes `figures/NAME.svg` and `figures/NAME.csv` for each figure into the folder `dir`, which is made where it does not exist.
pub(crate) fn write_figures(dir: &Path, figures: &[Figure]) -> Result<(), LabError> {
    let folder = dir.join("figures");
    fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
    for figure in figures {
        write(&folder.join(format!("{}.svg", figure.id)), &html::standalone(figure))?;
        let mut data = String::new();
        for row in std::iter::once(&figure.header).chain(&figure.rows) {
            // Digits are grouped for people only.
            csv_line(&mut data, row.iter().map(|cell| cell.replace(',', "")));
        }
        write(&folder.join(format!("{}.csv", figure.id)), &data)?;
    }
    Ok(())
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> LabError {
    LabError::Write { path: path.to_owned(), source }
}
