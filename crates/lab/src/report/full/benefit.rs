//! The report's figures over all workloads: benefit, cycles, references, exits, trapped stores, table bytes.

use memvirt_machine::{RegimeKind, RunResult};

use super::{Section, conditions};
use crate::claims::{Evidence, measured_as, median, ranking_of, result};
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::report::chart::{Bar, Chart, Panel, Scale};
use crate::report::paint::Ink;
use crate::report::{Figure, column};
use crate::summary::exits_for;
use crate::text::{bytes, count, fraction, short, signed_percent};
use memvirt_platform::ExitReason;

pub(super) fn benefits(evidence: &Evidence) -> Result<Section, LabError> {
    Ok(Section::new("benefits", "Benefit by workload")
        .figure(benefit("benefit", "Benefit of nested paging by workload", &evidence.fair.plain)?)
        .figure(benefit("benefit-kpti", "The same with kernel-page-table isolation", &evidence.fair.kpti)?)
        .figure(benefit("benefit-large", "The same with pages of 2 MiB in guest and host", &evidence.fair.large)?))
}

pub(super) fn traps(evidence: &Evidence) -> Result<Section, LabError> {
    Ok(Section::new("traps", "Trap counts").figure(super::breakdown::exits(evidence)?).figure(stores(evidence)?))
}

pub(super) fn tables(evidence: &Evidence) -> Result<Section, LabError> {
    Ok(Section::new("tables", "Memory for tables").figure(footprint(evidence)?))
}

#[expect(clippy::cast_precision_loss, reason = "lengths of bars")]
const fn length(n: u64) -> f64 {
    n as f64
}

/// A figure of bars; its table begins with the workload.
pub(super) fn shown(
    id: &str,
    title: &str,
    caption: &str,
    (columns, rows): (Vec<String>, Vec<Vec<String>>),
    chart: Chart,
    of: &[Comparison],
) -> Result<Figure, LabError> {
    let header = std::iter::once("workload".to_owned()).chain(columns).collect();
    let caption = format!("{caption} {}", conditions::of_comparisons(of));
    let figure = Figure::new(id, title, caption, (header, rows), chart)?;
    Ok(figure.made_by_each(of.iter().map(|one| one.command.as_str())))
}

