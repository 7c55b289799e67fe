//! `memvirt model`: cost models as files. Check one, show its formulas, list those that are built in, evaluate one at a point.

use std::ffi::OsString;

use clap::{Args, Subcommand, ValueEnum};
use memvirt_costmodel::Model;
use memvirt_costmodel::lang::{Range, ValueKind, few_digits};

use crate::failure::Status;
use crate::model_calibrate::{CalibrateArgs, calibrate};
use crate::model_fit::{FitArgs, fit};
use crate::output::{print, render, table};

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Read a model and check its names and units
    Check(CheckArgs),
    /// Show what a model takes and gives, and its formulas
    Show(ShowArgs),
    /// List the models that are built in
    List(ListArgs),
    /// Evaluate a model at a point
    Eval(EvalArgs),
    /// Fit the models to memvirt's own runs, and say how wrong they are
    Fit(FitArgs),
    /// Fit a model of your own to a table of runs
    Calibrate(CalibrateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A model file (a path with a `/` or ending in `.model`), or the name of a built-in model
    #[arg(value_name = "FILE|NAME")]
    model: OsString,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  memvirt model show walk-cold
  memvirt model show my.model --format latex")]
pub(crate) struct ShowArgs {
    /// A model file (a path with a `/` or ending in `.model`), or the name of a built-in model
    #[arg(value_name = "FILE|NAME")]
    model: OsString,
    /// How to print
    #[arg(long, value_enum, default_value_t = ShowFormat::Text)]
    format: ShowFormat,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    format: ListFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  memvirt model eval walk-cold guest_levels=4 guest_leaf=1 host_levels=4 host_leaf=2
  memvirt model eval scaling-usl vcpus=16 contention=0.1")]
pub(crate) struct EvalArgs {
    /// A model file (a path with a `/` or ending in `.model`), or the name of a built-in model
    #[arg(value_name = "FILE|NAME")]
    model: OsString,
    /// Every input, and parameters that shall differ from the file, in the units of the file
    #[arg(value_name = "NAME=VALUE", value_parser = assignment)]
    point: Vec<(String, f64)>,
    /// How to print
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    format: ListFormat,
}

/// How a model is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ShowFormat {
    /// For people
    Text,
    /// The formulas for amsmath
    Latex,
    /// For programs
    Json,
}

/// How lists are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

fn assignment(text: &str) -> Result<(String, f64), String> {
    let expected = || "expected NAME=VALUE, as in vcpus=16".to_owned();
    let (name, text) = text.split_once('=').ok_or_else(expected)?;
    let (name, text) = (name.trim(), text.trim());
    let value: f64 = text.replace('_', "").parse().map_err(|_| expected())?;
    if !value.is_finite() {
        return Err(format!("the value of `{name}` is not a finite number: give one below 1.8e308, as in {name}=16"));
    }
    Ok((name.to_owned(), value))
}

pub(crate) fn model(command: &ModelCommand) -> anyhow::Result<Status> {
    match command {
        ModelCommand::Check(args) => check(args),
        ModelCommand::Show(args) => show(args),
        ModelCommand::List(args) => list(args.format),
        ModelCommand::Eval(args) => eval(args),
        ModelCommand::Fit(args) => fit(args),
        ModelCommand::Calibrate(args) => calibrate(args),
    }
}

fn resolve(name: &OsString) -> anyhow::Result<Model> {
    Ok(Model::resolve(&name.to_string_lossy())?)
}

fn check(args: &CheckArgs) -> anyhow::Result<Status> {
    let model = resolve(&args.model)?;
    let outputs: Vec<_> = model.outputs().map(|output| format!("{} [{}]", output.name, output.unit.text)).collect();
    print(&format!(
        "{}: names and units agree; {} inputs, {} parameters; gives {}; {}\n",
        model.name(),
        model.inputs().len(),
        model.params().len(),
        outputs.join(", "),
        worth(&model)
    ))?;
    Ok(Status::Fine)
}

/// What a prediction of the model is worth.
fn worth(model: &Model) -> &'static str {
    if model.is_identity() {
        "an identity: it takes counters of the very run it is asked about"
    } else {
        "a prediction: it takes nothing from the run it is asked about"
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<Status> {
    let model = resolve(&args.model)?;
    print(&match args.format {
        ShowFormat::Text => people(&model),
        ShowFormat::Latex => model.latex(),
        ShowFormat::Json => serde_json::to_string_pretty(&model.describe())? + "\n",
    })?;
    Ok(Status::Fine)
}

fn people(model: &Model) -> String {
    let mut text = format!("{}: {}\n", model.name(), model.title());
    if !model.about().is_empty() {
        text += &format!("{}\n", model.about());
    }
    text += &format!("source: {}\n{}\n", model.source(), worth(model));
    if !model.inputs().is_empty() {
        let mut grid = table(["input", "unit", "from", "within", "what it is"]);
        for input in model.inputs() {
            let within = within(input.range);
            grid.add_row([&input.name, &input.unit.text, input.origin.word(), &within, &input.doc]);
        }
        text += &render(&grid);
    }
    if !model.params().is_empty() {
        let mut grid = table(["parameter", ">value", "unit", "within", "prior", "what it is"]);
        for param in model.params() {
            let (value, within, prior) = (few_digits(param.value), within(param.range), param.prior.to_string());
            grid.add_row([&param.name, &value, &param.unit.text, &within, &prior, &param.doc]);
        }
        text += &render(&grid);
    }
    for required in model.requirements() {
        let doc = if required.doc.is_empty() { String::new() } else { format!(" ({})", required.doc) };
        text += &format!("requires {}{doc}\n", required.condition.text());
    }
    for value in model.values() {
        let (kind, doc) = (if value.kind == ValueKind::Output { "gives" } else { "where" }, &value.doc);
        let doc = if doc.is_empty() { String::new() } else { format!(" ({doc})") };
        text += &format!("{kind} {} [{}]{doc}\n    = {}\n", value.name, value.unit.text, value.formula.text());
    }
    text
}

fn within(range: Range) -> String {
    if range == Range::ALL { "any".to_owned() } else { range.to_string() }
}

fn list(format: ListFormat) -> anyhow::Result<Status> {
    let models: Vec<Model> = Model::builtin().map(|builtin| builtin.model()).collect::<Result<_, _>>()?;
    print(&match format {
        ListFormat::Json => {
            let all: Vec<_> = models.iter().map(Model::describe).collect();
            serde_json::to_string_pretty(&all)? + "\n"
        }
        ListFormat::Table => {
            let mut grid = table(["model", "gives", "what it predicts"]);
            for model in &models {
                let outputs: Vec<_> = model.outputs().map(|output| output.name.as_str()).collect();
                grid.add_row([model.name(), &outputs.join(" "), model.title()]);
            }
            render(&grid) + "`memvirt model show NAME` explains one; docs/models.md says how to write one.\n"
        }
    })?;
    Ok(Status::Fine)
}

fn eval(args: &EvalArgs) -> anyhow::Result<Status> {
    let model = resolve(&args.model)?;
    for (i, (name, _)) in args.point.iter().enumerate() {
        if args.point[..i].iter().any(|(earlier, _)| earlier == name) {
            anyhow::bail!("{name} is given twice; once is enough");
        }
    }
    let point: Vec<(&str, f64)> = args.point.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let results = model.at(&point)?;
    let named = || model.outputs().zip(&results);
    print(&match args.format {
        ListFormat::Json => {
            let all = named().map(|(output, value)| (output.name.clone(), serde_json::json!(value))).collect();
            serde_json::to_string_pretty(&serde_json::Value::Object(all))? + "\n"
        }
        ListFormat::Table => {
            let mut grid = table(["output", ">value", "unit", "what it is"]);
            for (output, value) in named() {
                grid.add_row([&output.name, &figure(*value), &output.unit.text, &output.doc]);
            }
            render(&grid)
        }
    })?;
    Ok(Status::Fine)
}

/// A figure for people: whole where it is whole, else six digits.
pub(crate) fn figure(value: f64) -> String {
    if value.abs() < 1e15 && (value - value.round()).abs() < 1e-9 * value.abs().max(1e-3) {
        // Next to nothing below 0 is 0, not -0.
        return format!("{:.0}", value.round() + 0.0);
    }
    if (1e-4..1e15).contains(&value.abs()) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 9")]
        let places = (5.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as usize;
        let text = format!("{value:.places$}");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    format!("{value:.5e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_six_digits_at_most_beyond_whole_numbers() {
        for (value, text) in [
            (24.0, "24"),
            (0.0, "0"),
            (-3.0, "-3"),
            (-1e-14, "0"),
            (1.0 / 3.0, "0.333333"),
            (1234.5678, "1234.57"),
            (1e-9, "1.00000e-9"),
            (7.5, "7.5"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn all_digits_unless_they_are_very_many() {
        for (value, text) in
            [(0.1 + 0.2, "0.30000000000000004"), (-7.0, "-7"), (0.0, "0"), (1e300, "1e300"), (2e-9, "2e-9")]
        {
            assert_eq!(few_digits(value), text);
        }
    }

    #[test]
    fn assignments_name_a_number() {
        assert_eq!(assignment("a=1_000"), Ok(("a".to_owned(), 1000.0)));
        for bad in ["a", "a=", "a=b", "=", ""] {
            assert!(assignment(bad).is_err(), "{bad}");
        }
        for endless in ["a=1e400", "a=-inf", "a=nan"] {
            assert!(assignment(endless).unwrap_err().contains("the value of `a` is not a finite number"), "{endless}");
        }
    }
}
