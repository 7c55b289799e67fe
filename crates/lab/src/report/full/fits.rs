//! The cost models and how wrong they are: errors, coefficients, predicted against measured, residuals.

use std::path::Path;

use super::Section;
use crate::claims::Effort;
use crate::error::LabError;
use crate::fits::Fits;
use crate::fits::errors::OVER_PAGE_SIZES;
use crate::report::html::{escape, prose};
use crate::report::paint::Ink;
use crate::report::section::Page;
use crate::report::xy::{Axis, Mark, Multiples, Plot, Series, Spacing};
use crate::report::{Figure, column};

const INKS: [Ink; 7] = [Ink::Blue, Ink::Vermillion, Ink::Green, Ink::Purple, Ink::Orange, Ink::Grey, Ink::Text];

/// The command that makes the numbers of this part, and of nothing else.
pub(super) fn command(fits: &Fits) -> String {
    let quick = if fits.effort == Effort::Quick { " --quick" } else { "" };
    format!("memvirt model fit{quick} --machine {} --out DIR", fits.machine)
}

/// The section of the models' errors.
pub(super) fn section(fits: &Fits) -> Result<Section, LabError> {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    // A section of their own shows those over page sizes.
    let errors: Vec<_> = fits.errors().into_iter().filter(|row| row.quantity != OVER_PAGE_SIZES).collect();
    let missing = errors.iter().filter_map(|row| {
        let missing = row.missing.as_ref()?;
        Some(format!("<li>{}, {}: {}</li>\n", row.quantity, escape(&row.model), prose(missing)))
    });
    let missing: String = missing.collect();
    let missing = match missing.as_str() {
        "" => String::new(),
        items => format!(
            "<p>Beyond their bound, and the input that is wrong or the mechanism that is missing:</p>\n<ul>\n{items}</ul>\n"
        ),
    };
    let rows: Vec<Vec<String>> = errors
        .into_iter()
        .map(|row| {
            let held = row.held_out.map_or_else(String::new, |held| percent(held.max));
            let bound = row.bound.map_or_else(String::new, |bound| format!("{} %", 100.0 * bound));
            let verdict = row.verdict().to_owned();
            let (max, mean) = (percent(row.max), percent(row.geometric_mean));
            let names = [row.quantity.to_owned(), row.model, row.basis.to_owned(), row.runs.to_string()];
            names.into_iter().chain([max, mean, held, bound, verdict]).collect()
        })
        .collect();
    let made = command(fits);
    let header = [
        "what",
        "model",
        "rests on",
        "runs",
        "largest error",
        "geometric mean",
        "held out: largest",
        "bound",
        "verdict",
    ];
    Ok(Section::new("fits", "Cost models and their errors")
        .words(
            "Exits and run time are predicted from the native run alone; walks from the stream of accesses; vCPUs from one of them. Errors \
             are relative; where something is fitted, of runs of other workloads than those fitted to, and held out: of long runs by a fit \
             to short ones. The bounds are those asked for.",
        )
        .table(&header, &rows)
        .html(missing)
        .command(&made)
        .figures([traps(fits)?, residuals(fits)?, times(fits)?, mosaics(fits)?].map(|figure| figure.made_by(&made)))
        .details("Coefficients: mechanism and free fit", &COEFFICIENTS, &coefficients(fits)))
}

/// Writes a page of this section alone.
///
/// # Errors
///
/// [`LabError`] where a figure cannot be drawn or a file cannot be written.
pub fn write_fits(dir: &Path, fits: &Fits) -> Result<(), LabError> {
    let command = command(fits);
    let head = format!(
        "<header>\n<h1>Cost models and their errors</h1>\n<p>{}</p>\n<pre><code>{command}</code></pre>\n</header>\n",
        escape(&fits.machine)
    );
    let data = vec![("fits.json", serde_json::to_string_pretty(fits)? + "\n")];
    let title = "memvirt: cost models and their errors".to_owned();
    let foot = "<p>Data: <a href=\"fits.json\">fits.json</a>, and beside each figure.</p>\n".to_owned();
    Page { title, head, command, sections: vec![section(fits)?], foot, data }.write(dir)
}

const COEFFICIENTS: [&str; 6] = ["model", "coefficient", "mechanism", "fitted", "from", "to"];

fn coefficients(fits: &Fits) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for one in &fits.traps {
        for param in &one.assessment.params {
            let (low, high) = param.interval.map_or_else(Default::default, |interval| {
                (format!("{:.3}", interval.low), format!("{:.3}", interval.high))
            });
            let name = param.name.clone();
            rows.push(vec![
                one.model.to_owned(),
                name,
                param.predicted.to_string(),
                format!("{:.3}", param.fitted),
                low,
                high,
            ]);
        }
    }
    rows
}

