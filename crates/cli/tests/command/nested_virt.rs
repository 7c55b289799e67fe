//! `memvirt nested-virt`, and workloads under nested hypervisors.

use super::memvirt;

#[test]
fn the_published_figures_are_counted_for_every_arrangement_and_depth() {
    let ran = memvirt("nested-virt --format json");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let table = ran.json();
    assert_eq!((&table["schema"], &table["differences"]), (&"memvirt/nested-virt/1".into(), &0.into()));
    let faults = table["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 12);
    for fault in faults {
        assert_eq!(fault["agrees"], true, "{fault}");
        let switches = fault["steps"].as_array().unwrap().iter().filter(|step| !step["to"].is_null()).count();
        assert_eq!(fault["world_switches"], switches);
    }
}

#[test]
fn one_fault_is_told_step_by_step() {
    let ran = memvirt("nested-virt --arrangement ept-on-ept --levels 4");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let text = &ran.stdout;
    assert!(text.starts_with("ept-on-ept: one page fault of L2, 4 levels\n"), "{text}");
    for words in ["EPT violation on data", "store to EPT12, level 4: EPT01 forbids it", "VMRESUME exits", "fills EPT02"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.contains("2n+6 / n+3") && text.contains("agrees") && text.contains("0 of 1 differ"), "{text}");
}

#[test]
fn csv_has_a_row_for_each_count() {
    let ran = memvirt("nested-virt --arrangement pvm --levels 2..3 --format csv");
    assert!(ran.stdout.contains("\nfault,pvm,3,10,0,10,0,true,19\n"), "{}", ran.stdout);
    assert_eq!(ran.stdout.lines().count(), 1 + 2 * (1 + 5 + 7), "{}", ran.stdout);
}

#[test]
fn impossible_depths_are_refused() {
    for levels in ["1", "6", "5..2", "four"] {
        let ran = memvirt(&format!("nested-virt --levels {levels}"));
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{levels}");
        assert!(ran.stderr.contains("expected 2 to 5"), "{}", ran.stderr);
    }
}

#[test]
fn a_workload_runs_as_l2_and_says_what_that_came_to() {
    for regime in ["nested-virt:shadow-on-ept", "nested-virt:ept-on-ept", "nested-virt:pvm"] {
        let ran =
            memvirt(&format!("run --regime {regime} --workload fork-and-exit --scale 0.02 --check --format json"));
        assert_eq!(ran.status, 0, "{regime}: {}", ran.stderr);
        let json = ran.json();
        let result = if json["results"].is_array() { &json["results"][0] } else { &json };
        assert_eq!(result["stale"]["broken"], 0, "{regime}");
        let (switches, exits) = (&result["nested_virt"]["world_switches"], &result["nested_virt"]["l0_exits"]);
        let (switches, exits) = (switches.as_u64().unwrap(), exits.as_u64().unwrap());
        // Every entry into L0 is left again; L2's stops alone come to at least one switch there and one back.
        assert!(
            exits > 0 && switches >= 2 * exits && switches >= 2 * result["exits"]["total"].as_u64().unwrap(),
            "{result}"
        );
    }
    let plain = memvirt("run --regime nested --workload fork-and-exit --scale 0.02 --format json");
    assert!(!plain.stdout.contains("nested_virt"));
}
