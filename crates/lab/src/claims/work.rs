//! Claims about exits, cost and benefit.

use memvirt_machine::{RegimeKind, RunResult};
use memvirt_platform::ExitReason;

use super::evidence::{Evidence, result};
use super::{Claim, Verdict};
use crate::comparison::Comparison;
use crate::summary::exits_for;
use crate::text::{bytes, fraction, signed_percent};

pub(super) fn claims(evidence: &Evidence) -> Vec<Claim> {
    [
        silent_events(evidence),
        every_event(evidence),
        write_protection(evidence),
        context_switches(evidence),
        Some(world_switches(evidence)),
        algorithms(evidence),
        depends(evidence),
        twenty_percent(evidence),
        footprint(evidence),
    ]
    .into_iter()
    .flatten()
    .collect()
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

fn silent_events(evidence: &Evidence) -> Option<Claim> {
    let table = evidence.exits.first()?;
    let exits = |row: &str| table.rows.iter().find(|found| found.row == row)?.cell("ept")?.exits;
    let rows = [("guest page fault", "5"), ("INVLPG", "8"), ("MOV to CR3", "12"), ("leaf-table store", "7")];
    let counted: Option<Vec<_>> = rows.iter().map(|(name, row)| Some((*name, exits(row)?))).collect();
    let counted = counted?;
    let words: Vec<_> = counted.iter().map(|(name, exits)| format!("{name} {exits}")).collect();
    Some(Claim {
        id: "no-exits",
        claim: "Under EPT guest page faults, INVLPG and CR3 loads cause no exits.",
        measured: format!("Exits under EPT: {}.", words.join(", ")),
        verdict: Verdict::of(counted.iter().all(|(_, exits)| *exits == 0)),
        shown: "events",
        command: "memvirt exits".to_owned(),
    })
}

fn every_event(evidence: &Evidence) -> Option<Claim> {
    let table = evidence.exits.first()?;
    let compared = table.rows.iter().flat_map(|row| &row.cells).filter(|cell| cell.agrees.is_some()).count();
    Some(Claim {
        id: "events",
        claim: "Each guest event costs so many exits under each shadow policy.",
        measured: format!(
            "{} events under {} regimes; of {compared} cells that the specification states, {} differ, {} of them without an \
             explanation.",
            table.rows.len(),
            table.regimes.len(),
            table.differences,
            table.unexplained
        ),
        verdict: Verdict::of(table.unexplained == 0),
        shown: "events",
        command: "memvirt exits".to_owned(),
    })
}

fn write_protection(evidence: &Evidence) -> Option<Claim> {
    let each = |regime| {
        let sum = |of: fn(&RunResult) -> u64| evidence.runs(regime).map(of).sum::<u64>();
        let traps = sum(|run| exits_for(run, ExitReason::TableWrite));
        fraction(traps, sum(|run| run.guest.table_stores))
    };
    let (protected, lazy, kvm) =
        (each(RegimeKind::ShadowWriteProtect), each(RegimeKind::ShadowLazyFill), each(RegimeKind::ShadowKvm61));
    Some(Claim {
        id: "write-protect",
        claim: "Write protection costs one fault for each update of a guest table; lazy schemes avoid most of them.",
        measured: format!(
            "Trapped stores for each store to a guest table, over {} workloads: write-protect {protected:.2}, KVM {kvm:.2}, \
             lazy-fill {lazy:.2}. Stores to tables that nobody shadows yet do not trap, so write protection stays below one.",
            evidence.plain.len()
        ),
        verdict: Verdict::of(lazy < protected / 2.0 && kvm < protected / 2.0 && protected <= 1.0),
        shown: "stores",
        command: evidence.of("churn")?.command.clone(),
    })
}

fn context_switches(evidence: &Evidence) -> Option<Claim> {
    let name = "context-switch-16";
    let plain = evidence.of(name)?;
    let kpti = evidence.kpti.iter().find(|one| one.workload.name() == name)?;
    let each = |comparison, regime| {
        let run: &RunResult = result(comparison, regime)?;
        Some(fraction(exits_for(run, ExitReason::Cr3Load), run.guest.switches))
    };
    let (shadow, nested) = (each(plain, RegimeKind::ShadowKvm61)?, each(plain, RegimeKind::NestedEpt)?);
    let isolated = each(kpti, RegimeKind::ShadowKvm61)?;
    Some(Claim {
        id: "context-switch",
        claim: "Shadow paging traps once for each context switch.",
        measured: format!(
            "CR3-load exits for each switch of `{name}`: KVM's shadow MMU {shadow:.2}, nested {nested:.2}. With kernel-page-table \
             isolation {isolated:.2}: every kernel entry and exit loads CR3 too."
        ),
        verdict: if (0.98..1.1).contains(&shadow) { Verdict::HoldsWhen } else { Verdict::Fails },
        shown: "exits",
        command: plain.command.clone(),
    })
}

fn world_switches(evidence: &Evidence) -> Claim {
    let switches = evidence.world_switches;
    let (untagged, tagged) = switches.per_switch();
    Claim {
        id: "world-switch",
        claim: "A world switch flushes the TLB; tags (VPID, ASID) save that.",
        measured: format!(
            "Two machines in turn on one CPU, {} pages each: {untagged:.1} TLB misses after each switch without tags, {tagged:.1} \
             with.",
            switches.pages
        ),
        verdict: Verdict::of(switches.misses_tagged < switches.misses_untagged),
        shown: "isolation",
        command: "cargo test -p memvirt-tests --test world_switch".to_owned(),
    }
}

fn algorithms(evidence: &Evidence) -> Option<Claim> {
    let each = |regime| {
        let sum = |of: fn(&RunResult) -> u64| evidence.runs(regime).map(of).sum::<u64>();
        let stores = sum(|run| run.guest.table_stores);
        let written = sum(|run| run.work.entries_set + run.work.entries_cleared);
        (fraction(sum(RunResult::total_exits), stores), fraction(written, stores))
    };
    let (shadow, nested) = (each(RegimeKind::ShadowKvm61), each(RegimeKind::NestedEpt));
    let others: u64 = evidence
        .runs(RegimeKind::NestedEpt)
        .map(|run| run.total_exits() - exits_for(run, ExitReason::EptViolation))
        .sum();
    Some(Claim {
        id: "algorithms",
        claim: "EPT needs no complex page-table algorithms in the hypervisor.",
        measured: format!(
            "For each store of a guest to its tables KVM's shadow MMU takes {:.3} exits and writes {:.3} entries; with EPT {:.3} \
             and {:.3}. Of EPT's exits {others} are for anything but a frame touched the first time.",
            shadow.0, shadow.1, nested.0, nested.1
        ),
        verdict: Verdict::of(others == 0 && nested.0 < shadow.0 && nested.1 < shadow.1),
        shown: "stores",
        command: evidence.of("churn")?.command.clone(),
    })
}

fn depends(evidence: &Evidence) -> Option<Claim> {
    let ranking = ranking(&evidence.plain);
    let ((least, low), (most, high)) = (ranking.first()?, ranking.last()?);
    Some(Claim {
        id: "workload",
        claim: "The benefit depends very much on the workload; forkwait is an outlier above 40 %.",
        measured: format!(
            "Over {} workloads from {} (`{least}`) to {} (`{most}`), median {}; `forkwait` {}.",
            ranking.len(),
            signed_percent(*low),
            signed_percent(*high),
            signed_percent(median(&ranking)),
            signed_percent(benefit(evidence.of("forkwait")?)?)
        ),
        verdict: Verdict::of(high - low > 0.4 && benefit(evidence.of("forkwait")?)? > 0.4),
        shown: "benefit",
        command: evidence.of("forkwait")?.command.clone(),
    })
}

fn twenty_percent(evidence: &Evidence) -> Option<Claim> {
    let words = |comparisons: &[Comparison]| {
        let ranking = ranking(comparisons);
        let share = |wanted: fn(f64) -> bool| ranking.iter().filter(|(_, benefit)| wanted(*benefit)).count();
        let (negative, within, above) = (share(|b| b < 0.0), share(|b| (0.0..=0.2).contains(&b)), share(|b| b > 0.2));
        (
            format!(
                "{negative} lose, {within} gain up to 20 %, {above} more (median {})",
                signed_percent(median(&ranking))
            ),
            within,
        )
    };
    let ((plain, within), (kpti, _)) = (words(&evidence.plain), words(&evidence.kpti));
    let first = evidence.plain.first()?;
    Some(Claim {
        id: "twenty-percent",
        claim: "Typically the benefit is up to 20 %.",
        measured: format!(
            "Of {} workloads {plain}; with kernel-page-table isolation {kpti}. It is so for programs that neither change their page \
             tables much nor miss the TLB much; fork, exec, mapping, first touches and every kernel entry under isolation go far beyond. \
             Runs are measured from their first access on: the shorter they are, the more first touches decide.",
            evidence.plain.len()
        ),
        verdict: if within > 0 { Verdict::HoldsWhen } else { Verdict::Fails },
        shown: "benefit",
        command: first.command.clone(),
    })
}

fn footprint(evidence: &Evidence) -> Option<Claim> {
    let comparison = evidence.of("database")?;
    let own = |regime| {
        let tables = result(comparison, regime)?.table_bytes;
        Some((tables.shadow + tables.nested, tables.metadata))
    };
    let (shadow, records) = own(RegimeKind::ShadowKvm61)?;
    let (nested, _) = own(RegimeKind::NestedEpt)?;
    Some(Claim {
        id: "footprint",
        claim: "One EPT serves a machine, each guest process needs a shadow table: EPT takes less memory.",
        measured: format!(
            "`database`, 33 processes over shared memory: shadow tables {} and records {}, nested tables {}. With one process both \
             hold about one leaf table for each 2 MiB touched.",
            bytes(shadow),
            bytes(records),
            bytes(nested)
        ),
        verdict: if shadow > nested { Verdict::HoldsWhen } else { Verdict::Fails },
        shown: "footprint",
        command: comparison.command.clone(),
    })
}
