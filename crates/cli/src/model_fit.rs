//! `memvirt model fit`: the cost models against memvirt's own runs.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Args, ValueEnum};
use memvirt_lab::claims::Effort;
use memvirt_lab::fits::Fits;
use memvirt_lab::report::write_fits;
use memvirt_machine::MachineSpec;

use crate::failure::Status;
use crate::output::{make_folder, print, render, table};
use crate::progress::Rows;

#[derive(Debug, Args)]
#[command(after_help = "\
Runs workloads natively and under each regime, predicts the latter from the former, fits the models, and says in one table how wrong
each is on runs that it has not seen, the bound that it should keep, and where it does not what is missing. With --out it writes a page
with the figures and their data. --quick takes about a minute of processor time without link-time optimization, spread over all
processors; the full form, of longer runs and more of them, many times that.

Examples:
  memvirt model fit --quick
  memvirt model fit --format csv > errors.csv")]
pub(crate) struct FitArgs {
    /// The machine that prices: a built-in one, or a machine file
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    machine: OsString,
    /// Shorter runs and fewer resamples
    #[arg(long)]
    quick: bool,
    /// Threads; the results do not depend on them [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Write a page with the figures and their data into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = FitFormat::Table)]
    format: FitFormat,
}

/// How the errors are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FitFormat {
    /// For people
    Table,
    /// Everything: coefficients, intervals, residuals
    Json,
    /// A line per model
    Csv,
}

pub(crate) fn fit(args: &FitArgs) -> anyhow::Result<Status> {
    let machine = MachineSpec::load(&args.machine)?;
    make_folder(args.out.as_deref())?;
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let (rows, done, of) = (Rows::new(), AtomicUsize::new(0), Fits::steps(effort) + 1);
    let observer = |what: &str| rows.show(done.fetch_add(1, Ordering::Relaxed) + 1, of, what);
    let fits = Fits::gather(effort, &machine, args.threads, &observer).and_then(|mut fits| {
        fits.complete(&machine, args.threads)?;
        Ok(fits)
    });
    rows.clear();
    let fits = fits?;
    if let Some(out) = &args.out {
        write_fits(out, &fits)?;
    }
    print(&match args.format {
        FitFormat::Json => serde_json::to_string_pretty(&fits)? + "\n",
        FitFormat::Csv => csv(&fits),
        FitFormat::Table => people(&fits),
    })?;
    Ok(Status::Fine)
}

fn csv(fits: &Fits) -> String {
    let mut text = "quantity,model,basis,runs,max_relative_error,geometric_mean_relative_error,held_out_max,held_out_geometric_mean,bound,\
                    verdict,missing\n"
        .to_owned();
    let share = |share: Option<f64>| share.map_or_else(String::new, |share| format!("{share:.6}"));
    for row in fits.errors() {
        let (max, mean) = (row.held_out.map(|held| held.max), row.held_out.map(|held| held.geometric_mean));
        text += &format!(
            "\"{}\",\"{}\",\"{}\",{},{:.6},{:.6},{},{},{},{},\"{}\"\n",
            row.quantity,
            row.model,
            row.basis,
            row.runs,
            row.max,
            row.geometric_mean,
            share(max),
            share(mean),
            share(row.bound),
            row.verdict(),
            row.missing.as_deref().unwrap_or_default()
        );
    }
    text
}

fn people(fits: &Fits) -> String {
    let mut grid = table([
        "what",
        "model",
        "rests on",
        ">runs",
        ">largest error",
        ">geometric mean",
        ">held out",
        ">bound",
        "verdict",
    ]);
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let errors = fits.errors();
    for row in &errors {
        grid.add_row([
            row.quantity.to_owned(),
            row.model.clone(),
            row.basis.to_owned(),
            row.runs.to_string(),
            percent(row.max),
            percent(row.geometric_mean),
            row.held_out.map_or_else(String::new, |held| percent(held.max)),
            row.bound.map_or_else(String::new, |bound| format!("{} %", 100.0 * bound)),
            row.verdict().to_owned(),
        ]);
    }
    let mut text = render(&grid);
    for row in errors {
        if let Some(missing) = row.missing {
            text += &format!("out: {}, {} ({}): {missing}\n", row.quantity, row.model, row.basis);
        }
    }
    text
}
