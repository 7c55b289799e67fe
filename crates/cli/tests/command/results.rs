//! What results hold: the contract of docs/results.md, the same bytes for the same seed, the formats.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::{memvirt, memvirt_in, shipped_trace};

fn number(value: &Value, path: &str) -> u64 {
    let found = path.split('.').fold(value, |value, key| &value[key]);
    found.as_u64().unwrap_or_else(|| panic!("{path}: {found}"))
}

fn sum(value: &Value, parts: &[&str]) -> u64 {
    parts.iter().map(|part| number(value, part)).sum()
}

/// The shipped trace under the default regimes, watched by the oracle.
fn shipped() -> Value {
    let trace = shipped_trace();
    let ran = memvirt(&format!("compare --trace {} --format json --check", trace.display()));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    ran.json()
}

#[test]
fn json_has_the_fields_of_the_contract_and_they_add_up() {
    let json = shipped();
    assert_eq!(json["schema"], "memvirt/compare/1");
    assert!(json["command"].as_str().unwrap().starts_with("memvirt compare --regimes native,"));
    assert_eq!(json["seed"], 0);
    assert_eq!(json["workload"]["name"], "compress-300-lines.lackey.zst");
    assert_eq!(json["machine"]["name"], "skylake-sp");
    let results = json["results"].as_array().unwrap();
    let regimes: Vec<_> = results.iter().map(|result| result["regime"].as_str().unwrap()).collect();
    assert_eq!(regimes, ["native", "shadow:write-protect", "nested"]);
    for result in results {
        for switch in ["memory_bytes", "kpti", "pcid", "guest_page", "host_page", "tags", "ept_ad", "vcpus"] {
            assert!(!result["switches"][switch].is_null(), "{switch}");
        }
        assert_eq!(result["outcome"], "completed");
        let lookups = sum(result, &["tlb.l1_hits", "tlb.l2_hits", "tlb.misses"]);
        // An access that is retried after a fault or an exit is looked up again.
        assert!(lookups >= number(result, "accesses"));
        assert_eq!(number(result, "walks"), number(result, "tlb.misses"));
        let refs = sum(result, &["walk_refs.guest", "walk_refs.shadow", "walk_refs.host"]);
        assert_eq!(refs, number(result, "walk_refs.total"));
        let exits = result["exits"].as_object().unwrap();
        let by_reason: u64 = exits.iter().filter(|(key, _)| *key != "total").map(|(_, n)| n.as_u64().unwrap()).sum();
        assert_eq!(by_reason, number(result, "exits.total"));
        let kinds = ["guest", "shadow", "nested", "metadata"].map(|kind| format!("table_bytes.{kind}"));
        let tables: u64 = kinds.iter().map(|kind| number(result, kind)).sum();
        assert_eq!(tables, number(result, "table_bytes.total"));
        assert!(number(result, "table_bytes.peak") >= tables);
        let cycles = sum(result, &["cycles.base", "cycles.translation", "cycles.exits", "cycles.waiting"]);
        assert_eq!(cycles, number(result, "cycles.total"));
        assert_eq!(result["stale"]["checked"], true);
        assert_eq!((number(result, "stale.broken"), number(result, "stale.allowed")), (0, 0));
        number(result, "ad_updates");
        assert_eq!(result["guest"], results[0]["guest"], "the guest does the same under every regime");
        assert_eq!(result["guest_page_faults"], results[0]["guest_page_faults"]);
    }
}

