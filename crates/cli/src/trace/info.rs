//! `memvirt trace info`: what is in a trace.

use memvirt_lab::text::{bytes, count};
use memvirt_trace::{Format, Recording, Repairs, TraceInfo};

use super::InfoArgs;
use crate::args::TreeFormat;
use crate::failure::{Status, warn};
use crate::output::{print, render, table};

pub(crate) fn info(args: &InfoArgs) -> anyhow::Result<Status> {
    let info = TraceInfo::of(&mut Recording::open(&args.file, args.turns.reading())?)?;
    print(&match args.format {
        TreeFormat::Json => serde_json::to_string_pretty(&info)? + "\n",
        TreeFormat::Table => people(&info),
    })?;
    match &info.broken_off {
        None => Ok(Status::Fine),
        Some(reason) => {
            warn(&format!("error: {reason}"));
            Ok(Status::BadInput)
        }
    }
}

fn people(info: &TraceInfo) -> String {
    let tally = &info.tally;
    let packed = info.density.map_or_else(|| info.compression.to_string(), |density| format!("packed as {density}"));
    let mut text = format!("{}: recorded with {}, {packed}\n", info.name, info.format.title());
    if let Some(command) = &tally.command {
        text += &format!("program: {command}\n");
    }
    let mut grid = table(["", ">count"]);
    let figures = [
        ("size of the file", bytes(info.file_bytes)),
        ("size decompressed", bytes(tally.raw_bytes)),
        ("lines", count(tally.lines)),
        ("lines skipped as malformed", count(tally.malformed)),
        ("instructions", count(if info.format == Format::Perf { 0 } else { info.instructions })),
        (
            "nanoseconds between events of a task",
            count(if info.format == Format::Perf { info.instructions } else { 0 }),
        ),
        ("fetches", count(if tally.fetches == info.instructions { 0 } else { tally.fetches })),
        ("loads", count(tally.loads)),
        ("stores", count(tally.stores)),
        ("modifies (a load and a store)", count(tally.modifies)),
        ("accesses over a page's end", count(tally.page_crossings)),
        ("accesses as run", count(info.accesses)),
        ("processes", count(tally.processes.max(1))),
        ("  forks", count(tally.forks)),
        ("  execs", count(tally.execs)),
        ("  exits", count(tally.exits)),
        ("thread hand-offs", count(tally.handoffs)),
        ("system calls", count(tally.syscall_count())),
        ("4 KiB pages touched", count(info.pages)),
        ("  of them fetched from", count(info.pages_fetched)),
        ("  read", count(info.pages_read)),
        ("  written", count(info.pages_written)),
    ];
    // What a recording of its kind does not have is not shown as nothing.
    let wanted = |label: &str, value: &str| {
        (value != "0" && value != "0 B") || matches!(label, "accesses as run" | "lines skipped as malformed")
    };
    for (label, value) in figures.iter().filter(|(label, value)| wanted(label, value)) {
        grid.add_row([*label, value]);
    }
    text += &render(&grid);
    text += &order(info);
    text += &ranges(info);
    text += &calls(info);
    if let Some(first) = &tally.first_malformed {
        text += &format!("first malformed line: {first}\n");
    }
    text
}

/// Why processes of a set of logs are left out, and what helps.
pub(crate) const NO_CALLS: &str =
    "the logs hold no system calls, forks among them; record with --trace-syscalls=yes, or with `memvirt trace record`";

/// What had to be decided, and what was left out.
fn order(info: &TraceInfo) -> String {
    let Repairs { orphans, exits, waits, forks, lost } = info.repairs;
    let mut text = String::new();
    for (number, what) in [
        (orphans, "processes that nobody forks: started at the beginning, by the first"),
        (exits, "exits that stand in no log: a wait proves them"),
        (waits, "waits for a process that cannot have ended: they return all the same"),
        (forks, "forks of a process that was there already: left out"),
        (lost, "processes that are never forked: left out"),
    ] {
        if number > 0 {
            text += &format!("{number} {what}\n");
        }
    }
    let lackey = matches!(info.format, Format::Lackey | Format::LackeySet);
    if lackey && lost > 0 && info.tally.syscall_count() == 0 {
        text += &format!("{NO_CALLS}\n");
    }
    if !info.left_out.is_empty() {
        text += &format!("beside it, not read: {}\n", info.left_out.join(", "));
    }
    text
}

fn ranges(info: &TraceInfo) -> String {
    let mut grid = table(["range of addresses", ">pages touched", ">span"]);
    for range in &info.ranges {
        grid.add_row([
            format!("{:#014x}..{:#014x}", range.start, range.end),
            count(range.pages),
            bytes(range.end.wrapping_sub(range.start)),
        ]);
    }
    render(&grid)
}

fn calls(info: &TraceInfo) -> String {
    if info.tally.syscalls.is_empty() {
        return String::new();
    }
    let mut grid = table(["system call", ">count"]);
    for (name, n) in &info.tally.syscalls {
        grid.add_row([name, &count(*n)]);
    }
    for (reason, n) in &info.tally.flushes {
        grid.add_row([&format!("(TLB flush recorded: {reason})"), &count(*n)]);
    }
    render(&grid)
}
