//! Published comparisons of shadow and nested paging, and of designs beyond both.

use memvirt_machine::{RegimeKind, RunResult};
use memvirt_platform::ExitReason;

use super::{Agreement, PVM, PublishedRow, Sources, Use};
use crate::claims::{EQUAL, benefit, measured_as, median, ranking_of, result, unpaged};
use crate::comparison::Comparison;
use crate::summary::exits_for;
use crate::text::{bytes, count, fraction, signed_percent};

pub(super) fn rows(sources: &Sources<'_>) -> Vec<PublishedRow> {
    let one = [
        exits_share(sources),
        best_and_worst(sources),
        best_software(sources),
        neither(sources),
        mmu_bound(sources),
        npt(sources),
        lecture(sources),
        vcpus(sources),
        updates(sources),
        update_time(sources),
        adams(sources),
        agile(sources),
        host_caches(sources),
        flat(sources),
        inverted(),
        cap(),
        dense(sources),
    ];
    one.into_iter().flatten().collect()
}

fn time(comparison: &Comparison, regime: RegimeKind) -> Option<u64> {
    Some(result(comparison, regime)?.cycles.total)
}

fn command(sources: &Sources<'_>) -> String {
    let quick = if sources.effort == crate::claims::Effort::Quick { " --quick" } else { "" };
    format!("memvirt published{quick}")
}

fn exits_share(sources: &Sources<'_>) -> Option<PublishedRow> {
    let share = |runs: &[&RunResult]| {
        let all: u64 = runs.iter().map(|run| run.total_exits()).sum();
        fraction(all - runs.iter().map(|run| unpaged(run)).sum::<u64>(), all)
    };
    let boot = &sources.own.boot;
    let booted = share(&[result(boot, RegimeKind::ShadowKvm61)?]);
    let all: Vec<_> = sources.fair.iter().filter_map(|one| result(one, RegimeKind::ShadowKvm61)).collect();
    let over_all = share(&all);
    Some(PublishedRow {
        id: "K8".to_owned(),
        what: "share of exits that shadow paging causes among all exits".to_owned(),
        source: "Bugnion, Nieh, Tsafrir, Hardware and Software Support for Virtualization",
        published: "over 90 %".to_owned(),
        measured: format!(
            "`boot`, with isolation, {:.1} %; over all workloads, without, {:.1} %",
            booted * 100.0,
            over_all * 100.0
        ),
        usage: Use::Order,
        agreement: Agreement::of(booted > 0.9 && over_all > 0.9),
        why: "`boot` also makes port I/O, MSR, CPUID and HLT exits; most workloads make hardly any, which says less"
            .to_owned(),
        command: boot.command.clone(),
    })
}

/// Of a workload under all approaches: the slowest over the fastest.
fn spread(comparison: &Comparison) -> f64 {
    let times: Vec<_> = approaches(comparison).map(|run| run.cycles.total).collect();
    fraction(times.iter().copied().max().unwrap_or(0), times.iter().copied().min().unwrap_or(1))
}

fn approaches(comparison: &Comparison) -> impl Iterator<Item = &RunResult> {
    comparison.results.iter().filter(|run| run.regime != RegimeKind::Native)
}

/// The workloads that ran under all approaches.
fn broad<'a>(sources: &Sources<'a>) -> impl Iterator<Item = &'a Comparison> + use<'a> {
    sources.fair.iter().filter(|one| approaches(one).count() > 2)
}

fn best_and_worst(sources: &Sources<'_>) -> Option<PublishedRow> {
    let worst = broad(sources).max_by(|a, b| spread(a).total_cmp(&spread(b)))?;
    let names: Vec<_> = approaches(worst).map(|run| run.regime.name()).collect();
    Some(PublishedRow {
        id: "K10".to_owned(),
        what: "worst approach against the best, over workloads".to_owned(),
        source: "Bae, Lange, Dinda, NWU-EECS-10-07",
        published: "up to 53x".to_owned(),
        measured: format!("up to {:.1}x (`{}`; {})", spread(worst), worst.workload.name(), names.join(", ")),
        usage: Use::Order,
        agreement: Agreement::of(spread(worst) > 3.0),
        why: "the approaches are not theirs (Palacios' shadow paging with and without caching): multiples are what can be checked".to_owned(),
        command: worst.command.clone(),
    })
}

