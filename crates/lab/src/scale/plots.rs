//! The figures of a scaling run, and the folder that they are written into with their data.

use std::path::Path;

use memvirt_machine::RegimeKind;

use super::model::Assumptions;
use super::point::{Point, ScaleTable};
use crate::error::LabError;
use crate::report::Figure;
use crate::report::paint::Ink;
use crate::report::xy::{Axis, Mark, Plot, Series, Spacing};
use crate::report::{write, write_figures};

const INKS: [Ink; 6] = [Ink::Blue, Ink::Vermillion, Ink::Green, Ink::Purple, Ink::Orange, Ink::Grey];

impl ScaleTable {
    /// Writes `scale.json`, `scale.csv` and `figures/NAME.svg` with their data into the folder `dir`, which is made where it does
    /// not exist. The same results give the same bytes.
    ///
    /// # Errors
    ///
    /// Where the folder or a file cannot be written.
    pub fn write_to(&self, dir: &Path) -> Result<(), LabError> {
        write_figures(dir, &self.figures()?)?;
        write(&dir.join("scale.json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        write(&dir.join("scale.csv"), &self.to_csv())
    }

    pub(super) fn figures(&self) -> Result<Vec<Figure>, LabError> {
        let mut figures = vec![self.throughput()?, self.errors()?, self.waiting()?];
        if !self.benefits.is_empty() {
            figures.push(self.benefit()?);
        }
        Ok(figures)
    }

    fn lines(&self, name: &str, mark: Mark, value: impl Fn(&Point) -> f64) -> Vec<Series> {
        let line = |(i, regime): (usize, RegimeKind)| {
            let points = self.of(regime).map(|point| (f64::from(point.vcpus), value(point)));
            Series::new(INKS[i % INKS.len()], format!("{regime}{name}"), mark, points.collect())
        };
        self.regimes().into_iter().enumerate().map(line).collect()
    }

    pub(crate) fn throughput(&self) -> Result<Figure, LabError> {
        let mut series = self.lines("", Mark::Dots, |point| point.efficiency);
        // One entry of the legend for each regime: the caption says what lines are.
        series.extend(unnamed(self.lines("", Mark::Dashed, |point| point.mva.efficiency)));
        if !self.usl.is_empty() {
            series.extend(unnamed(self.lines("", Mark::Line, fitted)));
        }
        let plot = Plot { x: vcpus(), y: axis("throughput of a vCPU, relative to one alone", percent), series };
        let rows = self.points.iter().map(|point| {
            let fixed = |x: f64| format!("{x:.6}");
            let shown = [point.throughput, point.efficiency, point.mva.efficiency, fitted(point)].map(fixed);
            [point.regime.to_string(), point.vcpus.to_string()].into_iter().chain(shown).collect()
        });
        let header =
            ["regime", "vcpus", "accesses_per_million_cycles", "efficiency_share", "predicted_share", "fitted_share"];
        let caption = format!(
            "{}: accesses by processes in a vCPU's time, relative to a run with one vCPU. Dots: measured. Dashed: mean-value analysis of \
             vCPUs and one lock, fed from the run with one vCPU alone. Lines: the law of scalability, fitted to the dots.",
            self.workload
        );
        let table = (header.map(str::to_owned).to_vec(), rows.collect());
        Figure::new("throughput", "Throughput of a vCPU", caption, table, plot)
    }

    pub(crate) fn errors(&self) -> Result<Figure, LabError> {
        let mut series = self.lines("", Mark::DottedLine, |point| point.mva_error);
        if !self.usl.is_empty() {
            series.extend(unnamed(self.lines("", Mark::Dashed, |point| point.usl_error.unwrap_or(0.0))));
        }
        let plot = Plot { x: vcpus(), y: axis("error of the throughput", percent), series };
        let rows = self.points.iter().map(|point| {
            let fit = point.usl_error.map(|error| format!("{error:.6}")).unwrap_or_default();
            let what = [point.regime.to_string(), point.vcpus.to_string()];
            let shown = [format!("{:.6}", point.mva_error), point.assumptions.name().to_owned(), fit];
            what.into_iter().chain(shown).collect()
        });
        let header = ["regime", "vcpus", "predicted_error_share", "assumptions", "fitted_error_share"];
        let header = header.map(str::to_owned).to_vec();
        let caption = format!(
            "{}: predicted less measured throughput as a share of it (dots), and fitted less measured (dashed). {}",
            self.workload,
            self.misses()
        );
        Figure::new("errors", "Errors of prediction and fit", caption, (header, rows.collect()), plot)
    }

    /// How wrong the analysis is with several vCPUs: with one it is fed what it is asked.
    pub(super) fn misses(&self) -> String {
        let several = || self.points.iter().filter(|point| point.vcpus > 1);
        let worst = |hold: bool| {
            let mine: Vec<f64> = several()
                .filter(|point| (point.assumptions == Assumptions::Hold) == hold)
                .map(|point| point.mva_error.abs())
                .collect();
            let most = mine.iter().copied().fold(0.0, f64::max);
            (!mine.is_empty()).then(|| format!("{:.1} % at the {} points", 100.0 * most, mine.len()))
        };
        let (hold, fail) = (worst(true), worst(false));
        let said = match (&hold, &fail) {
            (None, None) => {
                return "There is no point with several vCPUs, by which the analysis could be judged.".to_owned();
            }
            (Some(hold), None) => {
                format!("at most {hold} with several vCPUs; its assumptions, judged by the run with one, hold at all")
            }
            (None, Some(fail)) => {
                format!("at most {fail} with several vCPUs; at each an assumption fails, judged by the run with one")
            }
            (Some(hold), Some(fail)) => format!(
                "at most {hold} with several vCPUs where its assumptions hold, judged by the run with one, and at most {fail} where one fails"
            ),
        };
        format!("The analysis is off by {said}. With one vCPU it is right by definition.")
    }

    pub(crate) fn waiting(&self) -> Result<Figure, LabError> {
        let mut series = self.lines(", lock held", Mark::Dashed, |point| point.lock_utilization);
        series.extend(self.lines(", waiting", Mark::DottedLine, |point| point.waits.total));
        let plot = Plot { x: vcpus(), y: axis("share of time", percent), series };
        let rows = self.points.iter().map(|point| {
            let waits = &point.waits;
            let shares = [waits.lock, waits.kick, waits.shootdown, waits.kicked, waits.preempted, waits.total];
            let shares = std::iter::once(point.lock_utilization).chain(shares).map(|x| format!("{x:.6}"));
            [point.regime.to_string(), point.vcpus.to_string()].into_iter().chain(shares).collect()
        });
        let shares = ["lock_held", "lock", "kick", "shootdown", "kicked", "preempted", "waiting"];
        let shares = shares.map(|what| format!("{what}_time_share"));
        let header = ["regime", "vcpus"].map(str::to_owned).into_iter().chain(shares).collect();
        let caption = format!(
            "{}: the share of time that the MMU lock is held, and the share of the vCPUs' time that goes into waiting: for the lock, for \
             kicked vCPUs, for shootdowns, out of the guest because of a kick, for the physical CPU.",
            self.workload
        );
        let table = (header, rows.collect());
        Figure::new("waiting", "What vCPUs wait for", caption, table, plot)
    }

    fn benefit(&self) -> Result<Figure, LabError> {
        let mut pairs: Vec<_> = self.benefits.iter().map(|row| (row.shadow, row.nested)).collect();
        pairs.dedup();
        let mut all = Vec::new();
        for (i, (shadow, nested)) in pairs.into_iter().enumerate() {
            let mine = self.benefits.iter().filter(|row| (row.shadow, row.nested) == (shadow, nested));
            let points = mine.map(|row| (f64::from(row.vcpus), row.benefit)).collect();
            all.push(Series::new(INKS[i % INKS.len()], format!("{nested} over {shadow}"), Mark::DottedLine, points));
        }
        let plot = Plot { x: vcpus(), y: axis("benefit: T_shadow / T_nested - 1", percent), series: all };
        let rows = self.benefits.iter().map(|row| {
            vec![row.shadow.to_string(), row.nested.to_string(), row.vcpus.to_string(), format!("{:.6}", row.benefit)]
        });
        let header = ["shadow", "nested", "vcpus", "benefit_share"].map(str::to_owned).to_vec();
        let published: Vec<_> = self.published.iter().map(|(row, text)| format!("{row}: {text}.")).collect();
        let caption =
            format!("{}: how much faster nested paging is. Published trend: {}", self.workload, published.join(" "));
        Figure::new("benefit", "Benefit of nested paging", caption, (header, rows.collect()), plot)
    }
}

/// What the fitted law says, as the efficiency is said; the measured one where nothing was fitted.
fn fitted(point: &Point) -> f64 {
    point.efficiency * (1.0 + point.usl_error.unwrap_or(0.0))
}

/// Without entries in the legend.
fn unnamed(series: Vec<Series>) -> Vec<Series> {
    series.into_iter().map(|series| Series { name: String::new(), ..series }).collect()
}

fn vcpus() -> Axis {
    Axis { name: "vCPUs".to_owned(), spacing: Spacing::Powers2, tick: |x| format!("{x:.0}") }
}

fn axis(name: &str, tick: fn(f64) -> String) -> Axis {
    Axis { name: name.to_owned(), spacing: Spacing::Linear, tick }
}

fn percent(x: f64) -> String {
    format!("{:.0} %", 100.0 * x)
}
