//! Predicted exits, from native runs alone, beside the exits of the regimes.
#![expect(clippy::unwrap_used, reason = "a test: what cannot be run is a failure")]
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use memvirt_census::{Census, Events};
use memvirt_costmodel::Model;
use memvirt_costmodel::fit::{Data, Options, assess, held_out};
use memvirt_guest::{Guest, GuestConfig};
use memvirt_machine::{HostConfig, MachineSpec, Measure, RegimeKind, RunResult, Setup, run};
use memvirt_ops::process::{Batch, Source};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Engine, Host, Ledger, MemoryMap, Native, Tags, VmSpec};
use memvirt_workload::Workload;

/// A workload, made so many accesses long where it is longer.
fn workload(name: &str, most: f64) -> Workload {
    let workload = Workload::find(name).unwrap();
    let accesses = workload.facts().accesses.value() as f64;
    if accesses > most { workload.scaled(most / accesses).unwrap() } else { workload }
}

fn census(workload: &Workload, config: GuestConfig) -> Events {
    let frames = config.memory_bytes / 4096;
    let vm = VmSpec { map: MemoryMap::identity(frames), vcpus: 1 };
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let bare = Engine::new(Host::new(frames), 1, &machine.geometry().unwrap(), Tags::On, vec![(vm, Native)]);
    let (mut census, mut ledger) = (Census::new(bare), Ledger::sums());
    let mut guest = Guest::boot(config, VmId::FIRST, VcpuId::FIRST, &mut census, &mut ledger).unwrap();
    let mut batch = Batch::default();
    let mut stream = workload.generator(7);
    while stream.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
        guest.batch(&batch, &mut census, &mut ledger).unwrap();
    }
    *census.events()
}

fn measured(workload: &Workload, regime: RegimeKind, guest: GuestConfig) -> RunResult {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let setup =
        Setup { regime, guest, host: HostConfig::default(), machine, measure: Measure::default(), check: false };
    run(&setup, &mut workload.generator(7), &mut |_| {}).unwrap().result
}

/// The model's `exits`, fed with native events alone; inputs that the census does not count are 0.
fn predicted(model: &str, more: &[(&str, f64)], events: &Events) -> f64 {
    let model = Model::find(model).unwrap();
    let inputs = model.inputs().iter().map(|input| {
        let count = events.get(&input.name).unwrap_or_else(|| panic!("{} is not counted", input.name));
        (input.name.as_str(), count as f64)
    });
    let point: Vec<_> = inputs.chain(more.iter().copied()).collect();
    let at = model.outputs().position(|output| output.name == "exits").unwrap();
    model.at(&point).unwrap()[at]
}

/// The relative error of the prediction of all exits.
fn error(workload: &Workload, config: GuestConfig, predicted: f64, regime: RegimeKind) -> f64 {
    let measured = measured(workload, regime, config).total_exits() as f64;
    println!("{}, {regime}: predicted {predicted}, counted {measured}", workload.name());
    (predicted - measured).abs() / measured
}

fn predictions_hold(workload: &Workload, config: GuestConfig) {
    let (events, name) = (census(workload, config), workload.name());
    for (model, regime) in [
        ("traps-nested", RegimeKind::NestedEpt),
        ("traps-write-protect", RegimeKind::ShadowWriteProtect),
        ("traps-vtlb", RegimeKind::ShadowVtlb),
        ("traps-lazy-fill", RegimeKind::ShadowLazyFill),
        ("traps-kvm", RegimeKind::ShadowKvm61),
        ("traps-xen", RegimeKind::ShadowXen),
        ("traps-vbox", RegimeKind::ShadowVbox),
    ] {
        let error = self::error(workload, config, predicted(model, &[], &events), regime);
        assert!(error < EXACT, "{name} under {regime}: {error}");
    }
    let propagating = predicted("traps-write-protect", &[("propagates", 1.0)], &events);
    let error = self::error(workload, config, propagating, RegimeKind::ShadowPropagate);
    assert!(error < 0.005, "{name}, propagating: {error}");
}

/// No exit of a million may be missed.
const EXACT: f64 = 1e-6;

#[test]
fn exits_follow_from_the_native_run_to_the_last_one() {
    for name in ["zipf", "sequential", "touch-and-free", "fork-and-exit", "churn"] {
        predictions_hold(&workload(name, 12_000.0), GuestConfig::default());
    }
}

#[test]
fn they_follow_under_kernel_page_table_isolation_too() {
    for name in ["fork-and-exit", "churn"] {
        predictions_hold(&workload(name, 5_000.0), GuestConfig { kpti: true, ..GuestConfig::default() });
    }
}

#[test]
fn the_guest_does_not_notice_the_census() {
    let config = GuestConfig::default();
    let events = census(&workload("churn", 5_000.0), config);
    let bare = measured(&workload("churn", 5_000.0), RegimeKind::Native, config);
    assert_eq!(events.faults, bare.guest_page_faults);
    assert_eq!(events.invlpgs, bare.guest.invlpgs);
    assert_eq!(events.cr3_loads, bare.guest.cr3_loads);
    assert!(events.stores + events.stray_stores <= bare.guest.table_stores + 512 * bare.guest.pages_cleared);
    assert!(events.frames > 0 && events.frames * 4096 <= config.memory_bytes);
}

/// Native events and counted exits of several workloads of several lengths.
fn runs(model: &Model, regime: RegimeKind) -> Data {
    let mut data = Data::default();
    for name in ["sequential", "touch-and-free", "fork-and-exit", "churn"] {
        for kpti in [false, true] {
            for accesses in [3_000.0, 6_000.0] {
                let config = GuestConfig { kpti, ..GuestConfig::default() };
                let workload = Workload::find(name).unwrap();
                let share = accesses / workload.facts().accesses.value() as f64;
                let workload = workload.scaled(share).unwrap();
                let events = census(&workload, config);
                let inputs = model.inputs().iter().map(|input| events.get(&input.name).unwrap() as f64).collect();
                data.push(inputs, measured(&workload, regime, config).total_exits() as f64);
            }
        }
    }
    data
}

#[test]
fn a_free_fit_finds_the_coefficients_of_the_mechanism() {
    let model = Model::find("traps-vtlb").unwrap();
    let data = runs(&model, RegimeKind::ShadowVtlb);
    let region = held_out(&data.observed, 0.6).unwrap();
    let options = Options { resamples: 20, ..Options::default() };
    let found = assess(&model, "exits", &data, Some(&region), &options).unwrap();
    assert!(found.mechanism.max_relative < EXACT, "{found:?}");
    assert!(found.fitted.max_relative < 1e-3 && found.cross_validated.max_relative < 0.02, "{found:?}");
    assert!(found.held_out.unwrap().max_relative < 0.02, "{found:?}");
    // Upgrades do not occur here, so nothing is learnt about them.
    for param in found.params.iter().filter(|param| param.name != "per_upgrade") {
        println!("{}: predicted {}, fitted {}", param.name, param.predicted, param.fitted);
        assert!((param.fitted - param.predicted).abs() < 0.02, "{param:?}");
    }
}
