//! The run-time models of the literature, fitted as their authors prescribe.
//!
//! R = run time, C = walk cycles, H = second-level TLB hits, M = second-level TLB misses; a run with 4 KiB pages and one with
//! 2 MiB pages calibrate the linear models, many runs with mixed pages calibrate Mosmodel. Forms and coefficients: Agbarya et al.,
//! MICRO 2020, table of models; Basu et al., ISCA 2013; Gandhi et al., MICRO 2014; Alam et al., ISCA 2017; Pham et al., MICRO
//! 2015; Yaniv and Tsafrir, SIGMETRICS 2016.
//!
//! All of them take counters of the run that they are asked about: they say what run time follows from measured TLB behaviour,
//! not what a machine not yet built would do.

use crate::fit::{Data, FitError, Lasso, folds};

/// Counters of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Run time in cycles, R.
    pub cycles: f64,
    /// Cycles spent in page walks, C.
    pub walk_cycles: f64,
    /// Hits in the second-level TLB, H.
    pub l2_hits: f64,
    /// Misses in the second-level TLB, M.
    pub misses: f64,
}

/// A linear model of the literature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearModel {
    /// R = A M + B, B from the run with 4 KiB pages.
    Basu,
    /// R = A M + B, B from the run with 2 MiB pages.
    Gandhi,
    /// R = C + B, B from the run with 2 MiB pages.
    Alam,
    /// R = 7 H + C + B, B from the run with 4 KiB pages.
    Pham,
    /// R = a C + b, the line through both runs.
    Yaniv,
}

impl LinearModel {
    /// All of them, in the order of publication.
    pub const ALL: &'static [Self] = &[Self::Basu, Self::Gandhi, Self::Pham, Self::Yaniv, Self::Alam];

    /// Its first author.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Basu => "Basu",
            Self::Gandhi => "Gandhi",
            Self::Alam => "Alam",
            Self::Pham => "Pham",
            Self::Yaniv => "Yaniv",
        }
    }

    /// Calibrates by the runs with 4 KiB and with 2 MiB pages.
    ///
    /// # Errors
    ///
    /// Where the 4 KiB run misses no TLB (Basu, Gandhi), or both runs walk for as many cycles (Yaniv).
    pub fn calibrate(self, small: &Run, large: &Run) -> Result<Calibrated, FitError> {
        let degenerate = |what| FitError::Degenerate { model: self.name(), what };
        let per_miss = || {
            let found = small.walk_cycles / small.misses;
            if found.is_finite() { Ok(found) } else { Err(degenerate("no misses with 4 KiB pages")) }
        };
        let line = |hits, walk, misses, base| Calibrated { hits, walk, misses, base };
        Ok(match self {
            Self::Basu => line(0.0, 0.0, per_miss()?, small.cycles - small.walk_cycles),
            Self::Gandhi => line(0.0, 0.0, per_miss()?, large.cycles - large.walk_cycles),
            Self::Alam => line(0.0, 1.0, 0.0, large.cycles - large.walk_cycles),
            Self::Pham => line(PHAM, 1.0, 0.0, small.cycles - small.walk_cycles - PHAM * small.l2_hits),
            Self::Yaniv => {
                let slope = (small.cycles - large.cycles) / (small.walk_cycles - large.walk_cycles);
                if !slope.is_finite() {
                    return Err(degenerate("walk cycles"));
                }
                line(0.0, slope, 0.0, small.cycles - slope * small.walk_cycles)
            }
        })
    }
}

/// Cycles of a second-level TLB hit, after Pham et al.
const PHAM: f64 = 7.0;

/// R = `hits` H + `walk` C + `misses` M + `base`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Calibrated {
    /// Cycles for each second-level hit.
    pub hits: f64,
    /// Cycles for each walk cycle.
    pub walk: f64,
    /// Cycles for each miss.
    pub misses: f64,
    /// Cycles of a run without any of them.
    pub base: f64,
}

impl Calibrated {
    /// The run time that follows from a run's other counters.
    #[must_use]
    pub fn cycles(&self, run: &Run) -> f64 {
        self.hits * run.l2_hits + self.walk * run.walk_cycles + self.misses * run.misses + self.base
    }
}

/// Mosmodel: a polynomial of third degree in H, M and C, its terms chosen by Lasso.
///
/// As in its authors' code: each counter is divided by its largest value, all 19 products up to the third degree are formed, and
/// the penalty is chosen by five-fold cross-validation.
#[derive(Clone, Debug, PartialEq)]
pub struct Mosmodel {
    scales: [f64; 3],
    /// The coefficients of the products, in the order of [`Mosmodel::TERMS`].
    pub lasso: Lasso,
}

/// Powers of H, M and C in each product.
type Powers = [u8; 3];

impl Mosmodel {
    /// The powers of H, M and C in each term but the constant.
    pub const TERMS: [Powers; 19] = terms();

    /// Fits to runs.
    ///
    /// # Errors
    ///
    /// Where there are fewer than 5 runs, or one holds no numbers.
    pub fn fit(runs: &[Run], seed: u64) -> Result<Self, FitError> {
        let largest = |counter: fn(&Run) -> f64| runs.iter().map(counter).fold(0.0, f64::max);
        let scale = |largest: f64| if largest > 0.0 { largest } else { 1.0 };
        let scales = [scale(largest(|r| r.l2_hits)), scale(largest(|r| r.misses)), scale(largest(|r| r.walk_cycles))];
        let inputs = runs.iter().map(|run| products(run, &scales)).collect();
        let data = Data { inputs, observed: runs.iter().map(|run| run.cycles).collect() };
        Ok(Self { scales, lasso: Lasso::cross_validated(&data, 5, seed)?.best })
    }

    /// The run time that follows from a run's other counters.
    #[must_use]
    pub fn cycles(&self, run: &Run) -> f64 {
        self.lasso.predict(&[products(run, &self.scales)])[0]
    }

    /// The prediction of each run by a fit to all others, as its authors validate it.
    ///
    /// # Errors
    ///
    /// As [`fit`](Self::fit).
    pub fn leave_one_out(runs: &[Run], seed: u64) -> Result<Vec<f64>, FitError> {
        let mut predicted = vec![f64::NAN; runs.len()];
        for fold in folds(runs.len(), runs.len(), seed) {
            let train: Vec<Run> = fold.train.iter().map(|i| runs[*i]).collect();
            let model = Self::fit(&train, seed)?;
            fold.test.iter().for_each(|i| predicted[*i] = model.cycles(&runs[*i]));
        }
        Ok(predicted)
    }
}

const fn terms() -> [Powers; 19] {
    let mut terms = [[0; 3]; 19];
    let mut next = 0;
    let mut code: u8 = 1;
    while code < 64 {
        let powers = [code / 16, code / 4 % 4, code % 4];
        if powers[0] + powers[1] + powers[2] <= 3 {
            terms[next] = powers;
            next += 1;
        }
        code += 1;
    }
    terms
}

fn products(run: &Run, scales: &[f64; 3]) -> Vec<f64> {
    let counters = [run.l2_hits / scales[0], run.misses / scales[1], run.walk_cycles / scales[2]];
    let term = |powers: &Powers| counters.iter().zip(powers).map(|(x, power)| x.powi(i32::from(*power))).product();
    Mosmodel::TERMS.iter().map(term).collect()
}