fn powers(name: &str) -> Axis {
    Axis { name: name.to_owned(), spacing: Spacing::Powers10, tick: |x| format!("{x:.0}") }
}

/// Series of points by name, with the line on which both are equal.
fn against(series: Vec<(String, Vec<(f64, f64)>)>, x: &str, y: &str) -> Plot {
    let all = || series.iter().flat_map(|(_, points)| points).map(|point| point.0);
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(1.0, f64::max));
    let line = Series::new(Ink::Muted, "", Mark::Dashed, vec![(least, least), (most, most)]);
    let dots = series.into_iter().enumerate();
    let shape = |i: usize| (INKS[i % INKS.len()], Mark::SHAPES[i % Mark::SHAPES.len()]);
    let dots = dots.map(|(i, (name, points))| Series::new(shape(i).0, name, shape(i).1, points));
    Plot { x: powers(x), y: powers(y), series: std::iter::once(line).chain(dots).collect() }
}

fn guest(spec: &crate::fits::guests::GuestSpec) -> String {
    format!("{}{}, {:?}", spec.workload, if spec.kpti { ", isolated" } else { "" }, spec.length).to_lowercase()
}

fn traps(fits: &Fits) -> Result<Figure, LabError> {
    let series = fits.traps.iter().map(|one| {
        let points = one.points.iter().map(|point| (point.counted, point.mechanism)).collect();
        (one.regime.name().to_owned(), points)
    });
    let plot = against(series.collect(), "exits counted", "exits predicted");
    let rows = fits.traps.iter().flat_map(|one| {
        one.points.iter().map(|point| {
            let figures = [point.counted, point.mechanism, point.unseen].map(|figure| format!("{figure:.1}"));
            [one.regime.name().to_owned(), guest(&point.guest)].into_iter().chain(figures).collect()
        })
    });
    let header = ["regime", "guest", "counted_exits", "mechanism_exits", "fit_to_other_workloads_exits"]
        .map(str::to_owned)
        .to_vec();
    let caption =
        "Exits predicted from events of the native run with the coefficients of the mechanism, against those counted.";
    Figure::new("fits-exits", "Exits: predicted against counted", caption.to_owned(), (header, rows.collect()), plot)
}

/// Within so much of 0 the axis of residuals is even, beyond it logarithmic: a hundredth of a percent.
const EVEN: f64 = 1e-4;

fn residuals(fits: &Fits) -> Result<Figure, LabError> {
    let mut rows = Vec::new();
    let mut panels = Vec::new();
    let (mut exact, mut all, mut without) = (0, 0, 0);
    for one in &fits.traps {
        let missed = |point: &crate::fits::traps::Point| {
            [point.mechanism, point.unseen].map(|said| (said - point.counted) / point.counted.max(1.0))
        };
        let points = |which: usize| one.points.iter().map(|point| (point.counted, missed(point)[which])).collect();
        let series = vec![
            Series::new(Ink::Vermillion, "by a fit to other workloads", Mark::Rings, points(1)),
            Series::new(Ink::Blue, "by the mechanism", Mark::Dots, points(0)),
        ];
        let y = Axis {
            name: "prediction less count, percent of it".to_owned(),
            spacing: Spacing::Symmetric(EVEN),
            tick: |x| format!("{} %", short_power(100.0 * x)),
        };
        panels.push((one.regime.name().to_owned(), Plot { x: powers("exits counted"), y, series }));
        all += one.points.len();
        exact += one.points.iter().filter(|point| (point.mechanism - point.counted).abs() < 0.5).count();
        without += one.points.iter().filter(|point| point.counted <= 0.0).count();
        rows.extend(one.points.iter().map(|point| {
            let names = [one.regime.name().to_owned(), guest(&point.guest), format!("{:.1}", point.counted)];
            names.into_iter().chain(missed(point).map(|share| format!("{:.4}", 100.0 * share))).collect()
        }));
    }
    let header =
        ["regime", "guest", "counted_exits", "mechanism_error_percent", "fit_to_other_workloads_error_percent"];
    let clipped = match without {
        0 => "no point is cut off".to_owned(),
        n => format!("{n} guests without any exit have no place on the axis of exits and are left out"),
    };
    let caption = format!(
        "What the predictions of exits miss, a panel for each regime: dots by the mechanism (each policy's rules, followed along the \
         native run), rings by a fit to other workloads. {exact} of {all} predictions by the mechanism are exact to the exit and lie on 0. \
         The axis is logarithmic on both sides of 0, even within {} % of it; {clipped}.",
        short_power(100.0 * EVEN)
    );
    let data = (header.map(str::to_owned).to_vec(), rows);
    Figure::new("fits-residuals", "Exits: residuals", caption, data, Multiples { panels, heights: (150, 150) })
}

