//! Replaying a recording: row by row against KVM's counters, or under the eyes of the oracle.

use std::io::BufRead;

use memvirt_oracle::Checked;
use memvirt_platform::Platform;

use crate::counters::{Column, Counts, KvmCounters, exits};
use crate::guest::Guest;
use crate::recording::{Item, Recording, Row, Section, Seen};
use crate::report::{Mismatch, Mode, Report, Total, WatchedViolation};

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

/// Replays `recording` on platforms that count like KVM, and compares every counter of every row, the faults that the guest
/// saw and the values read. `make` makes the platform for each section; the oracle watches it.
///
/// A recording that is wrong somewhere is replayed up to there; [`Report::error`] then says what is wrong.
pub fn compare<P: KvmCounters>(
    recording: Recording<impl BufRead>,
    tolerance: Tolerance,
    make: impl FnMut(&Section) -> P,
) -> Report {
    let judge = Compare { tolerance, before: Counts::default() };
    run(recording, Mode::Compare, make, judge)
}

/// Replays `recording` on any platform under the eyes of the oracle: every translation, value, store and fault must be one
/// that the architecture permits.
pub fn check<P: Platform>(recording: Recording<impl BufRead>, make: impl FnMut(&Section) -> P) -> Report {
    run(recording, Mode::Check, make, Watch)
}

/// What is done with the rows beside watching them.
trait Judge<P> {
    fn start(&mut self, guest: &Guest<Checked<P>>);
    /// Returns whether the row differs.
    fn row(&mut self, guest: &Guest<Checked<P>>, row: &Row, seen: &Seen, report: &mut Report) -> bool;
}

struct Watch;

impl<P> Judge<P> for Watch {
    fn start(&mut self, _: &Guest<Checked<P>>) {}

    fn row(&mut self, _: &Guest<Checked<P>>, _: &Row, _: &Seen, _: &mut Report) -> bool {
        false
    }
}

struct Compare {
    tolerance: Tolerance,
    before: Counts,
}

impl<P: KvmCounters> Judge<P> for Compare {
    fn start(&mut self, guest: &Guest<Checked<P>>) {
        self.before = guest.platform().counts(guest.ledger());
    }

    fn row(&mut self, guest: &Guest<Checked<P>>, row: &Row, seen: &Seen, report: &mut Report) -> bool {
        let now = guest.platform().counts(guest.ledger());
        let got = now - self.before;
        self.before = now;
        let (mut differs, mut tolerated) = (false, false);
        for column in Column::ALL {
            let (expected, got) = (row.counts[*column], got[*column]);
            let total = report.totals.entry(column.key()).or_default();
            *total = Total { expected: total.expected + expected, got: total.got + got };
            if self.tolerance.permits(*column, got - expected) {
                tolerated |= got != expected;
            } else if got != expected {
                differs = true;
                mismatch(report, row, column.key(), expected.to_string(), got.to_string());
            }
        }
        differs |= results(report, row, seen);
        report.tolerated_rows += u64::from(tolerated && !differs);
        differs
    }
}

/// Compares what the guest saw.
fn results(report: &mut Report, row: &Row, seen: &Seen) -> bool {
    let mut differs = false;
    if row.seen.faults != seen.faults {
        differs = true;
        mismatch(report, row, "guest_pf", row.seen.faults.to_string(), seen.faults.to_string());
    }
    for (name, expected, got) in
        [("ec", row.seen.code, seen.code), ("cr2", row.seen.cr2, seen.cr2), ("rdval", row.seen.value, seen.value)]
    {
        if expected != got {
            differs = true;
            mismatch(report, row, name, format!("{expected:x}"), format!("{got:x}"));
        }
    }
    differs
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
    mut judge: impl Judge<P>,
) -> Report {
    let mut report = Report::new(recording.file(), mode);
    let mut guest: Option<Watched<P>> = None;
    for item in recording {
        let step = match (item, &mut guest) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(Item::Section(section)), _) => {
                if let Some(done) = guest.take() {
                    done.close(&mut report);
                }
                start(&section, make(&section), &mut judge, &mut report).map(|started| guest = Some(started))
            }
            // A row cannot come before a section: the reader refuses it.
            (Ok(Item::Row(_)), None) => Ok(()),
            (Ok(Item::Row(row)), Some(guest)) => guest.row(&row, &mut judge, &mut report),
        };
        if let Err(error) = step {
            report.error = Some(error);
            break;
        }
    }
    if let Some(done) = guest.take() {
        done.close(&mut report);
    }
    if report.rows == 0 && report.error.is_none() {
        let file = report.file.clone();
        report.error = Some(crate::RecordingError::Empty { file }.to_string());
    }
    report
}

fn start<P: Platform>(
    section: &Section,
    platform: P,
    judge: &mut impl Judge<P>,
    report: &mut Report,
) -> Result<Watched<P>, String> {
    report.sections += 1;
    report.announced_rows += section.announced;
    let guest = Guest::boot(Checked::single(platform), section.sequence).map_err(|error| error.to_string())?;
    judge.start(&guest);
    let booted = exits(guest.ledger());
    Ok(Watched { guest, booted, told: 0 })
}

/// A guest with the oracle beside its platform.
struct Watched<P> {
    guest: Guest<Checked<P>>,
    /// Exits while booting.
    booted: u64,
    /// How many violations the report has.
    told: usize,
}

impl<P: Platform> Watched<P> {
    fn row(&mut self, row: &Row, judge: &mut impl Judge<P>, report: &mut Report) -> Result<(), String> {
        let before = self.guest.platform().tally().violations();
        let seen = self.guest.execute(&row.op).map_err(|error| error.to_string())?;
        report.rows += 1;
        report.guest_faults += seen.faults;
        let differs = judge.row(&self.guest, row, &seen, report);
        let refused = self.guest.platform().tally().violations() > before;
        report.mismatching_rows += u64::from(differs || refused);
        let violations = self.guest.platform().violations();
        for violation in &violations[self.told..] {
            if report.violations.len() < Report::KEPT {
                let (op, what) = (row.op.to_string(), violation.to_string());
                report.violations.push(WatchedViolation { line: row.line, idx: row.idx, op, what });
            }
        }
        self.told = violations.len();
        Ok(())
    }

    fn close(self, report: &mut Report) {
        report.exits += exits(self.guest.ledger()) - self.booted;
        report.add(self.guest.platform().tally());
    }
}