/// Bars of log2(T_shadow / T_nested), so that a doubling is as long either way.
fn benefit(id: &str, title: &str, comparisons: &[Comparison]) -> Result<Figure, LabError> {
    let ranking = ranking_of(comparisons);
    let bar = |name: &str, benefit: f64, wins: bool| {
        let (ink, times) = if wins { (Ink::Green, 1.0 + benefit) } else { (Ink::Blue, 1.0 / (1.0 + benefit)) };
        Bar { label: name.to_owned(), parts: vec![(ink, times.log2())], value: signed_percent(benefit) }
    };
    let side = |wins: bool| -> Vec<Bar> {
        let mut bars: Vec<_> =
            ranking.iter().filter(|(_, b)| (*b >= 0.0) == wins).map(|(name, b)| bar(name, *b, wins)).collect();
        if wins {
            bars.reverse();
        }
        bars
    };
    let panel =
        |heading: &str, bars: Vec<Bar>| (!bars.is_empty()).then(|| Panel { heading: Some(heading.to_owned()), bars });
    let panels = [panel("nested paging wins", side(true)), panel("shadow paging wins", side(false))];
    let chart = Chart {
        axis: "how many times as fast, each step a doubling",
        scale: Scale::Decimal,
        tick: |x| format!("{}x", short(whole(x.exp2()))),
        legend: vec![(Ink::Green, "nested paging is faster"), (Ink::Blue, "KVM's shadow paging is faster")],
        panels: panels.into_iter().flatten().collect(),
        marks: Vec::new(),
    };
    let row = |(name, b): &(&str, f64)| {
        let one = comparisons.iter().find(|one| one.workload.name() == *name);
        let how = one.map_or(("", ""), |one| (measured_as(one), one.command.as_str()));
        let counted = one.map_or([0; 2], conditions::accesses).map(count);
        let words = [(*name).to_owned(), signed_percent(*b), how.0.to_owned()];
        words.into_iter().chain(counted).chain([how.1.to_owned()]).collect()
    };
    let rows = ranking.iter().map(row).collect();
    let header = ["benefit_percent", "measured", "counted_accesses", "warm_up_accesses", "command"];
    let data = (header.map(str::to_owned).to_vec(), rows);
    let caption = format!(
        "Workloads from the one that nested paging speeds up most to the one where shadow paging wins most; median {}. Benefit is \
         T_shadow / T_nested - 1. Programs that run for long are measured loaded and warm, those whose point is to make processes, \
         mappings and faults from their start.",
        signed_percent(median(&ranking))
    );
    shown(id, title, &caption, data, chart, comparisons)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ticks are small, not negative")]
pub(super) const fn whole(x: f64) -> u64 {
    x.round() as u64
}

fn regimes(evidence: &Evidence) -> Vec<RegimeKind> {
    evidence.plain.first().map_or_else(Vec::new, |one| one.results.iter().map(|run| run.regime).collect())
}

/// One panel for each workload, a bar for each of its runs that are `wanted`; and the bars' values by workload.
pub(super) fn grouped(
    comparisons: &[Comparison],
    wanted: impl Fn(&RunResult) -> bool,
    parts: impl Fn(&RunResult, &RunResult, usize) -> (Vec<(Ink, f64)>, String),
) -> (Vec<Panel>, Vec<Vec<String>>) {
    let (mut panels, mut rows) = (Vec::new(), Vec::new());
    for comparison in comparisons {
        let Some(native) = result(comparison, RegimeKind::Native) else { continue };
        let runs = comparison.results.iter().filter(|run| wanted(run));
        let bars: Vec<_> = runs
            .enumerate()
            .map(|(i, run)| {
                let (parts, value) = parts(run, native, i);
                Bar { label: run.regime.name().to_owned(), parts, value }
            })
            .collect();
        let name = comparison.workload.name().to_owned();
        rows.push(std::iter::once(name.clone()).chain(bars.iter().map(|bar| bar.value.clone())).collect());
        panels.push(Panel { heading: Some(name), bars });
    }
    (panels, rows)
}

/// A column for each regime, in this unit.
fn names(regimes: &[RegimeKind], unit: &str) -> Vec<String> {
    regimes.iter().map(|regime| column(regime.name(), unit)).collect()
}

pub(super) fn references(evidence: &Evidence) -> Result<Figure, LabError> {
    let regimes: Vec<_> =
        regimes(evidence).into_iter().filter(|r| matches!(r.name(), "native" | "shadow:kvm" | "nested")).collect();
    let (panels, rows) = grouped(
        &evidence.plain,
        |run| regimes.contains(&run.regime),
        |run, _, _| {
            let refs = |n| fraction(n, run.walks.max(1));
            let parts = vec![
                (Ink::Blue, refs(run.walk_refs.guest)),
                (Ink::Green, refs(run.walk_refs.shadow)),
                (Ink::Vermillion, refs(run.walk_refs.host)),
            ];
            (parts, format!("{:.2}", run.refs_per_walk()))
        },
    );
    let chart = Chart {
        axis: "memory references for each walk, walk caches off",
        scale: Scale::Decimal,
        tick: |x| short(whole(x)),
        legend: vec![(Ink::Blue, "guest tables"), (Ink::Green, "shadow tables"), (Ink::Vermillion, "nested tables")],
        panels,
        marks: vec![(4.0, "4"), (24.0, "24")],
    };
    let data = (names(&regimes, "references_per_walk"), rows);
    let caption = "References of the average hardware walk. Walks that end at a missing entry are shorter than those that find one.";
    shown("references", "Walk references by workload", caption, data, chart, &evidence.plain)
}

fn stores(evidence: &Evidence) -> Result<Figure, LabError> {
    let regimes: Vec<_> = regimes(evidence).into_iter().filter(|r| r.name() != "native").collect();
    let (mut panels, mut rows) = (Vec::new(), Vec::new());
    for comparison in &evidence.plain {
        let of = |regime: &RegimeKind| {
            let run = result(comparison, *regime)?;
            Some((run, fraction(exits_for(run, ExitReason::TableWrite), run.guest.table_stores)))
        };
        let found: Vec<_> = regimes.iter().filter_map(of).collect();
        let name = comparison.workload.name().to_owned();
        let bar = |(run, each): &(&RunResult, f64)| Bar {
            label: run.regime.name().to_owned(),
            parts: vec![(Ink::Vermillion, *each)],
            value: format!("{each:.3}"),
        };
        rows.push(std::iter::once(name.clone()).chain(found.iter().map(|(_, each)| format!("{each:.3}"))).collect());
        let trapping = |pair: &&(&RunResult, f64)| {
            pair.0.regime.name().ends_with("protect") || pair.0.regime.name().ends_with("kvm")
        };
        panels.push(Panel { heading: Some(name), bars: found.iter().filter(trapping).map(bar).collect() });
    }
    let chart = Chart {
        axis: "trapped stores for each store to a guest table",
        scale: Scale::Decimal,
        tick: |x| format!("{x:.1}"),
        legend: Vec::new(),
        panels,
        marks: Vec::new(),
    };
    let data = (names(&regimes, "trapped_per_table_store"), rows);
    let caption = "What write protection costs, and what going out of sync saves. Policies without write protection and nested paging \
                   trap no store.";
    shown("stores", "Trapped stores to guest tables", caption, data, chart, &evidence.plain)
}

fn footprint(evidence: &Evidence) -> Result<Figure, LabError> {
    let regimes: Vec<_> =
        regimes(evidence).into_iter().filter(|r| matches!(r.name(), "shadow:kvm" | "nested")).collect();
    let (panels, _) = grouped(
        &evidence.plain,
        |run| regimes.contains(&run.regime),
        |run, _, _| {
            let tables = run.table_bytes;
            let parts = vec![
                (Ink::Blue, length(tables.guest)),
                (Ink::Green, length(tables.shadow)),
                (Ink::Vermillion, length(tables.nested)),
                (Ink::Grey, length(tables.metadata)),
            ];
            (parts, bytes(tables.total))
        },
    );
    let chart = Chart {
        axis: "bytes of tables at the end of the run",
        scale: Scale::Binary,
        tick: |x| bytes(whole(x)),
        legend: vec![
            (Ink::Blue, "guest tables"),
            (Ink::Green, "shadow tables"),
            (Ink::Vermillion, "nested tables"),
            (Ink::Grey, "hypervisor's records"),
        ],
        panels,
        marks: Vec::new(),
    };
    let row = |one: &Comparison| {
        let all = regimes.iter().filter_map(|regime| result(one, *regime));
        std::iter::once(one.workload.name().to_owned()).chain(all.map(|run| count(run.table_bytes.total))).collect()
    };
    let data = (names(&regimes, "bytes"), evidence.plain.iter().map(row).collect());
    let caption =
        "Bytes of tables of each kind; records are what KVM keeps beside shadow pages, its reverse map first of all.";
    shown("footprint", "Memory for tables by workload", caption, data, chart, &evidence.plain)
}
