//! Several vCPUs: the oracle finds nothing broken, accounts add up, and what guests do does not depend on the regime.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, Outcome, RegimeKind, Setup, Shape};
use memvirt_smp::{Load, Rotation, Run, Smp, Start, Tenant, Thread, run};
use memvirt_timeline::{Latencies, Slice};
use memvirt_workload::Workload;

const REGIMES: [&str; 5] = ["native", "shadow:kvm", "shadow:write-protect", "shadow:lazy-fill", "nested"];

fn smp(regime: &str, shape: Shape, tags: bool) -> Smp {
    let regime: RegimeKind = regime.parse().unwrap();
    let guest = GuestConfig { tick_instructions: 20_000, memory_bytes: 1 << 30, ..GuestConfig::default() };
    let host = HostConfig { tags, ..HostConfig::default() };
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let setup = Setup { regime, guest, host, machine, measure: Measure::default(), check: true };
    let latencies = Latencies { interrupt: 500, kicked: 1000, world_switch: 2000, handover: 150 };
    Smp { setup, shape, latencies, slice: Slice(50_000), start: Start::Booted, begin: Vec::new() }
}

fn small(name: &str, accesses: f64) -> Workload {
    let workload = Workload::find(name).unwrap();
    let factor = accesses / workload.facts().accesses.value() as f64;
    workload.scaled(factor.min(1.0)).unwrap()
}

/// `each` instances on every vCPU.
fn tenants(smp: &Smp, workload: &Workload, each: u32) -> Run {
    let Shape { vms, vcpus, .. } = smp.shape;
    let of = u32::from(vcpus) * each;
    let load = |vcpu: u16| {
        let numbers = (0..each).map(|k| u32::from(vcpu) + k * u32::from(vcpus));
        let instance = |number| Tenant::new(workload.generator(u64::from(number)), number, of);
        let instances: Vec<_> = numbers.map(instance).map(|tenant| (tenant.first(), tenant)).collect();
        let processes = instances.iter().map(|(first, _)| *first).collect();
        let source = Rotation::new(instances.into_iter().map(|(first, tenant)| (tenant, first)), 5_000);
        Load { source, processes }
    };
    judged(smp, (0..vms).flat_map(|_| (0..vcpus).map(load)).collect())
}

fn threads(smp: &Smp, workload: &Workload) -> Run {
    let load = |vcpu: u16| Load {
        source: Thread::new(workload.generator(u64::from(vcpu)), u64::from(vcpu) << 30),
        processes: Vec::new(),
    };
    judged(smp, (0..smp.shape.vcpus).map(load).collect())
}

fn judged<S: memvirt_ops::process::Source<Error: core::fmt::Debug>>(smp: &Smp, loads: Vec<Load<S>>) -> Run {
    let done = run(smp, loads).unwrap();
    assert_eq!(done.run.outcome, Outcome::Completed, "{:?}", done.input_error);
    assert_eq!(done.run.broken, Some(0), "{}: {:?}", smp.setup.regime, done.violations);
    assert_eq!(done.run.guest.ignored_ops, 0);
    for account in &done.run.timeline.vcpus {
        assert_eq!(account.total(), account.span());
    }
    let guest: u64 = done.run.timeline.vcpus.iter().map(|account| account.guest).sum();
    let paid = done.run.base + done.run.translation;
    // A vCPU whose stream has ended acknowledges interrupts without delay: what it would do is in no account.
    let exact = done.run.shootdowns == 0;
    assert!(if exact { guest == paid } else { guest <= paid && guest > paid * 9 / 10 }, "{guest} of {paid}");
    done.run
}

#[test]
fn instances_beside_each_other() {
    for name in ["touch-and-free", "forkwait", "churn"] {
        let workload = small(name, 1500.0);
        let mut native = None;
        for regime in REGIMES {
            let shape = Shape { cpus: 4, vms: 1, vcpus: 4 };
            let run = tenants(&smp(regime, shape, true), &workload, 1);
            assert_eq!(run.shootdowns, 0, "nobody shares an address space");
            let guest = (run.guest.instructions, run.guest.user_accesses, run.guest.faults());
            assert_eq!(*native.get_or_insert(guest), guest, "{name} under {regime}");
        }
    }
}

#[test]
fn threads_interrupt_each_other() {
    let workload = small("churn", 2000.0);
    for regime in REGIMES {
        let run = threads(&smp(regime, Shape { cpus: 4, vms: 1, vcpus: 4 }, true), &workload);
        assert!(run.shootdowns > 20 && run.interrupted > run.shootdowns, "{regime}: {}", run.shootdowns);
        let waited: u64 = run.timeline.vcpus.iter().map(|account| account.shootdown_wait).sum();
        assert!(waited > 0, "{regime}");
        let served: u64 = run.timeline.vcpus.iter().map(|account| account.served).sum();
        assert!(served <= run.interrupted && served > run.interrupted / 2, "{regime}: {served} of {}", run.interrupted);
    }
}

#[test]
fn processes_and_machines_share_physical_cpus() {
    let workload = small("touch-and-free", 600.0);
    for regime in ["shadow:kvm", "shadow:write-protect", "nested"] {
        let mut misses = Vec::new();
        for tags in [true, false] {
            let run = tenants(&smp(regime, Shape { cpus: 2, vms: 3, vcpus: 2 }, tags), &workload, 3);
            let switches: u64 = run.timeline.vcpus.iter().map(|account| account.world_switches).sum();
            assert!(switches > 3 && run.guest.switches > 12, "{regime}: {switches} {}", run.guest.switches);
            misses.push(run.counters.misses);
        }
        assert!(misses[0] < misses[1], "{regime}: tags keep translations over switches and exits, {misses:?}");
    }
}
