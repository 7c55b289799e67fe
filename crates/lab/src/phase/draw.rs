//! The plane as a figure: dots coloured by winner and margin, the model's line, the known workloads by name.

use std::path::Path;

use super::{Phase, Sample};
use crate::error::LabError;
use crate::report::Figure;
use crate::report::paint::{Ink, Shape, svg};
use crate::report::write_figures;
use crate::report::xy::{Axis, Mark, Plot, Series, Spacing};

/// Classes of margin, from nested paging far ahead to shadow paging far ahead: blue against orange and vermillion, which all
/// common colour vision tells apart.
const CLASSES: [(Ink, &str, f64); 4] = [
    (Ink::Blue, "nested by more than 10 %", 0.095),
    (Ink::Grey, "nested by up to 10 %", 0.0),
    (Ink::Orange, "shadow by up to 10 %", -0.095),
    (Ink::Vermillion, "shadow by more than 10 %", f64::NEG_INFINITY),
];

fn class(sample: &Sample) -> usize {
    CLASSES.iter().position(|(_, _, least)| sample.advantage > *least).unwrap_or(CLASSES.len() - 1)
}

impl Phase {
    /// The figure as SVG.
    ///
    /// # Errors
    ///
    /// Where the plotting library fails.
    pub fn to_svg(&self) -> Result<String, LabError> {
        svg(&self.plot(), Shape::Wide).map_err(|reason| LabError::Draw { figure: "phase".to_owned(), reason })
    }

    /// Writes `phase.json`, `phase.csv` and `figures/phase.svg` with its data into a folder, which is made where it does not exist.
    ///
    /// # Errors
    ///
    /// Where the folder or a file cannot be written.
    pub fn write_to(&self, dir: &Path) -> Result<(), LabError> {
        let plot = self.plot();
        let caption = format!(
            "{}: nested paging against {} over the rates of the native run. Squares: the workload with two knobs; dots: built-in \
             workloads. Dashed: where the model expects both to cost the same.",
            self.machine, self.shadow
        );
        let figure = Figure::new("phase", "Who wins", caption, self.cells(), plot)?;
        write_figures(dir, &[figure])?;
        crate::report::write(&dir.join("phase.json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        crate::report::write(&dir.join("phase.csv"), &self.to_csv())
    }

    fn plot(&self) -> Plot {
        let mut series = Vec::new();
        for known in [false, true] {
            for (i, (ink, name, _)) in CLASSES.iter().enumerate() {
                let mine: Vec<_> = self.samples.iter().filter(|s| s.known == known && class(s) == i).collect();
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
        let axis = |name: &str| Axis { name: name.to_owned(), spacing: Spacing::Powers10, tick };
        Plot {
            x: axis("TLB misses for 1000 instructions"),
            y: axis("page-table updates for 1000 instructions"),
            series,
        }
    }
}

fn tick(value: f64) -> String {
    format!("{value}")
}
