//! Replaying a recording: row by row against KVM's counters, or under the eyes of the oracle.

use std::io::BufRead;

use memvirt_oracle::{Checked, FaultRule, Tally, Violation};
use memvirt_platform::Platform;

use crate::counters::{Column, Counts, KvmCounters, exits};
use crate::error::RecordingError;
use crate::guest::{Guest, HostOutOfMemory};
use crate::recording::{Item, Recording, Row, Section, Seen};
use crate::report::{Mismatch, Mode, Report};

/// How exactly counters have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tolerance {
    /// Every column of every row.
    Strict,
    /// `tlb_flush` and `remote_req` may differ by one, as is right for kernels since 6.4, whose flush accounting is not
    /// known to the last request.
    Flushes,
}

impl Tolerance {
    const fn permits(self, column: Column, difference: i64) -> bool {
        matches!(self, Self::Flushes) && matches!(column, Column::TlbFlush | Column::RemoteReq) && difference.abs() <= 1
    }
}

/// Whether the oracle watches a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Watch {
    /// It judges every access; a row with a violation differs.
    On,
    /// It does not: counters and results alone are compared, an order of magnitude faster.
    Off,
}

/// Replays `recording` on platforms that count like KVM, and compares every counter of every row, the faults that the guest
/// saw and the values read. `make` makes the platform for each section.
///
/// A recording that is wrong somewhere is replayed up to there; [`Report::error`] then says what is wrong.
pub fn compare<P: KvmCounters>(
    recording: Recording<impl BufRead>,
    tolerance: Tolerance,
    watch: Watch,
    mut make: impl FnMut(&Section) -> P,
) -> Report {
    let judge = Compare { tolerance, before: Counts::default() };
    match watch {
        Watch::On => {
            let checked = |section: &Section| Checked::single(make(section)).with_fault_rule(P::FAULTS);
            run(recording, Mode::Compare, checked, sight, judge)
        }
        Watch::Off => run(recording, Mode::Compare, make, |_| None, judge),
    }
}

/// Replays `recording` on any platform under the eyes of the oracle: every translation, value, store and fault must be one
/// that the architecture permits.
pub fn check<P: Platform>(
    recording: Recording<impl BufRead>,
    rule: FaultRule,
    mut make: impl FnMut(&Section) -> P,
) -> Report {
    let checked = |section: &Section| Checked::single(make(section)).with_fault_rule(rule);
    run(recording, Mode::Check, checked, sight, Nothing)
}

/// What the oracle has found so far.
type Sight<'a> = Option<(&'a Tally, &'a [Violation])>;

fn sight<P: Platform>(platform: &Checked<P>) -> Sight<'_> {
    Some((platform.tally(), platform.violations()))
}

/// What is compared in each row.
trait Judge<P> {
    fn start(&mut self, guest: &Guest<P>);
    /// Returns whether the row differs.
    fn row(&mut self, guest: &Guest<P>, row: &Row, seen: &Seen, report: &mut Report) -> bool;
}

/// Nothing: the oracle judges alone.
struct Nothing;

impl<P> Judge<P> for Nothing {
    fn start(&mut self, _: &Guest<P>) {}

    fn row(&mut self, _: &Guest<P>, _: &Row, _: &Seen, _: &mut Report) -> bool {
        false
    }
}

struct Compare {
    tolerance: Tolerance,
    before: Counts,
}

impl<P: KvmCounters> Judge<P> for Compare {
    fn start(&mut self, guest: &Guest<P>) {
        self.before = guest.platform().counts(guest.ledger());
    }

    fn row(&mut self, guest: &Guest<P>, row: &Row, seen: &Seen, report: &mut Report) -> bool {
        let now = guest.platform().counts(guest.ledger());
        let got = now - self.before;
        self.before = now;
        report.sum(&row.counts, &got);
        let mut tolerated = false;
        let mut differs = results(report, row, seen);
        if got != row.counts {
            for column in Column::ALL {
                let (expected, got) = (row.counts[*column], got[*column]);
                if self.tolerance.permits(*column, got - expected) {
                    tolerated |= got != expected;
                } else if got != expected {
                    differs = true;
                    mismatch(report, row, column.key(), expected.to_string(), got.to_string());
                }
            }
        }
        report.tolerated_rows += u64::from(tolerated && !differs);
        differs
    }
}

