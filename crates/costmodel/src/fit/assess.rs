//! A model against observations: what the mechanism predicts, what a free fit would choose, and what that is worth on runs that
//! it has not seen. The two stand side by side.

use crate::lang::{Model, Param, Prior};

use super::bootstrap::{Interval, bootstrap};
use super::data::{Data, Weighting};
use super::error::FitError;
use super::nonlinear::{Bound, Nonlinear, nonlinear};
use super::quality::Quality;
use super::validate::{Fold, cross_validate, folds, group_folds};

/// How a model is assessed.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What a residual of 1 means.
    pub weighting: Weighting,
    /// The standard deviation expected of a (weighted) residual. Where it is given, priors pull at the parameters as observations
    /// would; where not, they are left out of account.
    pub noise: Option<f64>,
    /// Folds of cross-validation.
    pub folds: usize,
    /// The group of each run: runs of a group are predicted together. Empty: each run is a group.
    pub groups: Vec<usize>,
    /// Resamples for the intervals.
    pub resamples: usize,
    /// The share of resamples within an interval.
    pub level: f64,
    /// The seed of folds and resamples.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            weighting: Weighting::Relative,
            noise: None,
            folds: 5,
            groups: Vec::new(),
            resamples: 200,
            level: 0.95,
            seed: 0,
        }
    }
}

/// A parameter after a fit.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FittedParam {
    /// Its name.
    pub name: String,
    /// The value that the model's file gives.
    pub predicted: f64,
    /// The value that fits best.
    pub fitted: f64,
    /// Where the fitted value lies, by resampling runs; `None` for a parameter that is fixed.
    pub interval: Option<Interval>,
    /// Whether the data would have it beyond its bounds.
    pub at_bound: bool,
}

/// A model against observations.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Assessment {
    /// Predictions with the values of the model's file: nothing is fitted.
    pub mechanism: Quality,
    /// Predictions after the fit, of the very runs that were fitted to.
    pub fitted: Quality,
    /// Predictions of runs left out of the fit, by folds.
    pub cross_validated: Quality,
    /// Predictions of the region held out, by a fit to the rest.
    pub held_out: Option<Quality>,
    /// The parameters.
    pub params: Vec<FittedParam>,
    /// The prediction of each run by a fit that has not seen it.
    pub unseen: Vec<f64>,
    /// Observation less the mechanism's prediction, for each run.
    pub mechanism_residuals: Vec<f64>,
    /// Observation less the fit's prediction, for each run.
    pub residuals: Vec<f64>,
}

/// One output of a model, as a function of inputs and free parameters.
pub(super) struct Task<'a> {
    model: &'a Model,
    output: usize,
    /// The positions of the parameters that are not fixed.
    pub(super) free: Vec<usize>,
    options: &'a Options,
}

impl<'a> Task<'a> {
    pub(super) fn new(model: &'a Model, output: &str, options: &'a Options) -> Result<Self, FitError> {
        let position = model.outputs().position(|value| value.name == output);
        let Some(output) = position else {
            return Err(FitError::Output { model: model.name().to_owned(), output: output.to_owned() });
        };
        let free = model.params().iter().enumerate().filter(|(_, param)| param.prior != Prior::Fixed).map(|(i, _)| i);
        Ok(Self { model, output, free: free.collect(), options })
    }

    /// All parameters, the free ones as given.
    fn params(&self, free: &[f64]) -> Vec<f64> {
        let mut params = self.model.predicted();
        self.free.iter().zip(free).for_each(|(i, value)| params[*i] = *value);
        params
    }

    pub(super) fn predict(&self, params: &[f64], inputs: &[Vec<f64>]) -> Result<Vec<f64>, FitError> {
        inputs.iter().map(|row| Ok(self.model.evaluate(row, params)?[self.output])).collect()
    }

    fn fit(&self, data: &Data) -> Result<Nonlinear, FitError> {
        data.check()?;
        let predicted = self.model.predicted();
        let start: Vec<f64> = self.free.iter().map(|i| predicted[*i]).collect();
        let bound = |param: &Param| Bound { least: param.range.least, most: param.range.most };
        let bounds: Vec<Bound> = self.free.iter().map(|i| bound(&self.model.params()[*i])).collect();
        if start.is_empty() {
            return Ok(Nonlinear { params: Vec::new(), at_bound: Vec::new(), residuals: Vec::new(), evaluations: 0 });
        }
        nonlinear(&start, &bounds, |free| self.residuals(data, free))
    }

