//! Predicted work of handlers, from native runs alone, beside the work counted under each regime.
#![expect(clippy::unwrap_used, reason = "a test: what cannot be run is a failure")]

use memvirt_census::{Census, Policy};
use memvirt_guest::{Guest, GuestConfig};
use memvirt_machine::{HostConfig, MachineSpec, Measure, RegimeKind, RunResult, Setup, run};
use memvirt_ops::process::{Batch, Source};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Tags, VmSpec, Work};
use memvirt_workload::Workload;

const POLICIES: [(Policy, RegimeKind); 7] = [
    (Policy::Nested, RegimeKind::NestedEpt),
    (Policy::WriteProtect, RegimeKind::ShadowWriteProtect),
    (Policy::LazyFill, RegimeKind::ShadowLazyFill),
    (Policy::Vtlb, RegimeKind::ShadowVtlb),
    (Policy::Kvm, RegimeKind::ShadowKvm61),
    (Policy::Xen, RegimeKind::ShadowXen),
    (Policy::Vbox, RegimeKind::ShadowVbox),
];

fn short(name: &str) -> Workload {
    let workload = Workload::find(name).unwrap();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let accesses = workload.facts().accesses.value() as f64;
    if accesses > 1_000.0 { workload.scaled(1_000.0 / accesses).unwrap() } else { workload }
}

fn predicted(workload: &Workload, config: GuestConfig) -> Vec<Work> {
    let frames = config.memory_bytes / 4096;
    let vm = VmSpec { map: MemoryMap::identity(frames), vcpus: 1 };
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let bare = Engine::new(Host::new(frames), 1, &machine.geometry().unwrap(), Tags::On, vec![(vm, Native)]);
    let (mut census, mut ledger) = (Census::new(bare), Ledger::sums());
    let mut guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, &mut census, &mut ledger).unwrap();
    let (mut batch, mut stream) = (Batch::default(), workload.generator(7));
    while stream.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
        guest.batch(&batch, &mut census, &mut ledger).unwrap();
    }
    POLICIES.iter().map(|(policy, _)| census.work(*policy)).collect()
}

fn counted(workload: &Workload, regime: RegimeKind, guest: GuestConfig) -> RunResult {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let setup =
        Setup { regime, guest, host: HostConfig::default(), machine, measure: Measure::default(), check: false };
    run(&setup, &mut workload.generator(7), &mut |_| {}).unwrap().result
}

fn count(run: &RunResult, unit: &str) -> u64 {
    run.cycles.parts.iter().find(|part| part.group == "exits" && part.name == unit).map_or(0, |part| part.count)
}

/// Cycles of work at the prices of the default machine.
fn cycles(units: impl Iterator<Item = u64>) -> u64 {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    units.zip(machine.work.figures()).map(|(count, (_, figure))| figure.times(count)).sum()
}

#[test]
fn handlers_do_what_the_native_run_says_to_the_last_entry() {
    for name in ["churn", "exec", "fork-and-exit", "protection-fault", "web-server", "zipf"] {
        for kpti in [false, true] {
            let workload = short(name);
            let config = GuestConfig { kpti, ..GuestConfig::default() };
            for ((policy, regime), said) in POLICIES.iter().zip(predicted(&workload, config)) {
                let run = counted(&workload, *regime, config);
                let is: Vec<u64> = said.units().map(|(unit, _)| count(&run, unit)).collect();
                let said: Vec<u64> = said.units().map(|(_, count)| count).collect();
                assert!(is.iter().sum::<u64>() > 0, "{name} {kpti} {regime}: nothing to predict");
                if *policy == Policy::Xen {
                    // Hardware marks an entry that was filled unasked when it walks, which a TLB may spare it.
                    let off = cycles(said.iter().copied()).abs_diff(cycles(is.iter().copied()));
                    assert!(1000 * off <= run.cycles.exits, "{name} {kpti} {regime}: {said:?}, counted {is:?}");
                } else {
                    assert_eq!(said, is, "{name} {kpti} {regime}: the order is that of `Work::units`");
                }
            }
        }
    }
}
