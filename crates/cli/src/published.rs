//! `memvirt published`: measurements from the literature beside what memvirt predicts.

use clap::{Args, ValueEnum};
use memvirt_lab::published::{Row, Use, pvm};

use crate::args::TreeFormat;
use crate::failure::Status;
use crate::models::json;
use crate::output::{print, render, table};

#[derive(Debug, Args)]
#[command(after_help = "\
pvm: LMbench under EPT and under KVM's shadow paging on one machine (Huang et al., PVM, SOSP 2023). The EPT column and the prices of
a CR3 exit and of an exception are input; the shadow column is predicted: the EPT column plus what a run under shadow:kvm costs more
than one under nested. Beside it the events of one unit that make it. Nothing is fitted.

Exit status: 0 where every row holds what it must, 1 otherwise.")]
pub(crate) struct PublishedArgs {
    /// Which measurements
    #[arg(value_enum, default_value_t = Source::Pvm)]
    source: Source,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    format: TreeFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    /// PVM, SOSP 2023, LMbench
    Pvm,
}

pub(crate) fn published(args: &PublishedArgs) -> anyhow::Result<Status> {
    let rows = match args.source {
        Source::Pvm => pvm()?,
    };
    print(&match args.format {
        TreeFormat::Json => json(&rows)?,
        TreeFormat::Table => tables(&rows),
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
        Use::Order => "be slower".to_owned(),
    }
}
