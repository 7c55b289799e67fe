//! `memvirt published`: measurements from the literature beside what memvirt predicts.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Args, ValueEnum};
use memvirt_lab::claims::{Done, Effort};
use memvirt_lab::published::{Agreement, PublishedRow, ROW_IDS, Row, Use, measure, pvm, pvm_ids, to_csv};
use memvirt_machine::MachineSpec;

use crate::failure::{Status, warn};
use crate::models::json;
use crate::output::{print, render, table};
use crate::progress::Rows;

#[derive(Debug, Args)]
#[command(after_help = "\
all: every figure of the list of published results beside what is measured here: references, world switches, exits, times, shares of
walks, and where each input is used. Figures that were not read again and inputs are shown and judge nothing.
pvm: LMbench under EPT and under KVM's shadow paging on one machine (Huang et al., PVM, SOSP 2023). The EPT column and the prices of
a CR3 exit and of an exception are input; the shadow column is predicted: the EPT column plus what a run under shadow:kvm costs more
than one under nested. Beside it the events of one unit that make it. Nothing is fitted.

Exit status: 0 where every row holds what it must, 1 otherwise.

Examples:
  memvirt published --quick
  memvirt published --row K19 --row W9
  memvirt published pvm")]
pub(crate) struct PublishedArgs {
    /// Which measurements
    #[arg(value_enum, default_value_t = Source::All)]
    source: Source,
    /// Cut the workloads to a twentieth and their areas to 64 MiB, and leave out the 24 million accesses of GUPS
    #[arg(long)]
    quick: bool,
    /// Print this row only, as in P6; may be given again. All are measured, whatever is printed: runs serve several rows
    #[arg(long, value_name = "ID")]
    row: Vec<String>,
    /// The machine that prices: a built-in name, or a file. PVM's rows have their own
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    machine: String,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    /// Every published figure
    All,
    /// PVM, SOSP 2023, LMbench, with the events of each row
    Pvm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// For programs
    Json,
    /// A line for each row (all)
    Csv,
}

pub(crate) fn published(args: &PublishedArgs) -> anyhow::Result<Status> {
    // Measuring takes minutes: a row that does not exist is refused before.
    let known = if args.source == Source::All { ROW_IDS.to_vec() } else { pvm_ids() };
    if let Some(unknown) = args.row.iter().find(|wanted| !known.contains(&wanted.as_str())) {
        anyhow::bail!("--row {unknown}: there is no such row; the rows are {}", known.join(", "));
    }
    match args.source {
        Source::All => all(args),
        Source::Pvm => of_pvm(args),
    }
}

fn all(args: &PublishedArgs) -> anyhow::Result<Status> {
    let machine = MachineSpec::load(&args.machine)?;
    let (effort, expected) =
        if args.quick { (Effort::Quick, "under a minute") } else { (Effort::Full, "some minutes; --quick is quicker") };
    warn(&format!("measuring; on two cores this takes {expected}"));
    let (bar, steps) = (Rows::new(), AtomicUsize::new(0));
    let observer = |Done { what, of }: Done| bar.show(steps.fetch_add(1, Ordering::Relaxed) + 1, of, &what);
    let rows = measure(effort, &machine, args.threads, &observer);
    bar.clear();
    let rows = rows?;
    let rows: Vec<_> = rows.into_iter().filter(|row| wanted(args, &row.id)).collect();
    print(&match args.format {
        Form::Json => json(&rows)?,
        Form::Csv => to_csv(&rows),
        Form::Table => people(&rows),
    })?;
    let missed = rows.iter().any(|row| row.agreement == Agreement::Missed);
    Ok(if missed { Status::CheckFailed } else { Status::Fine })
}

/// Whether a row is asked for.
fn wanted(args: &PublishedArgs, id: &str) -> bool {
    args.row.is_empty() || args.row.iter().any(|wanted| wanted == id)
}

/// A block for each row: its columns are too wide for a terminal.
fn people(rows: &[PublishedRow]) -> String {
    let mut short = table(["row", "what", "published", "measured", "use", "agreement"]);
    for row in rows {
        let [id, what, _, published, measured, usage, agreement, ..] = row.cells();
        short.add_row([id, what, published, measured, usage, agreement]);
    }
    let mut text = render(&short);
    for row in rows {
        text += &format!("{}: {}; {}\n    {}\n", row.id, row.source, row.why, row.command);
    }
    text
}

fn of_pvm(args: &PublishedArgs) -> anyhow::Result<Status> {
    anyhow::ensure!(args.format != Form::Csv, "pvm has no CSV form; `memvirt published --format csv` holds its rows");
    let rows: Vec<_> = pvm()?.into_iter().filter(|row| wanted(args, row.id)).collect();
    print(&match args.format {
        Form::Json => json(&rows)?,
        Form::Table | Form::Csv => tables(&rows),
    })?;
    Ok(if rows.iter().all(Row::holds) { Status::Fine } else { Status::CheckFailed })
}

fn tables(rows: &[Row]) -> String {
    let header =
        ["row", "what", ">EPT us", ">shadow us", ">predicted us", ">ratio", ">predicted", ">off by", "must", "holds"];
    let mut times = table(header);
    let header = [
        "row",
        ">kernel entries",
        ">CR3 loads",
        ">guest faults",
        ">table stores",
        ">hidden faults",
        ">trapped stores",
        ">exits",
        ">exits under EPT",
        "why",
    ];
    let mut events = table(header);
    for row in rows {
        times.add_row([
            row.id.to_owned(),
            row.what.to_owned(),
            format!("{:.2}", row.nested_us),
            format!("{:.2}", row.shadow_us),
            format!("{:.2}", row.predicted_us),
            format!("{:.2}", row.ratio()),
            format!("{:.2}", row.predicted_ratio()),
            format!("{:+.1} %", row.difference_percent()),
            must(row.check),
            if row.holds() { "yes" } else { "no" }.to_owned(),
        ]);
        let e = &row.events;
        let counts = [e.kernel_entries, e.cr3_loads, e.faults, e.table_stores, e.hidden_faults, e.table_writes];
        let counts = counts.into_iter().chain([e.exits, e.exits_nested]).map(|count| format!("{count:.2}"));
        events.add_row([row.id.to_owned()].into_iter().chain(counts).chain([row.note.to_owned()]));
    }
    format!("{}\nOne unit of each row under shadow:kvm, in the steady state:\n{}", render(&times), render(&events))
}

fn must(check: Use) -> String {
    match check {
        Use::Exact => "be equal".to_owned(),
        Use::Band(percent) => format!("within {percent} %"),
        Use::Points(points) => format!("within {points} points"),
        Use::Order => "be slower".to_owned(),
        Use::Input | Use::NotReread => "be shown".to_owned(),
    }
}
