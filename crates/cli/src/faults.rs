//! `memvirt faults`: page faults and flushes of a recorded program, predicted, beside those that its kernel counted.

use std::path::PathBuf;

use clap::Args;
use memvirt_lab::faults::{Flushes, Predicted, Prediction, Verdict, predict};

use crate::args::TreeFormat;
use crate::failure::{Status, warn};
use crate::models::json;
use crate::output::{print, render, table};

#[derive(Debug, Args)]
#[command(after_help = "\
The bundle is a directory or a tar archive of any compression with two texts of one program, each of a run of its own:
  strace -f -e trace=memory,process -o calls.txt PROGRAM
  perf record -e page-faults:u -c 1 -d PROGRAM; perf script -F comm,pid,tid,time,event,addr,ip > faults.txt
Calls give the areas, faults the addresses; calls are moved to the addresses of the other run by the rule that Linux places
mappings with. A third text, of the kernel's tracepoints (exceptions:page_fault_user, tlb:tlb_flush, sched:sched_switch), is compared with. Of it
only the schedule is used, who ran when on which CPU: the guest carries out its switches, to other programs too, and predicts
what they flush. Without it switches stand where calls of different processes follow each other. Its own addresses make a second
prediction.

A kind of fault is in band within 5 % of what was recorded, a kind of flush within 25 %; out of band is a result, not a
failure of the command. Exit status: 0, or 2 where the bundle breaks off (what stands before is used) or cannot be joined.")]
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
    let Some(damage) = &prediction.damage else { return Ok(Status::Fine) };
    warn(&format!("error: {damage}; what stands before was used"));
    Ok(Status::BadInput)
}

fn tables(prediction: &Prediction) -> String {
    let recorded = prediction.recorded.as_ref();
    let mut text: Vec<String> =
        prediction.predicted.iter().map(|one| one_table(one, recorded.map(|known| &known.flushes))).collect();
    if let Some(recorded) = recorded {
        text.push(format!(
            "recorded: {}; {} of its flushes at task switches led to programs that are not part of the recording\n",
            recorded.text, recorded.to_other_programs
        ));
    }
    text.join("\n")
}

fn one_table(one: &Predicted, recorded: Option<&Flushes>) -> String {
    let mut out = table(["", ">predicted", ">recorded", ">off by", ">band", "verdict"]);
    for kind in &one.kinds {
        let verdict = match kind.verdict {
            Verdict::In => "in",
            Verdict::Out => "OUT",
            Verdict::NotRecorded => "not recorded",
        };
        out.add_row([
            kind.name.to_owned(),
            kind.predicted.to_string(),
            kind.recorded.map(|count| count.to_string()).unwrap_or_default(),
            kind.off_percent.map(|off| format!("{off:+.1} %")).unwrap_or_default(),
            format!("{:.0} %", kind.band_percent),
            verdict.to_owned(),
        ]);
    }
    format!("{}{}{}", head(one), render(&out), switches(one, recorded))
}

fn head(one: &Predicted) -> String {
    let found = one.found;
    let kinds = if one.has_kinds { "kinds of accesses recorded" } else { "kinds of accesses inferred from areas" };
    format!(
        "addresses: {}, {} in {} address spaces, {kinds}; {} mappings, {} of them not where the rule puts them; {} addresses \
         that nothing maps\n",
        one.addresses, found.faults, found.spaces, found.mappings, found.elsewhere, found.unplaced,
    )
}

/// Whose switches these are, and what they did.
fn switches(one: &Predicted, recorded: Option<&Flushes>) -> String {
    let Some(schedule) = &one.schedule else {
        return "schedule: none recorded; switches stand where the calls of another process follow, none leads to another \
                program\n"
            .to_owned();
    };
    let known = recorded.map(|known| format!(" ({} recorded)", known.kept)).unwrap_or_default();
    format!(
        "schedule: {} switches on {} CPUs, of {}; {} of {} loads of an address space kept its translations{known}\n",
        schedule.switches, schedule.cpus, schedule.text, one.flushes.kept, one.flushes.task_switch
    )
}