fn best_software(sources: &Sources<'_>) -> Option<PublishedRow> {
    let gain = |one: &Comparison| {
        let shadows = approaches(one).filter(|run| run.regime.name().starts_with("shadow"));
        let best = shadows.map(|run| run.cycles.total).min()?;
        Some(fraction(best, time(one, RegimeKind::NestedEpt)?))
    };
    let mut all: Vec<_> = sources.fair.iter().filter_map(|one| Some((one, gain(one)?))).collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (most, times) = *all.last()?;
    let middle = all[all.len() / 2].1;
    Some(PublishedRow {
        id: "K10".to_owned(),
        what: "nested paging against the best software approach".to_owned(),
        source: "Bae, Lange, Dinda, NWU-EECS-10-07",
        published: "up to 3x, typically small".to_owned(),
        measured: format!("up to {times:.1}x (`{}`), median {middle:.2}x", most.workload.name()),
        usage: Use::Order,
        agreement: Agreement::of(middle < times / 2.0 && times > 1.0),
        why: "larger than theirs where processes are made: their suites (SPEC, PARSEC) hardly make any".to_owned(),
        command: most.command.clone(),
    })
}

fn neither(sources: &Sources<'_>) -> Option<PublishedRow> {
    let ranking = ranking_of(sources.fair);
    let lose = ranking.iter().filter(|(_, b)| *b < -0.05).count();
    let even = ranking.iter().filter(|(_, b)| b.abs() <= 0.05).count();
    let warm: Vec<_> = sources.fair.iter().filter(|one| measured_as(one) == "loaded and warm").collect();
    let calm = warm.iter().filter_map(|one| benefit(one)).filter(|b| b.abs() <= 0.05).count();
    Some(PublishedRow {
        id: "K11".to_owned(),
        what: "neither shadow nor nested paging wins everywhere".to_owned(),
        source: "Wang et al., VEE 2011",
        published: "no noticeable gap in over half of the benchmarks, up to 34 % for a few".to_owned(),
        measured: format!(
            "of {} workloads shadow paging wins {lose}, {even} are within 5 %, nested paging wins {}; of {} steady ones {calm} are within 5 %",
            ranking.len(),
            ranking.len() - lose - even,
            warm.len()
        ),
        usage: Use::Order,
        agreement: Agreement::of(lose > 0 && ranking.len() > lose + even),
        why:
            "these workloads were chosen for what they do to an MMU; SPEC's programs mostly compute, as `compute` does"
                .to_owned(),
        command: command(sources),
    })
}

/// Programs that people run, and tests of single mechanisms.
const PROGRAMS: [&str; 3] = ["kernel-build", "web-server", "jvm"];
const MICRO: [&str; 5] = ["exec", "fork", "forkwait", "page-fault", "touch-and-free"];

fn mmu_bound(sources: &Sources<'_>) -> Option<PublishedRow> {
    let of = |names: &[&str]| -> Vec<f64> { names.iter().filter_map(|name| benefit(sources.of(name)?)).collect() };
    let (programs, micro) = (of(&PROGRAMS), of(&MICRO));
    let most = |all: &[f64]| all.iter().copied().fold(f64::MIN, f64::max);
    let list: Vec<_> =
        PROGRAMS.iter().zip(&programs).map(|(name, b)| format!("`{name}` {}", signed_percent(*b))).collect();
    Some(PublishedRow {
        id: "K12".to_owned(),
        what: "EPT against VMware's software MMU".to_owned(),
        source: "VMware, Performance Evaluation of Intel EPT, 2009",
        published: "MMU-intensive up to 48 %, microbenchmarks up to 600 %".to_owned(),
        measured: format!("{}; microbenchmarks up to {}", list.join(", "), signed_percent(most(&micro))),
        usage: Use::Order,
        agreement: Agreement::of(most(&programs) > 0.0 && most(&micro) > most(&programs)),
        why: "KVM's shadow MMU is not VMware's, which translates the stores to page tables and exits less".to_owned(),
        command: sources.of("kernel-build")?.command.clone(),
    })
}

