//! `memvirt footprint`: rows beside their predictions, files, and what is refused.

use crate::memvirt;

#[test]
fn dense_rows_equal_their_predictions() {
    let json = memvirt("footprint --processes 1,3 --footprint 2MiB --dense --format json").json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert_eq!(row["measured"]["end"], row["predicted"], "{}", row["regime"]);
        let owners = &row["measured"]["owners"];
        assert_eq!(owners["processes"].as_array().unwrap().len() as u64, row["processes"].as_u64().unwrap());
    }
    let shown = memvirt("footprint --processes 1,3 --footprint 2MiB --dense --threads 1").stdout;
    assert_eq!(shown.matches("equal").count(), 6, "{shown}");
}

#[test]
fn figures_and_data_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display();
    let ran =
        memvirt(&format!("footprint --workload touch-and-free --regimes nested,shadow:kvm --format csv --out {out}"));
    assert_eq!((ran.status, ran.stdout.lines().count()), (0, 3), "{}", ran.stderr);
    for file in ["footprint.json", "footprint.csv", "processes.csv", "series.csv", "figures/footprint-time.svg"] {
        assert!(std::fs::metadata(dir.path().join(file)).unwrap().len() > 50, "{file}");
    }
}

#[test]
fn the_help_names_the_bound_that_is_kept() {
    let help = memvirt("footprint --help").stdout;
    assert!(help.contains("at most 64TiB"), "{help}");
}

#[test]
fn what_no_footprint_has_is_refused() {
    for (args, word) in [
        ("--processes 0", "65536"),
        ("--footprint 100", "whole 4 KiB pages"),
        ("--footprint 65TiB", "'--footprint <SIZE>': expected a size in whole 4 KiB pages, from \"4KiB\" to \"64TiB\""),
        ("--workload zipf --footprint 128GiB", "33554432 pages (128GiB) are too many; at most 16777216 (64GiB)"),
        ("--sparse 0", "share"),
        ("--dense --sparse", "cannot be used with"),
        ("--shadow-page-limit 63", "64"),
        ("--workload churn --dense", "residents"),
    ] {
        let ran = memvirt(&format!("footprint {args}"));
        assert!(ran.status == 2 && ran.stderr.contains(word), "{args}: {}", ran.stderr);
    }
}
