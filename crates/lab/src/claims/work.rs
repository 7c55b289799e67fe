//! Claims about exits, cost and benefit.

use memvirt_machine::{RegimeKind, RunResult};
use memvirt_platform::ExitReason;

use super::evidence::{Evidence, result};
use super::{Claim, Verdict};
use crate::footprint::Beside;
use crate::summary::exits_for;
use crate::text::{bytes, fraction};

pub(super) fn claims(evidence: &Evidence) -> Vec<Claim> {
    [
        silent_events(evidence),
        every_event(evidence),
        write_protection(evidence),
        context_switches(evidence),
        Some(world_switches(evidence)),
        algorithms(evidence),
        footprint(evidence),
    ]
    .into_iter()
    .flatten()
    .collect()
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
    const ALL: [RegimeKind; 3] = [RegimeKind::ShadowWriteProtect, RegimeKind::ShadowKvm61, RegimeKind::ShadowLazyFill];
    let each = |runs: &[&RunResult]| {
        let sum = |of: fn(&RunResult) -> u64| runs.iter().map(|run| of(run)).sum::<u64>();
        fraction(sum(|run| exits_for(run, ExitReason::TableWrite)), sum(|run| run.guest.table_stores))
    };
    let churn = evidence.of("churn")?;
    let one = ALL.map(|regime| result(churn, regime).map_or(0.0, |run| each(&[run])));
    let all = ALL.map(|regime| each(&evidence.runs(regime).collect::<Vec<_>>()));
    let words =
        |[protected, kvm, lazy]: [f64; 3]| format!("write-protect {protected:.2}, KVM {kvm:.2}, lazy-fill {lazy:.2}");
    Some(Claim {
        id: "write-protect",
        claim: "Write protection costs one fault for each update of a guest table; lazy schemes avoid most of them.",
        measured: format!(
            "Trapped stores for each store to a guest table in `churn`: {}. Over {} workloads, each in its row of the report: {}. \
             Stores to tables that nobody shadows yet do not trap, so write protection stays below one.",
            words(one),
            evidence.plain.len(),
            words(all)
        ),
        verdict: Verdict::of(
            [one, all]
                .iter()
                .all(|[protected, kvm, lazy]| *protected <= 1.0 && *lazy < protected / 2.0 && *kvm < protected / 2.0),
        ),
        shown: "stores",
        command: churn.command.clone(),
    })
}

fn context_switches(evidence: &Evidence) -> Option<Claim> {
    let name = "context-switch-16";
    let plain = evidence.of(name)?;
    let kpti = evidence.fair.kpti.iter().find(|one| one.workload.name() == name)?;
    let each = |comparison, regime| {
        let run: &RunResult = result(comparison, regime)?;
        Some(fraction(exits_for(run, ExitReason::Cr3Load), run.guest.switches))
    };
    let (shadow, nested) = (each(plain, RegimeKind::ShadowKvm61)?, each(plain, RegimeKind::NestedEpt)?);
    let isolated = each(kpti, RegimeKind::ShadowKvm61)?;
    let condition = format!(
        "When the kernel's page tables are not isolated, so that only a switch loads CR3: {shadow:.2} traps for each switch, with isolation \
         {isolated:.2}; and never under nested paging."
    );
    let claim = Claim {
        id: "context-switch",
        claim: "Shadow paging traps once for each context switch.",
        measured: format!(
            "CR3-load exits for each switch of `{name}`: KVM's shadow MMU {shadow:.2}, nested {nested:.2}. With kernel-page-table \
             isolation {isolated:.2} (with `{}`): every kernel entry and exit loads CR3 too.",
            kpti.command
        ),
        verdict: if (0.98..1.1).contains(&shadow) { Verdict::HoldsWhen } else { Verdict::Fails },
        shown: "exits",
        command: plain.command.clone(),
    }
    .when(&condition);
    Some(claim)
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
        command: evidence.command(),
    }
}