fn npt(sources: &Sources<'_>) -> Option<PublishedRow> {
    let all: Vec<_> = sources
        .own
        .npt
        .iter()
        .filter_map(|one| {
            let gain = fraction(time(one, RegimeKind::ShadowKvm61)?, time(one, RegimeKind::NestedNpt)?) - 1.0;
            Some((one, gain))
        })
        .collect();
    let list: Vec<_> = all.iter().map(|(one, b)| format!("`{}` {}", one.workload.name(), signed_percent(*b))).collect();
    Some(PublishedRow {
        id: "K13".to_owned(),
        what: "RVI against VMware's software MMU".to_owned(),
        source: "VMware, Performance Evaluation of AMD RVI, 2008",
        published: "up to 42 %, microbenchmarks up to 500 %".to_owned(),
        measured: list.join(", "),
        usage: Use::Order,
        agreement: Agreement::of(!all.is_empty() && all.iter().all(|(_, b)| *b > 0.0)),
        why: "the same machine prices both; only the rules of the nested tables and what exits are AMD's".to_owned(),
        command: all.first()?.0.command.clone(),
    })
}

fn lecture(sources: &Sources<'_>) -> Option<PublishedRow> {
    let ranking = ranking_of(sources.fair);
    let within = ranking.iter().filter(|(_, b)| (-EQUAL..=0.2).contains(b)).count();
    let forkwait = sources.of("forkwait")?;
    Some(PublishedRow {
        id: "K15".to_owned(),
        what: "the lecture's claim".to_owned(),
        source: "Intel VT slides, about 2006, an estimate",
        published: "typically up to 20 %, outliers such as forkwait above 40 %, grows with vCPUs, less memory"
            .to_owned(),
        measured: format!(
            "{within} of {} from nothing to 20 %, median {}, `forkwait` {}",
            ranking.len(),
            signed_percent(median(&ranking)),
            signed_percent(benefit(forkwait)?)
        ),
        usage: Use::NotReread,
        agreement: Agreement::Shown,
        why: "the claims table examines each part".to_owned(),
        command: forkwait.command.clone(),
    })
}

fn vcpus(sources: &Sources<'_>) -> Option<PublishedRow> {
    let scaled = &sources.own.scaled;
    let (first, last) = (scaled.benefits.first()?, scaled.benefits.last()?);
    let gups = benefit(sources.of("gups")?)?;
    Some(PublishedRow {
        id: "K16".to_owned(),
        what: "overhead of shadow paging grows with vCPUs; it can win with very many TLB misses".to_owned(),
        source: "vSphere documentation",
        published: "grows; can win".to_owned(),
        measured: format!(
            "`touch-and-free`: benefit {} on {} vCPU, {} on {}; `gups`: {}",
            signed_percent(first.benefit),
            first.vcpus,
            signed_percent(last.benefit),
            last.vcpus,
            signed_percent(gups)
        ),
        usage: Use::Order,
        agreement: Agreement::of(last.benefit > first.benefit && gups < 0.0),
        why: "KVM's shadow MMU takes its lock exclusively at each fault, nested faults share it".to_owned(),
        command: scaled.command.clone(),
    })
}

const ZAP: RegimeKind = RegimeKind::ShadowWriteProtect;
const UPDATE: RegimeKind = RegimeKind::ShadowPropagate;
const COMMIT: &str = "early KVM commit";

