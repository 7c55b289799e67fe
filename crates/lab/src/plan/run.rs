//! A plan carried out: what the table lacks is run, side by side; what it holds is kept.
//!
//! While it runs, finished rows are appended to a journal beside the table (`NAME.csv.part`), each by one write, in the order in
//! which they finish. At the end the table is written in the order of the grid, moved into place as a whole, and the journal
//! removed. Whatever interrupts a plan leaves the rows that were finished; a line half written is dropped on reading.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use memvirt_machine::Outcome;
use rayon::prelude::*;

use super::point::Point;
use super::table::{Layout, Row, Table, inputs};
use super::{Plan, PlanError, Size};
use crate::table::csv_line;
use crate::threads::on_threads;

/// A plan about to be carried out.
#[derive(Clone, Debug)]
pub struct PlanRun<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// All of it, or its short form.
    pub size: Size,
    /// The folder of the table.
    pub dir: &'a Path,
    /// Which program runs it: rows of another one are not kept.
    pub version: &'a str,
    /// Threads; as many as the computer has processors where `None`.
    pub threads: Option<NonZeroUsize>,
}

/// How far a plan has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanProgress {
    /// Rows that the table has, those kept included.
    pub done: usize,
    /// Rows that it shall have.
    pub total: usize,
    /// The command that finished last.
    pub last: String,
}

/// What is about to be run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlook {
    /// Rows that the table has already.
    pub kept: usize,
    /// Runs to be made.
    pub runs: usize,
    /// About so many seconds of one processor that they take.
    pub seconds: f64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct PlanDone {
    /// The file.
    pub path: PathBuf,
    /// The table.
    pub table: Table,
    /// Rows that were there already.
    pub kept: usize,
    /// Runs made.
    pub ran: usize,
}

impl PlanDone {
    /// Runs that did not come to the end of their input, and how they ended.
    pub fn unfinished(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let completed = serde_json::to_value(Outcome::Completed).ok();
        self.table.rows.iter().filter_map(move |row| {
            let outcome = self.table.cell(row, "outcome")?;
            let fine = completed.as_ref().and_then(serde_json::Value::as_str) == Some(outcome.as_str());
            (!fine).then(|| (row.cells[0].clone(), outcome))
        })
    }

    /// Runs in which the oracle found translations that no hardware could have given, and how many.
    pub fn broken(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.table.rows.iter().filter_map(|row| {
            let broken = self.table.cell(row, "stale.broken")?;
            (broken != "0").then(|| (row.cells[0].clone(), broken))
        })
    }
}

/// A run and what tells its row from those of other inputs.
struct Task {
    point: Point,
    inputs: String,
}

impl Task {
    fn key(&self) -> (String, String) {
        (self.point.command(), self.inputs.clone())
    }
}

