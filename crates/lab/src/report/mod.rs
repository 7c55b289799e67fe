//! The report: a folder with one page, its figures as SVG and PNG files, and the data behind them.
//!
//! The page needs no network and no other file: figures stand in it as inline SVG. There is one writer: a page is a list of
//! sections (`section`), and whoever has something to show makes a section of it. The comparison's page (`page`) and the whole
//! report (`full`) are two such lists.

mod canvas;
pub(crate) mod chart;
mod figure;
mod figures;
mod full;
mod html;
mod page;
pub(crate) mod paint;
#[cfg(feature = "png")]
mod raster;
pub(crate) mod section;
pub(crate) mod xy;

use std::borrow::Borrow;
use std::fs;
use std::io;
use std::path::Path;

use rayon::prelude::*;

use crate::comparison::Comparison;
use crate::error::LabError;
pub(crate) use figure::{Figure, column};
pub use full::{CHANGED_BY_CUTS, ChangedByCuts, write_fits, write_full_report};

/// Writes the report of `comparison` into the folder `dir`, which is made where it does not exist:
///
/// * `index.html`, the page;
/// * `comparison.json` and `comparison.csv`, the results;
/// * `figures/NAME.svg` and `figures/NAME.csv`, each figure and its data, and with the feature `png` `figures/NAME.png`.
///
/// Other files in the folder are left alone. The same comparison gives the same bytes.
///
/// # Errors
///
/// [`LabError::Write`] where the folder or a file cannot be written.
pub fn write_report(dir: &Path, comparison: &Comparison) -> Result<(), LabError> {
    page::page(comparison)?.write(dir)
}

/// Writes `figures/NAME` as SVG, PNG and CSV for each figure into the folder `dir`, which is made where it does not exist.
pub(crate) fn write_figures(dir: &Path, figures: &[impl Borrow<Figure> + Sync]) -> Result<(), LabError> {
    let folder = dir.join("figures");
    fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
    figures.par_iter().map(Borrow::borrow).try_for_each(|figure: &Figure| {
        write(&folder.join(format!("{}.svg", figure.id)), &html::standalone(figure))?;
        #[cfg(feature = "png")]
        write(&folder.join(format!("{}.png", figure.id)), &figure.png()?)?;
        write(&folder.join(format!("{}.csv", figure.id)), &figure.csv())
    })
}

pub(crate) fn write(path: &Path, content: &(impl AsRef<[u8]> + ?Sized)) -> Result<(), LabError> {
    fs::write(path, content).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> LabError {
    LabError::Write { path: path.to_owned(), source }
}
