//! The plane as a figure: dots coloured by winner and margin, the model's line, the known workloads by name.

use std::path::Path;

use memvirt_machine::{RegimeKind, RunResult};

use super::{Phase, VcpuPhase, VcpuSample};
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::report::Figure;
use crate::report::paint::Ink;
use crate::report::write_figures;
use crate::report::xy::{Axis, Mark, Multiples, Plot, Series, Spacing};
use crate::text::fraction;

/// Classes of margin, from nested paging far ahead to shadow paging far ahead: blue against orange and vermillion, which all
/// common colour vision tells apart.
const CLASSES: [(Ink, &str, f64); 4] = [
    (Ink::Blue, "nested by more than 10 %", 0.095),
    (Ink::Grey, "nested by up to 10 %", 0.0),
    (Ink::Orange, "shadow by up to 10 %", -0.095),
    (Ink::Vermillion, "shadow by more than 10 %", f64::NEG_INFINITY),
];

fn class(advantage: f64) -> usize {
    CLASSES.iter().position(|(_, _, least)| advantage >= *least).unwrap_or(CLASSES.len() - 1)
}

/// A workload in the plane, measured elsewhere: the same runs as its bar of the benefit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dot {
    pub(crate) name: String,
    /// TLB misses for 1000 instructions, natively.
    pub(crate) misses: f64,
    /// Stores to page tables for 1000 instructions.
    pub(crate) updates: f64,
    /// Times native under shadow paging, under nested paging.
    pub(crate) times: [f64; 2],
    pub(crate) command: String,
}

impl Dot {
    /// A workload's dot; nothing where one of the three runs is missing.
    pub(crate) fn of(comparison: &Comparison) -> Option<Self> {
        let run = |regime| comparison.results.iter().find(|run| run.regime == regime);
        let (native, shadow) = (run(RegimeKind::Native)?, run(RegimeKind::ShadowKvm61)?);
        let nested = run(RegimeKind::NestedEpt)?;
        let rate = |count| 1000.0 * fraction(count, native.guest.instructions);
        let times = |run: &RunResult| fraction(run.cycles.total, native.cycles.total);
        Some(Self {
            name: comparison.workload.name().to_owned(),
            misses: rate(native.walks),
            updates: rate(native.guest.table_stores),
            times: [times(shadow), times(nested)],
            command: comparison.command.clone(),
        })
    }

    fn advantage(&self) -> f64 {
        (self.times[0] / self.times[1]).ln()
    }

    fn cells(&self) -> Vec<String> {
        let [shadow, nested] = self.times;
        let figures = [self.misses, self.updates, shadow, nested, self.advantage()].map(|x| format!("{x:.6}"));
        let names = [self.name.clone(), true.to_string()];
        names.into_iter().chain(figures).chain([String::new(), self.command.clone()]).collect()
    }
}

impl Phase {
    /// The plane of the workload with two knobs, with these dots for the built-in workloads.
    pub(crate) fn figure_with(&self, dots: &[Dot]) -> Result<Figure, LabError> {
        let (header, rows) = self.cells();
        let knobs = rows.into_iter().zip(&self.samples).filter(|(_, sample)| !sample.known).map(|(row, _)| row);
        let rows = knobs.chain(dots.iter().map(Dot::cells)).collect();
        let knobs = || self.samples.iter().filter(|sample| !sample.known);
        let floor = |values: &mut dyn Iterator<Item = f64>| {
            let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
            10f64.powf(least.log10().floor())
        };
        let misses = floor(&mut knobs().map(|s| s.misses).chain(dots.iter().map(|dot| dot.misses)));
        let line = self.line();
        let on_line = line.points.iter().map(|point| point.1);
        let updates = floor(&mut knobs().map(|s| s.updates).chain(dots.iter().map(|dot| dot.updates)).chain(on_line));
        let still: Vec<_> = dots.iter().filter(|dot| dot.updates <= 0.0 || dot.misses <= 0.0).collect();
        let edge = match still.as_slice() {
            [] => String::new(),
            some => format!(
                " On the lower or left edge lie those that made no update, or no miss, while they were counted: {}.",
                some.iter().map(|dot| dot.name.as_str()).collect::<Vec<_>>().join(", ")
            ),
        };
        let caption = format!(
            "{}: nested paging against {} over the rates of the native run. Squares: the workload with two knobs, `two-rates`, in the mode \
             counts, without walk caches. Dashed: where the model of that mode expects both to cost the same. Dots: built-in workloads, from \
             the very runs of the bars of the section on benefit, so that each has the winner and the margin of its bar: in the mode \
             cycles, with walk caches, the steady ones warm. There a walk costs less than among the squares, so that a dot near the line may lie on \
             the other side of it than its winner.{edge} Both rates are for 1000 instructions of processes; what the kernel executes for \
             them is not counted there, so that programs that do little but system calls lie far out.",
            self.machine, self.shadow
        );
        let mut series = self.squares();
        for (i, (ink, ..)) in CLASSES.iter().enumerate() {
            let mine: Vec<_> = dots.iter().filter(|dot| class(dot.advantage()) == i).collect();
            let points = mine.iter().map(|dot| (dot.misses.max(misses), dot.updates.max(updates))).collect();
            let mut one = Series::new(*ink, "", Mark::Dots, points);
            one.labels = mine.iter().map(|dot| dot.name.clone()).collect();
            series.push(one);
        }
        series.push(line);
        Figure::new("phase-plane", "Who wins", caption, (header, rows), plane(series))
    }

    /// The figure as SVG.
    ///
    /// # Errors
    ///
    /// Where the plotting library fails.
    pub fn to_svg(&self) -> Result<String, LabError> {
        Ok(self.figure()?.wide)
    }

