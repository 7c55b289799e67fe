//! `memvirt faults`: page faults and flushes of a recorded program, predicted, beside those that its kernel counted.

use std::path::PathBuf;

use clap::Args;
use memvirt_lab::faults::{Faults, Flushes, Predicted, Prediction, predict};

use crate::args::TreeFormat;
use crate::failure::{Status, warn};
use crate::models::json;
use crate::output::{print, render, table};

#[derive(Debug, Args)]
#[command(after_help = "\
The bundle is a directory or a tar archive of any compression with two texts of one program, each of a run of its own:
  strace -f -e trace=memory,process -o calls.txt PROGRAM
  perf record -e page-faults -c 1 -d PROGRAM; perf script -F comm,pid,tid,time,event,addr,ip > faults.txt
Calls give the areas, faults the addresses; calls are moved to the addresses of the other run by the rule that Linux places
mappings with. A third text, of the kernel's tracepoints (exceptions:page_fault_user, tlb:tlb_flush), is compared with and used
for nothing, except that its own addresses make a second prediction.")]
pub(crate) struct FaultsArgs {
    /// A directory or an archive with the texts of strace and perf
    bundle: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value_t = TreeFormat::Table)]
    format: TreeFormat,
}

pub(crate) fn faults(args: &FaultsArgs) -> anyhow::Result<Status> {
    let prediction = predict(&args.bundle)?;
    print(&match args.format {
        TreeFormat::Json => json(&prediction)?,
        TreeFormat::Table => tables(&prediction),
    })?;
    if let Some(first) = &prediction.first_malformed {
        let (lines, bundle) = (prediction.malformed, args.bundle.display());
        warn(&format!("warning: {lines} lines of {bundle} were skipped; the first: {first}"));
    }
    Ok(Status::Fine)
}

/// A count of each kind, by its name.
type Lines = Vec<(&'static str, u64)>;

fn lines(faults: &Faults, flushes: &Flushes) -> (Lines, Lines) {
    let faults = vec![
        ("loads", faults.load),
        ("fetches", faults.fetch),
        ("stores, page not present", faults.store),
        ("stores, page read-only", faults.protection),
        ("user page faults", faults.total()),
    ];
    let flushes = vec![
        ("own address space", flushes.local),
        ("task switch", flushes.task_switch),
        ("other CPUs", flushes.remote),
        ("TLB flushes", flushes.total()),
    ];
    (faults, flushes)
}

fn tables(prediction: &Prediction) -> String {
    let recorded = prediction.recorded.as_ref().map(|recorded| lines(&recorded.faults, &recorded.flushes));
    let mut text: Vec<String> = prediction.predicted.iter().map(|one| one_table(one, recorded.as_ref())).collect();
    if let Some(recorded) = &prediction.recorded {
        text.push(format!(
            "recorded: {}; {} of its flushes at task switches led to programs that are not part of the recording\n",
            recorded.text, recorded.to_other_programs
        ));
    }
    text.join("\n")
}

fn one_table(one: &Predicted, recorded: Option<&(Lines, Lines)>) -> String {
    let mut out = table(["", ">predicted", ">recorded", ">off by"]);
    let (faults, flushes) = lines(&one.faults, &one.flushes);
    let empty = (Vec::new(), Vec::new());
    let (known_faults, known_flushes) = recorded.unwrap_or(&empty);
    for (lines, known) in [(faults, known_faults), (flushes, known_flushes)] {
        for (name, count) in lines {
            let recorded = known.iter().find(|(other, _)| *other == name).map(|(_, count)| *count);
            let cell = |value: Option<String>| value.unwrap_or_default();
            out.add_row([
                name.to_owned(),
                count.to_string(),
                cell(recorded.map(|count| count.to_string())),
                cell(recorded.filter(|known| *known > 0).map(|known| format!("{:+.1} %", percent(count, known)))),
            ]);
        }
    }
    let found = one.found;
    let kinds = if one.has_kinds { "kinds of accesses recorded" } else { "kinds of accesses inferred from areas" };
    format!(
        "addresses: {}, {} in {} address spaces, {kinds}; {} mappings, {} of them not where the rule puts them; {} addresses \
         that nothing maps\n{}",
        one.addresses,
        found.faults,
        found.spaces,
        found.mappings,
        found.elsewhere,
        found.unplaced,
        render(&out)
    )
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn percent(predicted: u64, recorded: u64) -> f64 {
    100.0 * (predicted as f64 / recorded as f64 - 1.0)
}
