//! What the time of each run is made of: its own work, the tables of each dimension, exits by what they are for, and the handlers'
//! work; and how often each reason made a guest exit.

use memvirt_machine::RunResult;
use memvirt_platform::ExitReason;

use super::Section;
use super::benefit::{grouped, shown, whole};
use crate::claims::Evidence;
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::report::chart::{Bar, Chart, Panel, Scale};
use crate::report::paint::Ink;
use crate::report::{Figure, column};
use crate::summary::{exits_for, reason_name, reasons};
use crate::text::{count, fraction, short};

/// The account of a run in few items, in cycles.
#[derive(Clone, Copy, Default)]
struct Split {
    base: u64,
    /// TLB hits of the second level, references to guest or shadow tables, accessed and dirty bits.
    tables: u64,
    nested: u64,
    /// Exits because of a page fault or a missing frame, round trips included.
    faults: u64,
    /// Other exits: stores to tables, INVLPG, CR3 loads.
    others: u64,
    /// What handlers do: entries set and cleared, tables read, frames brought in.
    work: u64,
    waiting: u64,
}

impl Split {
    fn of(run: &RunResult) -> Self {
        let mut split = Self { base: run.cycles.base, waiting: run.cycles.waiting, ..Self::default() };
        let exits = run.total_exits().max(1);
        for part in &run.cycles.parts {
            let nested = part.name.starts_with("nested table");
            match (part.group, part.name.as_str()) {
                ("translation", _) if nested => split.nested += part.cycles,
                ("translation", _) => split.tables += part.cycles,
                ("exits", "round trips") => {
                    let faults = part.cycles / exits * faults(run);
                    split.faults += faults;
                    split.others += part.cycles - faults;
                }
                ("exits", name) if FAULTS.contains(&name) => split.faults += part.cycles,
                ("exits", name) if run.exits.contains_key(name) => split.others += part.cycles,
                ("exits", _) => split.work += part.cycles,
                _ => {}
            }
        }
        split
    }

    const fn parts(self) -> [u64; 7] {
        [self.base, self.tables, self.nested, self.faults, self.others, self.work, self.waiting]
    }
}

/// Exits because of a page fault or a missing frame, as results name them.
const FAULTS: [&str; 3] = ["hidden_fault", "reflected_fault", "ept_violation"];

fn faults(run: &RunResult) -> u64 {
    FAULTS.iter().filter_map(|name| run.exits.get(name)).sum()
}

const PARTS: [(Ink, &str); 7] = [
    (Ink::Blue, "the guest's own work"),
    (Ink::Green, "guest or shadow tables"),
    (Ink::Orange, "nested tables"),
    (Ink::Vermillion, "exits for faults"),
    (Ink::Purple, "other exits"),
    (Ink::Grey, "handlers' work"),
    (Ink::Text, "waiting"),
];

pub(super) fn accounts(evidence: &Evidence) -> Result<Section, LabError> {
    Ok(Section::new("accounts", "Where the time goes")
        .words(
            "Run time in times of the native run. Bars are logarithmic in length; their colours are shares of the whole. The data of each \
             figure have the cycles of every item and all regimes.",
        )
        .figure(cycles(&evidence.plain, Wording::PLAIN)?)
        .figure(cycles(&evidence.fair.plain, Wording::TIMED)?)
        .figure(starts(&evidence.fair.plain)?))
}

/// What is said of a figure of accounts.
struct Wording {
    id: &'static str,
    title: &'static str,
    caption: &'static str,
    regimes: &'static [&'static str],
}

impl Wording {
    const PLAIN: Self = Self {
        id: "cycles",
        title: "Cycles by what they were spent on",
        caption: "Every reference to a table has its dimension's price. The guest's own work is the same under each regime.",
        regimes: &["shadow:write-protect", "shadow:kvm", "nested"],
    };
    const TIMED: Self = Self {
        id: "cycles-timed",
        title: "The same with walk caches and the data caches",
        caption: "Every reference to a table and to data is followed to the cache that holds its line, and walks begin as low \
                  as the walk caches let them.",
        regimes: &["native", "shadow:kvm", "nested"],
    };
}

fn cycles(comparisons: &[Comparison], wording: Wording) -> Result<Figure, LabError> {
    let bar = |run: &RunResult, native: &RunResult, _| {
        let times = fraction(run.cycles.total, native.cycles.total.max(1));
        // Shares of a bar whose length is the logarithm of the whole.
        let long = (1.0 + times).log2();
        let share = |cycles| long * fraction(cycles, run.cycles.total.max(1));
        let parts = Split::of(run).parts();
        (PARTS.iter().zip(parts).map(|((ink, _), cycles)| (*ink, share(cycles))).collect(), format!("{times:.2}x"))
    };
    let (panels, _) = grouped(comparisons, |run| wording.regimes.contains(&run.regime.name()), bar);
    let used = |i: &usize| {
        let mut runs = comparisons.iter().flat_map(|one| &one.results);
        runs.any(|run| wording.regimes.contains(&run.regime.name()) && Split::of(run).parts()[*i] > 0)
    };
    let chart = Chart {
        axis: "times the native run, a logarithmic length; colours are shares of it",
        scale: Scale::Decimal,
        tick: |x| format!("{}x", short(whole(x.exp2() - 1.0))),
        legend: (0..PARTS.len()).filter(used).map(|i| PARTS[i]).collect(),
        panels,
        marks: vec![(1.0, "native")],
    };
    let row = |one: &Comparison, run: &RunResult| {
        let names = [one.workload.name().to_owned(), run.regime.to_string()];
        let cycles = std::iter::once(run.cycles.total).chain(Split::of(run).parts());
        names.into_iter().chain(cycles.map(count)).collect()
    };
    let rows = comparisons.iter().flat_map(|one| one.results.iter().map(move |run| row(one, run))).collect();
    let parts = PARTS.map(|(_, name)| column(name, "cycles"));
    let header = ["regime".to_owned(), "all_cycles".to_owned()].into_iter().chain(parts).collect();
    shown(wording.id, wording.title, wording.caption, (header, rows), chart, comparisons)
}

