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

/// A benefit nearer to nothing would not be seen in the one digit that is shown.
pub(crate) const EQUAL: f64 = 0.0005;

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
             40 %, so that it is an outlier by its size and not by being above that. Each has its command in the figure's data. {warm} are \
             measured loaded and warm, the others from their start; mode cycles, pages of 4 KiB, no isolation. Where walks are many and \
             tables stand still, shadow paging wins: its walk is one-dimensional.",
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
    let plain = Sides::of(ranking(&fair.plain));
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let short = |comparisons: &[Comparison]| {
        let sides = Sides::of(ranking(comparisons));
        let [lose, equal, within, above] = sides.counts();
        let median = signed_percent(median(&sides.ranking));
        format!("up to 20 %: {within}, equal: {equal}, lose: {lose}, more: {above}, median {median}")
    };
    let [lose, equal, within, above] = plain.counts();
    Some(Claim {
        id: "twenty-percent",
        claim: "Typically the benefit is up to 20 %.",
        measured: format!(
            "Of {} workloads gain up to 20 %: {within}, {}; are equal to 0.05 %: {equal}, {}; lose: {lose}, {}; gain more: {above}, those that \
             make processes or mappings, touch memory the first time, or switch address spaces. Median {}. With kernel-page-table isolation \
             and PCIDs: {}. With 2 MiB pages in guest and host: {}. So it is true of programs that mix table updates with much computation, \
             where what shadow paging's exits cost is a little more than what its shorter walks save; the typical program of this list is \
             either a loser by walks or a winner by multiples.",
            plain.ranking.len(),
            list(plain.named(Side::Within)),
            list(plain.named(Side::Equal)),
            list(plain.named(Side::Loses)),
            signed_percent(median(&plain.ranking)),
            short(&fair.kpti),
            short(&fair.large),
        ),
        verdict: Verdict::of(2 * (within + equal) > plain.ranking.len()),
        shown: "benefit",
        command: evidence.command(),
    })
}

/// Which way a benefit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Shadow paging wins.
    Loses,
    /// What lies between would not be seen in the one digit that is shown.
    Equal,
    /// A gain of up to a fifth.
    Within,
    /// A larger one.
    Above,
}

impl Side {
    const fn of(benefit: f64) -> Self {
        match benefit {
            b if b < -EQUAL => Self::Loses,
            b if b < EQUAL => Self::Equal,
            b if b <= 0.2 => Self::Within,
            _ => Self::Above,
        }
    }
}

/// A ranking, by side.
struct Sides<'a> {
    ranking: Vec<(&'a str, f64)>,
}

impl<'a> Sides<'a> {
    fn of(ranking: Vec<(&'a str, f64)>) -> Self {
        Self { ranking }
    }

    fn named(&self, side: Side) -> Vec<String> {
        let found = self.ranking.iter().filter(|(_, benefit)| Side::of(*benefit) == side);
        found.map(|(name, benefit)| format!("`{name}` {}", signed_percent(*benefit))).collect()
    }

    fn counts(&self) -> [usize; 4] {
        [Side::Loses, Side::Equal, Side::Within, Side::Above]
            .map(|side| self.ranking.iter().filter(|(_, benefit)| Side::of(*benefit) == side).count())
    }
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
    let condition = lock_is_held(
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
            "It grows for {growing} of {}: {}. It grows because the MMU's lock is held exclusively at each exit that changes shadow \
             tables, while nested faults share it. Before that it may fall: threads interrupt each other to flush their TLBs, which \
             costs the same under both.{} The command is that of the steepest.",
            all.len(),
            words.join("; "),
            first_touches(all.iter().map(|(scaled, _)| *scaled))
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

/// What makes nested paging faster beside others: a frame is touched for the first time once, by whichever vCPU. Long runs hardly show it.
fn first_touches<'a>(all: impl Iterator<Item = &'a Scaled>) -> String {
    let faster = all.filter_map(|scaled| {
        let last = scaled.table.of(RegimeKind::NestedEpt).max_by_key(|point| point.vcpus)?;
        let percent = 100.0 * last.efficiency;
        (percent > 105.0).then(|| format!("`{}` to {percent:.0} % on {}", scaled.table.workload, last.vcpus))
    });
    let faster: Vec<_> = faster.collect();
    if faster.is_empty() {
        return String::new();
    }
    format!(
        " A part is no waiting: under nested paging one vCPU's first touch of a frame serves all, and in runs so short the throughput of each \
         rises ({}).",
        faster.join(", ")
    )
}

/// How much of the time the MMU's lock is held with the most vCPUs under KVM's shadow MMU; workloads, and whether their benefit grows.
fn lock_is_held(all: Vec<(&Scaled, bool)>, most: u16) -> String {
    let list = |wanted: bool| {
        let held = all.iter().filter(|(_, grows)| *grows == wanted).filter_map(|(scaled, _)| {
            let point = scaled.table.of(RegimeKind::ShadowKvm61).max_by_key(|point| point.vcpus)?;
            Some(format!("`{}` {:.0} %", scaled.table.workload, 100.0 * point.lock_utilization))
        });
        let held: Vec<_> = held.collect();
        if held.is_empty() { "none".to_owned() } else { held.join(", ") }
    };
    format!(
        "When vCPUs under shadow paging come to queue for the MMU's lock. Share of the time that it is held on {most}: where the benefit grows {}; \
         where it does not {}.",
        list(true),
        list(false)
    )
}
