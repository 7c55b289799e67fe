//! `memvirt plan`: the lists, what is refused, and that the command in a row makes that row.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::{memvirt, memvirt_in, shipped_trace};

/// A plan with as many switches as fit into milliseconds.
const PLAN: &str = "\
name = \"t\"
title = \"t\"
about = \"t\"
[[grid]]
workload = \"churn\"
set = { touches = [3, 9], \"mix.mprotect\" = 0 }
scale = 0.004
seed = 5
machine = \"zen4\"
regime = [\"native\", \"shadow:kvm\", \"nested-virt:pvm\"]
kpti = true
tags = false
memory = \"128MiB\"
check = true
[[grid]]
trace = \"app.lackey.zst\"
memory_calls = true
regime = [\"shadow:lazy-fill\", \"nested\"]
mode = \"cycles\"
host_page = \"2M\"
host_frames = \"scattered\"
walkers = 2
[[grid]]
workload = \"two-rates\"
footprint = \"1MiB\"
set.iterations = 4
regime = \"nested\"
guest_page = [\"4K\", \"2M\"]
prefault = true
warm_up = 16_390
tick = 5000
walk_caches = true
[[grid]]
workload = [\"uniform\", \"churn\"]
footprint = \"1MiB\"
steady = \"declared\"
scale = 0.005
machine = [\"skylake-sp\", \"zen4\"]
guest_page = [\"4K\", \"2M\"]
vcpus = [1, 2]
seed = [0, 1]
regime = [\"shadow:kvm\", \"nested\"]
[[grid]]
workload = \"churn\"
scale = 0.004
vcpus = 3
sharing = \"threads\"
pcid = true
check = true
regime = [\"native\", \"shadow:xen\"]
";

/// The words of a command, quotes taken off.
fn words(command: &str) -> Vec<String> {
    command.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect()
}

/// A cell of JSON by the name of its column.
fn at<'a>(result: &'a Value, column: &str) -> &'a Value {
    column.split('.').fold(result, |value, part| &value[part])
}

#[test]
fn the_command_in_a_row_makes_the_same_counters() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("t.toml"), PLAN).unwrap();
    fs::copy(shipped_trace(), dir.path().join("app.lackey.zst")).unwrap();
    let ran = memvirt_in(dir.path(), ["plan", "run", "./t.toml", "--out", "results"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let first = ran.stderr.lines().next().unwrap();
    assert!(
        first.starts_with("memvirt: 76 runs on ") && first.contains(" threads: about "),
        "the time comes first: {first}"
    );
    assert!(ran.stdout.starts_with("t: 76 rows of ") && ran.stdout.contains("76 run now, 0 kept"), "{}", ran.stdout);
    let text = fs::read_to_string(dir.path().join("results/t.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers().unwrap().clone();
    let mut rows = 0;
    for record in reader.records() {
        let record = record.unwrap();
        let command = words(&record[0]);
        assert_eq!(command[0], "memvirt");
        let args = command[1..].iter().map(String::as_str).chain(["--format", "json"]);
        let json = memvirt_in(dir.path(), args).json();
        assert_eq!(json["command"], record[0], "the run names the same command");
        let result = &json["results"][0];
        let mut compared = 0;
        for (column, cell) in columns.iter().zip(&record).skip(3) {
            let found = at(result, column);
            match found {
                // Settings that are no part of a result, reasons for exits that did not occur, parts that a run has not.
                Value::Null => continue,
                Value::String(text) => assert_eq!(text, cell, "{column}: {}", &record[0]),
                other => assert_eq!(other.to_string(), cell, "{column}: {}", &record[0]),
            }
            compared += 1;
        }
        assert!(compared > 110, "{compared}");
        rows += 1;
    }
    assert_eq!(rows, 76);
    let again = memvirt_in(dir.path(), ["plan", "run", "./t.toml", "--out", "results", "--threads", "1"]);
    assert!(again.stdout.contains("0 run now, 76 kept") && again.stderr.is_empty(), "{}", again.stdout);
    assert_eq!(fs::read_to_string(dir.path().join("results/t.csv")).unwrap(), text);
}

#[test]
fn plans_are_listed_and_explained() {
    let all = memvirt("plan list --format json").json();
    let names: Vec<_> = all.as_array().unwrap().iter().map(|plan| plan["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pages", "phase", "regimes", "smoke", "vcpus"]);
    let list = memvirt("plan list").stdout;
    for (name, plan) in names.iter().zip(all.as_array().unwrap()) {
        assert!(list.contains(name));
        let shown = memvirt(&format!("plan show {name}"));
        assert!(shown.stdout.starts_with(&format!("{name}: ")), "{}", shown.stdout);
        let commands = memvirt(&format!("plan show {name} --commands")).stdout;
        assert_eq!(commands.lines().count() as u64, plan["runs"].as_u64().unwrap());
        assert!(commands.lines().all(|line| line.starts_with("memvirt run --regime ")));
        let json = memvirt(&format!("plan show {name} --format json")).json();
        assert_eq!(json["runs"], plan["runs"]);
    }
}

#[test]
fn a_bad_plan_is_one_line_and_status_2() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("bad.toml"), PLAN.replace("kpti", "kptii")).unwrap();
    let refused = |args: &[&str]| memvirt_in(dir.path(), args).only_error().to_owned();
    let error = refused(&["plan", "run", "bad.toml", "--out", "x"]);
    assert!(error.contains("bad.toml:11: grid[0].kptii: unknown axis; accepted: workload, "), "{error}");
    assert!(!dir.path().join("x").exists());
    assert!(
        refused(&["plan", "run", "smoke", "--out", "bad.toml"])
            .contains("cannot make the folder bad.toml: it is a file")
    );
    assert!(refused(&["plan", "show", "smok"]).contains("no plan is called `smok`; known: pages, phase, "));
    assert!(refused(&["plan", "show", "none.toml"]).contains("cannot read plan file none.toml"));
    assert!(refused(&["plan", "run", "smoke", "--quick", "--out", "x"]).contains("has no quick form"));
    fs::write(dir.path().join("blob.toml"), [0xff, 0xfe, 0x00]).unwrap();
    assert!(refused(&["plan", "show", "blob.toml"]).contains("blob.toml is not a plan file: it is no UTF-8 text"));
    let error = refused(&["run", "--regime", "native", "--workload", "zipf", "--set", "expnent=2"]);
    assert!(error.contains("cannot set `expnent` of workload `zipf`: unknown field `expnent`, expected"), "{error}");
}
