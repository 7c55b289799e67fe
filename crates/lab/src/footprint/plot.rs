//! The figures of a footprint: bytes against processes with what the model says, and bytes over time.

use std::fs;
use std::path::Path;

use super::{FootprintTable, Row};
use crate::error::LabError;
use crate::report::Figure;
use crate::report::chart::{Bar, Chart, Panel, Scale};
use crate::report::paint::Ink;
use crate::report::xy::{Axis, Mark, Plot, Series, Spacing};
use crate::report::{column, write, write_figures};
use crate::text::{bytes, short};

/// Kinds of bytes, as [`Bytes::kinds`](super::Bytes::kinds) gives them.
const KINDS: [(Ink, &str); 5] = [
    (Ink::Blue, "guest tables"),
    (Ink::Purple, "shadow tables"),
    (Ink::Vermillion, "nested tables"),
    (Ink::Orange, "reverse map"),
    (Ink::Grey, "records"),
];

const INKS: [Ink; 6] = [Ink::Blue, Ink::Vermillion, Ink::Green, Ink::Purple, Ink::Orange, Ink::Grey];

impl FootprintTable {
    /// Writes into the folder `dir`, which is made where it does not exist: `footprint.json`, `footprint.csv`, `processes.csv`,
    /// `series.csv`, and the figures as SVG with their data.
    ///
    /// # Errors
    ///
    /// [`LabError::Write`] where the folder or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), LabError> {
        fs::create_dir_all(dir).map_err(|source| LabError::Write { path: dir.to_owned(), source })?;
        write(&dir.join("footprint.json"), &self.to_json()?)?;
        write(&dir.join("footprint.csv"), &self.to_csv())?;
        write(&dir.join("processes.csv"), &self.processes_csv())?;
        write(&dir.join("series.csv"), &self.series_csv())?;
        write_figures(dir, &[self.against_processes()?, self.by_kind()?, self.over_time()?])
    }

    /// Rows by regime, in the order of the regimes.
    fn by_regime(&self) -> Vec<(String, Vec<&Row>)> {
        let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            match groups.last_mut().filter(|(name, _)| *name == row.regime.name()) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((row.regime.to_string(), vec![row])),
            }
        }
        groups
    }

    pub(crate) fn against_processes(&self) -> Result<Figure, LabError> {
        let mut series = Vec::new();
        for ((name, rows), ink) in self.by_regime().into_iter().zip(INKS.into_iter().cycle()) {
            let measured = rows.iter().map(|row| (f64::from(row.processes), float(row.measured.end.total()))).collect();
            series.push(Series::new(ink, format!("{name}, counted"), Mark::Dots, measured));
            let predicted: Vec<_> =
                rows.iter().filter_map(|row| Some((f64::from(row.processes), float(row.predicted?.total())))).collect();
            if !predicted.is_empty() {
                series.push(Series::new(ink, format!("{name}, predicted"), Mark::Line, predicted));
            }
        }
        let plot =
            Plot { x: axis("processes", Spacing::Powers2, |n| short(whole(n))), y: of_bytes(Spacing::Powers2), series };
        let header = ["regime", "processes", "counted_bytes", "predicted_bytes"].map(str::to_owned).to_vec();
        let cells = |row: &Row| {
            let predicted = row.predicted.map_or_else(String::new, |predicted| predicted.total().to_string());
            vec![row.regime.to_string(), row.processes.to_string(), row.measured.end.total().to_string(), predicted]
        };
        let caption = format!(
            "Bytes of all page tables and of what the hypervisor keeps beside them, {} mapped by each process: counted at the end \
             of the run, and predicted.",
            bytes(self.footprint_bytes)
        );
        let rows = self.rows.iter().map(cells).collect();
        Figure::new("footprint-processes", "Page tables against processes", caption, (header, rows), plot)
    }

    /// What there is at the peak, by kind: a panel for each number of processes.
    pub(crate) fn by_kind(&self) -> Result<Figure, LabError> {
        let mut numbers: Vec<u32> = self.rows.iter().map(|row| row.processes).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let bar = |row: &Row| Bar {
            label: row.regime.to_string(),
            parts: KINDS.iter().map(|(ink, _)| *ink).zip(row.measured.peak.bytes.kinds().map(float)).collect(),
            value: bytes(row.measured.peak.bytes.total()),
        };
        let panel = |number: &u32| Panel {
            heading: Some(format!("{number} {}", if *number == 1 { "process" } else { "processes" })),
            bars: self.rows.iter().filter(|row| row.processes == *number).map(bar).collect(),
        };
        let chart = Chart {
            axis: "bytes",
            scale: Scale::Binary,
            tick: |x| bytes(whole(x)),
            legend: KINDS.to_vec(),
            panels: numbers.iter().map(panel).collect(),
            marks: Vec::new(),
        };
        let header = ["regime", "processes"]
            .map(str::to_owned)
            .into_iter()
            .chain(KINDS.map(|(_, name)| column(name, "bytes")))
            .collect();
        let cells = |row: &Row| {
            let head = [row.regime.to_string(), row.processes.to_string()];
            head.into_iter().chain(row.measured.peak.bytes.kinds().map(|n| n.to_string())).collect()
        };
        let caption = format!(
            "Bytes by kind where their sum was largest, {} mapped by each process: the guest's own tables, and what the hypervisor adds.",
            bytes(self.footprint_bytes)
        );
        let rows = self.rows.iter().map(cells).collect();
        Figure::new("footprint-kinds", "Page tables by kind", caption, (header, rows), chart)
    }

    /// The rows with the most processes over time.
    pub(crate) fn over_time(&self) -> Result<Figure, LabError> {
        let most = self.rows.iter().map(|row| row.processes).max().unwrap_or(0);
        let shown = self.rows.iter().filter(|row| row.processes == most);
        let series = shown.clone().zip(INKS.into_iter().cycle()).map(|(row, ink)| {
            let points = row.measured.series.iter().map(|at| (float(at.accesses), float(at.bytes.total()))).collect();
            Series::new(ink, row.regime.to_string(), Mark::Line, points)
        });
        let time = axis("accesses of processes", Spacing::Linear, |n| short(whole(n)));
        let plot = Plot { x: time, y: of_bytes(Spacing::Linear), series: series.collect() };
        let names = ["regime", "accesses", "all_bytes"].map(str::to_owned);
        let header = names.into_iter().chain(KINDS.map(|(_, name)| column(name, "bytes"))).collect();
        let rows = shown.flat_map(|row| {
            row.measured.series.iter().map(|at| {
                let numbers = [at.accesses, at.bytes.total()].into_iter().chain(at.bytes.kinds());
                std::iter::once(row.regime.to_string()).chain(numbers.map(|n| n.to_string())).collect()
            })
        });
        let caption = format!("Bytes of all page tables and records along the run, workload {}.", self.workload);
        Figure::new("footprint-time", "Page tables over time", caption, (header, rows.collect()), plot)
    }
}

fn axis(name: &str, spacing: Spacing, tick: fn(f64) -> String) -> Axis {
    Axis { name: name.to_owned(), spacing, tick }
}

fn of_bytes(spacing: Spacing) -> Axis {
    axis("bytes of page tables and records", spacing, |n| bytes(whole(n)))
}

#[expect(clippy::cast_precision_loss, reason = "a place on an axis")]
const fn float(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ticks are whole and not negative")]
const fn whole(n: f64) -> u64 {
    n as u64
}
