//! One page fault of a nested guest, counted, beside what was published; what else makes the counts other than that; and other
//! events.
//!
//! The counts come from `memvirt-nestedvirt`, which knows no formula. The published closed forms stand here ([`Published::of`]) and
//! are only compared with. Source: Huang et al., *PVM: Efficient Shadow Paging for Deploying Secure Containers in Cloud-native
//! Environment*, SOSP 2023, sections 2.2 and 3.3.2.
//!
//! ```
//! use memvirt_lab::nested_virt::NestedVirtTable;
//! use memvirt_nestedvirt::Arrangement;
//!
//! let table = NestedVirtTable::measure(&[Arrangement::EptOnEpt], 4..=4).unwrap();
//! assert_eq!((table.faults[0].world_switches, table.faults[0].l0_exits), (14, 7));
//! assert_eq!(table.differences, 0);
//! ```

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

pub use memvirt_nestedvirt::Arrangement;
use memvirt_nestedvirt::scenario::{Fault, Happening, Nested01State, Spec, happening, one_fault};
use memvirt_nestedvirt::{Cause, Config, Counts, Flushes, Linking, OnStore, StepKind, Who};
use serde::Serialize;

use crate::error::LabError;
use crate::table::csv_line;

/// The measured table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NestedVirtTable {
    /// `memvirt/nested-virt/1`.
    pub schema: &'static str,
    /// One fault in the published case.
    pub faults: Vec<FaultRow>,
    /// The same with one presupposition of the published counts changed.
    pub variants: Vec<VariantRow>,
    /// Other events, in the published case.
    pub events: Vec<EventRow>,
    /// Rows of `faults` that are not as published.
    pub differences: usize,
}

/// A pair of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// World switches.
    pub world_switches: u64,
    /// L0 exits.
    pub l0_exits: u64,
}

impl Published {
    /// The closed forms for `n` levels: published-results P20.
    #[must_use]
    pub const fn of(arrangement: Arrangement, n: u64) -> Self {
        let (world_switches, l0_exits) = match arrangement {
            Arrangement::ShadowOnEpt => (4 * n + 8, 2 * n + 4),
            Arrangement::EptOnEpt => (2 * n + 6, n + 3),
            Arrangement::Pvm => (2 * n + 4, 0),
        };
        Self { world_switches, l0_exits }
    }

    /// The closed forms as they are written.
    #[must_use]
    pub const fn formula(arrangement: Arrangement) -> &'static str {
        match arrangement {
            Arrangement::ShadowOnEpt => "4n+8 / 2n+4",
            Arrangement::EptOnEpt => "2n+6 / n+3",
            Arrangement::Pvm => "2n+4 / 0",
        }
    }
}

/// One fault under one arrangement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultRow {
    /// The arrangement.
    pub arrangement: &'static str,
    /// The levels of L2's tables, and of EPT12.
    pub levels: u8,
    /// Changes of who runs.
    pub world_switches: u64,
    /// Entries into L0.
    pub l0_exits: u64,
    /// What was published.
    pub published: Published,
    /// Whether both agree.
    pub agrees: bool,
    /// World switches by who ran and who runs then, as in `L2-L0`.
    pub switches: BTreeMap<String, u64>,
    /// Entries into L0 by cause.
    pub exits: BTreeMap<&'static str, u64>,
    /// The references of one cold hardware walk for the page after the fault.
    pub walk_references: u64,
    /// Everything that happened, in order.
    pub steps: Vec<StepRow>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepRow {
    /// Who ran.
    pub who: String,
    /// Who runs from then on, where that changes.
    pub to: Option<String>,
    /// The key of the cause, where that changes.
    pub cause: Option<&'static str>,
    /// In words.
    pub what: String,
}

/// One fault with one presupposition changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VariantRow {
    /// The stable key of what is changed.
    pub variant: &'static str,
    /// What is changed, and why that changes the counts.
    pub about: &'static str,
    /// The arrangement.
    pub arrangement: &'static str,
    /// The levels of L2's tables.
    pub levels: u8,
    /// Changes of who runs.
    pub world_switches: u64,
    /// Entries into L0.
    pub l0_exits: u64,
}

/// Another event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// The stable key.
    pub event: &'static str,
    /// In words.
    pub about: &'static str,
    /// The arrangement.
    pub arrangement: &'static str,
    /// The levels of L2's tables.
    pub levels: u8,
    /// Changes of who runs.
    pub world_switches: u64,
    /// Entries into L0.
    pub l0_exits: u64,
}

/// A presupposition of the published counts, changed.
type Variant = (&'static str, &'static str, fn(Spec) -> Spec);

const VARIANTS: [Variant; 5] = [
    (
        "lazy",
        "tables are followed once a fault fills a translation through them, as KVM does: of n stores one traps",
        |spec| Spec { config: Config { linking: Linking::Lazy, ..spec.config }, ..spec },
    ),
    ("propagate", "the trapped store of the leaf fills the merged leaf too: the second fault does not come", |spec| {
        Spec { config: Config { on_store: OnStore::Propagate, ..spec.config }, ..spec }
    }),
    ("invvpid", "L2 has a VPID: L1 flushes by INVVPID, which exits, for each table that it write-protects", |spec| {
        Spec { config: Config { flushes: Flushes::Instruction, ..spec.config }, ..spec }
    }),
    (
        "cold",
        "L0 has not yet backed the frames that L1 takes, one for the data and n-1 for tables: an exit for each",
        |spec| Spec { ept01: Nested01State::Cold, ..spec },
    ),
    ("kvm", "lazy and invvpid together, as in KVM", |spec| Spec { config: Config::KVM, ..spec }),
];

