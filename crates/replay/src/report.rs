//! The result of a replay.

use core::fmt;
use std::collections::BTreeMap;

use memvirt_oracle::{Tally, Violation};

use crate::counters::{Column, Counts};
use crate::recording::Row;

/// What a replay compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Mode {
    /// With the recording: every counter of every row, and what the guest saw.
    Compare,
    /// With the oracle: every translation, value and fault.
    Check,
}

/// A cell that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Mismatch {
    /// The line of the recording, counted from 1.
    pub line: u64,
    /// The number of the operation in its section.
    pub idx: u64,
    /// The operation as recorded.
    pub op: String,
    /// The column.
    pub column: &'static str,
    /// What was recorded.
    pub expected: String,
    /// What the platform did.
    pub got: String,
}

/// The sums of one column over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Total {
    /// The column.
    pub column: &'static str,
    /// As recorded.
    pub expected: i64,
    /// As counted by the platform.
    pub got: i64,
}

/// Something that the oracle refuses, with the row it happened in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct WatchedViolation {
    /// The line of the recording, counted from 1; 0 while booting.
    pub line: u64,
    /// The number of the operation in its section.
    pub idx: u64,
    /// The operation as recorded.
    pub op: String,
    /// What was wrong.
    pub what: String,
}

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Report {
    /// The name of the recording.
    pub file: String,
    /// The name of the platform, where it has one.
    pub platform: String,
    /// The kernel whose KVM was modelled.
    pub kernel: Option<&'static str>,
    /// What the platform was compared with.
    pub mode: Mode,
    /// Fresh machines started.
    pub sections: u64,
    /// Operations replayed.
    pub rows: u64,
    /// Operations announced by the sections; more than `rows` where the recording was cut.
    pub announced_rows: u64,
    /// Rows in which anything differs (`compare`) or anything is refused by the oracle.
    pub mismatching_rows: u64,
    /// Rows that differ only within what the tolerance allows.
    pub tolerated_rows: u64,
    /// How many rows differ in each column that differs anywhere.
    pub mismatching_by_column: BTreeMap<&'static str, u64>,
    /// The first cells that differ.
    pub first_mismatches: Vec<Mismatch>,
    /// The sums of each column; empty under `check`.
    pub totals: Vec<Total>,
    /// VM exits of the platform, markers left out.
    pub exits: u64,
    /// Page faults that the guest saw.
    pub guest_faults: u64,
    /// Whether the oracle watched; without, the counts below are 0.
    pub watched: bool,
    /// Accesses through a stale translation that the architecture permits.
    pub allowed: u64,
    /// Accesses that no hardware could have performed so since the last flush that covers them.
    pub broken: u64,
    /// Page faults without a cause in the guest's current tables.
    pub unjustified_faults: u64,
    /// All that the oracle judged, in all sections.
    pub judged: Tally,
    /// The first violations in full.
    pub violations: Vec<WatchedViolation>,
    /// What is wrong with the recording: what ended the replay early (a malformed line, or a host without memory), or a section
    /// with fewer rows than it announces.
    pub error: Option<String>,
}

impl Report {
    /// What the word means.
    pub const BROKEN: &'static str = "broken: an access through a translation (or with a value, or a permission) that no \
         hardware could have returned since the last flush covering the address; stale but allowed: an older one, not flushed yet";
    /// How many mismatches and violations are kept in full.
    pub const KEPT: usize = 20;

    pub(crate) fn new(file: &str, mode: Mode) -> Self {
        Self {
            file: file.to_owned(),
            platform: String::new(),
            kernel: None,
            mode,
            sections: 0,
            rows: 0,
            announced_rows: 0,
            mismatching_rows: 0,
            tolerated_rows: 0,
            mismatching_by_column: BTreeMap::new(),
            first_mismatches: Vec::new(),
            totals: Vec::new(),
            exits: 0,
            guest_faults: 0,
            watched: false,
            allowed: 0,
            broken: 0,
            unjustified_faults: 0,
            judged: Tally::default(),
            violations: Vec::new(),
            error: None,
        }
    }

    /// Whether nothing differs, nothing was refused by the oracle and the recording was read to its end.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.mismatching_rows == 0 && self.broken == 0 && self.unjustified_faults == 0 && self.error.is_none()
    }

    /// Adds one row to the sums of the columns.
    pub(crate) fn sum(&mut self, expected: &Counts, got: &Counts) {
        if self.totals.is_empty() {
            self.totals = Column::ALL.iter().map(|column| Total { column: column.key(), ..Total::default() }).collect();
        }
        for (column, total) in Column::ALL.iter().zip(&mut self.totals) {
            // Recorded counts are bounded: only the sums of more rows than can be replayed would saturate.
            total.expected = total.expected.saturating_add(expected[*column]);
            total.got = total.got.saturating_add(got[*column]);
        }
    }

    /// Enters what the oracle newly refuses.
    pub(crate) fn tell(&mut self, row: &Row, violations: &[Violation]) {
        let room = Self::KEPT - self.violations.len();
        self.violations.extend(violations.iter().take(room).map(|violation| WatchedViolation {
            line: row.line,
            idx: row.idx,
            op: row.op.to_string(),
            what: violation.to_string(),
        }));
    }

    /// Adds what the oracle found in one section.
    pub(crate) fn add(&mut self, tally: &Tally) {
        self.watched = true;
        self.judged.fresh += tally.fresh;
        self.judged.allowed += tally.allowed;
        self.judged.broken += tally.broken;
        self.judged.faults += tally.faults;
        self.judged.unjustified += tally.unjustified;
        self.allowed = self.judged.allowed;
        self.broken = self.judged.broken;
        self.unjustified_faults = self.judged.unjustified;
    }
}

impl fmt::Display for Report {
    /// For people; the first mismatches in full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, platform, rows, sections, exits, .. } = self;
        writeln!(f, "{file} on {platform}: {rows} rows in {sections} sections, {exits} exits")?;
        if self.announced_rows > self.rows {
            writeln!(f, "note: the recording announces {} rows and ends early", self.announced_rows)?;
        }
        if self.mode == Mode::Compare {
            writeln!(f, "mismatching rows: {}", self.mismatching_rows)?;
            if self.tolerated_rows > 0 {
                writeln!(
                    f,
                    "further rows that differ, but only in flushes and by no more than the tolerance: {}",
                    self.tolerated_rows
                )?;
            }
            for (column, rows) in &self.mismatching_by_column {
                writeln!(f, "  {column}: {rows}")?;
            }
            for mismatch in &self.first_mismatches {
                let Mismatch { line, idx, op, column, expected, got } = mismatch;
                writeln!(f, "  line {line}, row {idx}: {op}: {column}: expected {expected}, got {got}")?;
            }
            writeln!(f, "column: recorded / counted")?;
            for Total { column, expected, got } in &self.totals {
                writeln!(f, "  {column}: {expected} / {got}")?;
            }
        }
        if self.watched {
            let Tally { fresh, faults, .. } = self.judged;
            let Self { allowed, broken, unjustified_faults, .. } = self;
            writeln!(f, "oracle: {fresh} fresh, {allowed} stale but allowed, {broken} broken")?;
            writeln!(f, "oracle: {faults} page faults justified, {unjustified_faults} without cause")?;
            writeln!(f, "{}", Self::BROKEN)?;
        }
        for WatchedViolation { line, idx, op, what } in &self.violations {
            writeln!(f, "  line {line}, row {idx}: {op}: {what}")?;
        }
        self.error.as_ref().map_or(Ok(()), |error| writeln!(f, "error: {error}"))
    }
}
