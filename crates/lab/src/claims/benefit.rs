//! Claims about how much faster nested paging is, and for whom.

use memvirt_machine::RegimeKind;

use super::evidence::{Evidence, result};
use super::fair::measured_as;
use super::many::Scaled;
use super::{Claim, Verdict};
use crate::comparison::Comparison;
use crate::scale::BenefitRow;
use crate::text::{fraction, signed_percent};

pub(super) fn claims(evidence: &Evidence) -> Vec<Claim> {
    [depends(evidence), twenty_percent(evidence), conditions(evidence), vcpus(evidence)].into_iter().flatten().collect()
}

/// The benefit of nested paging over KVM's shadow paging.
#[must_use]
pub(crate) fn benefit(comparison: &Comparison) -> Option<f64> {
    let time = |regime| Some(result(comparison, regime)?.cycles.total);
    Some(fraction(time(RegimeKind::ShadowKvm61)?, time(RegimeKind::NestedEpt)?) - 1.0)
}

/// The workloads by benefit, the least first.
#[must_use]
pub(crate) fn ranking(comparisons: &[Comparison]) -> Vec<(&str, f64)> {
    let mut all: Vec<_> = comparisons.iter().filter_map(|one| Some((one.workload.name(), benefit(one)?))).collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    all
}

/// From here on a benefit is no loss: less would not be seen in the one digit that is shown.
pub(crate) const LEAST: f64 = -0.0005;

/// The middle of a ranking.
#[must_use]
pub(crate) fn median(ranking: &[(&str, f64)]) -> f64 {
    let n = ranking.len();
    match (n, n % 2) {
        (0, _) => 0.0,
        (_, 1) => ranking[n / 2].1,
        _ => f64::midpoint(ranking[n / 2 - 1].1, ranking[n / 2].1),
    }
}

fn named(ranking: &[(&str, f64)], wanted: impl Fn(f64) -> bool) -> Vec<String> {
    let found = ranking.iter().filter(|(_, benefit)| wanted(*benefit));
    found.map(|(name, benefit)| format!("`{name}` {}", signed_percent(*benefit))).collect()
}

fn depends(evidence: &Evidence) -> Option<Claim> {
    let fair = &evidence.fair;
    let ranking = ranking(&fair.plain);
    let ((least, low), (most, high)) = (ranking.first()?, ranking.last()?);
    let forkwait = fair.plain_of("forkwait")?;
    let outlier = benefit(forkwait)?;
    let warm = fair.plain.iter().filter(|one| measured_as(one) == "loaded and warm").count();
    let over = ranking.iter().filter(|(_, benefit)| *benefit > 0.4).count();
    let condition = format!(
        "When an outlier is one by its size, not by being above 40 %: {over} of {} workloads, more than a quarter, lie above 40 %; shadow paging \
         takes {:.1} times nested paging's time for `forkwait`, and {:.1} times at the median.",
        ranking.len(),
        1.0 + outlier,
        1.0 + median(&ranking)
    );
    let claim = Claim {
        id: "workload",
        claim: "The benefit depends very much on the workload; forkwait is an outlier above 40 %.",
        measured: format!(
            "`forkwait` {} (command). Over {} workloads from {} (`{least}`) to {} (`{most}`), median {}; {over} of them lie above \
             40 %, so that it is an outlier by its size and not by being above that. Each has its command in the figure's data. {warm} are measured loaded and warm, the others from their start; mode cycles, pages of 4 KiB, no \
             isolation. Where walks are many and tables stand still, shadow paging wins: its walk is one-dimensional.",
            signed_percent(outlier),
            ranking.len(),
            signed_percent(*low),
            signed_percent(*high),
            signed_percent(median(&ranking)),
        ),
        verdict: match (high - low > 0.4 && outlier > 0.4, over * 4 <= ranking.len()) {
            (true, true) => Verdict::Holds,
            (true, false) => Verdict::HoldsWhen,
            (false, _) => Verdict::Fails,
        },
        shown: "benefit",
        command: forkwait.command.clone(),
    }
    .when(&condition);
    Some(claim)
}

