//! How runs were made, in words: the mode, walk caches, warm-up, how much was counted. Read off the runs themselves, so that what a
//! caption says of them is so.

use memvirt_machine::{Measure, Mode};

use crate::comparison::Comparison;
use crate::scale::{ScaleTable, Sharing};
use crate::text::count;

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Counts => "counts",
        Mode::Cycles => "cycles",
    }
}

/// The smallest and the largest, in words.
fn range(numbers: impl Iterator<Item = u64> + Clone) -> String {
    match (numbers.clone().min(), numbers.max()) {
        (Some(least), Some(most)) if least == most => count(least),
        (Some(least), Some(most)) => format!("{} to {}", count(least), count(most)),
        _ => "no".to_owned(),
    }
}

/// Accesses of processes that were counted, and those before them.
pub(super) fn accesses(comparison: &Comparison) -> [u64; 2] {
    let run = comparison.results.first();
    run.map_or([0; 2], |run| [run.guest.user_accesses, run.switches.measure.warm_up_accesses])
}

/// How comparisons of workloads were made.
pub(super) fn of_comparisons(comparisons: &[Comparison]) -> String {
    let runs = || comparisons.iter().flat_map(|one| &one.results);
    let modes = |wanted| runs().any(|run| run.mode == wanted).then(|| mode(wanted));
    let modes: Vec<&str> = [modes(Mode::Counts), modes(Mode::Cycles)].into_iter().flatten().collect();
    let caches = match runs().filter(|run| run.walk_caches.is_some()).count() {
        0 => "off",
        with if with == runs().count() => "on",
        _ => "on in some",
    };
    let warm = || comparisons.iter().map(|one| accesses(one)[1]).filter(|warm_up| *warm_up > 0);
    let begins = match warm().count() {
        0 => "counting begins with the first access, first touches of memory included".to_owned(),
        n if n == comparisons.len() => format!("counting begins after a warm-up of {} accesses", range(warm())),
        n => format!(
            "{n} of {} workloads are loaded and counted after a warm-up of {} accesses, the others from their first access on",
            comparisons.len(),
            range(warm())
        ),
    };
    let isolated = runs().any(|run| run.switches.guest.kpti);
    format!(
        "How: mode {}, walk caches {caches}, kernel {}, one vCPU; {begins}; {} accesses of processes are counted of each.",
        modes.join(" and "),
        kernel(isolated),
        range(comparisons.iter().map(|one| accesses(one)[0]))
    )
}

/// Whether the kernel's page tables are isolated.
const fn kernel(isolated: bool) -> &'static str {
    if isolated { "isolated" } else { "not isolated" }
}

/// What a warm-up was, in words.
fn begins(measure: &Measure) -> String {
    match measure.warm_up_accesses {
        0 => "from the first access on".to_owned(),
        n => format!("after {} accesses, memory there from the beginning", count(n)),
    }
}

/// How the runs of one workload on several vCPUs were made; their mode is always `counts`.
pub(super) fn of_scale(table: &ScaleTable) -> String {
    let sharing = match table.sharing {
        Sharing::Tenants => "processes of its own on each",
        Sharing::Threads => "threads of one process",
    };
    format!(
        "How: mode counts, walk caches off, kernel {}; {sharing}; counted {}, {} accesses of processes on one vCPU.",
        kernel(table.guest.kpti),
        begins(&table.measure),
        count(alone(table))
    )
}

/// Accesses counted on one vCPU.
fn alone(table: &ScaleTable) -> u64 {
    table.points.iter().find(|point| point.vcpus == 1).map_or(0, |point| point.accesses)
}

/// What the columns of [`row_of_comparison`] and [`row_of_scale`] are.
pub(super) const COLUMNS: [&str; 8] =
    ["workload", "section", "benefit", "mode", "walk caches", "kernel", "warm-up accesses", "counted accesses"];

/// The conditions of a workload's bar.
pub(super) fn row_of_comparison(comparison: &Comparison, benefit: String) -> Vec<String> {
    let run = comparison.results.first();
    let caches = if run.is_some_and(|run| run.walk_caches.is_some()) { "on" } else { "off" };
    let [counted, warm_up] = accesses(comparison);
    let mode = run.map_or("", |run| mode(run.mode));
    let kernel = kernel(run.is_some_and(|run| run.switches.guest.kpti));
    let words = [comparison.workload.name(), "Benefit by workload", &benefit, mode, caches, kernel].map(str::to_owned);
    words.into_iter().chain([count(warm_up), count(counted)]).collect()
}

/// The same of its first point in the figure of many vCPUs.
pub(super) fn row_of_scale(table: &ScaleTable, benefit: String) -> Vec<String> {
    let words = [table.workload.as_str(), "Many vCPUs, on one", &benefit, "counts", "off", kernel(table.guest.kpti)]
        .map(str::to_owned);
    words.into_iter().chain([count(table.measure.warm_up_accesses), count(alone(table))]).collect()
}
