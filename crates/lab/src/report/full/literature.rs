//! The run-time models of the literature over mixes of page sizes: how wrong each is, beside ours, under each regime.

use memvirt_costmodel::fit::Quality;
use memvirt_machine::RegimeKind;

use super::Section;
use crate::fits::Fits;
use crate::fits::mosaics::{Mosaics, REGIMES};

/// The errors of each model under each regime, and how much of the time walks take there.
pub(super) fn section(fits: &Fits) -> Section {
    let models = Mosaics::models();
    let share = |share: f64| format!("{:.0} %", 100.0 * share);
    let of = |regime: RegimeKind| fits.mosaics.iter().filter(move |one| one.regime == regime);
    let taken = REGIMES.map(|regime| {
        let shares = || of(regime).map(|one| one.walk_share);
        let (least, most) = (shares().fold(1.0, f64::min), shares().fold(0.0, f64::max));
        format!("{regime} {} to {}", share(least), share(most))
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
        .words(
            &format!(
                "Run time over 13 mixes of 4 KiB and 2 MiB pages, in the mode `cycles`, of {}. With small pages alone, walks take of the \
                 time: {}. Errors below 0.01 % enter the mean as 0.01 %. The linear models (Basu, Gandhi, Pham, Yaniv, Alam) are calibrated by the runs with all small and with all large \
             pages, as their authors prescribe, and judged by the 11 mixes between; Mosmodel is fitted to all runs but the one it is asked \
             about. All of these take the TLB hits, misses or walk cycles of the very run whose time they say. Ours (memvirt) takes the one \
             run with small pages, and has hits and references of every other one predicted from the stream of accesses.",
                workloads.join(", "),
                taken.join(", ")
            ),
        )
        .words(
            "Published for real processors: 25 to 192 % at most for the linear models, below 3 % for Mosmodel (Agbarya et al., MICRO 2020). \
             The simulated processor executes in order and waits for each walk to its end, so that a walk's cycle costs a cycle: the errors \
             that remain are those of taking the price of a miss for constant, and of tables that push data out of the caches. What real \
             processors hide by executing out of order, the linear models' main error, is not simulated.",
        )
        .table(&header, &rows)
        .details("By workload: largest error / geometric mean", &by_workload_header(), &by_workload(fits))
        .command(&super::fits::command(fits))
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