fn twenty_percent(evidence: &Evidence) -> Option<Claim> {
    let fair = &evidence.fair;
    let plain = ranking(&fair.plain);
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let (lose, within) = (named(&plain, |b| b < LEAST), named(&plain, |b| (LEAST..=0.2).contains(&b)));
    let above = plain.len() - lose.len() - within.len();
    let short = |comparisons: &[Comparison]| {
        let ranking = ranking(comparisons);
        let lose = named(&ranking, |b| b < LEAST).len();
        let within = named(&ranking, |b| (LEAST..=0.2).contains(&b)).len();
        let above = ranking.len() - lose - within;
        format!("{lose} lose, {within} gain up to 20 %, {above} more, median {}", signed_percent(median(&ranking)))
    };
    let typical = within.len();
    let condition = format!(
        "When what shadow paging's exits cost is at least what its shorter walks save, and more by at most a fifth of the nested run's time (cycles \
         of exits and of tables in the data of `cycles-timed`): here {typical} of {} workloads, {}.",
        plain.len(),
        list(within.clone())
    );
    let claim = Claim {
        id: "twenty-percent",
        claim: "Typically the benefit is up to 20 %.",
        measured: format!(
            "Of {} workloads {} gain from nothing to 20 %: {}. {} lose: {}. {above} gain more: those that make processes or mappings, \
             touch memory the first time, or switch address spaces. Median {}. With kernel-page-table isolation and PCIDs: {}. With 2 MiB \
             pages in guest and host: {}. So it is true of programs that compute, and of those that mix table updates with much \
             computation; the typical program of this list is either a loser by walks or a winner by multiples.",
            plain.len(),
            typical,
            list(within),
            lose.len(),
            list(lose),
            signed_percent(median(&plain)),
            short(&fair.kpti),
            short(&fair.large),
        ),
        verdict: match (typical, typical * 2 > plain.len()) {
            (0, _) => Verdict::Fails,
            (_, true) => Verdict::Holds,
            (_, false) => Verdict::HoldsWhen,
        },
        shown: "benefit",
        command: evidence.command(),
    }
    .when(&condition);
    Some(claim)
}

fn conditions(evidence: &Evidence) -> Option<Claim> {
    let fair = &evidence.fair;
    let base = fair.plain_of("gups")?;
    let words = |name: &str| -> String {
        let of = |one: &Comparison| Some(format!("{} {}", switch(one), signed_percent(benefit(one)?)));
        let same = fair.switched.iter().filter(|one| one.workload.name() == name);
        same.filter_map(of).collect::<Vec<_>>().join(", ")
    };
    let gups = benefit(base)?;
    let changed = fair.switched.iter().filter(|one| one.workload.name() == "gups");
    let moved = changed.filter_map(|one| Some((one, benefit(one)?)));
    let (farthest, to) = moved.max_by(|a, b| (a.1 - gups).abs().total_cmp(&(b.1 - gups).abs()))?;
    let most = (to - gups).abs();
    let condition = format!(
        "When the machine's switches stay as they are: `{}` alone moves the benefit of `gups` from {} to {}.",
        switch(farthest),
        signed_percent(gups),
        signed_percent(to)
    );
    let claim = Claim {
        id: "conditions",
        claim: "The benefit is a property of the workload.",
        measured: format!(
            "And of the machine's switches. `gups` {} by default; one switch changed: {}. `kernel-build` {}; {}.",
            signed_percent(gups),
            words("gups"),
            signed_percent(benefit(fair.plain_of("kernel-build")?)?),
            words("kernel-build")
        ),
        verdict: if most > 0.05 { Verdict::HoldsWhen } else { Verdict::Holds },
        shown: "benefit",
        command: base.command.clone(),
    }
    .when(&condition);
    Some(claim)
}

