//! The mode `cycles`: its account adds up, changes no count, and begins where it is told to.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::num::NonZeroU32;

use memvirt_machine::{
    FrameOrder, GuestConfig, HostConfig, MachineSpec, Measure, Mode, Outcome, RegimeKind, RunResult, ServedReferences,
    Setup, TableFrames, run,
};
use memvirt_workload::Workload;

const CYCLES: Measure = Measure { mode: Mode::Cycles, walkers: NonZeroU32::MIN, prefault: false, warm_up_accesses: 0 };

fn workload(name: &str) -> Workload {
    let workload = Workload::find(name).unwrap();
    let events = workload.facts().accesses.value();
    if events > 8_000 { workload.scaled(8_000.0 / events as f64).unwrap() } else { workload }
}

fn result(regime: RegimeKind, workload: &Workload, host: HostConfig, measure: Measure) -> RunResult {
    result_on("paper-2024", regime, workload, host, measure)
}

fn result_on(machine: &str, regime: RegimeKind, workload: &Workload, host: HostConfig, measure: Measure) -> RunResult {
    let guest = GuestConfig { table_frames: TableFrames::Grouped, ..GuestConfig::default() };
    let machine = MachineSpec::load(machine).unwrap();
    let setup = Setup { regime, guest, host, machine, measure, check: false };
    run(&setup, &mut workload.generator(3), &mut |_| {}).unwrap().result
}

fn with_caches(on: bool) -> HostConfig {
    HostConfig { walk_caches: on, ..HostConfig::default() }
}

fn regimes() -> impl Iterator<Item = RegimeKind> {
    ["native", "shadow:write-protect", "shadow:kvm", "nested", "nested:npt", "flat"]
        .into_iter()
        .map(|name| name.parse().unwrap())
}

fn sum(
    rows: &[ServedReferences],
    wanted: impl Fn(&ServedReferences) -> bool,
    of: impl Fn(&ServedReferences) -> u64,
) -> u64 {
    rows.iter().filter(|row| wanted(row)).map(of).sum()
}

/// Not what a cache of walks saved, but what memory was asked for.
fn is_reference(row: &ServedReferences) -> bool {
    ["l1", "l2", "llc", "dram"].contains(&row.served_by)
}

fn part(result: &RunResult, name: &str) -> u64 {
    result.cycles.parts.iter().find(|part| part.name == name).map_or(0, |part| part.cycles)
}

fn adds_up(result: &RunResult) {
    let (what, cycles) = (result.regime, &result.cycles);
    assert_eq!(cycles.total, cycles.base + cycles.translation + cycles.exits + cycles.waiting, "{what}");
    assert_eq!(cycles.total, cycles.parts.iter().map(|part| part.cycles).sum::<u64>(), "{what}");
    let rows = &cycles.references;
    let walks = sum(rows, ServedReferences::is_of_a_walk, |row| row.cycles);
    let beside = part(result, "second-level TLB hits") + part(result, "accessed and dirty bits");
    assert_eq!(cycles.translation, walks + beside, "{what}");
    let data: u64 = ["L1", "L2", "last level", "DRAM"].iter().map(|at| part(result, &format!("data: {at}"))).sum();
    assert_eq!(sum(rows, |row| row.dimension == "data", |row| row.cycles), data, "{what}");
    let asked =
        |dimension| sum(rows, |row| row.dimension == dimension && is_reference(row), |row| row.count + row.overlapped);
    let refs = result.walk_refs;
    assert_eq!((asked("guest"), asked("shadow"), asked("nested")), (refs.guest, refs.shadow, refs.host), "{what}");
    assert!(asked("data") <= result.accesses, "{what}: a hypervisor's accesses are its own");
}

#[test]
fn the_account_adds_up_and_changes_no_count() {
    for name in ["uniform", "fork-and-exit", "churn"] {
        let workload = workload(name);
        for (regime, caches) in regimes().flat_map(|regime| [(regime, false), (regime, true)]) {
            let host = with_caches(caches);
            let counts = result(regime, &workload, host, Measure::default());
            let cycles = result(regime, &workload, host, CYCLES);
            assert_eq!((counts.mode, cycles.mode), (Mode::Counts, Mode::Cycles));
            assert!(counts.cycles.references.is_empty() && !cycles.cycles.references.is_empty());
            adds_up(&cycles);
            let facts = |r: &RunResult| {
                (r.tlb, r.walks, r.walk_refs, r.ad_updates, r.exits.clone(), r.table_bytes, r.guest, r.accesses)
            };
            assert_eq!(facts(&cycles), facts(&counts), "{name} under {regime}");
            assert_eq!(cycles.cycles.exits, counts.cycles.exits, "{name} under {regime}");
            let saved = sum(&cycles.cycles.references, |row| !is_reference(row), |row| row.count);
            assert_eq!(saved > 0, caches, "{name} under {regime}");
        }
    }
}

