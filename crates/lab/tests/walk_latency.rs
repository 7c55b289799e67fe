//! Which references each part of a walk counts: on a machine where every reference takes one cycle, cycles are references.

use memvirt_addr::PageSize;
use memvirt_lab::WalkLatency;
use memvirt_lab::walk_latency::end_to_end;
use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, Mode, RegimeKind, RunResult, Setup, run};
use memvirt_workload::Workload;

fn gups(
    machine: MachineSpec,
    regime: RegimeKind,
    guest_page: PageSize,
    host_page: PageSize,
    caches: bool,
) -> RunResult {
    // More than the TLB reaches in pages of either size.
    let footprint = if guest_page.min(host_page) == PageSize::Size4K { 256 << 20 } else { 8 << 30 };
    let workload = Workload::find("gups").and_then(|gups| gups.scaled(0.02)?.with_footprint(footprint));
    let setup = Setup {
        regime,
        guest: GuestConfig { guest_page, memory_bytes: 2 * footprint + (1 << 30), ..GuestConfig::default() },
        host: HostConfig { host_page, walk_caches: caches, ..HostConfig::default() },
        machine,
        // What the kernel and the first batch touch is not measured: walks that end in a violation are shorter.
        measure: Measure { mode: Mode::Cycles, prefault: true, warm_up_accesses: 1, ..Measure::default() },
        check: false,
    };
    run(&setup, &mut workload.expect("fits").generator(1), &mut |_| {}).expect("a sound machine").result
}

/// Every reference takes one cycle, wherever it is served.
fn counting_machine() -> MachineSpec {
    let mut machine = MachineSpec::load("paper-2024").expect("built in");
    let caches = machine.caches.as_mut().expect("it has caches");
    for figure in [&mut caches.l1.latency, &mut caches.l2.latency, &mut caches.llc.latency, &mut caches.dram] {
        figure.value = 1;
    }
    machine
}

#[test]
fn each_part_counts_the_references_that_its_design_makes() {
    let (small, large) = (PageSize::Size4K, PageSize::Size2M);
    // Pages of guest and host; references of: a walk, its last host walk, the three leaves, tables of two levels in one, the flat
    // table, and the flat table without the data's own.
    let cases = [
        (small, small, [24, 4, 3, 8, 9, 8]),
        (large, large, [15, 3, 3, 8, 7, 6]),
        (small, large, [19, 3, 3, 8, 9, 8]),
        (large, small, [19, 4, 3, 8, 7, 6]),
    ];
    for (guest, host, expected) in cases {
        let result = gups(counting_machine(), RegimeKind::NestedEpt, guest, host, false);
        let latency = WalkLatency::of(&result).expect("nested walks");
        let parts = [
            latency.total,
            latency.last_host_walk,
            latency.three_references,
            latency.flattened,
            latency.flat,
            latency.flat_without_data,
        ];
        assert_eq!(parts, expected.map(|n| n * result.walks), "guest {guest}, host {host}");
        assert_eq!(latency.last_host_leaf, result.walks);
    }
    let native = gups(counting_machine(), RegimeKind::Native, small, small, false);
    assert_eq!(WalkLatency::of(&native), None, "no walk in two dimensions");
}

#[test]
fn dropping_a_share_gives_one_over_what_is_left() {
    let machine = MachineSpec::load("paper-2024").expect("built in");
    let result = gups(machine, RegimeKind::NestedEpt, PageSize::Size4K, PageSize::Size4K, true);
    let latency = WalkLatency::of(&result).expect("nested walks");
    let share = latency.share(latency.last_host_walk);
    let speedup = latency.speedup(latency.total - latency.last_host_walk);
    assert!(share > 0.1 && (speedup - 1.0 / (1.0 - share)).abs() < 1e-9);
    assert!(latency.last_host_leaf < latency.last_host_walk);
    // End to end: of the whole run's cycles the walks are a fraction, and only that becomes faster. By counting again:
    let (total, walks, saved) = (result.cycles.total as f64, latency.total as f64, latency.last_host_walk as f64);
    assert!((end_to_end(walks / total, speedup) - total / (total - saved)).abs() < 1e-9);
}

#[test]
fn the_flat_regime_walks_what_the_flat_part_counts() {
    let flat = "flat".parse().expect("a regime");
    let result = gups(counting_machine(), flat, PageSize::Size4K, PageSize::Size4K, false);
    assert_eq!(result.walk_refs.total, 9 * result.walks);
    let nested = gups(counting_machine(), RegimeKind::NestedEpt, PageSize::Size4K, PageSize::Size4K, false);
    let latency = WalkLatency::of(&nested).expect("nested walks");
    assert_eq!((nested.walks, latency.flat), (result.walks, result.walk_refs.total));
}