/// The switch that a comparison of [`super::Fair::switched`] changes, as on the command line.
fn switch(comparison: &Comparison) -> String {
    let words: Vec<_> = comparison.command.split(" --").skip(1).collect();
    let usual = ["regimes", "workload", "machine", "scale", "footprint", "set", "mode", "steady", "kpti off"];
    let found = words.into_iter().find(|word| !usual.iter().any(|usual| word.starts_with(usual)));
    found.map_or_else(|| "as above".to_owned(), |word| format!("--{word}"))
}

fn vcpus(evidence: &Evidence) -> Option<Claim> {
    let ends = |scaled: &Scaled| {
        let of = scaled.table.benefits.iter();
        let mut pairs = of.filter(|row| (row.shadow, row.nested) == (RegimeKind::ShadowKvm61, RegimeKind::NestedEpt));
        let first = *pairs.next()?;
        Some((first, pairs.next_back().copied().unwrap_or(first)))
    };
    let all: Vec<_> = evidence.many.scaling.iter().filter_map(|scaled| Some((scaled, ends(scaled)?))).collect();
    // More by a tenth, and by a point.
    let grows = |(_, (first, last)): &&(&Scaled, (BenefitRow, BenefitRow))| {
        last.benefit > (first.benefit * 1.1).max(first.benefit + 0.01)
    };
    let growing = all.iter().filter(grows).count();
    let condition = exits_often(
        all.iter().map(|pair| (pair.0, grows(&pair))).collect(),
        all.iter().map(|(_, (_, last))| last.vcpus).max().unwrap_or(1),
    );
    let words: Vec<_> = all
        .iter()
        .map(|(scaled, (first, last))| {
            format!(
                "{} (`{}`) {} on {} vCPU, {} on {}",
                scaled.title,
                scaled.table.workload,
                signed_percent(first.benefit),
                first.vcpus,
                signed_percent(last.benefit),
                last.vcpus
            )
        })
        .collect();
    let most = all.iter().max_by(|a, b| (a.1.1.benefit - a.1.0.benefit).total_cmp(&(b.1.1.benefit - b.1.0.benefit)))?;
    let claim = Claim {
        id: "vcpus",
        claim: "The benefit grows with the number of virtual CPUs.",
        measured: format!(
            "It grows for {growing} of {}: {}. It grows because the MMU's lock is held exclusively at each exit that changes shadow tables, \
             while nested faults share it. The command is that of the steepest.",
            all.len(),
            words.join("; ")
        ),
        verdict: match growing {
            0 => Verdict::Fails,
            n if n == all.len() => Verdict::Holds,
            _ => Verdict::HoldsWhen,
        },
        shown: "scaling",
        command: most.0.table.command.clone(),
    }
    .when(&condition);
    Some(claim)
}

/// From how many exits on one vCPU under KVM's shadow MMU the benefit grows with vCPUs; workloads, and whether it does.
fn exits_often(all: Vec<(&Scaled, bool)>, most: u16) -> String {
    let rated: Vec<(&str, f64, bool)> = all
        .into_iter()
        .filter_map(|(scaled, grows)| {
            let mut points = scaled.table.of(RegimeKind::ShadowKvm61);
            let alone = points.find(|point| point.vcpus == 1)?;
            Some((scaled.table.workload.as_str(), 1000.0 * fraction(alone.exits, alone.accesses), grows))
        })
        .collect();
    let least = rated.iter().filter(|(.., grows)| *grows).map(|(_, rate, _)| *rate).fold(f64::INFINITY, f64::min);
    let list = |wanted: &dyn Fn(f64, bool) -> bool| {
        let found = rated.iter().filter(|(_, rate, grows)| wanted(*rate, *grows));
        let names: Vec<_> = found.map(|(name, rate, _)| format!("`{name}` {rate:.1}")).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let exceptions = if rated.iter().any(|(_, rate, grows)| !grows && *rate >= least) {
        format!("; an exception up to {most} vCPUs: {}", list(&|rate, grows| !grows && rate >= least))
    } else {
        String::new()
    };
    format!(
        "When one vCPU under shadow paging exits {least:.1} times or more for 1,000 accesses: it grows with {}; not with {}{exceptions}.",
        list(&|_, grows| grows),
        list(&|rate, grows| !grows && rate < least)
    )
}
