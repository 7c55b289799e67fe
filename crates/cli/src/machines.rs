//! `memvirt machines`: the machines there are, and every figure of one with its unit and its source.

use memvirt_lab::text::bytes;
use memvirt_machine::MachineSpec;
use memvirt_machine::spec::{Listed, TlbArray, WalkCacheArray, is_estimate};

use crate::args::{ModelArgs, TreeFormat};
use crate::failure::Status;
use crate::models::json;
use crate::output::{print, render, table};

pub(crate) fn machines(args: &ModelArgs) -> anyhow::Result<Status> {
    print(&match (&args.name, args.format) {
        (Some(name), TreeFormat::Json) => json(&MachineSpec::load(name)?)?,
        (Some(name), TreeFormat::Table) => explain(&MachineSpec::load(name)?),
        (None, TreeFormat::Json) => json(&MachineSpec::builtin()?)?,
        (None, TreeFormat::Table) => list(&MachineSpec::builtin()?),
    })?;
    Ok(Status::Fine)
}

fn list(all: &[MachineSpec]) -> String {
    let mut grid = table(["machine", ">TLB entries", ">walk cache entries", ">last cache", ">estimates", "what it is"]);
    for machine in all {
        let tlb: u32 = machine.tlb.l1.iter().chain(&machine.tlb.l2).map(|array| array.entries).sum();
        let walk = machine.walk_caches.as_ref().map_or(0, |caches| {
            caches.guest.iter().chain(&caches.host).map(|array| array.entries).sum::<u32>()
                + caches.nested_tlb.as_ref().map_or(0, |tlb| tlb.entries)
        });
        let estimates = machine.figures().filter(|listed| listed.figure.is_estimate()).count();
        grid.add_row([
            machine.name.clone(),
            tlb.to_string(),
            walk.to_string(),
            machine.caches.as_ref().map_or_else(|| "none".to_owned(), |caches| bytes(caches.llc.bytes)),
            format!("{estimates} of {}", machine.figures().count()),
            machine.title.clone(),
        ]);
    }
    render(&grid)
        + "`memvirt machines NAME` explains one, figure by figure; a file of your own is used with `--machine path/to/file.toml`.\n"
}

fn explain(machine: &MachineSpec) -> String {
    let mut text = format!("{}: {}\n{}\n", machine.name, machine.title, machine.about.trim());
    text += &shapes(machine);
    let mut grid = table(["section", "figure", ">value", "unit", "", "source"]);
    for Listed { section, name, unit, figure } in machine.figures() {
        let mark = if figure.is_estimate() { "*" } else { "" };
        grid.add_row([section, name, &figure.value.to_string(), unit, mark, &figure.source]);
    }
    let estimates = machine.figures().filter(|listed| listed.figure.is_estimate()).count();
    text + &render(&grid)
        + &format!("* an estimate: nobody measured it ({estimates} of {})\n", machine.figures().count())
}

/// Entries and ways of everything that has them, then where they come from.
fn shapes(machine: &MachineSpec) -> String {
    let mut grid = table(["structure", "holds", ">entries", ">ways"]);
    let mut row = |structure: &str, holds: &str, entries: u64, ways: u32| {
        grid.add_row([structure, holds, &entries.to_string(), &ways.to_string()]);
    };
    for (structure, arrays) in [("TLB, first level", &machine.tlb.l1), ("TLB, second level", &machine.tlb.l2)] {
        for TlbArray { pages, entries, ways } in arrays {
            row(structure, &format!("{} pages", pages.join(" ")), u64::from(*entries), *ways);
        }
    }
    let mut sources = vec![("TLB source", &machine.tlb.source)];
    if let Some(caches) = &machine.walk_caches {
        for (structure, arrays) in [("walk cache, guest", &caches.guest), ("walk cache, host", &caches.host)] {
            for WalkCacheArray { level, entries, ways } in arrays {
                row(structure, level.name(), u64::from(*entries), *ways);
            }
        }
        sources.push(("walk caches source", &caches.source));
        if let Some(tlb) = &caches.nested_tlb {
            row("nested TLB", "guest-physical pages", u64::from(tlb.entries), tlb.ways);
            sources.push(("nested TLB source", &tlb.source));
        }
    }
    if let Some(caches) = &machine.caches {
        for (name, shape) in caches.levels() {
            let holds = format!("lines of {} B, {}", caches.line_bytes, bytes(shape.bytes));
            row(&format!("cache, {name}"), &holds, shape.bytes / u64::from(caches.line_bytes), shape.ways);
        }
        sources.push(("caches source", &caches.source));
    }
    let choices = format!(
        "TLB: replacement {}, {}, pages of 1 GiB {}\ninterrupts between vCPUs: {}\n",
        machine.tlb.replacement.name(),
        machine.tlb.inclusion.name(),
        machine.tlb.gigabyte_pages.name(),
        machine.smp.as_ref().map_or("exiting", |smp| smp.interrupts.by.name()),
    );
    if let Some(delivery) = machine.smp.as_ref().map(|smp| &smp.interrupts) {
        sources.push(("interrupts source", &delivery.source));
    }
    let mark = |source: &str| if is_estimate(source) { " *" } else { "" };
    let sources: String = sources.iter().map(|(what, source)| format!("{what}{}: {source}\n", mark(source))).collect();
    render(&grid) + &choices + &sources
}
