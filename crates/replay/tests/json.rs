//! The report as JSON: the keys that scripts rely on.

use memvirt_replay::{Recording, Tolerance, Under, Watch, replay};
use memvirt_shadow::kvm::Kernel;

#[test]
fn a_report_bears_the_documented_keys() {
    // One exit too many is recorded.
    let rows = "## FUZZ seed=1 n=1\n0,INVLPG,800020c000,0,2,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0\n";
    let report =
        replay(Recording::new("f", rows.as_bytes()), Under::KvmShadow(Kernel::V6_1), Tolerance::Strict, Watch::On);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["rows"], &json["mismatching_rows"]), (&1.into(), &1.into()));
    assert_eq!(json["mismatching_by_column"], serde_json::json!({ "exits": 1 }));
    assert_eq!((&json["broken"], &json["exits"], &json["allowed"]), (&0.into(), &1.into(), &0.into()));
    assert_eq!(
        (&json["platform"], &json["kernel"], &json["mode"]),
        (&"kvm-shadow".into(), &"6.1".into(), &"compare".into())
    );
    let first = serde_json::json!({
        "line": 2, "idx": 0, "op": "INVLPG 800020c000 0", "column": "exits", "expected": "2", "got": "1"
    });
    assert_eq!(json["first_mismatches"][0], first);
    assert_eq!(json["totals"][0], serde_json::json!({ "column": "exits", "expected": 2, "got": 1 }));
}