/// At which level walks begin where walk caches are on: how many references they save.
fn starts(comparisons: &[Comparison]) -> Result<Figure, LabError> {
    let levels = |counts: &memvirt_machine::result::DimensionCounts| {
        [counts.pde_hits, counts.pdpte_hits, counts.pml4e_hits + counts.pml5e_hits, counts.misses]
    };
    let found = |run: &RunResult| -> Vec<(&'static str, [u64; 4])> {
        let Some(caches) = &run.walk_caches else { return Vec::new() };
        let own = (if run.walk_refs.shadow > 0 { "shadow tables" } else { "guest tables" }, levels(&caches.guest));
        [own, ("nested tables", levels(&caches.host))]
            .into_iter()
            .filter(|(_, levels)| levels.iter().sum::<u64>() > 0)
            .collect()
    };
    let names = ["1 reference left: below a PDE", "2: below a PDPTE", "3: below a PML4E", "all: from the root"];
    let inks = [Ink::Blue, Ink::Green, Ink::Orange, Ink::Vermillion];
    let (mut panels, mut rows) = (Vec::new(), Vec::new());
    for one in comparisons {
        let mut bars = Vec::new();
        for run in &one.results {
            for (whose, levels) in found(run) {
                let all = levels.iter().sum::<u64>();
                let parts = inks.into_iter().zip(levels.map(|n| fraction(n, all))).collect();
                bars.push(Bar { label: format!("{}, {whose}", run.regime), parts, value: short(all) });
                let names = [one.workload.name().to_owned(), run.regime.to_string(), whose.to_owned()];
                rows.push(names.into_iter().chain(levels.map(count)).collect());
            }
        }
        panels.push(Panel { heading: Some(one.workload.name().to_owned()), bars });
    }
    let chart = Chart {
        axis: "share of walks of the dimension; behind the bar, how many",
        scale: Scale::Decimal,
        tick: |x| format!("{:.0} %", 100.0 * x),
        legend: inks.into_iter().zip(names).collect(),
        panels,
        marks: Vec::new(),
    };
    let starts = ["from_pde", "from_pdpte", "from_pml4e", "from_root"].map(|start| column(start, "walks"));
    let header = ["regime", "tables"].map(str::to_owned).into_iter().chain(starts).collect();
    let caption = "Where a walk of each dimension begins, by the entry that the paging-structure caches held. In two dimensions each walk \
                   of the guest's tables asks the nested dimension once for each guest-physical address.";
    shown("walk-levels", "References by dimension and level", caption, (header, rows), chart, comparisons)
}

const REASONS: [(ExitReason, Ink); 6] = [
    (ExitReason::HiddenFault, Ink::Blue),
    (ExitReason::ReflectedFault, Ink::Orange),
    (ExitReason::TableWrite, Ink::Vermillion),
    (ExitReason::Invlpg, Ink::Purple),
    (ExitReason::Cr3Load, Ink::Green),
    (ExitReason::EptViolation, Ink::Grey),
];

/// Exits of each workload under each regime, by reason.
pub(super) fn exits(evidence: &Evidence) -> Result<Figure, LabError> {
    let bar = |run: &RunResult, _: &RunResult, _| {
        let all = run.total_exits();
        let long = (1.0 + fraction(all, 1)).log10();
        let part = |n: u64| long * fraction(n, all.max(1));
        let mut parts: Vec<_> = REASONS.iter().map(|(reason, ink)| (*ink, part(exits_for(run, *reason)))).collect();
        let rest = all - REASONS.iter().map(|(reason, _)| exits_for(run, *reason)).sum::<u64>();
        parts.push((Ink::Text, part(rest)));
        (parts, count(all))
    };
    let (panels, _) = grouped(&evidence.plain, |run| run.regime.name() != "native", bar);
    let all: Vec<RunResult> = evidence.plain.iter().flat_map(|one| one.results.clone()).collect();
    let found: Vec<ExitReason> = reasons(&all).collect();
    let row = |one: &Comparison, run: &RunResult| {
        let names = [one.workload.name().to_owned(), run.regime.to_string()];
        let counts = found.iter().map(|reason| exits_for(run, *reason)).chain([run.total_exits()]);
        names.into_iter().chain(counts.map(count)).collect()
    };
    let rows =
        evidence.plain.iter().flat_map(|one| one.results.iter().map(|run| row(one, run)).collect::<Vec<_>>()).collect();
    let counted = found.iter().map(|reason| reason_name(*reason)).chain(["all"]).map(|name| column(name, "exits"));
    let header = std::iter::once("regime".to_owned()).chain(counted).collect();
    let chart = Chart {
        axis: "VM exits of the whole run, a logarithmic length; colours are shares of it",
        scale: Scale::Decimal,
        tick: |x| short(whole(10f64.powf(x))),
        legend: REASONS.iter().map(|(reason, ink)| (*ink, reason_name(*reason))).collect(),
        panels,
        marks: Vec::new(),
    };
    let caption = "How often the guest stopped and the hypervisor ran, by workload, regime and reason.";
    shown("exits", "VM exits by workload, regime and reason", caption, (header, rows), chart, &evidence.plain)
}