/// Compares what the guest saw.
fn results(report: &mut Report, row: &Row, seen: &Seen) -> bool {
    if row.seen == *seen {
        return false;
    }
    if row.seen.faults != seen.faults {
        mismatch(report, row, "guest_pf", row.seen.faults.to_string(), seen.faults.to_string());
    }
    for (name, expected, got) in
        [("ec", row.seen.code, seen.code), ("cr2", row.seen.cr2, seen.cr2), ("rdval", row.seen.value, seen.value)]
    {
        if expected != got {
            mismatch(report, row, name, format!("{expected:x}"), format!("{got:x}"));
        }
    }
    true
}

fn mismatch(report: &mut Report, row: &Row, column: &'static str, expected: String, got: String) {
    *report.mismatching_by_column.entry(column).or_default() += 1;
    if report.first_mismatches.len() < Report::KEPT {
        let op = row.op.to_string();
        report.first_mismatches.push(Mismatch { line: row.line, idx: row.idx, op, column, expected, got });
    }
}

fn run<P: Platform>(
    recording: Recording<impl BufRead>,
    mode: Mode,
    mut make: impl FnMut(&Section) -> P,
    sight: impl Fn(&P) -> Sight<'_>,
    mut judge: impl Judge<P>,
) -> Report {
    let mut report = Report::new(recording.file(), mode);
    let mut current: Option<Booted<P>> = None;
    let (mut open, mut short) = (None, None);
    for item in recording {
        let step = match (item, &mut current) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(Item::Section(section)), _) => {
                if let Some(done) = current.take() {
                    done.close(&sight, &mut report);
                }
                short = short.or(missing(open.replace((section, report.rows)), &report));
                report.sections += 1;
                report.announced_rows = report.announced_rows.saturating_add(section.announced);
                let booted = Booted::start(&section, make(&section), &mut judge);
                booted.map(|booted| current = Some(booted)).map_err(|error| error.to_string())
            }
            (Ok(Item::Row(row)), Some(booted)) => booted.row(&row, &sight, &mut judge, &mut report),
            // The reader refuses a row before the first section.
            (Ok(Item::Row(_)), None) => Ok(()),
        };
        if let Err(error) = step {
            report.error = Some(error);
            break;
        }
    }
    if let Some(done) = current.take() {
        done.close(&sight, &mut report);
    }
    let wrong = if report.rows == 0 {
        Some(RecordingError::Empty { file: report.file.clone() })
    } else {
        short.or(missing(open, &report))
    };
    report.error = report.error.take().or(wrong.map(|error| error.to_string()));
    report
}

/// What is wrong with a section that is over and began at a certain row of the recording: that it had fewer rows than announced.
/// Sections after it are replayed all the same, they start afresh.
fn missing(section: Option<(Section, u64)>, report: &Report) -> Option<RecordingError> {
    let (Section { line, announced, .. }, before) = section?;
    let rows = report.rows - before;
    (rows < announced).then(|| RecordingError::Short { file: report.file.clone(), line, announced, rows })
}

/// A guest that runs the rows of one section.
struct Booted<P> {
    guest: Guest<P>,
    /// Exits while booting.
    exits: u64,
    /// How many violations the report has been told.
    told: usize,
    /// How many violations there were.
    violations: u64,
}

impl<P: Platform> Booted<P> {
    fn start(section: &Section, platform: P, judge: &mut impl Judge<P>) -> Result<Self, HostOutOfMemory> {
        let guest = Guest::boot(platform, section.sequence)?;
        judge.start(&guest);
        let exits = exits(guest.ledger());
        Ok(Self { guest, exits, told: 0, violations: 0 })
    }

    fn row(
        &mut self,
        row: &Row,
        sight: &impl Fn(&P) -> Sight<'_>,
        judge: &mut impl Judge<P>,
        report: &mut Report,
    ) -> Result<(), String> {
        let seen = self.guest.execute(&row.op).map_err(|error| error.to_string())?;
        report.rows += 1;
        report.guest_faults += seen.faults;
        let mut differs = judge.row(&self.guest, row, &seen, report);
        if let Some((tally, violations)) = sight(self.guest.platform()) {
            differs |= tally.violations() > self.violations;
            self.violations = tally.violations();
            report.tell(row, &violations[self.told..]);
            self.told = violations.len();
        }
        report.mismatching_rows += u64::from(differs);
        Ok(())
    }

    fn close(self, sight: &impl Fn(&P) -> Sight<'_>, report: &mut Report) {
        report.exits += exits(self.guest.ledger()) - self.exits;
        if let Some((tally, _)) = sight(self.guest.platform()) {
            report.add(tally);
        }
    }
}