impl NestedVirtTable {
    /// Every arrangement with guests of 2 to 5 levels.
    ///
    /// # Errors
    ///
    /// Never in practice: they all boot.
    pub(crate) fn levels() -> Result<Self, LabError> {
        Self::measure(&Arrangement::ALL, 2..=5)
            .ok_or_else(|| LabError::Walk("a nested guest of 2 to 5 levels did not boot".to_owned()))
    }

    /// Executes the fault, its variants and the other events. `None` where the simulated host is too small, which it is not.
    #[must_use]
    pub fn measure(arrangements: &[Arrangement], levels: RangeInclusive<u8>) -> Option<Self> {
        let specs = levels.flat_map(|levels| arrangements.iter().map(move |which| Spec::published(*which, levels)));
        let specs: Vec<Spec> = specs.collect();
        let faults: Vec<_> = specs.iter().map(FaultRow::measure).collect::<Option<_>>()?;
        let variants = VARIANTS.iter().flat_map(|variant| specs.iter().map(|spec| VariantRow::measure(variant, *spec)));
        let events = Happening::ALL.iter().flat_map(|what| specs.iter().map(|spec| EventRow::measure(*what, spec)));
        let differences = faults.iter().filter(|row| !row.agrees).count();
        let (variants, events) = (variants.collect::<Option<_>>()?, events.collect::<Option<_>>()?);
        Some(Self { schema: "memvirt/nested-virt/1", faults, variants, events, differences })
    }

    /// The table as CSV (RFC 4180, lines ended by a newline): a header, then a line per row. Only the published case has
    /// something to compare with.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        let header = [
            "what",
            "arrangement",
            "levels",
            "world_switches",
            "l0_exits",
            "published_world_switches",
            "published_l0_exits",
            "agrees",
            "walk_references",
        ];
        csv_line(&mut text, header.into_iter());
        for row in &self.faults {
            let numbers = [row.levels.into(), row.world_switches, row.l0_exits];
            let published = [row.published.world_switches, row.published.l0_exits].map(|n| n.to_string());
            let rest = published.into_iter().chain([row.agrees.to_string(), row.walk_references.to_string()]);
            line(&mut text, "fault", row.arrangement, numbers, rest);
        }
        let nothing = || (0..4).map(|_| String::new());
        for row in &self.variants {
            let numbers = [row.levels.into(), row.world_switches, row.l0_exits];
            line(&mut text, &format!("fault, {}", row.variant), row.arrangement, numbers, nothing());
        }
        for row in &self.events {
            let numbers = [row.levels.into(), row.world_switches, row.l0_exits];
            line(&mut text, row.event, row.arrangement, numbers, nothing());
        }
        text
    }
}

fn line(text: &mut String, what: &str, arrangement: &str, numbers: [u64; 3], rest: impl Iterator<Item = String>) {
    let first = [what.to_owned(), arrangement.to_owned()].into_iter();
    csv_line(text, first.chain(numbers.map(|n| n.to_string())).chain(rest));
}

impl FaultRow {
    fn measure(spec: &Spec) -> Option<Self> {
        let Fault { steps, counts, walk } = one_fault(spec)?;
        let (arrangement, levels) = (spec.arrangement, spec.levels);
        let counted = Published { world_switches: counts.world_switches(), l0_exits: counts.l0_exits() };
        let published = Published::of(arrangement, levels.into());
        let steps = steps.into_iter().map(|step| {
            let (to, cause) = match step.kind {
                StepKind::Switch { to, cause } => (Some(to.to_string()), Some(cause.key())),
                StepKind::Act => (None, None),
            };
            StepRow { who: step.who.to_string(), to, cause, what: step.what }
        });
        Some(Self {
            arrangement: arrangement.name(),
            levels,
            world_switches: counted.world_switches,
            l0_exits: counted.l0_exits,
            published,
            agrees: counted == published,
            switches: by_pair(&counts),
            exits: by_cause(&counts),
            walk_references: walk.total(),
            steps: steps.collect(),
        })
    }
}

fn by_pair(counts: &Counts) -> BTreeMap<String, u64> {
    let everybody = [Who::L2, Who::L1, Who::L0];
    let pairs = everybody.iter().flat_map(|from| everybody.iter().map(move |to| (*from, *to)));
    pairs.map(|(from, to)| (format!("{from}-{to}"), counts.switches(from, to))).filter(|(_, n)| *n > 0).collect()
}

fn by_cause(counts: &Counts) -> BTreeMap<&'static str, u64> {
    Cause::ALL.iter().map(|cause| (cause.key(), counts.l0_exits_for(*cause))).filter(|(_, n)| *n > 0).collect()
}

impl VariantRow {
    fn measure((variant, about, change): &Variant, spec: Spec) -> Option<Self> {
        let counts = one_fault(&change(spec))?.counts;
        Some(Self {
            variant,
            about,
            arrangement: spec.arrangement.name(),
            levels: spec.levels,
            world_switches: counts.world_switches(),
            l0_exits: counts.l0_exits(),
        })
    }
}

impl EventRow {
    fn measure(what: Happening, spec: &Spec) -> Option<Self> {
        let counts = happening(spec, what)?;
        Some(Self {
            event: what.key(),
            about: what.about(),
            arrangement: spec.arrangement.name(),
            levels: spec.levels,
            world_switches: counts.world_switches(),
            l0_exits: counts.l0_exits(),
        })
    }
}

#[cfg(test)]
mod tests;
