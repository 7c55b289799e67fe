//! `memvirt model calibrate`: a user's cost model fitted to a table of runs.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use memvirt_costmodel::Model;
use memvirt_costmodel::fit::{FittedParam, Options, Quality, Weighting};
use memvirt_costmodel::lang::{Param, Prior, Range, few_digits};
use memvirt_lab::calibrate::{Begun, Calibrated, Calibration};

use crate::failure::{Status, warn};
use crate::model::figure;
use crate::output::{print, render, table};

#[derive(Debug, Args)]
#[command(after_help = "\
Fits the parameters of a model file to the rows of a CSV file, each within its bounds and from the value in the file; \
those of `prior fixed` stay. Inputs are taken from the columns of their names (`walk_refs_total` also from \
`walk_refs.total`), in the units that the file declares. Prints each parameter with its interval by resampling the rows \
and whether it lies on a bound or the rows cannot tell it from another, and the errors of three predictions: with the file's \
own values, after the fit, and of rows by a fit to the others (cross-validation). Tables of `memvirt plan run` can be used as they are; docs/models.md goes \
through an example from the plan to the fit.

Examples:
  memvirt plan run smoke --out results
  memvirt model calibrate my.model --data results/smoke.csv --observed cycles.translation
  memvirt model calibrate my.model --data runs.csv --observed seconds --output time --column faults=page_faults
  memvirt model calibrate my.model --data results/smoke.csv --observed exits.total --where regime=shadow:kvm --group workload")]
pub(crate) struct CalibrateArgs {
    /// A model file (a path with a `/` or ending in `.model`), or the name of a built-in model
    #[arg(value_name = "FILE|NAME")]
    model: OsString,
    /// The runs: a CSV file whose first line names the columns
    #[arg(long, value_name = "CSV")]
    data: PathBuf,
    /// The column that holds what was observed
    #[arg(long, value_name = "COLUMN")]
    observed: String,
    /// The output that predicts it [default: the one of the column's name, or the only one]
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// The column of an input, where it has another name; may be given again
    #[arg(long, value_name = "INPUT=COLUMN", value_parser = pair)]
    column: Vec<(String, String)>,
    /// Take only the rows in which the column holds this; may be given again, all must hold
    #[arg(long = "where", value_name = "COLUMN=VALUE", value_parser = pair)]
    conditions: Vec<(String, String)>,
    /// Predict rows together that are alike in this column: none by a fit that has seen another of them
    #[arg(long, value_name = "COLUMN")]
    group: Option<String>,
    /// Parts of cross-validation, each predicted by a fit to the others; more where few rows ask for it
    #[arg(long, value_name = "K", default_value_t = 5, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    folds: u32,
    /// Resamples for the intervals
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    resamples: u32,
    /// How noisy the observations are (0.02: about 2 %); with it, `normal` and `lognormal` priors pull at the parameters
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, value_parser = noise)]
    noise: Option<f64>,
    /// Weigh residuals by their size, so that large rows decide, and not as shares of the observation
    #[arg(long, conflicts_with = "noise")]
    absolute: bool,
    /// The seed of folds and resamples
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    seed: u64,
    /// How to print
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
}

/// How the fit is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// Everything: also residuals and the prediction of each row
    Json,
    /// A line per parameter and per error
    Csv,
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let parts = text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
    let (name, value) = parts.filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=VALUE, as in regime=nested")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn noise(text: &str) -> Result<f64, &'static str> {
    text.parse()
        .ok()
        .filter(|share| *share > 0.0 && *share <= 10.0)
        .ok_or("expected a share above 0 and up to 10, as in 0.02 for 2 %")
}

fn seed(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "expected a whole number from 0 to 18446744073709551615")
}

pub(crate) fn calibrate(args: &CalibrateArgs) -> anyhow::Result<Status> {
    let model = Model::resolve(&args.model.to_string_lossy())?;
    let found = Calibration {
        model: &model,
        table: &args.data,
        observed: &args.observed,
        output: args.output.as_deref(),
        columns: &args.column,
        conditions: &args.conditions,
        group: args.group.as_deref(),
        options: Options {
            weighting: if args.absolute { Weighting::Absolute } else { Weighting::Relative },
            noise: args.noise,
            folds: args.folds as usize,
            resamples: args.resamples as usize,
            seed: args.seed,
            ..Options::default()
        },
    }
    .run_observed(announce)?;
    print(&match args.format {
        Form::Json => serde_json::to_string_pretty(&found)? + "\n",
        Form::Csv => csv(&model, &found),
        Form::Table => people(&model, &found),
    })?;
    Ok(Status::Fine)
}

/// Says what is fitted where that takes more than a moment: each of the fits evaluates the model for every row some ten times for each
/// parameter.
fn announce(begun: Begun) {
    let Begun { params, rows, folds, resamples } = begun;
    if rows.saturating_mul(folds + resamples).saturating_mul(params) > 1_000_000 {
        warn(&format!(
            "fits {params} parameters to {rows} rows, for {folds} folds and for {resamples} resamples; fewer --resamples take less time"
        ));
    }
}