fn updates(sources: &Sources<'_>) -> Option<PublishedRow> {
    let touched = sources.own.updating.iter().find(|one| one.workload.name() == "touch-and-free")?;
    // Each page is mapped by one store in its fault and unmapped by another later, which is no part of it.
    let each = |regime| {
        let run = result(touched, regime)?;
        let stores = exits_for(run, ExitReason::TableWrite);
        Some(fraction(run.total_exits() - stores + stores.min(run.guest_page_faults), run.guest_page_faults))
    };
    let (zap, update) = (each(ZAP)?, each(UPDATE)?);
    Some(PublishedRow {
        id: "K19".to_owned(),
        what: "exits for each guest fault, the shadow entry zapped or updated at the trapped store".to_owned(),
        source: COMMIT,
        published: "3 -> 2".to_owned(),
        measured: format!("{zap:.2} -> {update:.2}"),
        usage: Use::Exact,
        agreement: Agreement::of((zap - 3.0).abs() < 0.05 && (update - 2.0).abs() < 0.05),
        why: "the fault, the store that maps, and with zapping the hidden fault after it; the remainder are first touches by the kernel's direct map; the store that unmaps later is left out".to_owned(),
        command: touched.command.clone(),
    })
}

fn update_time(sources: &Sources<'_>) -> Option<PublishedRow> {
    let build = sources.own.updating.iter().find(|one| one.workload.name() == "kernel-build")?;
    let change = fraction(time(build, UPDATE)?, time(build, ZAP)?) - 1.0;
    Some(PublishedRow {
        id: "K19".to_owned(),
        what: "time of a kernel build, updating against zapping".to_owned(),
        source: COMMIT,
        published: "-10 %".to_owned(),
        measured: signed_percent(change),
        usage: Use::Order,
        agreement: Agreement::of(change < 0.0),
        why: "the build of 2006 computed less for each fault and exits cost more (Prescott, 3963 cycles, remembered)"
            .to_owned(),
        command: build.command.clone(),
    })
}

fn adams(sources: &Sources<'_>) -> Option<PublishedRow> {
    let touched = sources.own.updating.iter().find(|one| one.workload.name() == "touch-and-free")?;
    let (native, shadow) = (result(touched, RegimeKind::Native)?, result(touched, ZAP)?);
    let each = |cycles, n| fraction(cycles, n);
    let stores = exits_for(shadow, ExitReason::TableWrite);
    Some(PublishedRow {
        id: "K24".to_owned(),
        what: "cycles of a page fault, native and under a VMM that shadows with exits".to_owned(),
        source: "Adams and Agesen, ASPLOS 2006, Pentium 4 672",
        published: "page fault 1093 / 11242; PTE modify 1 / 12733".to_owned(),
        measured: format!(
            "page fault, mapped and unmapped again: {:.0} / {:.0}; {} of {} stores to tables exit",
            each(native.cycles.total, native.guest_page_faults),
            each(shadow.cycles.total, shadow.guest_page_faults),
            count(stores),
            count(shadow.guest.table_stores)
        ),
        usage: Use::NotReread,
        agreement: Agreement::Shown,
        why:
            "another processor, three times as dear an exit; a software VMM that translates guest code is not modelled"
                .to_owned(),
        command: touched.command.clone(),
    })
}

fn mean(values: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let n = values.len().max(1) as f64;
    (values.iter().map(|x| x.ln()).sum::<f64>() / n).exp()
}

