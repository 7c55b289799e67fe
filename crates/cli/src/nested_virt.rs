//! `memvirt nested-virt`: one page fault of a nested guest, step by step, and its world switches beside the published ones.

use std::ops::RangeInclusive;

use clap::{Args, ValueEnum};
use memvirt_lab::nested_virt::{Arrangement, FaultRow, NestedVirtTable, Published, StepRow};

use crate::failure::Status;
use crate::output::{print, render, table};

#[derive(Debug, Args)]
#[command(after_help = "\
L0 is the machine's hypervisor, L1 a hypervisor in its virtual machine, L2 L1's guest; each owns page tables of its own. A process
of L2 touches a page to which nothing leads yet, and L2's kernel fills its tables, n levels of them. A world switch is one change of
who runs, an L0 exit one entry into L0. Published: Huang et al., PVM, SOSP 2023 (the worst case: every level new in L2's tables and in
EPT12, every store to a followed table traps, L1's memory warm). Below the totals stands what other presuppositions give.

Exit status: 0 where all agrees with the published figures, 1 otherwise.

Examples:
  memvirt nested-virt
  memvirt nested-virt --arrangement ept-on-ept --levels 4
  memvirt nested-virt --levels 2..5 --format csv")]
pub(crate) struct NestedVirtArgs {
    /// Who keeps which tables
    #[arg(long, value_enum, default_value_t = Which::All)]
    arrangement: Which,
    /// Levels of L2's tables and of EPT12: a number from 2 to 5, or a range
    #[arg(long, value_name = "N|N..M", default_value = "2..5", value_parser = levels)]
    levels: Levels,
    /// How to print
    #[arg(long, value_enum, default_value_t = NestedVirtFormat::Table)]
    format: NestedVirtFormat,
}

/// Arrangements to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// L1 shadows L2's tables; hardware walks the shadow under L0's EPT
    ShadowOnEpt,
    /// L1 keeps an EPT for L2, which L0 merges with its own
    EptOnEpt,
    /// As shadow-on-ept, but a switcher changes between L2 and L1 without L0
    Pvm,
    /// All of them
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum NestedVirtFormat {
    /// For people: the steps of one fault, then the totals
    Table,
    /// For programs: every step of every fault
    Json,
    /// A row per count
    Csv,
}

/// First and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Levels(u8, u8);

impl Levels {
    const fn range(self) -> RangeInclusive<u8> {
        self.0..=self.1
    }

    /// The depth whose steps are printed: 4, the usual one, where it is asked for.
    fn shown(self) -> u8 {
        4.clamp(self.0, self.1)
    }
}

fn levels(text: &str) -> Result<Levels, &'static str> {
    let number = |text: &str| text.parse::<u8>().ok().filter(|n| (2..=5).contains(n));
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let ends = number(first).zip(number(last.trim_start_matches('='))).filter(|(first, last)| first <= last);
    ends.map(|(first, last)| Levels(first, last)).ok_or("expected 2 to 5, or a range as in 2..5")
}

pub(crate) fn nested_virt(args: &NestedVirtArgs) -> anyhow::Result<Status> {
    let arrangements = match args.arrangement {
        Which::ShadowOnEpt => vec![Arrangement::ShadowOnEpt],
        Which::EptOnEpt => vec![Arrangement::EptOnEpt],
        Which::Pvm => vec![Arrangement::Pvm],
        Which::All => Arrangement::ALL.to_vec(),
    };
    let Some(measured) = NestedVirtTable::measure(&arrangements, args.levels.range()) else {
        anyhow::bail!("the simulated host has too little memory");
    };
    print(&match args.format {
        NestedVirtFormat::Json => serde_json::to_string_pretty(&measured)? + "\n",
        NestedVirtFormat::Csv => measured.to_csv(),
        NestedVirtFormat::Table => people(&measured, &arrangements, args.levels),
    })?;
    Ok(if measured.differences == 0 { Status::Fine } else { Status::CheckFailed })
}

