//! `memvirt trace info`: what is in a trace.

use memvirt_lab::text::{bytes, count};
use memvirt_trace::TraceInfo;

use crate::args::{TraceArgs, TreeFormat};
use crate::failure::{Status, warn};
use crate::output::{print, render, table};

pub(crate) fn info(args: &TraceArgs) -> anyhow::Result<Status> {
    let info = TraceInfo::read(&mut memvirt_trace::open(&args.file)?)?;
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
    let mut text = format!("{}: Valgrind lackey log, {}\n", info.name, info.compression);
    if let Some(command) = &tally.command {
        text += &format!("program: {command}\n");
    }
    let mut grid = table(["", ">count"]);
    let figures = [
        ("size of the file", bytes(info.file_bytes)),
        ("size decompressed", bytes(tally.raw_bytes)),
        ("lines", count(tally.lines)),
        ("lines skipped as malformed", count(tally.malformed)),
        ("instructions", count(tally.fetches)),
        ("loads", count(tally.loads)),
        ("stores", count(tally.stores)),
        ("modifies (a load and a store)", count(tally.modifies)),
        ("accesses over a page's end", count(tally.page_crossings)),
        ("accesses as run", count(info.accesses)),
        ("system calls", count(tally.syscall_count())),
        ("4 KiB pages touched", count(info.pages)),
        ("  of them fetched from", count(info.pages_fetched)),
        ("  read", count(info.pages_read)),
        ("  written", count(info.pages_written)),
    ];
    for (label, value) in figures {
        grid.add_row([label, &value]);
    }
    text += &render(&grid);
    text += &ranges(info);
    text += &calls(info);
    if let Some(first) = &tally.first_malformed {
        text += &format!("first malformed line: {first}\n");
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
    render(&grid)
}