fn algorithms(evidence: &Evidence) -> Option<Claim> {
    let churn = evidence.of("churn")?;
    let one = |regime| {
        let run = result(churn, regime)?;
        let (stores, work) = (run.guest.table_stores, run.work);
        let written = fraction(work.entries_set + work.entries_cleared, stores);
        Some((
            fraction(run.total_exits(), stores),
            written,
            fraction(work.rmap_visited + work.entries_synced + work.guest_entries_read, stores),
        ))
    };
    let (shadow, nested) = (one(RegimeKind::ShadowKvm61)?, one(RegimeKind::NestedEpt)?);
    let others: u64 = evidence
        .runs(RegimeKind::NestedEpt)
        .map(|run| run.total_exits() - exits_for(run, ExitReason::EptViolation) - unpaged(run))
        .sum();
    Some(Claim {
        id: "algorithms",
        claim: "EPT needs no complex page-table algorithms in the hypervisor.",
        measured: format!(
            "`churn`, for each store of the guest to its tables: KVM's shadow MMU takes {:.3} exits, writes {:.3} entries and reads \
             {:.3} to find, check and compare them; with EPT {:.3}, {:.3} and {:.3}. Over all workloads {others} of EPT's exits are for \
             paging and not for a frame touched the first time. What remains to the hypervisor is one map from guest frames to host \
             frames, filled on demand; large host pages and their splitting, dirty logging and reclaim are not less work than before.",
            shadow.0, shadow.1, shadow.2, nested.0, nested.1, nested.2
        ),
        verdict: Verdict::of(others == 0 && nested.0 < shadow.0 && nested.1 < shadow.1 && nested.2 <= shadow.2),
        shown: "stores",
        command: churn.command.clone(),
    })
}

/// Exits that have nothing to do with page tables.
pub(crate) fn unpaged(run: &RunResult) -> u64 {
    run.total_exits() - PAGING.iter().map(|reason| exits_for(run, *reason)).sum::<u64>()
}

/// Exits that shadow paging or nested paging causes.
const PAGING: [ExitReason; 9] = [
    ExitReason::HiddenFault,
    ExitReason::ReflectedFault,
    ExitReason::TableWrite,
    ExitReason::Invlpg,
    ExitReason::Cr3Load,
    ExitReason::CrAccess,
    ExitReason::Invpcid,
    ExitReason::EptViolation,
    ExitReason::EptMisconfig,
];

fn footprint(evidence: &Evidence) -> Option<Claim> {
    let comparison = evidence.of("database")?;
    let own = |regime| {
        let tables = result(comparison, regime)?.table_bytes;
        Some((tables.shadow + tables.nested, tables.metadata))
    };
    let (shadow, records) = own(RegimeKind::ShadowKvm61)?;
    let (nested, _) = own(RegimeKind::NestedEpt)?;
    let condition = "When processes are many, above all over the same memory.";
    // Of each workload, and of processes that share nothing.
    let mut times: Vec<(String, f64)> = evidence
        .plain
        .iter()
        .filter_map(|one| {
            let of = |regime| Some(result(one, regime)?.table_bytes);
            let (shadow, nested) = (of(RegimeKind::ShadowKvm61)?.shadow, of(RegimeKind::NestedEpt)?.nested);
            Some((format!("`{}`", one.workload.name()), fraction(shadow, nested)))
        })
        .collect();
    let residents = evidence.many.footprints.iter();
    times.extend(residents.flat_map(|one| one.table.beside().map(|beside| (one.title.to_owned(), beside.tables))));
    let (least, low) = times.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let claim = Claim {
        id: "footprint",
        claim: "One EPT serves a machine, each guest process needs a shadow table: EPT takes less memory.",
        measured: format!(
            "`database`, 33 processes over shared memory: shadow tables {} and records {}, nested tables {}: {:.0} times the tables{}. Over {} \
             measurements, those of the workloads and those by number of processes, shadow tables take at least {low:.2} times the bytes of \
             nested tables ({least}).",
            bytes(shadow),
            bytes(records),
            bytes(nested),
            fraction(shadow, nested),
            alone(evidence),
            times.len(),
        ),
        verdict: match (*low > 1.0, shadow > nested) {
            (true, _) => Verdict::Holds,
            (false, true) => Verdict::HoldsWhen,
            (false, false) => Verdict::Fails,
        },
        shown: "footprint",
        command: comparison.command.clone(),
    }
    .when(condition);
    Some(claim)
}

/// The same of processes that share nothing: one, and as many as were run.
fn alone(evidence: &Evidence) -> String {
    let Some(dense) = evidence.many.footprints.first() else { return String::new() };
    let of = |beside: &Beside<'_>| (beside.shadow.processes, beside.tables);
    let mut all: Vec<_> = dense.table.beside().map(|beside| of(&beside)).collect();
    all.sort_by_key(|(processes, _)| *processes);
    let (Some((_, one)), Some((most, many))) = (all.first(), all.last()) else { return String::new() };
    format!("; those that share nothing ({}) {one:.2} times with one, {many:.2} times with {most}", dense.title)
}
