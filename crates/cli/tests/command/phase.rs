//! `memvirt phase`: both sides of the line, the same bytes on one and two threads, the files beside it.

use std::fs;

use tempfile::TempDir;

use crate::{memvirt, memvirt_in};

#[test]
fn many_misses_favour_shadow_paging_and_many_updates_nested_paging() {
    let dir = TempDir::new().unwrap();
    let words = ["phase", "--quick", "--format", "json", "--out", "o", "--threads"];
    let one = memvirt_in(dir.path(), words.into_iter().chain(["1"]));
    assert!(one.status == 0 && one.stderr.starts_with("memvirt: 90 runs on one thread: about "), "{}", one.stderr);
    let json = one.json();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let ratio = |sample: &serde_json::Value| number(&sample["misses"]) / number(&sample["updates"]);
    let samples: Vec<_> = json["samples"].as_array().unwrap().iter().filter(|s| s["known"] == false).collect();
    let by = |a: &&&serde_json::Value, b: &&&serde_json::Value| ratio(a).total_cmp(&ratio(b));
    let (least, most) = (samples.iter().min_by(by).unwrap(), samples.iter().max_by(by).unwrap());
    assert!(number(&least["advantage"]) > 0.0, "{least}");
    assert!(number(&most["advantage"]) < 0.0, "{most}");
    let line = number(&json["model_misses_per_update"]);
    assert!(ratio(least) < line && line < ratio(most), "{line}");
    let folder = dir.path().join("o/phase-skylake-sp");
    let table = fs::read(folder.join("phase-quick.csv")).unwrap();
    let figure = fs::read_to_string(folder.join("shadow-kvm/figures/phase-plane.svg")).unwrap();
    assert!(figure.contains("TLB misses for 1000 instructions") && figure.contains("kernel-build"));
    let other = TempDir::new().unwrap();
    let two = memvirt_in(other.path(), words.into_iter().chain(["2"]));
    assert_eq!(two.stdout, one.stdout);
    assert_eq!(fs::read(other.path().join("o/phase-skylake-sp/phase-quick.csv")).unwrap(), table);
}

#[test]
fn regimes_that_the_plan_does_not_run_are_refused() {
    let ran = memvirt("phase --shadow shadow:xen");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("accepted: shadow:kvm, shadow:write-protect, shadow:lazy-fill"), "{}", ran.stderr);
}