fn agile(sources: &Sources<'_>) -> Option<PublishedRow> {
    let each = |one: &Comparison| {
        let agile = time(one, RegimeKind::Agile)?;
        let best = time(one, RegimeKind::ShadowKvm61)?.min(time(one, RegimeKind::NestedEpt)?);
        Some((fraction(best, agile), fraction(agile, time(one, RegimeKind::Native)?)))
    };
    if sources.effort == crate::claims::Effort::Quick {
        return Some(unsettled());
    }
    let all: Vec<_> =
        sources.own.alternatives.iter().filter_map(|one| Some((one.workload.name(), each(one)?))).collect();
    let gain = mean(&all.iter().map(|(_, (best, _))| *best).collect::<Vec<_>>());
    let native = mean(&all.iter().map(|(_, (_, native))| *native).collect::<Vec<_>>());
    let list: Vec<_> = all
        .iter()
        .map(|(name, (best, native))| {
            format!("`{name}` {} ({} over native)", signed_percent(best - 1.0), signed_percent(native - 1.0))
        })
        .collect();
    Some(PublishedRow {
        id: "W9".to_owned(),
        what: "agile paging against the best of nested and shadow paging, and against native".to_owned(),
        source: "Gandhi, Hill, Swift, ISCA 2016",
        published: "over 12 % better, within 4 % of native".to_owned(),
        measured: format!(
            "geometric mean {} (and {} over native): {}",
            signed_percent(gain - 1.0),
            signed_percent(native - 1.0),
            list.join(", ")
        ),
        usage: Use::Order,
        agreement: Agreement::of(gain >= 1.0),
        why: "agile matches the better of both for each program, to a percent or two, which neither of them does for all; it beats both only \
              where one program has steady and changing parts, and most of these are one or the other as a whole"
            .to_owned(),
        command: sources.own.alternatives.first()?.command.clone(),
    })
}

fn unsettled() -> PublishedRow {
    PublishedRow {
        id: "W9".to_owned(),
        what: "agile paging against the best of nested and shadow paging, and against native".to_owned(),
        source: "Gandhi, Hill, Swift, ISCA 2016",
        published: "over 12 % better, within 4 % of native".to_owned(),
        measured: "not with --quick: its policy settles after millions of TLB misses".to_owned(),
        usage: Use::Order,
        agreement: Agreement::NotRun,
        why: "a table goes back to shadow paging after 2^20 TLB misses without a store to it".to_owned(),
        command: "memvirt published --row W9".to_owned(),
    }
}

fn host_caches(sources: &Sources<'_>) -> Option<PublishedRow> {
    let gain = |(one, two): &(Comparison, Comparison)| {
        Some(fraction(time(one, RegimeKind::NestedEpt)?, time(two, RegimeKind::NestedEpt)?) - 1.0)
    };
    let all: Vec<_> =
        sources.own.one_dimension.iter().filter_map(|pair| Some((pair.1.workload.name(), gain(pair)?))).collect();
    let list: Vec<_> = all.iter().map(|(name, b)| format!("`{name}` {}", signed_percent(*b))).collect();
    Some(PublishedRow {
        id: "W10".to_owned(),
        what: "page-walk caches extended to the nested dimension, faster by".to_owned(),
        source: "Bhargava et al., ASPLOS 2008",
        published: "15-38 %".to_owned(),
        measured: list.join(", "),
        usage: Use::Order,
        agreement: Agreement::of(!all.is_empty() && all.iter().all(|(_, b)| *b > 0.0)),
        why: "the machine's own caches with those of the nested dimension taken away: four nested references for each guest entry and for the data"
            .to_owned(),
        command: command(sources),
    })
}

