//! `memvirt workloads`, `memvirt regimes`: what there is to choose from.

use memvirt_lab::Rates;
use memvirt_lab::text::{bytes, count};
use memvirt_machine::RegimeKind;
use memvirt_workload::{Facts, Workload};

use crate::args::{ModelArgs, TreeFormat};
use crate::failure::Status;
use crate::output::{print, render, table};

pub(crate) fn regimes() -> anyhow::Result<Status> {
    let mut grid = table(["regime", "what it is"]);
    for kind in RegimeKind::ALL.iter().copied() {
        grid.add_row([kind.name(), kind.about()]);
    }
    print(&render(&grid))?;
    Ok(Status::Fine)
}

pub(crate) fn workloads(args: &ModelArgs) -> anyhow::Result<Status> {
    let all = match &args.name {
        Some(name) => vec![Workload::resolve(name)?],
        None => Workload::builtin().map(|builtin| builtin.workload()).collect::<Result<_, _>>()?,
    };
    print(&match (args.format, &args.name) {
        (TreeFormat::Json, None) => json(&listed(&all)?)?,
        (TreeFormat::Json, Some(_)) => json(&listed(&all)?[0])?,
        (TreeFormat::Table, None) => list_of_workloads(&all)?,
        (TreeFormat::Table, Some(_)) => explain_workload(&all[0]),
    })?;
    Ok(Status::Fine)
}

/// A workload as programs read it: what its file holds, what can be said without running it, and what was measured.
#[derive(serde::Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    workload: &'a Workload,
    facts: Facts,
    rates: Rates,
}

fn listed(all: &[Workload]) -> anyhow::Result<Vec<Listed<'_>>> {
    let rates = Rates::of_all(all)?;
    Ok(all.iter().zip(rates).map(|(workload, rates)| Listed { workload, facts: workload.facts(), rates }).collect())
}

fn list_of_workloads(all: &[Workload]) -> anyhow::Result<String> {
    let rates = Rates::of_all(all)?;
    let header = ["workload", ">footprint", ">accesses", ">forks", ">faults/M", ">switches/M", "what it is"];
    let mut grid = table(header);
    for (workload, rates) in all.iter().zip(rates) {
        let facts = workload.facts();
        grid.add_row([
            workload.name(),
            &bytes(facts.footprint_bytes),
            &grouped(facts.accesses),
            &count(facts.forks),
            &format!("{:.1}", rates.faults),
            &format!("{:.1}", rates.switches),
            workload.title(),
        ]);
    }
    let note = format!(
        "faults/M, switches/M: page faults and process switches per million instructions, over the first {} accesses on the\n\
         bare machine, first touches included.\n",
        count(Rates::ACCESSES)
    );
    let hint = "`memvirt workloads NAME` explains one; a file of your own runs with `--workload path/to/file.toml`.\n";
    Ok(render(&grid) + &note + hint)
}

fn grouped(figure: memvirt_workload::Figure) -> String {
    let sign = if matches!(figure, memvirt_workload::Figure::About(_)) { "~" } else { "" };
    sign.to_owned() + &count(figure.value())
}

fn explain_workload(workload: &Workload) -> String {
    let facts = workload.facts();
    let mut text = format!("{}: {}\n{}\n", workload.name(), workload.title(), workload.about().trim());
    text += &format!("source of its rates: {}\n", workload.source());
    let figures = [
        ("kind", facts.kind.to_owned()),
        ("footprint", bytes(facts.footprint_bytes)),
        ("accesses", grouped(facts.accesses)),
        ("instructions", grouped(facts.instructions)),
        ("mmaps", grouped(facts.mmaps)),
        ("munmaps", grouped(facts.munmaps)),
        ("mprotects", grouped(facts.mprotects)),
        ("forks", count(facts.forks)),
        ("execs", count(facts.execs)),
        ("system calls", count(facts.calls)),
        ("switches", count(facts.switches)),
    ];
    let mut grid = table(["figure", ">value"]);
    for (name, value) in figures {
        grid.add_row([name, &value]);
    }
    text + &render(&grid)
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
