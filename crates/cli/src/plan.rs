//! `memvirt plan`: grids of runs as files, carried out into one table.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use memvirt_lab::plan::{Grid, Outlook, Plan, PlanDone, PlanRun, Size};
use serde_json::json;

use crate::args::TreeFormat;
use crate::failure::{Status, warn};
use crate::output::{make_folder, print, render, table};
use crate::progress::Rows;

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// List the plans that are built in
    List(ListArgs),
    /// Show what a plan varies, and how many runs that makes
    Show(ShowArgs),
    /// Carry a plan out, or go on where it was interrupted
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    format: TreeFormat,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A plan file (a path with a `/` or ending in `.toml`), or the name of a built-in plan
    #[arg(value_name = "FILE|NAME")]
    plan: OsString,
    /// The short form
    #[arg(long)]
    quick: bool,
    /// Every run's command, a line each, and nothing else
    #[arg(long, conflicts_with = "format")]
    commands: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    format: TreeFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Writes DIR/NAME.csv: a row for each run, in the order of the plan, every switch and every counter a column (docs/results.md). Rows
that are there already and were made by the same program from the same inputs are kept. While a plan runs, finished rows stand in
DIR/NAME.csv.part; interrupted, it goes on from there. The column `command` makes a row again, alone.

Exit status: 0 where every run came to its end, 1 where an oracle found a broken translation, 2 where a run did not end or cannot be
made.

Examples:
  memvirt plan run smoke --out results
  memvirt plan run regimes --out results --threads 2
  memvirt plan run my-plan.toml --out results --quick")]
pub(crate) struct RunArgs {
    /// A plan file (a path with a `/` or ending in `.toml`), or the name of a built-in plan
    #[arg(value_name = "FILE|NAME")]
    plan: OsString,
    /// The folder of the table
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Threads; the table does not depend on them [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// The short form
    #[arg(long)]
    quick: bool,
}

pub(crate) fn plan(command: &PlanCommand) -> anyhow::Result<Status> {
    match command {
        PlanCommand::List(args) => list(args.format),
        PlanCommand::Show(args) => show(args),
        PlanCommand::Run(args) => run(args),
    }
}

const fn size(quick: bool) -> Size {
    if quick { Size::Quick } else { Size::Full }
}

/// Which program this is: its version and what tells builds apart. Rows that another build made are made again.
pub(crate) fn version() -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let file = std::env::current_exe().and_then(File::open);
    if let Ok(mut file) = file {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            // Eight bytes at a time: a build is read in a few milliseconds.
            for chunk in buffer[..read].chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
            }
        }
    }
    format!("{}+{:08x}", env!("CARGO_PKG_VERSION"), hash >> 32)
}

fn list(format: TreeFormat) -> anyhow::Result<Status> {
    let plans = Plan::builtin().map(|builtin| builtin.plan()).collect::<Result<Vec<_>, _>>()?;
    let runs = |plan: &Plan, size| plan.points(size).map(|points| points.len()).ok();
    print(&match format {
        TreeFormat::Json => {
            let all = plans.iter().map(|plan| {
                let (full, quick) = (runs(plan, Size::Full), runs(plan, Size::Quick));
                json!({ "name": plan.name(), "title": plan.title(), "about": plan.about(), "runs": full, "quick_runs": quick })
            });
            serde_json::to_string_pretty(&all.collect::<Vec<_>>())? + "\n"
        }
        TreeFormat::Table => {
            let mut grid = table(["plan", ">runs", ">quick", "what it is"]);
            for plan in &plans {
                let shown = |size| runs(plan, size).map_or_else(|| "-".to_owned(), |runs| runs.to_string());
                grid.add_row([plan.name(), &shown(Size::Full), &shown(Size::Quick), plan.title()]);
            }
            render(&grid) + "`memvirt plan show NAME` explains one; docs/plans.md says how to write one.\n"
        }
    })?;
    Ok(Status::Fine)
}