fn flat(sources: &Sources<'_>) -> Option<PublishedRow> {
    let gain = |one: &Comparison| Some(fraction(time(one, RegimeKind::NestedEpt)?, time(one, RegimeKind::Flat)?) - 1.0);
    let all: Vec<_> =
        sources.own.alternatives.iter().filter_map(|one| Some((one.workload.name(), gain(one)?))).collect();
    let total = mean(&all.iter().map(|(_, b)| b + 1.0).collect::<Vec<_>>()) - 1.0;
    let list: Vec<_> = all.iter().map(|(name, b)| format!("`{name}` {}", signed_percent(*b))).collect();
    Some(PublishedRow {
        id: "W15".to_owned(),
        what: "flat nested table over the two-dimensional walk with caches".to_owned(),
        source: "Ahn, Jin, Huh, ISCA 2012",
        published: "+7 %".to_owned(),
        measured: format!("geometric mean {}: {}", signed_percent(total), list.join(", ")),
        usage: Use::Order,
        agreement: Agreement::of(total > 0.0),
        why: "9 references without caches for the nested dimension beside 24 with caches for both: what caches leave of the 24 is little more \
              than the leaves, so the flat table gains where the caches miss"
            .to_owned(),
        command: sources.own.alternatives.first()?.command.clone(),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "one of a list of rows that may be missing")]
fn inverted() -> Option<PublishedRow> {
    Some(PublishedRow {
        id: "W15".to_owned(),
        what: "speculative inverted shadow page table over the two-dimensional walk with caches".to_owned(),
        source: "Ahn, Jin, Huh, ISCA 2012",
        published: "+14 %".to_owned(),
        measured: "-".to_owned(),
        usage: Use::Order,
        agreement: Agreement::NotModelled,
        why: "memvirt has no inverted shadow table and no speculative execution beyond an unconfirmed translation"
            .to_owned(),
        command: "memvirt regimes".to_owned(),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "one of a list of rows that may be missing")]
fn cap() -> Option<PublishedRow> {
    Some(PublishedRow {
        id: "F2".to_owned(),
        what: "KVM's limit on shadow pages".to_owned(),
        source: "Linux",
        published: "2 % of guest pages, at least 64".to_owned(),
        measured: "one for 50 guest frames, at least 64: the default of the regimes shadow:kvm".to_owned(),
        usage: Use::Input,
        agreement: Agreement::Shown,
        why: "used as it is; refaults beyond it are counted".to_owned(),
        command: "memvirt footprint --shadow-page-limit 64".to_owned(),
    })
}

fn dense(sources: &Sources<'_>) -> Option<PublishedRow> {
    let table = &sources.own.dense;
    let leaf_tables = table.footprint_bytes.div_ceil(2 << 20);
    let rows: Vec<_> = table.rows.iter().filter(|row| row.regime == RegimeKind::ShadowKvm61).collect();
    let each: Vec<_> = rows
        .iter()
        .map(|row| (row.processes, row.measured.end.shadow, row.predicted.as_ref().map(|model| model.shadow)))
        .collect();
    let nested: Vec<_> = table
        .rows
        .iter()
        .filter(|row| row.regime == RegimeKind::NestedEpt)
        .map(|row| row.measured.end.nested)
        .collect();
    let words: Vec<_> = each.iter().map(|(n, shadow, _)| format!("{n}: {}", bytes(*shadow))).collect();
    // What one more process takes: leaf tables, one table of each level above, and leaf tables for the kernel's own view of its frames.
    let (first, last) = (each.first()?, each.last()?);
    let more = fraction(last.1 - first.1, u64::from(last.0 - first.0) * 4096);
    #[expect(clippy::cast_precision_loss, reason = "a few tables")]
    let tables = (2 * leaf_tables + 3) as f64;
    Some(PublishedRow {
        id: "F4".to_owned(),
        what: format!("tables of {} dense in each process", bytes(table.footprint_bytes)),
        source: "structure",
        published: format!(
            "one leaf table for each 2 MiB of each address space ({leaf_tables}), upper levels (3); one EPT tree"
        ),
        measured: format!(
            "one more process takes {more:.2} shadow tables; in all by processes {}; EPT {}",
            words.join(", "),
            nested.iter().map(|n| bytes(*n)).collect::<Vec<_>>().join(", ")
        ),
        usage: Use::Exact,
        agreement: Agreement::of(
            (more - tables).abs() < 1e-9 && each.iter().all(|(_, shadow, model)| *model == Some(*shadow)),
        ),
        why: format!(
            "{leaf_tables} leaf tables, 3 above them, and {leaf_tables} leaf tables more by which the kernel's direct map reaches the frames \
             to clear them: its large pages lie on small host pages. Equal to the footprint model to the byte"
        ),
        command: table.command.clone(),
    })
}

/// The source of PVM's rows, for those who show them.
pub(super) const SOURCE: &str = PVM;
