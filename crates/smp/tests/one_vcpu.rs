//! One vCPU in simulated time costs what a run of one vCPU costs, to the cycle.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, RegimeKind, Setup, Shape, run as run_alone};
use memvirt_ops::process::ProcessId;
use memvirt_smp::{Load, Smp, Start, run};
use memvirt_timeline::{Latencies, Slice};
use memvirt_workload::Workload;

fn setup(regime: RegimeKind, workload: &Workload) -> Setup {
    let guest =
        GuestConfig { kpti: workload.guest().kpti == Some(true), tick_instructions: 50_000, ..GuestConfig::linux() };
    let (host, machine) = (HostConfig::default(), MachineSpec::load(MachineSpec::DEFAULT).unwrap());
    Setup { regime, guest, host, machine, measure: Measure::default(), check: false }
}

#[test]
fn a_warm_up_and_memory_that_is_there_are_those_of_a_run() {
    for name in ["uniform", "churn", "touch-and-free"] {
        let workload = Workload::find(name).unwrap().with_footprint(1 << 20);
        let workload = workload.unwrap_or_else(|_| Workload::find(name).unwrap());
        let factor = 6000.0 / workload.facts().accesses.value() as f64;
        let workload = workload.scaled(factor.min(1.0)).unwrap();
        for (warm_up_accesses, prefault) in [(0, true), (1500, false), (1500, true)] {
            for regime in ["native", "shadow:kvm", "shadow:write-protect", "nested"] {
                let mut setup = setup(regime.parse().unwrap(), &workload);
                setup.measure = Measure { warm_up_accesses, prefault, ..Measure::default() };
                let alone = run_alone(&setup, &mut workload.generator(1), &mut |_| {}).unwrap().result;
                let latencies = Latencies { interrupt: 1000, kicked: 1000, world_switch: 1000, handover: 150 };
                let (slice, start) = (Slice(1_000_000), Start::Cold);
                let smp = Smp { setup, shape: Shape::SINGLE, latencies, slice, start, begin: Vec::new() };
                let load = Load { source: workload.generator(1), processes: vec![ProcessId::FIRST] };
                let one = run(&smp, vec![load]).unwrap().run;
                let what = format!("{name} under {regime}, {warm_up_accesses} {prefault}");
                assert_eq!(one.guest.user_accesses, alone.guest.user_accesses, "{what}");
                assert_eq!(one.counters.total_exits(), alone.exits["total"], "{what}");
                assert_eq!(one.timeline.vcpus[0].end, alone.cycles.total, "{what}");
            }
        }
    }
}

#[test]
fn the_cycles_of_one_vcpu_are_those_of_a_run() {
    for name in ["touch-and-free", "churn", "forkwait", "page-fault", "uniform", "sh"] {
        let workload = Workload::find(name).unwrap();
        let factor = 2000.0 / workload.facts().accesses.value() as f64;
        let workload = workload.scaled(factor.min(1.0)).unwrap();
        for regime in ["native", "shadow:kvm", "shadow:write-protect", "shadow:vtlb", "nested", "agile", "flat"] {
            let setup = setup(regime.parse().unwrap(), &workload);
            let alone = run_alone(&setup, &mut workload.generator(1), &mut |_| {}).unwrap().result;
            let latencies = Latencies { interrupt: 1000, kicked: 1000, world_switch: 1000, handover: 150 };
            let smp = Smp {
                setup,
                shape: Shape::SINGLE,
                latencies,
                slice: Slice(1_000_000),
                start: Start::Cold,
                begin: Vec::new(),
            };
            let load = Load { source: workload.generator(1), processes: vec![ProcessId::FIRST] };
            let one = run(&smp, vec![load]).unwrap().run;
            let account = one.timeline.vcpus[0];
            assert_eq!(account.end, alone.cycles.total, "{name} under {regime}");
            assert_eq!((one.base, one.translation), (alone.cycles.base, alone.cycles.translation), "{name}, {regime}");
            assert_eq!(account.guest, alone.cycles.base + alone.cycles.translation, "{name}, {regime}");
            assert_eq!(account.host + account.locked, alone.cycles.exits, "{name}, {regime}");
            assert_eq!((account.waiting(), account.preempted, account.kicked), (0, 0, 0), "{name}, {regime}");
            assert_eq!(one.guest, alone.guest, "{name}, {regime}");
            assert_eq!(one.demand.exclusive.count + one.demand.shared.count, one.timeline.vms[0].lock.acquisitions);
            assert_eq!(one.demand.exclusive.cycles, one.timeline.vms[0].lock.exclusive);
        }
    }
}
