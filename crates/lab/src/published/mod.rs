//! Published figures beside what memvirt measures: each with its use, whether it is met, why or why not, and a command.
//!
//! A [`PublishedRow`] stands for one figure (or one small table) of the literature. What a figure may serve for is its [`Use`]:
//! counts must be equal, some quantities must lie in a band, of some only the direction can be checked, and inputs are shown where
//! they are used and never called a confirmation. Figures that are remembered and were not read again are shown and judge nothing.

mod compared;
mod inputs;
mod own;
mod pvm;
mod walks;

use std::num::NonZeroUsize;

use memvirt_machine::MachineSpec;
use rayon::prelude::*;
use serde::Serialize;

pub use own::Own;
pub use pvm::{Events, Row, ids as pvm_ids, pvm};

use crate::claims::{Done, Effort, Task, plain_tasks};
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::nested_virt::NestedVirtTable;
use crate::threads::on_threads;

/// What a published figure may serve for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// It must match.
    Exact,
    /// What is predicted must lie so many percent around it.
    Band(u32),
    /// What is predicted must lie so many percentage points around it.
    Points(u32),
    /// Only the direction can be checked.
    Order,
    /// It calibrates: it stands in a machine file, a workload file or a switch.
    Input,
    /// It is remembered and was not read again: shown, and judges nothing.
    NotReread,
}

impl Use {
    /// In words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Exact => "exact".to_owned(),
            Self::Band(percent) => format!("{percent} %"),
            Self::Points(points) => format!("{points} points"),
            Self::Order => "order".to_owned(),
            Self::Input => "input".to_owned(),
            Self::NotReread => "not re-read".to_owned(),
        }
    }
}

/// Whether a figure is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    /// As its use demands.
    Met,
    /// Not as its use demands.
    Missed,
    /// Shown only: an input, or a figure that was not read again.
    Shown,
    /// memvirt has no such thing.
    NotModelled,
    /// Not measured with this effort.
    NotRun,
}

impl Agreement {
    const fn of(met: bool) -> Self {
        if met { Self::Met } else { Self::Missed }
    }

    /// In words, for a figure of that use.
    #[must_use]
    pub const fn words(self, usage: Use) -> &'static str {
        match (self, usage) {
            (Self::Met, Use::Exact) => "equal",
            (Self::Missed, Use::Exact) => "not equal",
            (Self::Met, Use::Order) => "same order",
            (Self::Missed, Use::Order) => "another order",
            (Self::Met, _) => "in band",
            (Self::Missed, _) => "out of band",
            (Self::Shown, _) => "shown",
            (Self::NotModelled, _) => "not modelled",
            (Self::NotRun, _) => "not run",
        }
    }
}

/// A published figure beside what was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedRow {
    /// Its number in the list of published results; figures without one are numbered by their section.
    pub id: String,
    /// What it is a figure of.
    pub what: String,
    /// Who published it.
    pub source: &'static str,
    /// The figure.
    pub published: String,
    /// What memvirt measures, or where it is used.
    pub measured: String,
    /// What it may serve for.
    #[serde(rename = "use")]
    pub usage: Use,
    /// Whether it is met.
    pub agreement: Agreement,
    /// Why, or why not.
    pub why: String,
    /// The command that measures it.
    pub command: String,
}

impl PublishedRow {
    /// The header of tables and of CSV.
    pub const HEADER: [&'static str; 9] =
        ["row", "what", "source", "published", "measured", "use", "agreement", "why", "command"];

    /// The cells under [`HEADER`](Self::HEADER).
    #[must_use]
    pub fn cells(&self) -> [String; 9] {
        [
            self.id.clone(),
            self.what.clone(),
            self.source.to_owned(),
            self.published.clone(),
            self.measured.clone(),
            self.usage.words(),
            self.agreement.words(self.usage).to_owned(),
            self.why.clone(),
            self.command.clone(),
        ]
    }
}

/// The rows as CSV.
#[must_use]
pub fn to_csv(rows: &[PublishedRow]) -> String {
    let mut text = String::new();
    crate::table::csv_line(&mut text, PublishedRow::HEADER.into_iter());
    for row in rows {
        crate::table::csv_line(&mut text, row.cells().into_iter());
    }
    text
}

/// What the rows are made of.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// How much was run.
    pub effort: Effort,
    /// Workloads without isolation, each measured as its file says.
    pub fair: &'a [Comparison],
    /// PVM's rows.
    pub pvm: &'a [Row],
    /// Nested virtualization.
    pub nested_virt: &'a NestedVirtTable,
    /// What is measured for these rows alone.
    pub own: &'a Own,
}

