//! The lists: workloads, machines, regimes, traces.

use std::path::Path;

use crate::{memvirt, memvirt_in, shipped_trace};

#[test]
fn every_listed_workload_is_explained_and_found_from_any_folder() {
    let all = memvirt_in(Path::new("/"), ["workloads", "--format", "json"]).json();
    let names: Vec<_> = all.as_array().unwrap().iter().map(|workload| workload["name"].as_str().unwrap()).collect();
    assert!(names.len() >= 9, "{names:?}");
    let list = memvirt("workloads").stdout;
    for name in names {
        assert!(list.contains(name));
        let one = memvirt_in(Path::new("/"), ["workloads", name]);
        assert!(one.status == 0 && one.stdout.starts_with(&format!("{name}: ")), "{name}");
        assert!(one.stdout.contains("source of its rates: "), "{name}");
    }
}

#[test]
fn machines_show_every_figure_with_its_source_and_mark_estimates() {
    let json = memvirt("machines --format json").json();
    let list = memvirt("machines").stdout;
    for machine in json.as_array().unwrap() {
        let name = machine["name"].as_str().unwrap();
        assert!(list.contains(&format!("{name} ")), "{list}");
        assert_eq!(&memvirt(&format!("machines {name} --format json")).json(), machine);
        let table = memvirt(&format!("machines {name}")).stdout;
        let mut seen = 0;
        for section in ["walk_caches", "caches", "base", "translation", "exits", "work", "smp"] {
            figures(&machine[section], "", &mut |name, figure| {
                let source = figure["source"].as_str().unwrap();
                let start = format!("{section} {name} ");
                let line = table.lines().find(|line| squeezed(line).starts_with(&start));
                let line = line.unwrap_or_else(|| panic!("{section} {name}"));
                assert!(line.contains(source) && line.contains(&figure["value"].to_string()), "{line}");
                assert_eq!(line.contains(" * "), source.starts_with("estimate"), "{line}");
                seen += 1;
            });
        }
        assert!(seen >= 35 && table.contains(&format!("({} of {seen})", estimates(&table))), "{name}: {table}");
        for structure in ["tlb", "walk_caches", "caches"] {
            assert!(table.contains(machine[structure]["source"].as_str().unwrap()), "{name}: {structure}");
        }
    }
}

/// Calls `see` with each object that has a value and a source.
fn figures(value: &serde_json::Value, name: &str, see: &mut dyn FnMut(&str, &serde_json::Value)) {
    let Some(fields) = value.as_object() else { return };
    if fields.contains_key("value") {
        return see(name, value);
    }
    for (field, value) in fields {
        figures(value, if name.is_empty() { field.clone() } else { format!("{name}.{field}") }.as_str(), see);
    }
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ") + " "
}

fn estimates(table: &str) -> usize {
    table.lines().filter(|line| line.contains(" * ")).count()
}

#[test]
fn regimes_are_listed_by_the_names_that_are_accepted() {
    let list = memvirt("regimes").stdout;
    for line in list.lines().skip(2).filter(|line| !line.contains('─')) {
        let name = line.split_whitespace().next().unwrap();
        let ran = memvirt(&format!("run --regime {name} --workload hot --scale 0.0001"));
        assert_eq!(ran.status, 0, "{name}: {}", ran.stderr);
    }
}

#[test]
fn a_trace_is_summarized() {
    let path = shipped_trace();
    let json = memvirt(&format!("trace info {} --format json", path.display())).json();
    // The figures of tests/data/lackey/README.md.
    assert_eq!(json["tally"]["fetches"], 519_213);
    assert_eq!(json["tally"]["malformed"], 0);
    assert_eq!(json["pages"], 294);
    let table = memvirt(&format!("trace info {}", path.display()));
    assert!(table.status == 0 && table.stdout.contains("519,213") && table.stdout.contains("mmap"), "{}", table.stdout);
}

/// Were it measured first, this would take minutes.
#[test]
fn a_published_row_that_does_not_exist_is_refused_before_anything_is_measured() {
    for (words, known) in [("published --row K999", "K19"), ("published pvm --row K19", "P12")] {
        let ran = memvirt(words);
        assert!(
            ran.only_error().contains("there is no such row; the rows are ") && ran.stderr.contains(known),
            "{words}"
        );
    }
}