fn people(measured: &NestedVirtTable, arrangements: &[Arrangement], levels: Levels) -> String {
    let shown = measured.faults.iter().filter(|row| row.levels == levels.shown());
    let mut text: String = shown.map(steps).collect();
    text.push_str(&totals(measured, arrangements));
    text.push_str(&variants(measured, levels.shown()));
    text.push_str(&events(measured, levels.shown()));
    text
}

/// Every step of one fault, with the sums so far.
fn steps(row: &FaultRow) -> String {
    let mut grid = table([">switch", ">L0 exit", "who", "", "what happens"]);
    let (mut switches, mut exits) = (0u64, 0u64);
    for step in &row.steps {
        let StepRow { who, to, what, .. } = step;
        let mut cells = [String::new(), String::new(), who.clone(), String::new(), what.clone()];
        if let Some(to) = to {
            switches += 1;
            cells[0] = switches.to_string();
            cells[3] = format!("-> {to}");
            if to == "L0" {
                exits += 1;
                cells[1] = exits.to_string();
            }
        }
        grid.add_row(cells);
    }
    format!("{}: one page fault of L2, {} levels\n{}\n", row.arrangement, row.levels, render(&grid))
}

fn totals(measured: &NestedVirtTable, arrangements: &[Arrangement]) -> String {
    let mut grid = table([
        "arrangement",
        ">n",
        ">world switches",
        ">L0 exits",
        ">published",
        "as",
        "",
        ">references of a cold walk",
    ]);
    for row in &measured.faults {
        let Published { world_switches, l0_exits } = row.published;
        let formula =
            arrangements.iter().find(|which| which.name() == row.arrangement).map(|which| Published::formula(*which));
        grid.add_row([
            row.arrangement.to_owned(),
            row.levels.to_string(),
            row.world_switches.to_string(),
            row.l0_exits.to_string(),
            format!("{world_switches} / {l0_exits}"),
            formula.unwrap_or_default().to_owned(),
            if row.agrees { "agrees" } else { "differs" }.to_owned(),
            row.walk_references.to_string(),
        ]);
    }
    let all = measured.faults.len();
    format!("Totals, beside the published ones (P20)\n{}{} of {all} differ\n\n", render(&grid), measured.differences)
}

fn variants(measured: &NestedVirtTable, levels: u8) -> String {
    let mut grid = table(["changed", "arrangement", ">world switches", ">L0 exits"]);
    let mut notes = Vec::new();
    for row in measured.variants.iter().filter(|row| row.levels == levels) {
        let sums = [row.world_switches.to_string(), row.l0_exits.to_string()];
        let [switches, exits] = sums;
        grid.add_row([row.variant.to_owned(), row.arrangement.to_owned(), switches, exits]);
        let note = format!("{}: {}\n", row.variant, row.about);
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    format!(
        "The same fault, {levels} levels, where a presupposition of the published counts is changed\n{}{}\n",
        render(&grid),
        notes.concat()
    )
}

fn events(measured: &NestedVirtTable, levels: u8) -> String {
    let mut grid = table(["event", "arrangement", ">world switches", ">L0 exits"]);
    for row in measured.events.iter().filter(|row| row.levels == levels) {
        let sums = [row.world_switches.to_string(), row.l0_exits.to_string()];
        let [switches, exits] = sums;
        grid.add_row([row.about.to_owned(), row.arrangement.to_owned(), switches, exits]);
    }
    format!("Other events of L2, {levels} levels\n{}", render(&grid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_a_number_or_a_range() {
        assert_eq!(levels("4"), Ok(Levels(4, 4)));
        assert_eq!(levels("2..5"), Ok(Levels(2, 5)));
        assert_eq!(levels("3..=4"), Ok(Levels(3, 4)));
        for bad in ["", "1", "6", "5..2", "2..6", "a", "2...5", "-2"] {
            assert!(levels(bad).is_err(), "{bad}");
        }
        assert_eq!((Levels(2, 5).shown(), Levels(2, 3).shown(), Levels(5, 5).shown()), (4, 3, 5));
    }
}