impl PlanRun<'_> {
    /// The table's file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let quick = if self.size == Size::Quick { "-quick" } else { "" };
        self.dir.join(format!("{}{quick}.csv", self.plan.name()))
    }

    /// Runs what is missing and writes the table. `before` hears what is to be run, `observer` of each finished run, from several
    /// threads.
    ///
    /// # Errors
    ///
    /// Where an input cannot be read at all, or the table cannot be written. Rows finished by then are kept for the next time.
    pub fn run(
        &self,
        before: &dyn Fn(Outlook),
        observer: &(dyn Fn(PlanProgress) + Sync),
    ) -> Result<PlanDone, PlanError> {
        let points = self.plan.points(self.size)?;
        let fail = |command: String| move |source| PlanError::Run { command, source };
        let layout = Layout::of(&points, self.version).map_err(fail(self.plan.name().to_owned()))?;
        let tasks = points.into_iter().map(|point| {
            let inputs = inputs(&point).map_err(fail(point.command()))?;
            Ok(Task { point, inputs })
        });
        let tasks = tasks.collect::<Result<Vec<Task>, PlanError>>()?;
        let (path, journal) = (self.path(), self.path().with_extension("csv.part"));
        let mut have = BTreeMap::new();
        for file in [&path, &journal] {
            if file.exists() {
                let table = Table::load(file)?;
                let empty = fs::metadata(file).is_ok_and(|file| file.len() == 0);
                if file == &path && !empty && !table.is_of_a_plan() {
                    return Err(PlanError::Foreign { path: path.clone() });
                }
                have.extend(layout.kept(table));
            }
        }
        let missing: Vec<&Task> = tasks.iter().filter(|task| !have.contains_key(&task.key())).collect();
        let kept = tasks.len() - missing.len();
        let seconds = missing.iter().map(|task| task.point.expected_seconds()).sum();
        before(Outlook { kept, runs: missing.len(), seconds });
        if !missing.is_empty() {
            let known = tasks.iter().filter_map(|task| have.get(&task.key())).collect::<Vec<_>>();
            let journal = Journal::begin(self.dir, &journal, &layout.columns, &known)?;
            let finished = AtomicUsize::new(kept);
            let one = |task: &&Task| -> Result<((String, String), Row), PlanError> {
                let row = carry_out(&layout, task)?;
                journal.append(&row)?;
                let done = finished.fetch_add(1, Ordering::Relaxed) + 1;
                observer(PlanProgress { done, total: tasks.len(), last: task.point.command() });
                Ok((task.key(), row))
            };
            let all = || missing.par_iter().with_max_len(1).map(one).collect::<Result<Vec<_>, _>>();
            have.extend(on_threads(self.threads, missing.len(), all).map_err(PlanError::Threads)??);
        }
        let rows = tasks.iter().filter_map(|task| have.remove(&task.key())).collect();
        let table = Table { columns: layout.columns, rows };
        replace(self.dir, &path, &table.to_csv())?;
        if journal.exists() {
            fs::remove_file(&journal).map_err(|source| PlanError::Table { what: "remove", path: journal, source })?;
        }
        Ok(PlanDone { path, table, kept, ran: missing.len() })
    }
}

impl Plan {
    /// Runs every point, spread over rayon's threads, and keeps nothing on disk.
    ///
    /// # Errors
    ///
    /// Where there is no such form of the plan, or an input cannot be read at all.
    pub fn measure(&self, size: Size) -> Result<Table, PlanError> {
        let points = self.points(size)?;
        let fail = |command: String| move |source| PlanError::Run { command, source };
        let layout = Layout::of(&points, "").map_err(fail(self.name().to_owned()))?;
        let row = |point: Point| carry_out(&layout, &Task { point, inputs: String::new() });
        let rows = points.into_par_iter().with_max_len(1).map(row).collect::<Result<Vec<_>, _>>()?;
        Ok(Table { columns: layout.columns, rows })
    }
}

fn carry_out(layout: &Layout, task: &Task) -> Result<Row, PlanError> {
    let failed = |source| PlanError::Run { command: task.point.command(), source };
    let done = task.point.run().map_err(failed)?;
    layout.row(&task.point, &task.inputs, &done)
}

/// Finished rows on their way into the table.
struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    fn begin(dir: &Path, path: &Path, columns: &[String], known: &[&Row]) -> Result<Self, PlanError> {
        let mut text = String::new();
        csv_line(&mut text, columns.iter());
        known.iter().for_each(|row| csv_line(&mut text, row.cells.iter()));
        replace(dir, path, &text)?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|source| PlanError::Table { what: "open", path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    fn append(&self, row: &Row) -> Result<(), PlanError> {
        let mut line = String::new();
        csv_line(&mut line, row.cells.iter());
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written = file.write_all(line.as_bytes());
        written.map_err(|source| PlanError::Table { what: "write", path: self.path.clone(), source })
    }
}

/// Writes a file as a whole: whoever looks sees the old one or the new one.
fn replace(dir: &Path, path: &Path, text: &str) -> Result<(), PlanError> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(&new, text)?;
        fs::rename(&new, path)
    };
    write().map_err(|source| PlanError::Table { what: "write", path: path.to_owned(), source })
}
