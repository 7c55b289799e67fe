//! What a log of Valgrind's lackey holds: `cargo run -p memvirt-trace --example info -- FILE`.

use std::process::ExitCode;

use memvirt_trace::{TraceError, TraceInfo};

fn show(path: &str) -> Result<(), TraceError> {
    let info = TraceInfo::read(&mut memvirt_trace::open(path)?)?;
    let tally = &info.tally;
    println!("{} ({}, {} of {} bytes)", info.name, info.compression, info.file_bytes, tally.raw_bytes);
    println!("command      {}", tally.command.as_deref().unwrap_or("(not in the log)"));
    println!("lines        {} ({} malformed)", tally.lines, tally.malformed);
    println!("instructions {}", tally.fetches);
    println!("data         {} loads, {} stores, {} modifies", tally.loads, tally.stores, tally.modifies);
    println!(
        "pages        {} ({} fetched, {} read, {} written)",
        info.pages, info.pages_fetched, info.pages_read, info.pages_written
    );
    for (name, count) in &tally.syscalls {
        println!("system call  {name}: {count}");
    }
    for range in &info.ranges {
        println!("range        {:#014x}..{:#014x}: {} pages", range.start, range.end, range.pages);
    }
    if let Some(first) = &tally.first_malformed {
        println!("malformed    {first}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    for path in &paths {
        if let Err(error) = show(path) {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
