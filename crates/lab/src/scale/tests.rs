use super::*;

fn plan(workload: &str, accesses: f64, regimes: &[&str], vcpus: &[u16]) -> ScalePlan {
    let workload = Workload::find(workload).unwrap();
    let factor = accesses / workload.facts().accesses.value() as f64;
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let regimes = regimes.iter().map(|name| name.parse().unwrap()).collect();
    let workload = workload.scaled(factor).unwrap();
    ScalePlan {
        interrupts: Interrupts::Exiting,
        overrides: Overrides { memory_bytes: Some(4 << 30), ..Overrides::default() },
        seed: 1,
        ..ScalePlan::usual(workload, regimes, vcpus.to_vec(), &machine, "memvirt scale".to_owned())
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
    // Mapped and touched before time begins: what is left is hits and walks, and those nobody waits for.
    for (name, warm_up_accesses) in [("uniform", 60_000), ("compute", 20_000)] {
        let quiet = plan(name, 80_000.0, &regimes, &[1, 16]);
        let workload = if name == "uniform" {
            quiet.workload.clone().with_footprint(8 << 20).unwrap()
        } else {
            quiet.workload.clone()
        };
        let measure = Measure { warm_up_accesses, prefault: true, ..Measure::default() };
        let quiet = ScalePlan { workload, measure, ..quiet }.run().unwrap();
        let change = (1.0 + benefit(&quiet, 16)) / (1.0 + benefit(&quiet, 1));
        assert!((change - 1.0).abs() < 0.02, "{name}: {:?}", quiet.benefits);
        assert!(
            quiet.points.iter().all(|point| point.accesses < 80_000 * u64::from(point.vcpus)),
            "the warm-up is not measured"
        );
    }
}

/// Whether the analysis may be believed is said before it is compared with anything; where it may, it is within 5 %.
#[test]
fn where_its_assumptions_hold_the_analysis_is_within_five_percent() {
    let regimes = ["native", "shadow:kvm", "shadow:write-protect", "shadow:xen", "nested"];
    let (mut hold, mut fail) = (0, Vec::new());
    for (name, accesses, warm_up, sharing) in [
        ("touch-and-free", 8000.0, 2700, Sharing::Tenants),
        ("forkwait", 3000.0, 1000, Sharing::Tenants),
        ("churn", 16_000.0, 5300, Sharing::Tenants),
        ("churn", 4000.0, 1300, Sharing::Threads),
        ("compute", 60_000.0, 20_000, Sharing::Tenants),
    ] {
        // Without what happens once: booting, and memory that the host brings in.
        let measure = Measure { warm_up_accesses: warm_up, ..Measure::default() };
        let table = ScalePlan { sharing, measure, ..plan(name, accesses, &regimes, &[2, 4, 16]) }.run().unwrap();
        for point in &table.points {
            let what = format!("{name}, {sharing:?}, {} with {}", point.regime, point.vcpus);
            match point.assumptions {
                Assumptions::Hold => {
                    hold += 1;
                    assert!(point.mva_error.abs() < 0.05, "{what}: {:+.3}", point.mva_error);
                }
                failing => fail.push(format!("{what}: {failing:?}")),
            }
        }
    }
    assert!(hold > 35 && fail.len() > 5, "{hold} hold; {fail:#?}");
}

#[test]
fn what_the_analysis_cannot_know_is_said() {
    let of = |plan: ScalePlan| plan.run().unwrap().points.last().unwrap().assumptions;
    let few = plan("touch-and-free", 8000.0, &["shadow:kvm"], &[2]);
    assert_eq!(of(few.clone()), Assumptions::Hold);
    assert_eq!(of(ScalePlan { physical_cpus: Some(1), ..few.clone() }), Assumptions::Preemption);
    assert_eq!(of(plan("touch-and-free", 8000.0, &["shadow:kvm"], &[32])), Assumptions::Regular);
    assert_eq!(of(plan("touch-and-free", 8000.0, &["shadow:kvm"], &[64])), Assumptions::Kicks);
    let threads = ScalePlan { sharing: Sharing::Threads, ..plan("churn", 3000.0, &["shadow:kvm"], &[4]) };
    assert_eq!(of(threads), Assumptions::Interrupts);
    // Every instance maps and unmaps as its own dice fall.
    let churn = Measure { warm_up_accesses: 3000, ..Measure::default() };
    let churn = ScalePlan { measure: churn, ..plan("churn", 9000.0, &["native"], &[2]) };
    assert!(matches!(of(churn), Assumptions::Sample | Assumptions::Trend));
    // Touches an area once, then works in what it has: the lock is wanted at the beginning alone.
    let begins = plan("uniform", 40_000.0, &["shadow:kvm"], &[16]);
    let begins = ScalePlan { workload: begins.workload.clone().with_footprint(4 << 20).unwrap(), ..begins };
    assert_eq!(of(begins), Assumptions::Trend);
}

#[test]
fn a_posted_interrupt_spares_the_exit_of_its_receiver() {
    let exits = |interrupts| {
        let threads = ScalePlan { sharing: Sharing::Threads, interrupts, ..plan("churn", 3000.0, &["nested"], &[4]) };
        let point = threads.run().unwrap().points.remove(0);
        (point.exits, point.interrupted, point.shootdowns)
    };
    let (exiting, interrupted, shootdowns) = exits(Interrupts::Exiting);
    assert_eq!(exits(Interrupts::Posted).0, exiting - interrupted);
    assert_eq!(exits(Interrupts::Virtualized).0, exiting - interrupted - shootdowns);
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
    let late = Measure { warm_up_accesses: 10_000, ..Measure::default() };
    let late = text(ScalePlan { measure: late, ..plan("churn", 500.0, &["nested"], &[2]) });
    assert!(late.contains("no accesses left after a warm-up of 10,000"), "{late}");
    let small = Overrides { memory_bytes: Some(16 << 20), ..Overrides::default() };
    let small = text(ScalePlan { overrides: small, ..plan("uniform", 30_000.0, &["nested"], &[4]) });
    assert!(small.contains("the guest has no memory left") && small.contains("--memory"), "{small}");
    assert!(text(ScalePlan { stagger: -1.0, ..plan("churn", 500.0, &["nested"], &[2]) }).contains("--stagger"));
    assert!(text(ScalePlan { processes: Some(2), ..plan("churn", 500.0, &["nested"], &[4]) }).contains("at least one"));
}
