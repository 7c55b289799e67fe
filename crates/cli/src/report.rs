//! `memvirt report`: the claims, their verdicts, and everything behind them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::ContentArrangement;
use memvirt_lab::claims::{Done, Effort, Evidence, WORKLOADS, claims};
use memvirt_lab::report::write_full_report;
use memvirt_machine::MachineSpec;

use crate::failure::{Status, warn};
use crate::output::{make_folder, print, render, table};
use crate::progress::Rows;

#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct ReportArgs {
    /// Shorter runs, fewer vCPUs and processes: within a minute on two cores
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

fn after_help() -> String {
    format!(
        "\
Runs {} workloads under six regimes, with kernel-page-table isolation off and on, on 1 to 64 vCPUs, with 1 to 64 processes, and over
the plane of TLB misses and page-table updates; counts every event's exits, walks every combination of depths and page sizes, and
writes one page that needs no network, with each figure as SVG and PNG and its data beside it. The verdicts are printed too.

Exit status: 0 where the report is written, 2 where it cannot be.

Examples:
  memvirt report --quick --out quick
  memvirt report --machine zen4 --out zen4",
        WORKLOADS.len()
    )
}

/// Seconds of one processor that the runs take, measured on an idle machine with release builds without LTO: the full report (943, and on two
/// processors 8 minutes 48 seconds, since the last parts are one thread's: counted here as if both worked), the quick one (64; 33 seconds).
const PROCESSOR_SECONDS: [u64; 2] = [FULL_SECONDS, QUICK_SECONDS];
const FULL_SECONDS: u64 = 1_050;
const QUICK_SECONDS: u64 = 66;

/// Characters of a line: sentences are not to be looked for beyond the edge of a terminal, nor in a file.
const WIDTH: u16 = 120;

pub(crate) fn report(args: &ReportArgs) -> anyhow::Result<Status> {
    let machine = MachineSpec::load(&args.machine)?;
    free_for_a_report(&args.out)?;
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = args.threads.map_or(processors, NonZeroUsize::get).min(processors);
    warn(&format!("measuring; on {threads} of {processors} processors this takes {}", expected(args.quick, threads)));
    let (begun, rows, done) = (Instant::now(), Rows::new(), AtomicUsize::new(0));
    let observer = |Done { what, of }: Done| rows.show(done.fetch_add(1, Ordering::Relaxed) + 1, of, &what);
    let evidence = Evidence::gather(effort, &machine, args.threads, &observer);
    rows.clear();
    let evidence = evidence?;
    // First, so that a folder that can no longer be written to takes the page alone.
    print(&verdicts(&evidence))?;
    write_full_report(&args.out, &evidence)?;
    print(&format!("report: {}\n", args.out.join("index.html").display()))?;
    warn(&format!("that took {}", words(begun.elapsed())));
    Ok(Status::Fine)
}

/// Makes the folder, and sees before anything is measured that what the report consists of can stand there.
fn free_for_a_report(out: &Path) -> anyhow::Result<()> {
    make_folder(Some(out))?;
    make_folder(Some(&out.join("figures")))?;
    for name in ["index.html", "claims.json"] {
        let path = out.join(name);
        anyhow::ensure!(!path.is_dir(), "cannot write {}: it is a folder", path.display());
    }
    Ok(())
}

/// Each claim with its verdict and what was measured, in lines of [`WIDTH`].
fn verdicts(evidence: &Evidence) -> String {
    let mut grid = table(["verdict", "claim", "measured"]);
    grid.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    for claim in claims(evidence) {
        grid.add_row([claim.verdict.words().to_owned(), claim.claim.to_owned(), claim.measured]);
    }
    render(&grid)
}

/// The measured processor time, spread over so many threads.
fn expected(quick: bool, threads: usize) -> String {
    let seconds = PROCESSOR_SECONDS[usize::from(quick)] / (threads as u64).max(1);
    format!("about {}", words(Duration::from_secs(seconds.max(1))))
}

fn words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", (seconds + 30) / 60),
    }
}
