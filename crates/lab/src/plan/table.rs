//! The table of a plan: a row for each run, every switch and every counter a column; written, and read back to go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use memvirt_machine::{Mode, RegimeKind};

use super::PlanError;
use super::point::Point;
use crate::error::LabError;
use crate::experiment::Done;
use crate::scale::Sharing;
use crate::several::Vcpus;
use crate::table::{csv_line, result_columns};

/// Columns that every table begins with.
const COMMAND: &str = "command";
const VERSION: &str = "version";
const INPUTS: &str = "inputs";

/// A finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The cells, in the order of the table's columns.
    pub cells: Vec<String>,
}

/// A tidy table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Table {
    /// Where a column stands.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The table as CSV (RFC 4180, lines ended by a newline).
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        csv_line(&mut text, self.columns.iter());
        self.rows.iter().for_each(|row| csv_line(&mut text, row.cells.iter()));
        text
    }

    /// The table in a file. A last line without its newline was half written and is dropped; so is a row that has not as many
    /// cells as the header.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let bytes =
            fs::read(path).map_err(|source| PlanError::Table { what: "read", path: path.to_owned(), source })?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// As [`load`](Self::load), of a text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(whole.as_bytes());
        let cells = |record: csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
        let mut records = reader.records().filter_map(Result::ok).map(cells);
        let columns = records.next().unwrap_or_default();
        let rows = records.filter(|cells| cells.len() == columns.len()).map(|cells| Row { cells }).collect();
        Self { columns, rows }
    }

    /// Whether some plan's table begins so: its columns may be those of another version.
    pub(super) fn is_of_a_plan(&self) -> bool {
        self.columns.starts_with(&[COMMAND, VERSION, INPUTS].map(str::to_owned))
    }

    /// A cell, by row and column; nothing where there is no such column.
    #[must_use]
    pub fn cell(&self, row: &Row, column: &str) -> Option<String> {
        row.cells.get(self.column(column)?).cloned()
    }

    /// A cell as a number.
    #[must_use]
    pub fn number(&self, row: &Row, column: &str) -> Option<f64> {
        row.cells.get(self.column(column)?)?.parse().ok()
    }
}

/// Which columns a plan's table has, and how rows are made.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) columns: Vec<String>,
    version: String,
}

impl Layout {
    /// The columns of the runs of `points`: every field that a result can have, whether it occurs or not.
    pub(super) fn of(points: &[Point], version: &str) -> Result<Self, LabError> {
        let mut columns: Vec<String> = [COMMAND, VERSION, INPUTS].map(str::to_owned).to_vec();
        columns.extend(Point::default().cells().into_iter().map(|(name, _)| name.to_owned()));
        let set: BTreeSet<&String> = points.iter().flat_map(|point| point.set.iter().map(|(path, _)| path)).collect();
        columns.extend(set.into_iter().map(|path| format!("set.{path}")));
        let taken: BTreeSet<String> = columns.iter().cloned().collect();
        columns.extend(fullest()?.into_iter().filter(|name| !taken.contains(name)));
        Ok(Self { columns, version: version.to_owned() })
    }

    /// The row of a finished run.
    pub(super) fn row(&self, point: &Point, inputs: &str, done: &Done) -> Result<Row, PlanError> {
        let command = point.command();
        let fail = |source: LabError| PlanError::Run { command: command.clone(), source };
        let result = done.comparison.results.first().ok_or_else(|| fail(LabError::NoRegime))?;
        let value = serde_json::to_value(result).map_err(|error| fail(error.into()))?;
        let mut cells: BTreeMap<String, String> = result_columns(&value).into_iter().collect();
        cells.extend(point.cells().into_iter().map(|(name, value)| (name.to_owned(), value)));
        cells.extend(point.set.iter().map(|(path, value)| (format!("set.{path}"), value.clone())));
        cells.insert(COMMAND.to_owned(), command.clone());
        cells.insert(VERSION.to_owned(), self.version.clone());
        cells.insert(INPUTS.to_owned(), inputs.to_owned());
        let row = self.columns.iter().map(|column| cells.remove(column).unwrap_or_default()).collect();
        match cells.into_keys().next() {
            None => Ok(Row { cells: row }),
            Some(column) => Err(PlanError::Column { command, column }),
        }
    }

    /// The rows of a table of this layout and this version of the program, by what made them; nothing of any other.
    pub(super) fn kept(&self, table: Table) -> BTreeMap<(String, String), Row> {
        if table.columns != self.columns {
            return BTreeMap::new();
        }
        let rows = table.rows.into_iter().filter(|row| row.cells[1] == self.version);
        rows.map(|row| ((row.cells[0].clone(), row.cells[2].clone()), row)).collect()
    }
}

/// The columns of a run that has everything: caches, walk caches, nested hypervisors; and of one on several vCPUs.
fn fullest() -> Result<Vec<String>, LabError> {
    let mut point = Point {
        workload: Some("null-syscall".to_owned()),
        set: vec![("iterations".to_owned(), "1".to_owned())],
        regime: RegimeKind::NestedVirtPvm,
        ..Point::default()
    };
    point.measure.mode = Mode::Cycles;
    point.overrides.walk_caches = Some(true);
    point.overrides.memory_bytes = Some(64 << 20);
    let mut columns = columns_of(&point)?;
    // Threads that unmap: their interrupts are counted only where there are any.
    let several = Point {
        workload: Some("churn".to_owned()),
        set: vec![("operations".to_owned(), "100".to_owned())],
        vcpus: Vcpus { count: 2, sharing: Sharing::Threads },
        ..Point::default()
    };
    // So are switches that keep what a PCID tags.
    let mut tagged = Point { workload: Some("context-switch-2".to_owned()), scale: Some(0.001), ..Point::default() };
    tagged.overrides.pcid = Some(true);
    for point in [several, tagged] {
        let more: Vec<_> = columns_of(&point)?.into_iter().filter(|name| !columns.contains(name)).collect();
        columns.extend(more);
    }
    Ok(columns)
}

fn columns_of(point: &Point) -> Result<Vec<String>, LabError> {
    let done = point.run()?;
    let Some(result) = done.comparison.results.first() else { return Err(LabError::NoRegime) };
    Ok(result_columns(&serde_json::to_value(result)?).into_iter().map(|(name, _)| name).collect())
}

/// What a run depends on beside its command: the contents of the workload and of the machine file, as 16 hexadecimal digits.
pub(super) fn inputs(point: &Point) -> Result<String, LabError> {
    let experiment = point.experiment()?;
    let mut hash = Fnv::default();
    match &experiment.input {
        crate::Input::Workload(workload) => hash.eat(serde_json::to_string(workload)?.as_bytes()),
        crate::Input::Trace(path, _) => hash.eat_tree(path),
    }
    hash.eat(serde_json::to_string(&experiment.machine)?.as_bytes());
    Ok(format!("{:016x}", hash.0))
}

/// Fowler, Noll and Vo's hash: the same on every machine and with every compiler. It tells versions of files apart, and is no
/// protection against malice.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn eat(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }

    /// A file's contents; of a folder the files in it. What cannot be read is left to the run, which says so.
    fn eat_tree(&mut self, path: &Path) {
        if let Ok(entries) = fs::read_dir(path) {
            let mut inside: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
            inside.sort();
            inside.iter().for_each(|path| self.eat_tree(path));
        } else if let Ok(mut file) = fs::File::open(path) {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = io::Read::read(&mut file, &mut buffer) {
                self.eat(&buffer[..read]);
            }
        }
    }
}
