//! One table of how wrong each model is.

use std::collections::BTreeSet;

use memvirt_costmodel::fit::Quality;
use memvirt_machine::RegimeKind;
use serde::Serialize;

use super::Fits;
use super::guests::real;
use super::mosaics::Mosaics;
use super::others::{Efficiency, Pair, quality};
use super::walks::WalkPoint;
use crate::scale::Assumptions;

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
    /// The largest relative error; where something is fitted, of runs of other workloads than those fitted to (by folds).
    pub max: f64,
    /// The geometric mean of the relative errors, each at least one in ten thousand.
    pub geometric_mean: f64,
    /// The same in the region held out, where there is one: long runs, by what was fitted to short ones.
    pub held_out: Option<Region>,
    /// The largest error that there should be, where one is asked for.
    pub bound: Option<f64>,
    /// Where the bound is not kept: the input that is wrong, or the mechanism that is missing.
    pub missing: Option<String>,
}

/// Errors in a region.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Region {
    /// The largest.
    pub max: f64,
    /// Their geometric mean.
    pub geometric_mean: f64,
}

impl ErrorRow {
    /// Whether the bound is kept, everywhere; `None` where none is asked for.
    #[must_use]
    pub fn is_within(&self) -> Option<bool> {
        let held = self.held_out.map_or(0.0, |region| region.max);
        self.bound.map(|bound| self.max.max(held) < bound)
    }

    /// For people: `in`, `out`, or nothing where no bound is asked for.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.is_within() {
            Some(true) => "in",
            Some(false) => "out",
            None => "",
        }
    }

    fn held(mut self, quality: Option<&Quality>) -> Self {
        self.held_out = quality.map(|of| Region { max: of.max_relative, geometric_mean: of.geometric_mean_relative });
        self
    }

    /// The bound, and what to say where it is not kept.
    fn below(mut self, bound: f64, missing: impl FnOnce() -> String) -> Self {
        self.bound = Some(bound);
        if self.is_within() == Some(false) {
            self.missing = Some(missing());
        }
        self
    }
}

const MECHANISM: &str = "mechanism, nothing fitted";
const UNSEEN: &str = "fitted to other workloads";
const CLOSED: &str = "closed form, nothing fitted";
const ONE: &str = "one vCPU, nothing fitted";

/// Bounds: walk references and footprint, exits, run time, vCPUs where the analysis may be believed.
const REFERENCES: f64 = 0.01;
const EXITS: f64 = 0.02;
const TIME: f64 = 0.05;
const VCPUS: f64 = 0.05;

fn row(quantity: &'static str, model: &str, basis: &'static str, quality: &Quality) -> ErrorRow {
    let Quality { observations: runs, max_relative: max, geometric_mean_relative: geometric_mean, .. } = *quality;
    let model = model.to_owned();
    ErrorRow { quantity, model, basis, runs, max, geometric_mean, held_out: None, bound: None, missing: None }
}

impl Fits {
    /// How wrong each model is, ours and the literature's.
    #[must_use]
    pub fn errors(&self) -> Vec<ErrorRow> {
        let mut rows = self.walk_rows();
        rows.extend(self.footprint_rows());
        for one in &self.traps {
            let assessment = &one.assessment;
            let seldom = || {
                "kinds of exits that seldom occur: their coefficients are not learnt from other workloads".to_owned()
            };
            let (worst, model) = (|| one.worst(), one.model);
            rows.push(
                row("exits", model, MECHANISM, &assessment.mechanism).held(Some(&one.long())).below(EXITS, worst),
            );
            let fitted = row("exits", model, UNSEEN, &assessment.cross_validated);
            rows.push(fitted.held(assessment.held_out.as_ref()).below(EXITS, seldom));
        }
        rows.extend(self.scaling_rows());
        for one in &self.times {
            let name = format!("time-parts, {}", one.regime);
            rows.push(
                row("run time", &name, MECHANISM, &one.mechanism).held(Some(&one.long)).below(TIME, || one.worst()),
            );
            let prices = || "prices of work that seldom occurs: not learnt from other workloads".to_owned();
            rows.push(row("run time", &name, UNSEEN, &one.unseen).held(Some(&one.held_out)).below(TIME, prices));
        }
        rows.extend(self.mosaic_rows());
        rows
    }

