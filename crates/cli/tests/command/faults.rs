//! `memvirt faults`: what is predicted, and what is said of bundles that cannot be joined or break off.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::tempdir;

use crate::{memvirt, memvirt_in};

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/perf/gcc-compile.kernel-events.tar.zst")
}

#[test]
fn every_kind_has_its_band_and_verdict() {
    let args = ["faults", &bundle().display().to_string()];
    let ran = memvirt_in(Path::new("."), args);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let row = |name: &str| ran.stdout.lines().find(|line| line.trim_start().starts_with(name)).unwrap().to_owned();
    for (name, band) in
        [("fetches", "5 %"), ("stores, page read-only", "5 %"), ("task switch", "25 %"), ("other CPUs", "25 %")]
    {
        assert!(row(name).contains(band) && row(name).trim_end().ends_with(" in"), "{}", row(name));
    }
    assert!(ran.stdout.contains("schedule: 43 switches on 2 CPUs"), "{}", ran.stdout);
    let json = memvirt_in(Path::new("."), [args[0], args[1], "--format", "json"]).json();
    let kinds = json["predicted"][0]["kinds"].as_array().unwrap();
    assert_eq!(kinds.len(), 9);
    assert!(kinds.iter().all(|kind| kind["verdict"] == "in"), "{kinds:#?}");
}

#[test]
fn a_bundle_that_breaks_off_is_called_damaged_wherever_it_does() {
    let folder = tempdir().unwrap();
    let whole = fs::read(bundle()).unwrap();
    let mut predicted = 0;
    for share in [5, 20, 50, 80, 95, 99] {
        let name = format!("cut-{share}.tar.zst");
        fs::write(folder.path().join(&name), &whole[..whole.len() * share / 100]).unwrap();
        let ran = memvirt_in(folder.path(), ["faults", &name]);
        assert_eq!(ran.status, 2, "{share} %: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(&name), "{share} %: {}", ran.stderr);
        assert!(ran.stderr.contains("breaks off") || ran.stderr.contains("damaged"), "{share} %: {}", ran.stderr);
        predicted += u32::from(ran.stdout.contains("user page faults"));
    }
    assert!(predicted > 0, "what stands before the damage is used");
}

#[test]
fn one_text_is_told_what_it_lacks_and_special_folders_end() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("calls.txt"), "7 brk(NULL) = 0x1000\n7 exit_group(0) = ?\n").unwrap();
    let ran = memvirt_in(folder.path(), ["faults", "calls.txt"]);
    assert!(ran.only_error().contains("it is the text of strace alone"), "{}", ran.stderr);
    fs::write(folder.path().join("list.csv"), "a,b\n").unwrap();
    let ran = memvirt_in(folder.path(), ["faults", "list.csv"]);
    assert!(ran.only_error().contains("it is no archive; give a directory or a tar archive"), "{}", ran.stderr);
    if Path::new("/proc/self").exists() {
        assert!(memvirt("faults /proc").only_error().contains("no strace text"));
    }
}