impl Sources<'_> {
    fn of(&self, workload: &str) -> Option<&Comparison> {
        self.fair.iter().find(|one| one.workload.name() == workload)
    }
}

/// Measures all that the rows need, spread over rayon's threads; the result does not depend on how many there are. `observer`
/// hears of each step, from several threads.
///
/// # Errors
///
/// [`LabError`] where a run cannot be made.
pub fn measure(
    effort: Effort,
    machine: &MachineSpec,
    threads: Option<NonZeroUsize>,
    observer: &(dyn Fn(Done) + Sync),
) -> Result<Vec<PublishedRow>, LabError> {
    let tasks = plain_tasks();
    let of = tasks.len() + 1 + Own::STEPS;
    let told = |what: &str| observer(Done { what: what.to_owned(), of });
    on_threads(threads, tasks.len(), || {
        let one = |task: &Task| {
            let made = task.run(effort, machine);
            told(task.workload);
            made
        };
        let fair: Result<Vec<_>, LabError> = tasks.par_iter().with_max_len(1).map(one).collect();
        let nested_virt = NestedVirtTable::levels()?;
        let (fair, pvm) = (fair?, pvm()?);
        told("LMbench");
        let own = Own::measure(effort, machine, &told)?;
        Ok(rows(&Sources { effort, fair: &fair, pvm: &pvm, nested_virt: &nested_virt, own: &own }))
    })?
}

/// The number of every row, known before anything is measured: a wrong one is refused at once.
pub const ROW_IDS: &[&str] = &[
    "S1.1", "S1.2", "S1.3", "S1.4", "S1.5", "S1.6", "S1.7", "S1.8", "S1.9", "S1.10", "S1.11", "S1.12", "S1.13",
    "S1.14", "S1.15", "S1.16", "S1.17", "S1.18", "S1.19", "S1.20", "S1.21", "P2", "P3", "P4", "P5", "P1 off", "P1 on",
    "P6", "P7", "P8", "P9", "P10", "P11", "P12", "P20", "K8", "K10", "K11", "K12", "K13", "K15", "K16", "K19", "K24",
    "W9", "W10", "W15", "F2", "F4", "S4.1", "S4.2", "S4.3", "S4.4", "S4.5", "S4.6", "S5.1", "S5.2", "S5.3", "S5.4",
    "S5.5", "S5.6", "S6.1", "S6.2", "S6.3", "S6.4", "S6.5", "S6.6", "S6.7", "S7.1", "S7.2", "S7.3", "S7.4", "S7.5",
];

/// Every published figure, by section.
///
/// # Panics
///
/// With debug assertions, where a row's number does not stand in [`ROW_IDS`] or one of these has no row.
#[must_use]
pub fn rows(sources: &Sources<'_>) -> Vec<PublishedRow> {
    let mut all = walks::references(sources.own);
    all.extend(inputs::pvm_inputs());
    all.extend(sources.pvm.iter().map(of_pvm));
    all.extend(walks::nested_virt(sources.nested_virt));
    all.extend(compared::rows(sources));
    all.extend(walks::served(sources));
    all.extend(inputs::exit_costs());
    all.extend(inputs::geometry());
    all.extend(inputs::workloads(sources));
    debug_assert!(all.iter().all(|row| ROW_IDS.contains(&row.id.as_str())), "a row that ROW_IDS has not");
    debug_assert!(ROW_IDS.iter().all(|id| all.iter().any(|row| row.id == *id)), "ROW_IDS has what is no row");
    all
}

fn of_pvm(row: &Row) -> PublishedRow {
    PublishedRow {
        id: row.id.to_owned(),
        what: format!("LMbench {}, shadow to EPT", row.what),
        source: PVM,
        published: format!("{} / {} us = {:.2}", row.shadow_us, row.nested_us, row.ratio()),
        measured: format!(
            "{:.2} / {} us = {:.2} ({:+.1} %)",
            row.predicted_us,
            row.nested_us,
            row.predicted_ratio(),
            row.difference_percent()
        ),
        usage: if row.id == "P1 on" { Use::Input } else { row.check },
        agreement: if row.id == "P1 on" { Agreement::Shown } else { Agreement::of(row.holds()) },
        why: row.note.to_owned(),
        command: "memvirt published pvm".to_owned(),
    }
}

const PVM: &str = "Huang et al., PVM, SOSP 2023";