    fn footprint_rows(&self) -> Vec<ErrorRow> {
        let of = |what: &'static str, pairs: &[Pair]| {
            let never = || "where at random pages fall: expected, not known".to_owned();
            (!pairs.is_empty()).then(|| row("footprint", what, CLOSED, &quality(pairs.iter())).below(REFERENCES, never))
        };
        [of("every page used", &self.others.dense), of("pages used at random", &self.others.sparse)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn scaling_rows(&self) -> Vec<ErrorRow> {
        let (held, failed): (Vec<&Efficiency>, Vec<&Efficiency>) =
            self.others.scaling.iter().partition(|point| point.assumptions == Assumptions::Hold);
        let of = |what: &'static str, points: &[&Efficiency]| {
            (!points.is_empty()).then(|| row("vCPUs", what, ONE, &quality(points.iter().map(|point| &point.pair))))
        };
        let names: BTreeSet<&str> = failed.iter().map(|point| point.assumptions.name()).collect();
        let lacks =
            || format!("assumptions of the analysis that fail: {}", names.into_iter().collect::<Vec<_>>().join(", "));
        let held = of("mean-value analysis, assumptions hold", &held)
            .map(|row| row.below(VCPUS, || "unknown: what is assumed holds".to_owned()));
        let failed = of("mean-value analysis, assumptions fail", &failed).map(|row| row.below(VCPUS, lacks));
        held.into_iter().chain(failed).collect()
    }

    fn walk_rows(&self) -> Vec<ErrorRow> {
        // Too few walks to speak of shares: what a page of kernel memory does decides.
        let many = |regime: RegimeKind| {
            self.walks.iter().filter(move |point| point.walks >= FEW_WALKS && point.regime == regime)
        };
        let of = |points: &[&WalkPoint], counted: fn(&WalkPoint) -> f64, said: fn(&WalkPoint) -> f64| {
            let (counted, said): (Vec<f64>, Vec<f64>) =
                points.iter().map(|point| (counted(point), said(point))).unzip();
            Quality::of(&counted, &said)
        };
        let (walks, refs) = (|point: &WalkPoint| point.walks, |point: &WalkPoint| point.refs);
        let stream = "stream, nothing fitted";
        let mut rows = Vec::new();
        if !self.others.cold.is_empty() {
            let never = || "unknown: a closed form".to_owned();
            let cold = row("walk references, cold", "walk-cold", CLOSED, &quality(self.others.cold.iter()));
            rows.push(cold.below(REFERENCES, never));
        }
        for regime in [RegimeKind::Native, RegimeKind::NestedEpt] {
            let points: Vec<&WalkPoint> = many(regime).collect();
            if points.is_empty() {
                continue;
            }
            let of = |counted, said| of(&points, counted, said);
            let name = |model: &str| format!("{model}, {regime}");
            let worst = || {
                let worst = points.iter().max_by(|a, b| a.ref_error().total_cmp(&b.ref_error()));
                let worst = worst.map_or("", |point| point.workload);
                format!("`{worst}`: what a hypervisor flushes by itself, which the stream does not show")
            };
            let by_set = "stack distance by set";
            let exact = of(refs, |point| real(point.expected.refs()));
            rows.push(row("walk references, warm", &name(by_set), stream, &exact).below(REFERENCES, worst));
            let exact = of(walks, |point| real(point.expected.walks));
            rows.push(row("walks, warm", &name(by_set), stream, &exact).below(REFERENCES, worst));
            let binomial = of(walks, |point| point.crude.binomial);
            rows.push(row("walks, warm", &name("stack distance, binomial"), stream, &binomial));
            let full = of(walks, |point| point.crude.full);
            rows.push(row("walks, warm", &name("stack distance, fully associative"), stream, &full));
        }
        rows
    }

    fn mosaic_rows(&self) -> Vec<ErrorRow> {
        super::mosaics::REGIMES.into_iter().flat_map(|regime| self.mosaic_rows_of(regime)).collect()
    }

    fn mosaic_rows_of(&self, regime: RegimeKind) -> Vec<ErrorRow> {
        let models = Mosaics::models();
        let mosaics = || self.mosaics.iter().filter(|mosaics| mosaics.regime == regime);
        let worst = || {
            let error = |mosaics: &Mosaics| mosaics.errors[0].max;
            let worst = mosaics().max_by(|a, b| error(a).total_cmp(&error(b))).map_or("", |mosaics| mosaics.workload);
            format!("`{worst}`: time besides walks and data, which is taken from the run with 4K pages")
        };
        let one = |(i, model): (usize, &&'static str)| {
            let inner = |mosaics: &Mosaics| -> Vec<(f64, f64)> {
                let within = &mosaics.points[1..mosaics.points.len().saturating_sub(1).max(1)];
                within.iter().map(|point| (point.cycles, point.predicted[i])).collect()
            };
            let (counted, said): (Vec<f64>, Vec<f64>) = mosaics().flat_map(inner).unzip();
            let basis = match *model {
                "memvirt" => "one run with 4K pages, and the stream",
                "Mosmodel" => "counters of the run; fitted to all others",
                _ => "counters of the run; two runs, 4K and 2M",
            };
            let row = row(OVER_PAGE_SIZES, &format!("{model}, {regime}"), basis, &Quality::of(&counted, &said));
            if *model == "memvirt" { row.below(TIME, worst) } else { row }
        };
        models.iter().enumerate().map(one).collect()
    }
}

/// What the run-time models of the literature, and ours beside them, are asked.
pub const OVER_PAGE_SIZES: &str = "run time over page sizes";

/// Below so many walks an error in shares says nothing.
pub const FEW_WALKS: f64 = 500.0;
