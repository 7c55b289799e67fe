//! `memvirt report`: the claims, their verdicts, and everything behind them.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use memvirt_lab::claims::{Done, Effort, Evidence, claims};
use memvirt_lab::report::write_full_report;
use memvirt_machine::MachineSpec;

use crate::failure::{Status, warn};
use crate::output::{print, render, table};
use crate::progress::Rows;

#[derive(Debug, Args)]
#[command(after_help = "\
Runs 20 workloads under six regimes, with kernel-page-table isolation off and on, counts every event's exits, walks every
combination of depths and page sizes, and writes one page that needs no network. The verdicts are printed too.

Exit status: 0 where the report is written, 2 where it cannot be.

Examples:
  memvirt report --quick --out quick
  memvirt report --machine zen4 --out zen4")]
pub(crate) struct ReportArgs {
    /// Cut the workloads to a twentieth: about a minute on two cores
    #[arg(long)]
    quick: bool,
    /// Where the report goes; the folder is made where it does not exist
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
    /// The machine that prices: a built-in name, or a file
    #[arg(long, value_name = "NAME|FILE", default_value = MachineSpec::DEFAULT)]
    machine: String,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn report(args: &ReportArgs) -> anyhow::Result<Status> {
    let machine = MachineSpec::load(&args.machine)?;
    let (effort, expected) =
        if args.quick { (Effort::Quick, "under a minute") } else { (Effort::Full, "a few minutes") };
    warn(&format!("measuring; on two cores this takes {expected}"));
    let (rows, done) = (Rows::new(), AtomicUsize::new(0));
    let observer = |Done { what, of }: Done| rows.show(done.fetch_add(1, Ordering::Relaxed) + 1, of, &what);
    let evidence = Evidence::gather(effort, &machine, args.threads, &observer);
    rows.clear();
    let evidence = evidence?;
    let quick = if args.quick { " --quick" } else { "" };
    write_full_report(&args.out, &evidence, &format!("memvirt report{quick} --machine {}", machine.name))?;
    let mut grid = table(["verdict", "claim", "measured"]);
    for claim in claims(&evidence) {
        grid.add_row([claim.verdict.words().to_owned(), claim.claim.to_owned(), claim.measured]);
    }
    print(&render(&grid))?;
    print(&format!("report: {}\n", args.out.join("index.html").display()))?;
    Ok(Status::Fine)
}