/// The three predictions, by name.
fn predictions(found: &Calibrated) -> [(&'static str, Quality); 3] {
    let a = &found.assessment;
    [("file", a.mechanism), ("fitted", a.fitted), ("cross_validated", a.cross_validated)]
}

fn csv(model: &Model, found: &Calibrated) -> String {
    let mut text = "kind,name,unit,value,low,high,note\n".to_owned();
    for (param, fitted) in model.params().iter().zip(&found.assessment.params) {
        let end = |end: Option<f64>| end.map_or_else(String::new, few_digits);
        let (low, high) = (fitted.interval.map(|i| i.low), fitted.interval.map(|i| i.high));
        let note = remark(param, fitted, found);
        let (name, unit, value) = (&param.name, &param.unit.text, few_digits(fitted.fitted));
        let _ = writeln!(text, "parameter,{name},{unit},{value},{},{},{note}", end(low), end(high));
    }
    for (kind, quality) in predictions(found) {
        for (name, unit, value) in [
            ("r_squared", "1", quality.r_squared),
            ("max_relative_error", "1", quality.max_relative),
            ("geometric_mean_relative_error", "1", quality.geometric_mean_relative),
            ("rms_residual", found.unit.as_str(), quality.rms_residual),
        ] {
            let _ = writeln!(text, "{kind},{name},{unit},{},,,", few_digits(value));
        }
    }
    text
}

fn people(model: &Model, found: &Calibrated) -> String {
    let left_out =
        if found.left_out > 0 { format!(" ({} left out by --where)", found.left_out) } else { String::new() };
    let mut text = format!(
        "{}: `{}` [{}] fitted to the column {} of {} rows{left_out}\n",
        found.model, found.output, found.unit, found.observed, found.rows
    );
    for taken in found.inputs.iter().filter(|taken| taken.input != taken.column) {
        let _ = writeln!(text, "{} is taken from the column {}", taken.input, taken.column);
    }
    if model.is_identity() {
        text += "an identity: the model takes counters of the very run it is asked about, so it explains and predicts nothing\n";
    }
    let mut grid = table(["parameter", ">in the file", ">fitted", ">95 % from", ">to", "unit", "within", "remark"]);
    for (param, fitted) in model.params().iter().zip(&found.assessment.params) {
        let end = |end: Option<f64>| end.map_or_else(String::new, figure);
        grid.add_row([
            param.name.clone(),
            figure(fitted.predicted),
            figure(fitted.fitted),
            end(fitted.interval.map(|interval| interval.low)),
            end(fitted.interval.map(|interval| interval.high)),
            param.unit.text.clone(),
            if param.range == Range::ALL { "any".to_owned() } else { param.range.to_string() },
            remark(param, fitted, found),
        ]);
    }
    text += &render(&grid);
    let mut grid = table(["prediction", ">R2", ">largest error", ">geometric mean", ">rms residual"]);
    let percent =
        |share: f64| if share.is_finite() { format!("{} %", few(100.0 * share, 2)) } else { "no bound".to_owned() };
    let unseen = format!("rows not fitted to, {} folds", found.folds);
    for (what, (_, quality)) in ["with the file's values", "fitted", &unseen].into_iter().zip(predictions(found)) {
        let (max, mean) = (percent(quality.max_relative), percent(quality.geometric_mean_relative));
        grid.add_row([what, &few(quality.r_squared, 4), &max, &mean, &figure(quality.rms_residual)]);
    }
    text += &render(&grid);
    if let Some(worst) = found.worst {
        let (observed, predicted) = (figure(worst.observed), figure(worst.predicted));
        let _ = writeln!(text, "worst, not fitted to: line {}, {observed} observed, {predicted} predicted", worst.line);
    }
    text
}

/// So many places after the point, or a figure of few digits where there would be many before it.
fn few(value: f64, places: usize) -> String {
    if value.abs() < 1e6 { format!("{value:.places$}") } else { figure(value) }
}

/// What is to be known of a fitted parameter.
fn remark(param: &Param, fitted: &FittedParam, found: &Calibrated) -> String {
    let nearer_below = (fitted.fitted - param.range.least).abs() < (param.range.most - fitted.fitted).abs();
    let tied = found.tied.iter().find(|group| group.contains(&param.name));
    match (param.prior, tied) {
        (Prior::Fixed, _) => "fixed".to_owned(),
        _ if found.idle.contains(&param.name) => "no row depends on it".to_owned(),
        (_, Some(group)) => {
            let others: Vec<&str> = group.iter().filter(|name| **name != param.name).map(String::as_str).collect();
            format!("not determined: only together with {}", others.join(" and "))
        }
        _ if fitted.at_bound && nearer_below => "on its lower bound".to_owned(),
        _ if fitted.at_bound => "on its upper bound".to_owned(),
        _ if outside(fitted) => "outside its interval: most resamples end elsewhere".to_owned(),
        _ => String::new(),
    }
}

/// Whether the value fitted to all rows lies beyond those fitted to nearly all resamples. Of numbers that are the same but for rounding
/// none does.
fn outside(param: &FittedParam) -> bool {
    let (value, slack) = (param.fitted, 1e-6 * param.fitted.abs());
    param.interval.is_some_and(|interval| value < interval.low - slack || interval.high + slack < value)
}

#[cfg(test)]
mod tests {
    use memvirt_costmodel::fit::Interval;

    use super::*;

    #[test]
    fn a_value_lies_outside_its_interval_by_more_than_rounding() {
        let param = |fitted: f64, low: f64, high: f64| FittedParam {
            name: "p".to_owned(),
            predicted: 1.0,
            fitted,
            interval: Some(Interval { low, high, resamples: 200 }),
            at_bound: false,
        };
        assert!(outside(&param(4.69339, 2.13, 4.69207)) && outside(&param(-2.0, -1.9, 3.0)));
        assert!(!outside(&param(2.5, 2.13, 4.69)) && !outside(&param(7.0, 7.000_000_1, 7.000_000_2)));
        assert!(!outside(&FittedParam { interval: None, ..param(1.0, 2.0, 3.0) }));
    }
}