fn show(args: &ShowArgs) -> anyhow::Result<Status> {
    let plan = Plan::resolve(&args.plan)?;
    let (grids, points) = (plan.grids(size(args.quick))?, plan.points(size(args.quick))?);
    if args.commands {
        print(&points.iter().map(|point| point.command() + "\n").collect::<String>())?;
        return Ok(Status::Fine);
    }
    print(&match args.format {
        TreeFormat::Json => {
            let axes = |grid: &Grid| {
                let all = grid.axes.iter().map(|axis| json!({ "name": axis.name, "values": axis.values }));
                json!({ "runs": grid.points().len(), "axes": all.collect::<Vec<_>>() })
            };
            let grids: Vec<_> = grids.iter().map(axes).collect();
            let all = json!({ "name": plan.name(), "title": plan.title(), "about": plan.about(), "runs": points.len(), "grids": grids });
            serde_json::to_string_pretty(&all)? + "\n"
        }
        TreeFormat::Table => people(&plan, grids, points.len()),
    })?;
    Ok(Status::Fine)
}

fn people(plan: &Plan, grids: &[Grid], runs: usize) -> String {
    let mut text = format!("{}: {}\n{}\n", plan.name(), plan.title(), plan.about());
    for (i, grid) in grids.iter().enumerate() {
        let mut rows = table([format!("grid {i}"), ">values".to_owned(), "which".to_owned()]);
        for axis in &grid.axes {
            rows.add_row([axis.name.clone(), axis.values.len().to_string(), axis.values.join(", ")]);
        }
        text += &render(&rows);
        text += &format!("{} runs\n", grid.points().len());
    }
    text + &format!("{runs} runs in all\n")
}

fn run(args: &RunArgs) -> anyhow::Result<Status> {
    let plan = Plan::resolve(&args.plan)?;
    make_folder(Some(&args.out))?;
    let version = version();
    let run = PlanRun { plan: &plan, size: size(args.quick), dir: &args.out, version: &version, threads: args.threads };
    let done = carry_out(&run)?;
    let (rows, columns) = (done.table.rows.len(), done.table.columns.len());
    print(&format!(
        "{}: {rows} rows of {columns} columns, {} run now, {} kept\ntable: {}\n",
        plan.name(),
        done.ran,
        done.kept,
        done.path.display()
    ))?;
    Ok(verdict(&done))
}

/// What is to be run, and about how long that takes.
fn expected(outlook: Outlook, threads: usize) -> String {
    let Outlook { kept, runs, seconds } = outlook;
    #[expect(clippy::cast_precision_loss, reason = "a few threads")]
    let seconds = seconds / threads.min(runs).max(1) as f64;
    let time = match seconds {
        0.0..1.5 => "about a second".to_owned(),
        1.5..90.0 => format!("about {seconds:.0} seconds"),
        90.0..5400.0 => format!("about {:.0} minutes", seconds / 60.0),
        _ => format!("about {:.0} hours", seconds / 3600.0),
    };
    let kept = if kept > 0 { format!(", {kept} rows are there already") } else { String::new() };
    let threads = if threads == 1 { "one thread".to_owned() } else { format!("{threads} threads") };
    format!("{runs} runs on {threads}: {time}, a guess from the lengths of the workloads{kept}")
}

/// Carries a plan out with a bar.
pub(crate) fn carry_out(run: &PlanRun<'_>) -> anyhow::Result<PlanDone> {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = run.threads.map_or(processors, NonZeroUsize::get).min(processors);
    let before = |outlook: Outlook| {
        if outlook.runs > 0 {
            warn(&expected(outlook, threads));
        }
    };
    let bar = Rows::new();
    let done = run.run(&before, &|progress| bar.show(progress.done, progress.total, &progress.last));
    bar.clear();
    Ok(done?)
}

/// Says what went wrong in single runs.
pub(crate) fn verdict(done: &PlanDone) -> Status {
    const SHOWN: usize = 8;
    let (mut status, mut said) = (Status::Fine, 0);
    for (command, outcome) in done.unfinished() {
        status = Status::BadInput;
        said += 1;
        if said <= SHOWN {
            warn(&format!("error: {outcome}: {command}"));
        }
    }
    for (command, broken) in done.broken() {
        status = Status::CheckFailed;
        said += 1;
        if said <= SHOWN {
            warn(&format!("check failed: {broken} times the guest got what no hardware could have given: {command}"));
        }
    }
    if said > SHOWN {
        warn(&format!("... and {} more", said - SHOWN));
    }
    status
}
