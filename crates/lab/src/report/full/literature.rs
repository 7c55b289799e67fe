//! The run-time models of the literature over mixes of page sizes: how wrong each is, beside ours, under each regime.

use memvirt_costmodel::fit::Quality;
use memvirt_machine::RegimeKind;

use super::Section;
use crate::claims::Effort;
use crate::fits::Fits;
use crate::fits::mosaics::{Layout, Mosaics, REGIMES, Task};

/// The errors of each model under each regime, and how much of the time walks take there.
pub(super) fn section(fits: &Fits) -> Section {
    let models = Mosaics::models();
    let share = |share: f64| format!("{:.0} %", 100.0 * share);
    let of = |regime: RegimeKind| fits.mosaics.iter().filter(move |one| one.regime == regime);
    let taken: [String; 3] = REGIMES.map(|regime| {
        let shares = || of(regime).map(|one| one.walk_share);
        let whose = if regime == RegimeKind::Native { "natively".to_owned() } else { format!("under {regime}") };
        let (least, most) = (share(shares().fold(1.0, f64::min)), share(shares().fold(0.0, f64::max)));
        if least == most { format!("{least} {whose}") } else { format!("{least} to {most} {whose}") }
    });
    let rows: Vec<Vec<String>> = models
        .iter()
        .enumerate()
        .map(|(i, model)| {
            let cells = REGIMES.into_iter().flat_map(|regime| {
                let quality = quality(of(regime), i);
                [percent(quality.max_relative), percent(quality.geometric_mean_relative)]
            });
            std::iter::once((*model).to_owned()).chain(cells).collect()
        })
        .collect();
    let columns = REGIMES.iter().flat_map(|regime| [format!("{regime}: largest error"), "geometric mean".to_owned()]);
    let header: Vec<String> = std::iter::once("model".to_owned()).chain(columns).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let workloads: Vec<_> = of(REGIMES[0]).map(|one| format!("`{}`", one.workload)).collect();
    Section::new("literature", "Run-time models of the literature")
        .words(&what_is_run(fits, &workloads))
        .words(&format!(
            "The walk share is the part of a run's cycles in which the processor walks page tables. With small pages alone it is {}.",
            taken.join(", ")
        ))
        .words(
            "All models but ours take counters of the very run whose time they say: R its cycles, C its walk cycles, H second-level TLB hits, \
             M misses. They are judged by the 11 mixes between the ends. Errors below 0.01 % enter the mean as 0.01 %.",
        )
        .table(&CALIBRATED, &calibrated())
        .words(&found(fits))
        .table(&header, &rows)
        .details("By workload: largest error / geometric mean", &by_workload_header(), &by_workload(fits))
        .command(&super::fits::command(fits))
}

/// How large the areas are, and what follows for what the quick form can show.
fn what_is_run(fits: &Fits, workloads: &[String]) -> String {
    let tasks = Task::all(fits.effort);
    let bytes = tasks.first().map_or(0, |task| task.footprint);
    let cut = match fits.effort {
        Effort::Quick => {
            let full = Task::all(Effort::Full);
            let area = full.first().map_or(0, |task| task.footprint);
            format!(
                " This is the quick form: one workload and a small area, whose tables fit into the caches. Its errors say little of the \
                 full form's, which runs {} workloads over {} each.",
                full.len(),
                crate::text::bytes(area)
            )
        }
        Effort::Full => String::new(),
    };
    format!(
        "Run time over {} mixes of 4 KiB and 2 MiB pages, in the mode `cycles`, warm, of {}, over {} each.{cut}",
        Layout::ALL.len(),
        workloads.join(", "),
        crate::text::bytes(bytes)
    )
}

const CALIBRATED: [&str; 4] = ["model", "form", "calibrated by", "takes of the run it is asked about"];

/// What each model is, by which runs it is calibrated, what it takes.
fn calibrated() -> Vec<Vec<String>> {
    let of = |model: &str| match model {
        "memvirt" => (
            "base + hits + references by level",
            "the run with 4 KiB pages",
            "nothing: the stream of accesses is followed",
        ),
        "Basu" => ("R = A M + B", "A and B: the run with 4 KiB pages", "M"),
        "Gandhi" => ("R = A M + B", "A: the run with 4 KiB pages; B: with 2 MiB pages", "M"),
        "Pham" => ("R = 7 H + C + B", "B: the run with 4 KiB pages", "H, C"),
        "Yaniv" => ("R = a C + b", "a and b: both runs", "C"),
        "Alam" => ("R = C + B", "B: the run with 2 MiB pages", "C"),
        _ => ("polynomial of degree 3 in H, M, C", "all runs of the workload but the one asked about", "H, M, C"),
    };
    let row = |model: &str| {
        let (form, by, takes) = of(model);
        [model, form, by, takes].map(str::to_owned).to_vec()
    };
    Mosaics::models().into_iter().map(row).collect()
}

/// What the errors of this very form say, and what others published.
fn found(fits: &Fits) -> String {
    let models = Mosaics::models();
    let worst = |i: usize| {
        let of = |one: &Mosaics| one.errors.get(i).map_or(0.0, |error| error.max);
        let most = fits.mosaics.iter().max_by(|a, b| of(a).total_cmp(&of(b)));
        most.map_or_else(String::new, |one| {
            format!("{} {} (`{}`, {})", models[i], percent(of(one)), one.workload, one.regime)
        })
    };
    format!(
        "Largest errors here: {}. Published for real processors: 25 to 192 % at most for the linear models, below 3 % for Mosmodel (Agbarya \
         et al., MICRO 2020). The simulated processor executes in order and waits for each walk to its end, so that a walk's cycle costs a \
         cycle: what real processors hide by executing out of order, the linear models' main error, is not simulated. What remains is \
         that Basu and Gandhi take the price of a miss for constant, though it falls with the tables' size, and that tables push data out \
         of the caches, which no counter of walks shows.",
        (0..models.len()).map(worst).collect::<Vec<_>>().join(", ")
    )
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The errors of a model on all mixes but those at the ends.
fn quality<'a>(mosaics: impl Iterator<Item = &'a Mosaics>, model: usize) -> Quality {
    let inner = |one: &'a Mosaics| &one.points[1..one.points.len().saturating_sub(1).max(1)];
    let pairs = mosaics.flat_map(inner).map(|point| (point.cycles, point.predicted[model]));
    let (counted, said): (Vec<f64>, Vec<f64>) = pairs.unzip();
    Quality::of(&counted, &said)
}

fn by_workload_header() -> Vec<&'static str> {
    ["workload", "regime", "walks take"].into_iter().chain(Mosaics::models()).collect()
}

fn by_workload(fits: &Fits) -> Vec<Vec<String>> {
    let row = |one: &Mosaics| {
        let errors =
            one.errors.iter().map(|error| format!("{} / {}", percent(error.max), percent(error.geometric_mean)));
        let names = [one.workload.to_owned(), one.regime.to_string(), format!("{:.0} %", 100.0 * one.walk_share)];
        names.into_iter().chain(errors).collect()
    };
    fits.mosaics.iter().map(row).collect()
}
