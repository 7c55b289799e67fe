//! The plane as a figure: dots coloured by winner and margin, the model's line, the known workloads by name.

use std::path::Path;

use super::{Phase, VcpuPhase, VcpuSample};
use crate::error::LabError;
use crate::report::Figure;
use crate::report::paint::Ink;
use crate::report::write_figures;
use crate::report::xy::{Axis, Mark, Multiples, Plot, Series, Spacing};

/// Classes of margin, from nested paging far ahead to shadow paging far ahead: blue against orange and vermillion, which all
/// common colour vision tells apart.
const CLASSES: [(Ink, &str, f64); 4] = [
    (Ink::Blue, "nested by more than 10 %", 0.095),
    (Ink::Grey, "nested by up to 10 %", 0.0),
    (Ink::Orange, "shadow by up to 10 %", -0.095),
    (Ink::Vermillion, "shadow by more than 10 %", f64::NEG_INFINITY),
];

fn class(advantage: f64) -> usize {
    CLASSES.iter().position(|(_, _, least)| advantage > *least).unwrap_or(CLASSES.len() - 1)
}

impl Phase {
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
            "{}: nested paging against {} over the rates of the native run. Squares: the workload with two knobs, `two-rates`; dots: \
             built-in workloads, from their start unless marked warm. Both rates are for 1000 instructions of processes; what the kernel \
             executes for them is not counted there, so that programs that do little but system calls lie far out. Dashed: where the \
             model expects both to cost the same.",
            self.machine, self.shadow
        );
        Figure::new("phase-plane", "Who wins", caption, self.cells(), self.plot())
    }

    fn plot(&self) -> Plot {
        let mut series = Vec::new();
        for known in [false, true] {
            for (i, (ink, name, _)) in CLASSES.iter().enumerate() {
                let mine: Vec<_> =
                    self.samples.iter().filter(|s| s.known == known && class(s.advantage) == i).collect();
                let points = mine.iter().map(|s| (s.misses, s.updates)).collect();
                let (mark, name) = if known { (Mark::Dots, "") } else { (Mark::Squares, *name) };
                let mut one = Series::new(*ink, name, mark, points);
                if known {
                    one.labels = mine.iter().map(|s| s.name.clone()).collect();
                }
                series.push(one);
            }
        }
        let knobs = || self.samples.iter().filter(|sample| !sample.known);
        let least = knobs().map(|s| s.misses).fold(f64::INFINITY, f64::min);
        let most = knobs().map(|s| s.misses).fold(0.0, f64::max);
        let line = [least, most].map(|misses| (misses, misses / self.model_misses_per_update));
        series.push(Series::new(Ink::Text, "break-even, model", Mark::Dashed, line.to_vec()));
        plane(series)
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