    /// Writes `phase.json`, `phase.csv` and `figures/phase.svg` with its data into a folder, which is made where it does not exist.
    ///
    /// # Errors
    ///
    /// Where the folder or a file cannot be written.
    pub fn write_to(&self, dir: &Path) -> Result<(), LabError> {
        write_figures(dir, &[self.figure()?])?;
        crate::report::write(&dir.join("phase.json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        crate::report::write(&dir.join("phase.csv"), &self.to_csv())
    }

    /// The figure with its data.
    pub(crate) fn figure(&self) -> Result<Figure, LabError> {
        let caption = format!(
            "{}: nested paging against {} over the rates of the native run, in the mode counts, without walk caches. Squares: the workload \
             with two knobs, `two-rates`; dots: built-in workloads, first touches of memory included unless marked warm, so that a dot may \
             lie on another side than the same workload measured warm. Both rates are for 1000 instructions of processes; what the kernel \
             executes for them is not counted there, so that programs that do little but system calls lie far out. Dashed: where the \
             model expects both to cost the same.",
            self.machine, self.shadow
        );
        Figure::new("phase-plane", "Who wins", caption, self.cells(), self.plot())
    }

    fn plot(&self) -> Plot {
        let mut series = self.squares();
        for (i, (ink, ..)) in CLASSES.iter().enumerate() {
            let mine: Vec<_> = self.samples.iter().filter(|s| s.known && class(s.advantage) == i).collect();
            let mut one = Series::new(*ink, "", Mark::Dots, mine.iter().map(|s| (s.misses, s.updates)).collect());
            one.labels = mine.iter().map(|s| s.name.clone()).collect();
            series.push(one);
        }
        series.push(self.line());
        plane(series)
    }

    /// The workload with two knobs.
    fn squares(&self) -> Vec<Series> {
        let class_of = |(i, (ink, name, _)): (usize, &(Ink, &str, f64))| {
            let mine = self.samples.iter().filter(|s| !s.known && class(s.advantage) == i);
            Series::new(*ink, *name, Mark::Squares, mine.map(|s| (s.misses, s.updates)).collect())
        };
        CLASSES.iter().enumerate().map(class_of).collect()
    }

    /// The model's line, as far as the squares go.
    fn line(&self) -> Series {
        let knobs = || self.samples.iter().filter(|sample| !sample.known);
        let least = knobs().map(|s| s.misses).fold(f64::INFINITY, f64::min);
        let most = knobs().map(|s| s.misses).fold(0.0, f64::max);
        let line = [least, most].map(|misses| (misses, misses / self.model_misses_per_update));
        Series::new(Ink::Text, "break-even, model", Mark::Dashed, line.to_vec())
    }
}

fn plane(series: Vec<Series>) -> Plot {
    let axis = |name: &str| Axis { name: name.to_owned(), spacing: Spacing::Powers10, tick };
    let (x, y) = (axis("TLB misses for 1000 instructions"), axis("page-table updates for 1000 instructions"));
    Plot { x, y, series }
}

impl VcpuPhase {
    /// The figure as SVG.
    ///
    /// # Errors
    ///
    /// Where the plotting library fails.
    pub fn to_svg(&self) -> Result<String, LabError> {
        Ok(self.figure()?.wide)
    }

    /// Writes `phase-vcpus.json` and `figures/phase-vcpus` with its data into a folder, which is made where it does not exist.
    ///
    /// # Errors
    ///
    /// Where the folder or a file cannot be written.
    pub fn write_to(&self, dir: &Path) -> Result<(), LabError> {
        write_figures(dir, &[self.figure()?])?;
        crate::report::write(&dir.join("phase-vcpus.json"), &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// The planes side by side, with their data.
    pub(crate) fn figure(&self) -> Result<Figure, LabError> {
        let panels = self.vcpus.iter().map(|vcpus| {
            let name = if *vcpus == 1 { "1 vCPU".to_owned() } else { format!("{vcpus} vCPUs") };
            (name, self.plot(*vcpus))
        });
        let caption = format!(
            "{}: nested paging against shadow:kvm, an instance of the workload with two knobs on each vCPU; every point is a simulation. \
             The rates are those of one vCPU natively. Dashed: the ratio of misses to updates that parts the winners.",
            self.machine
        );
        let drawing = Multiples { panels: panels.collect(), heights: (260, 240) };
        Figure::new("phase-vcpus", "Who wins with more vCPUs", caption, self.cells(), drawing)
    }

    fn plot(&self, vcpus: u16) -> Plot {
        let class_of = |(i, (ink, name, _)): (usize, &(Ink, &str, f64))| {
            let mine = self.of(vcpus).filter(|sample| class(sample.advantage) == i);
            Series::new(*ink, *name, Mark::Squares, mine.map(|s| (s.misses, s.updates)).collect())
        };
        let mut series: Vec<_> = CLASSES.iter().enumerate().map(class_of).collect();
        if let Some(ratio) = self.misses_per_update(vcpus) {
            let ends = |of: fn(&VcpuSample) -> f64| {
                let all = || self.samples.iter().map(of);
                (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max))
            };
            let ((least, most), (low, high)) = (ends(|s| s.misses), ends(|s| s.updates));
            // As far as the plane goes.
            let (from, to) = (least.max(low * ratio), most.min(high * ratio));
            series.push(Series::new(Ink::Text, "", Mark::Dashed, vec![(from, from / ratio), (to, to / ratio)]));
        }
        plane(series)
    }
}

fn tick(value: f64) -> String {
    format!("{value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_has_the_colour_of_its_bar() {
        // Bars of no benefit stand among those that nested paging wins.
        assert_eq!([0.2, 0.01, 0.0, -0.01, -0.2].map(class), [0, 1, 1, 2, 3]);
    }
}
