use super::*;

fn plan(workload: &str, accesses: f64, regimes: &[&str], vcpus: &[u16]) -> ScalePlan {
    let workload = Workload::find(workload).unwrap();
    let factor = accesses / workload.facts().accesses.value() as f64;
    ScalePlan {
        workload: workload.scaled(factor).unwrap(),
        regimes: regimes.iter().map(|name| name.parse().unwrap()).collect(),
        vcpus: vcpus.to_vec(),
        sharing: Sharing::Tenants,
        vms: 1,
        physical_cpus: None,
        processes: None,
        quantum: QUANTUM,
        latencies: None,
        slice: SLICE,
        interrupts: Interrupts::Exiting,
        overrides: Overrides { memory_bytes: Some(4 << 30), ..Overrides::default() },
        machine: MachineSpec::load(MachineSpec::DEFAULT).unwrap(),
        seed: 1,
        check: false,
        threads: None,
        command: "memvirt scale".to_owned(),
    }
}

fn benefit(table: &ScaleTable, vcpus: u16) -> f64 {
    table.benefits.iter().find(|row| row.vcpus == vcpus).unwrap().benefit
}

#[test]
fn the_benefit_grows_with_vcpus_where_page_tables_change_and_else_does_not() {
    let regimes = ["shadow:kvm", "nested"];
    let faults = plan("touch-and-free", 3000.0, &regimes, &[1, 16]).run().unwrap();
    assert!(benefit(&faults, 16) > benefit(&faults, 1) * 1.05, "{:?}", faults.benefits);
    // Mapped at the beginning, accessed for long: what is left is hits and walks, and those nobody waits for.
    let quiet = plan("uniform", 2e6, &regimes, &[1, 16]);
    let quiet =
        ScalePlan { workload: quiet.workload.clone().with_footprint(256 << 10).unwrap(), ..quiet }.run().unwrap();
    let change = (1.0 + benefit(&quiet, 16)) / (1.0 + benefit(&quiet, 1));
    assert!((change - 1.0).abs() < 0.1, "{:?}", quiet.benefits);
}

#[test]
fn the_analysis_is_fed_from_one_vcpu_and_meets_few() {
    // Long enough that the host's memory, brought in once for all vCPUs, weighs little.
    let table = plan("touch-and-free", 24_000.0, &["native", "shadow:kvm", "nested"], &[1, 2, 4, 8]).run().unwrap();
    for point in &table.points {
        assert!(point.mva_error.abs() < 0.05, "{} with {}: {:?}", point.regime, point.vcpus, point);
        if point.vcpus == 1 {
            assert!(point.mva_error.abs() < 1e-9 && (point.efficiency - 1.0).abs() < 1e-12);
        }
    }
    assert_eq!(table.usl.len(), 3);
    let alone = |regime: &str| table.of(regime.parse().unwrap()).next().unwrap().clone();
    assert_eq!((alone("native").lock_utilization, alone("native").exits), (0.0, 0));
}

#[test]
fn threads_shoot_at_each_other_and_instances_do_not() {
    let threads = ScalePlan { sharing: Sharing::Threads, ..plan("churn", 4000.0, &["native", "nested"], &[1, 4]) };
    let table = threads.run().unwrap();
    let shot: Vec<_> = table.points.iter().map(|point| point.shootdowns > 0).collect();
    assert_eq!(shot, [false, true, false, true]);
    let waits = table.of(RegimeKind::NestedEpt).last().unwrap().waits;
    assert!(waits.shootdown > 0.01 && waits.total >= waits.shootdown, "{waits:?}");
    let instances = plan("churn", 4000.0, &["nested"], &[4]).run().unwrap();
    assert_eq!(instances.points[0].shootdowns, 0);
}

#[test]
fn machines_and_processes_share_what_there_is() {
    let plan = ScalePlan {
        vms: 2,
        physical_cpus: Some(2),
        processes: Some(6),
        quantum: 5_000,
        slice: 100_000,
        ..plan("touch-and-free", 800.0, &["shadow:kvm", "nested"], &[2])
    };
    let table = plan.run().unwrap();
    for point in &table.points {
        assert!(point.waits.preempted > 0.3, "four vCPUs on two CPUs: {:?}", point.waits);
    }
    let alone = ScalePlan { regimes: vec![RegimeKind::Native], ..plan };
    assert!(alone.run().unwrap_err().to_string().contains("no virtual machines"));
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let run = |threads| {
        let plan = ScalePlan {
            threads: NonZeroUsize::new(threads),
            ..plan("churn", 1500.0, &["shadow:kvm", "nested"], &[1, 2, 5])
        };
        let table = plan.run().unwrap();
        let figures = table.figures().unwrap();
        let drawn: Vec<_> = figures.into_iter().map(|figure| (figure.wide, figure.narrow)).collect();
        (serde_json::to_string(&table).unwrap(), table.to_csv(), drawn)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_does_not_fit_is_refused() {
    let text = |plan: ScalePlan| plan.run().unwrap_err().to_string();
    let threads = ScalePlan { sharing: Sharing::Threads, ..plan("forkwait", 500.0, &["nested"], &[2]) };
    assert!(text(threads).contains("cannot `fork`"));
    assert!(text(plan("churn", 500.0, &["nested"], &[0])).contains("1 to 256"));
    assert!(text(ScalePlan { processes: Some(2), ..plan("churn", 500.0, &["nested"], &[4]) }).contains("at least one"));
}