    /// Weighted residuals of the runs, then the pulls of the priors.
    pub(super) fn residuals(&self, data: &Data, free: &[f64]) -> Result<Vec<f64>, FitError> {
        let predicted = self.predict(&self.params(free), &data.inputs)?;
        let weight = |y: &f64| self.options.weighting.weight(*y);
        let mut residuals: Vec<f64> = data.observed.iter().zip(&predicted).map(|(y, f)| weight(y) * (f - y)).collect();
        if let Some(noise) = self.options.noise {
            let pulls = self.free.iter().zip(free).filter_map(|(i, value)| pull(&self.model.params()[*i], *value));
            residuals.extend(pulls.map(|pull| pull * noise));
        }
        Ok(residuals)
    }

    fn fold(&self, data: &Data, fold: &Fold) -> Result<Vec<f64>, FitError> {
        let fit = self.fit(&data.pick(&fold.train))?;
        self.predict(&self.params(&fit.params), &data.pick(&fold.test).inputs)
    }
}

/// How many standard deviations of its prior a parameter lies from the middle.
fn pull(param: &Param, value: f64) -> Option<f64> {
    match param.prior {
        Prior::Fixed | Prior::Uniform => None,
        Prior::Normal { mean, sd } => Some((value - mean) / sd),
        Prior::LogNormal { median, factor } => {
            Some(libm::log(value.max(f64::MIN_POSITIVE) / median) / libm::log(factor))
        }
    }
}

/// Fits the parameters of a model that are not fixed to what was observed of one output; the result holds those alone, in the
/// order of the file.
///
/// # Errors
///
/// Where the model has no such output or cannot be evaluated for a run, the data are unsound or too few, or no fit is found.
pub fn fit_model(model: &Model, output: &str, data: &Data, options: &Options) -> Result<Nonlinear, FitError> {
    Task::new(model, output, options)?.fit(data)
}

/// Sets what a model predicts beside what fits best, with errors on runs that were fitted to and on runs that were not.
/// `region` is a region held out, as of [`held_out`](super::held_out).
///
/// # Errors
///
/// As [`fit_model`].
pub fn assess(
    model: &Model,
    output: &str,
    data: &Data,
    region: Option<&Fold>,
    options: &Options,
) -> Result<Assessment, FitError> {
    let task = Task::new(model, output, options)?;
    data.check()?;
    let fit = task.fit(data)?;
    let predicted = task.predict(&model.predicted(), &data.inputs)?;
    let fitted = task.predict(&task.params(&fit.params), &data.inputs)?;
    let parts = if options.groups.len() == data.len() {
        group_folds(&options.groups, options.folds, options.seed)
    } else {
        folds(data.len(), options.folds, options.seed)
    };
    let unseen = cross_validate(data.len(), &parts, |fold| task.fold(data, fold))?;
    let held_out = match region {
        Some(fold) => Some(Quality::of(&data.pick(&fold.test).observed, &task.fold(data, fold)?)),
        None => None,
    };
    let resample = |picks: &[usize]| task.fit(&data.pick(picks)).ok().map(|fit| fit.params);
    let intervals = bootstrap(data.len(), options.resamples, options.level, options.seed, resample);
    let left = |predicted: &[f64]| data.observed.iter().zip(predicted).map(|(y, f)| y - f).collect();
    Ok(Assessment {
        mechanism: Quality::of(&data.observed, &predicted),
        fitted: Quality::of(&data.observed, &fitted),
        cross_validated: Quality::of(&data.observed, &unseen),
        held_out,
        unseen,
        params: params(&task, &fit, &intervals),
        mechanism_residuals: left(&predicted),
        residuals: left(&fitted),
    })
}

fn params(task: &Task<'_>, fit: &Nonlinear, intervals: &[Interval]) -> Vec<FittedParam> {
    let all = task.params(&fit.params);
    let each = task.model.params().iter().enumerate().map(|(i, param)| {
        let free = task.free.iter().position(|free| *free == i);
        FittedParam {
            name: param.name.clone(),
            predicted: param.value,
            fitted: all[i],
            interval: free.and_then(|free| intervals.get(free).copied()),
            at_bound: free.is_some_and(|free| fit.at_bound[free]),
        }
    });
    each.collect()
}