#[test]
fn every_hit_of_a_walk_cache_stands_in_the_account() {
    // A machine without nested TLB, and one with.
    for machine in ["paper-2024", "p-core"] {
        for (regime, name) in regimes().flat_map(|regime| [(regime, "uniform"), (regime, "fork-and-exit")]) {
            let result = result_on(machine, regime, &workload(name), with_caches(true), CYCLES);
            let caches = result.walk_caches.clone().unwrap();
            let rows = &result.cycles.references;
            let hits = |dimensions: [&str; 2], level| {
                let wanted = |row: &ServedReferences| {
                    dimensions.contains(&row.dimension) && row.served_by == "walk_cache" && row.level == Some(level)
                };
                sum(rows, wanted, |row| row.count)
            };
            let all = |dimensions| [2, 3, 4].map(|level| hits(dimensions, level));
            let counted = [caches.guest.pde_hits, caches.guest.pdpte_hits, caches.guest.pml4e_hits];
            assert_eq!(all(["guest", "shadow"]), counted, "{name} under {regime} on {machine}");
            let counted = [caches.host.pde_hits, caches.host.pdpte_hits, caches.host.pml4e_hits];
            assert_eq!(all(["nested", "nested"]), counted, "{name} under {regime} on {machine}");
            let pages = sum(rows, |row| row.served_by == "nested_tlb", |row| row.count);
            assert_eq!(pages, caches.nested_tlb.hits, "{name} under {regime} on {machine}");
            let two = regime.name().starts_with("nested") || regime.name() == "flat";
            assert_eq!(pages > 0, two && machine == "p-core", "{name} under {regime} on {machine}");
        }
    }
}

#[test]
fn on_a_bare_machine_every_access_reaches_its_line() {
    let result = result("native".parse().unwrap(), &workload("churn"), with_caches(false), CYCLES);
    let data = sum(&result.cycles.references, |row| row.dimension == "data", |row| row.count);
    assert_eq!(data, result.accesses);
}

#[test]
fn several_walkers_hide_walks_and_lose_none() {
    let workload = workload("uniform");
    for regime in regimes() {
        let with = |walkers| {
            let measure = Measure { walkers: NonZeroU32::new(walkers).unwrap(), ..CYCLES };
            let result = result(regime, &workload, with_caches(true), measure);
            adds_up(&result);
            result
        };
        let (one, four) = (with(1), with(4));
        assert_eq!((one.walk_refs, one.exits.clone()), (four.walk_refs, four.exits.clone()));
        assert_eq!(one.cycles.base, four.cycles.base, "{regime}: data is referenced in the same order");
        assert!(four.cycles.translation < one.cycles.translation, "{regime}");
        assert_eq!(part(&one, "references of overlapped walks"), 0);
        assert_eq!(sum(&one.cycles.references, |_| true, |row| row.overlapped), 0);
    }
}

#[test]
fn what_is_made_ahead_is_not_measured_and_need_not_be_made() {
    let workload = Workload::find("gups").unwrap().scaled(0.05).unwrap().with_footprint(256 << 20).unwrap();
    for regime in ["native", "nested", "nested:npt", "flat"].map(|name| name.parse::<RegimeKind>().unwrap()) {
        for host_frames in [FrameOrder::Contiguous, FrameOrder::Scattered] {
            let host = HostConfig { host_frames, ..with_caches(true) };
            // What the kernel and the first batch touch comes first; nothing is left for later.
            let measure = Measure { prefault: true, warm_up_accesses: 1, ..CYCLES };
            let ahead = result(regime, &workload, host, measure);
            assert_eq!((ahead.outcome, ahead.total_exits()), (Outcome::Completed, 0), "{regime}");
            assert_eq!((ahead.guest_page_faults, ahead.guest.table_stores), (0, 0), "{regime}");
            assert!(ahead.guest.user_accesses > 40_000);
            let leaves = (256 << 20) / 4096 * 8;
            assert!(ahead.table_bytes.guest >= leaves, "{regime}: every page is in the guest's tables");
            assert!(regime.name() == "native" || ahead.table_bytes.nested >= leaves, "{regime}: and in the host's");
        }
    }
}

#[test]
fn the_measured_part_begins_after_the_warm_up() {
    let workload = Workload::find("gups").unwrap().scaled(0.1).unwrap().with_footprint(64 << 20).unwrap();
    let nested = "nested".parse().unwrap();
    let whole = result(nested, &workload, with_caches(true), CYCLES);
    let measured = |accesses| {
        let measure = Measure { prefault: true, warm_up_accesses: accesses, ..CYCLES };
        result(nested, &workload, with_caches(true), measure)
    };
    let late = measured(60_000);
    assert_eq!(late.outcome, Outcome::Completed);
    assert!(whole.guest.user_accesses == 100_000 && late.guest.user_accesses <= 40_000);
    assert!(late.guest.user_accesses > 40_000 - 4096, "it begins with the next batch");
    assert!(late.accesses >= late.guest.user_accesses && late.total_exits() == 0);
    adds_up(&late);
    // Cold caches are in the whole run only: what is left of it costs less for each walk.
    let per_walk =
        |r: &RunResult| sum(&r.cycles.references, ServedReferences::is_of_a_walk, |row| row.cycles) / r.walks;
    assert!(per_walk(&late) < per_walk(&measured(0)));
    assert_eq!(measured(200_000).outcome, Outcome::WarmUpOnly);
}
