//! The recordings of real KVM, replayed.

use std::io::BufRead;
use std::path::PathBuf;

use memvirt_replay::{Recording, Report, Tolerance, Under, Watch, replay};
use memvirt_shadow::kvm::Kernel;

fn open(name: &str) -> Recording<impl BufRead + use<>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm").join(name);
    Recording::open(&path).expect("the recordings are part of the repository")
}

fn passes(name: &str, under: Under, tolerance: Tolerance, sections: u64, rows: u64) -> Report {
    let report = replay(open(name), under, tolerance, Watch::On);
    assert!(report.passed(), "{report}");
    assert_eq!((report.sections, report.rows, report.announced_rows), (sections, rows, rows));
    assert!(report.judged.judged() > 4 * rows, "every touch and every operation is judged: {report}");
    report
}

#[test]
fn nested_paging_equals_kvm_counter_by_counter() {
    let under = Under::KvmNested(Kernel::V6_1);
    let report = passes("fuzz1-linux61-nested.csv.zst", under, Tolerance::Strict, 3, 4500);
    assert_eq!((report.exits, report.allowed), (321, 0), "every operation starts with an empty TLB");
}

#[test]
fn shadow_paging_of_linux_6_1_equals_kvm_counter_by_counter() {
    let under = Under::KvmShadow(Kernel::V6_1);
    let report = passes("fuzz1-linux61-shadow.csv.zst", under, Tolerance::Strict, 3, 4500);
    assert_eq!(report.exits, 2954);
    assert!(report.allowed > 0, "unsynchronized tables are stale until a flush");
    passes("fuzz2-linux61-shadow.csv.zst", under, Tolerance::Strict, 1, 2000);
}

#[test]
fn shadow_paging_of_linux_6_12_equals_kvm_counter_by_counter() {
    let under = Under::KvmShadow(Kernel::V6_12);
    passes("fuzz1-linux612-shadow.csv.zst", under, Tolerance::Strict, 1, 1500);
    passes("fuzz2-linux612-shadow.csv.zst", under, Tolerance::Strict, 1, 2000);
}

#[test]
fn the_kernels_are_told_apart() {
    let report =
        replay(open("fuzz1-linux612-shadow.csv.zst"), Under::KvmShadow(Kernel::V6_1), Tolerance::Flushes, Watch::Off);
    assert!(report.mismatching_rows > 0, "{report}");
    assert_eq!(report.mismatching_by_column.get("rdval"), None, "what the guest sees differs in counters only");
}

#[test]
fn correct_platforms_are_never_wrong() {
    for under in [
        Under::Native,
        Under::WriteProtect,
        Under::WriteProtectPropagate,
        Under::LazyFill,
        Under::Vtlb,
        Under::Xen,
        Under::Vbox,
    ] {
        for (name, sections, rows) in
            [("fuzz1-linux61-shadow.csv.zst", 3, 4500), ("fuzz2-linux61-shadow.csv.zst", 1, 2000)]
        {
            passes(name, under, Tolerance::Strict, sections, rows);
        }
    }
}

#[test]
fn the_naive_policy_is_caught() {
    for (name, broken) in [("fuzz1-linux61-shadow.csv.zst", 500), ("fuzz2-linux61-shadow.csv.zst", 150)] {
        let report = replay(open(name), Under::InvlpgOnly, Tolerance::Strict, Watch::On);
        assert!(report.broken > broken && !report.passed(), "{report}");
        assert!(report.mismatching_rows > 100 && !report.violations.is_empty());
        assert_eq!(report.error, None);
    }
}