#[test]
fn figures_follow_from_mechanism() {
    let json = shipped();
    let [native, shadow, nested] = json["results"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(number(native, "exits.total"), 0);
    // Only first touches of guest frames exit under EPT.
    let keys = |result: &Value| result["exits"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(nested), ["ept_violation", "total"]);
    // Shadow paging takes every fault of the guest first, and every CR3 load.
    assert_eq!(number(shadow, "exits.reflected_fault"), number(shadow, "guest_page_faults"));
    assert_eq!(number(shadow, "exits.cr3_load"), number(shadow, "guest.cr3_loads"));
    for (result, most) in [(native, 4), (shadow, 4), (nested, 24)] {
        let (refs, walks) = (number(result, "walk_refs.total"), number(result, "walks"));
        assert!(refs > walks * (most - 4) && refs <= walks * most, "{refs} over {walks}");
    }
    assert_eq!(number(shadow, "walk_refs.guest") + number(shadow, "walk_refs.host"), 0);
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let run = |workload: &str, seed: u32, threads: u32| {
        let args =
            format!("compare --workload {workload} --scale 0.02 --format json --seed {seed} --threads {threads}");
        let ran = memvirt(&args);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stdout
    };
    for workload in ["churn", "zipf"] {
        let one = run(workload, 7, 1);
        assert_eq!(one, run(workload, 7, 2));
        assert_ne!(one, run(workload, 8, 2));
    }
}

#[test]
fn results_do_not_depend_on_where_a_trace_lies() {
    let run = |folder: &Path, trace: &str| {
        let ran = memvirt_in(folder, ["run", "--regime", "native", "--format", "json", "--trace", trace]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stdout
    };
    let folder = TempDir::new().unwrap();
    std::fs::copy(shipped_trace(), folder.path().join("compress-300-lines.lackey.zst")).unwrap();
    let near = run(folder.path(), "compress-300-lines.lackey.zst");
    assert_eq!(near, run(Path::new("/"), shipped_trace().to_str().unwrap()));
    assert!(!near.contains(folder.path().to_str().unwrap()));
}

#[test]
fn csv_has_a_row_per_regime_under_one_header() {
    let ran = memvirt("compare --workload fork-and-exit --scale 0.02 --format csv --regimes native,nested:npt,nested");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let rows: Vec<Vec<&str>> = ran.stdout.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row.len() == rows[0].len()));
    let column = |name: &str| rows[0].iter().position(|column| *column == name).unwrap_or_else(|| panic!("{name}"));
    let regimes: Vec<_> = rows[1..].iter().map(|row| row[column("regime")]).collect();
    assert_eq!(regimes, ["native", "nested:npt", "nested"]);
    for name in
        ["tlb.l1_hits", "walk_refs.host", "exits.ept_violation", "exits.halt", "table_bytes.peak", "cycles.total"]
    {
        assert!(rows[1..].iter().all(|row| row[column(name)].parse::<u64>().is_ok()), "{name}");
    }
}

#[test]
fn the_table_has_a_column_per_regime_and_says_what_was_run() {
    let ran = memvirt("compare --workload touch-and-free --scale 0.02 --kpti on --check");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let header = ran.stdout.lines().nth(1).unwrap();
    assert_eq!(header.split_whitespace().collect::<Vec<_>>(), ["native", "shadow:write-protect", "nested"]);
    let lines = ["references per walk", "EPT violation", "times native", "broken: no hardware could", "KPTI on"];
    for line in lines {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
    assert!(ran.stdout.contains("benefit of nested over shadow:write-protect: +"));
    assert!(ran.stdout.contains("--seed 0 --scale 0.02 --kpti on --check"));
    assert!(ran.stdout.lines().all(|line| line.len() == line.trim_end().len()));
}

#[test]
fn switches_reach_the_run() {
    let args = "run --regime nested --workload uniform --scale 0.01 --format json --kpti on --pcid on --tags off \
                --ept-ad off --guest-page 2M --host-page 2M --direct-map-page 1G --tick 0 --flush-ceiling 7 --memory 2G";
    let ran = memvirt(args);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let json = ran.json();
    let switches = &json["results"][0]["switches"];
    for (name, value) in [
        ("kpti", Value::from(true)),
        ("pcid", true.into()),
        ("tags", false.into()),
        ("ept_ad", false.into()),
        ("guest_page", "2M".into()),
        ("host_page", "2M".into()),
        ("direct_map_page", "1G".into()),
        ("tick_instructions", 0.into()),
        ("flush_ceiling", 7.into()),
        ("memory_bytes", (2u64 << 30).into()),
    ] {
        assert_eq!(switches[name], value, "{name}");
    }
    assert!(json["command"].as_str().unwrap().ends_with("--flush-ceiling 7 --memory 2147483648"));
}

#[test]
fn a_regime_asked_for_twice_is_run_once() {
    let ran = memvirt("compare --workload hot --scale 0.001 --regimes nested,nested:ept --format json");
    assert_eq!(ran.json()["results"].as_array().unwrap().len(), 1);
}

#[test]
fn a_regime_that_is_wrong_is_caught_by_the_check_and_named_without_it() {
    let run = "run --regime shadow:invlpg-only --workload fork-and-exit --scale 0.05 --format json";
    let checked = memvirt(&format!("{run} --check"));
    assert_eq!(checked.status, 1);
    assert!(number(&checked.json()["results"][0], "stale.broken") > 0);
    let lines: Vec<_> = checked.stderr.lines().collect();
    assert!(lines.len() <= 6 && lines.iter().all(|line| line.starts_with("memvirt: check failed: ")), "{lines:?}");
    let unchecked = memvirt(run);
    assert!(unchecked.stderr.contains("wrong translations by design"), "{}", unchecked.stderr);
}
