//! What the fits promise.

use memvirt_costmodel::Model;
use memvirt_machine::{MachineSpec, RegimeKind};

use super::guests::{Accesses, GuestSpec, Length, Observed};
use super::times::Times;
use super::traps::{MODELS, inputs};
use super::walks::Warm;

#[test]
fn no_counter_of_the_predicted_run_enters_a_prediction_of_exits() {
    for (_, name) in MODELS {
        let model = Model::find(name).unwrap();
        assert!(!model.is_identity() && inputs(&model, &memvirt_census::Events::default()).is_ok(), "{name}");
    }
    // Models that take counters of the run, or of one that is no native one, are refused.
    for name in ["lit-basu", "lit-pham", "scaling-lock", "walk-warm"] {
        let model = Model::find(name).unwrap();
        assert!(inputs(&model, &memvirt_census::Events::default()).is_err(), "{name}");
    }
    // A counter that bears the name of an event is none.
    let text = "model \"m\" title \"t\" source \"s\" input faults : faults from run in 0.. output exits : exits = faults * 1 [exits/faults]";
    let model = Model::parse("m.model", text).unwrap();
    assert!(inputs(&model, &memvirt_census::Events::default()).is_err());
}

#[test]
fn exits_are_predicted_to_the_last_one() {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let exact = [
        RegimeKind::NestedEpt,
        RegimeKind::ShadowWriteProtect,
        RegimeKind::ShadowLazyFill,
        RegimeKind::ShadowVtlb,
        RegimeKind::ShadowKvm61,
        RegimeKind::ShadowXen,
        RegimeKind::ShadowVbox,
    ];
    for (workload, kpti) in [("churn", false), ("exec", false), ("fork-and-exit", true)] {
        let spec = GuestSpec { workload, kpti, length: Length::Short };
        let observed = Observed::of(spec, Accesses(1_500), &machine, &exact).unwrap();
        for (regime, run) in exact.iter().zip(&observed.runs) {
            let (_, name) = MODELS.iter().find(|(of, _)| of == regime).unwrap();
            let model = Model::find(name).unwrap();
            let outputs = model.evaluate(&inputs(&model, &observed.events).unwrap(), &model.predicted()).unwrap();
            let at = model.outputs().position(|output| output.name == "exits").unwrap();
            assert!((outputs[at] - super::guests::real(run.total_exits())).abs() < 0.5, "{workload} {kpti} {name}");
        }
    }
}

#[test]
fn warm_walks_follow_from_the_stream_to_the_last_reference() {
    for (workload, machine) in [("zipf", "skylake-sp"), ("xsbench", "zen4")] {
        let guest_page = memvirt_addr::PageSize::Size4K;
        for point in (Warm { workload, machine, guest_page, accesses: 8_000 }).measure().unwrap() {
            assert!(point.walks > 100.0 && point.refs > point.walks, "{point:?}");
            assert!(point.walk_error() == 0.0 && point.ref_error() == 0.0, "{point:?}");
        }
    }
}

#[test]
fn walks_that_end_in_a_violation_are_predicted_to_the_last_reference_too() {
    let guest_page = memvirt_addr::PageSize::Size4K;
    // With a nested TLB and without one.
    for machine in ["skylake-sp", "zen4"] {
        let points = (Warm { workload: "database", machine, guest_page, accesses: 8_000 }).measure().unwrap();
        let [native, nested] = points.as_slice() else { panic!("{points:?}") };
        assert!(nested.walks > 1.2 * native.walks, "it goes on touching memory for the first time");
        for point in &points {
            assert!(point.walk_error() == 0.0 && point.ref_error() == 0.0, "{point:?}");
        }
    }
}

#[test]
fn run_time_follows_from_the_native_run_within_five_percent_under_every_regime() {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let regimes = MODELS.map(|(regime, _)| regime);
    let workloads = ["churn", "context-switch-16", "fork-and-exit", "protection-fault", "touch-and-free", "zipf"];
    let specs: Vec<GuestSpec> =
        GuestSpec::all().into_iter().filter(|spec| workloads.contains(&spec.workload)).collect();
    let observed: Vec<Observed> =
        specs.iter().map(|spec| Observed::of(*spec, Accesses(500), &machine, &regimes).unwrap()).collect();
    for index in 0..MODELS.len() {
        let times = Times::of(index, &observed, &machine).unwrap();
        let within = times.points.iter().all(|point| point.error() < 0.05);
        assert!(times.points.len() == specs.len() && within, "{}: {:?}", times.regime, times.inputs());
        // The parts of a handler's work are those counted, not only their sum.
        let wrong = times.inputs().into_iter().filter(|one| one.input != "walks" && one.max > 1e-3);
        assert_eq!(wrong.count(), 0, "{}: {:?}", times.regime, times.inputs());
    }
}
