//! One table of how wrong each model is.

use memvirt_costmodel::fit::Quality;
use memvirt_machine::RegimeKind;
use serde::Serialize;

use super::Fits;
use super::guests::real;
use super::walks::WalkPoint;

/// A model, and how wrong it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ErrorRow {
    /// What is predicted.
    pub quantity: &'static str,
    /// By which model.
    pub model: String,
    /// What the prediction rests on.
    pub basis: &'static str,
    /// How many runs it was compared with.
    pub runs: usize,
    /// The largest relative error.
    pub max: f64,
    /// The geometric mean of the relative errors, each at least one in ten thousand.
    pub geometric_mean: f64,
}

const MECHANISM: &str = "mechanism, nothing fitted";
const UNSEEN: &str = "fitted to other workloads";
const LONG: &str = "fitted to short runs, of long ones";

fn row(quantity: &'static str, model: &str, basis: &'static str, quality: &Quality) -> ErrorRow {
    let Quality { observations: runs, max_relative: max, geometric_mean_relative: geometric_mean, .. } = *quality;
    ErrorRow { quantity, model: model.to_owned(), basis, runs, max, geometric_mean }
}

impl Fits {
    /// How wrong each model is, ours and the literature's.
    #[must_use]
    pub fn errors(&self) -> Vec<ErrorRow> {
        let mut rows = Vec::new();
        for one in &self.traps {
            let assessment = &one.assessment;
            rows.push(row("exits", one.model, MECHANISM, &assessment.mechanism));
            rows.push(row("exits", one.model, UNSEEN, &assessment.cross_validated));
            rows.extend(assessment.held_out.iter().map(|quality| row("exits", one.model, LONG, quality)));
        }
        rows.extend(self.walk_rows());
        for one in &self.times {
            let name = format!("time-parts, {}", one.regime);
            rows.push(row("run time", &name, MECHANISM, &one.mechanism));
            rows.push(row("run time", &name, UNSEEN, &one.unseen));
            rows.push(row("run time", &name, LONG, &one.held_out));
        }
        rows.extend(self.mosaic_rows());
        rows
    }

    fn walk_rows(&self) -> Vec<ErrorRow> {
        // Too few walks to speak of shares: what a page of kernel memory does decides.
        let many: Vec<&WalkPoint> = self.walks.iter().filter(|point| point.walks >= FEW_WALKS).collect();
        let of = |counted: fn(&WalkPoint) -> f64, said: fn(&WalkPoint) -> f64| {
            let pairs = many.iter().map(|point| (counted(point), said(point)));
            let (counted, said): (Vec<f64>, Vec<f64>) = pairs.unzip();
            Quality::of(&counted, &said)
        };
        let (walks, refs) = (|point: &WalkPoint| point.walks, |point: &WalkPoint| point.refs);
        let stream = "predicted from the stream";
        vec![
            row("walks", "stack distance by set", stream, &of(walks, |point| real(point.expected.walks))),
            row("walks", "stack distance, binomial", stream, &of(walks, |point| point.crude.binomial)),
            row("walks", "stack distance, fully associative", stream, &of(walks, |point| point.crude.full)),
            row("references", "stack distance by set", stream, &of(refs, |point| real(point.expected.refs()))),
        ]
    }

    fn mosaic_rows(&self) -> Vec<ErrorRow> {
        super::mosaics::REGIMES.into_iter().flat_map(|regime| self.mosaic_rows_of(regime)).collect()
    }

    fn mosaic_rows_of(&self, regime: RegimeKind) -> Vec<ErrorRow> {
        let models = super::mosaics::Mosaics::models();
        let mosaics = || self.mosaics.iter().filter(|mosaics| mosaics.regime == regime);
        let one = |(i, model): (usize, &&'static str)| {
            let inner = |mosaics: &super::mosaics::Mosaics| -> Vec<(f64, f64)> {
                let within = &mosaics.points[1..mosaics.points.len().saturating_sub(1).max(1)];
                within.iter().map(|point| (point.cycles, point.predicted[i])).collect()
            };
            let (counted, said): (Vec<f64>, Vec<f64>) = mosaics().flat_map(inner).unzip();
            let basis = match *model {
                "memvirt" => "one run with 4K pages, and the stream",
                "Mosmodel" => "counters of the run; fitted to all others",
                _ => "counters of the run; two runs, 4K and 2M",
            };
            row("run time over page sizes", &format!("{model}, {regime}"), basis, &Quality::of(&counted, &said))
        };
        models.iter().enumerate().map(one).collect()
    }
}

/// Below so many walks an error in shares says nothing.
pub const FEW_WALKS: f64 = 500.0;