/// A power of ten, or 0, without zeros that say nothing.
fn short_power(x: f64) -> String {
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn times(fits: &Fits) -> Result<Figure, LabError> {
    let series = fits.times.iter().map(|one| {
        let points = one.points.iter().map(|point| (point.counted.total(), point.mechanism.total())).collect();
        (one.regime.name().to_owned(), points)
    });
    let plot = against(series.collect(), "cycles of the run", "cycles predicted");
    let rows = fits.times.iter().flat_map(|one| {
        one.points.iter().map(|point| {
            let figures = [point.counted.total(), point.mechanism.total()].map(|cycles| format!("{cycles:.0}"));
            let split = point.split().map(|share| format!("{share:.6}"));
            [one.regime.name().to_owned(), guest(&point.guest)].into_iter().chain(figures).chain(split).collect()
        })
    });
    let header = [
        "regime",
        "guest",
        "counted_cycles",
        "predicted_cycles",
        "base_error_share",
        "walks_error_share",
        "exits_error_share",
    ];
    let caption = "Run time predicted from the native run, the work of exit handlers included; the data split each error by where it comes from, as \
                   shares of the run.";
    let data = (header.map(str::to_owned).to_vec(), rows.collect());
    Figure::new("fits-time", "Run time: predicted against counted", caption.to_owned(), data, plot)
}

/// Within so much of 0 the axis of the run-time models' errors is even: a tenth of a percent.
const EVEN_TIME: f64 = 1e-3;

fn mosaics(fits: &Fits) -> Result<Figure, LabError> {
    let models = crate::fits::mosaics::Mosaics::models();
    let mut rows = Vec::new();
    let mut panels = Vec::new();
    for regime in crate::fits::mosaics::REGIMES {
        let mut points = vec![Vec::new(); models.len()];
        for one in fits.mosaics.iter().filter(|one| one.regime == regime) {
            for point in &one.points {
                let share = point.walk_cycles / point.cycles;
                let said = point.predicted.iter().map(|cycles| format!("{cycles:.0}"));
                let names = [one.workload.to_owned(), one.regime.to_string(), format!("{:?}", point.layout)];
                let counted = [format!("{:.2}", 100.0 * share), format!("{:.0}", point.cycles)];
                rows.push(names.into_iter().chain(counted).chain(said).collect());
                let errors = point.predicted.iter().map(|said| (said - point.cycles) / point.cycles);
                points.iter_mut().zip(errors).for_each(|(points, error)| points.push((share, error)));
            }
        }
        // Ours above the others.
        let series = models.iter().zip(points).enumerate().rev().map(|(i, (model, points))| {
            Series::new(INKS[i % INKS.len()], *model, Mark::SHAPES[i % Mark::SHAPES.len()], points)
        });
        let percent = |x: f64| format!("{} %", short_power(100.0 * x));
        let x = Axis {
            name: "walk share: cycles of walks, percent of the run".to_owned(),
            spacing: Spacing::Linear,
            tick: |x| format!("{:.0} %", 100.0 * x),
        };
        let name = "prediction less run time, percent of it".to_owned();
        let y = Axis { name, spacing: Spacing::Symmetric(EVEN_TIME), tick: percent };
        panels.push((regime.to_string(), Plot { x, y, series: series.collect() }));
    }
    let names = ["workload", "regime", "layout", "walk_share_percent"].map(str::to_owned).into_iter();
    let said = std::iter::once("counted").chain(models).map(|name| column(name, "cycles"));
    let header = names.chain(said).collect();
    let caption = format!(
        "Errors of run time over mixes of 4 KiB and 2 MiB pages: a mark for each mix and model, the mixes with the smallest walk share being \
         those of large pages. Logarithmic on both sides of 0, even within {} % of it; no point is cut off. Runs that calibrate a model \
         lie on 0 for it.",
        short_power(100.0 * EVEN_TIME)
    );
    let drawing = Multiples { panels, heights: (260, 240) };
    Figure::new("fits-mosaics", "Run time over mixes of page sizes", caption, (header, rows), drawing)
}
