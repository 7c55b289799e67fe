//! The recordings of real KVM, replayed.

use std::path::PathBuf;

use memvirt_nested::{AdBits, Nested};
use memvirt_pagetable::Npt4;
use memvirt_platform::{Engine, Native, Vendor};
use memvirt_replay::{Recording, Report, Tolerance, check, compare, golden};

fn open(name: &str) -> Recording<impl std::io::BufRead + use<>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm").join(name);
    Recording::open(&path).unwrap()
}

fn nested() -> Engine<Nested<Npt4>> {
    golden::engine(|host| Nested::new(host, AdBits::On, Vendor::Svm)).unwrap()
}

fn passed(report: &Report, sections: u64, rows: u64) {
    assert!(report.passed(), "{report}");
    assert_eq!((report.sections, report.rows, report.announced_rows), (sections, rows, rows));
    assert!(report.judged.judged() > 4 * rows, "every touch and every operation is judged: {report}");
}

#[test]
fn nested_paging_equals_kvm_counter_by_counter() {
    let report = compare(open("fuzz1-linux61-nested.csv.zst"), Tolerance::Strict, |_| nested());
    passed(&report, 3, 4500);
    assert_eq!(report.allowed, 0, "nested paging drops what the guest changes at every exit");
}

#[test]
fn the_bare_machine_is_never_wrong() {
    let report = check(open("fuzz1-linux61-shadow.csv.zst"), |_| golden::bare(Native));
    passed(&report, 3, 4500);
    let report = check(open("fuzz2-linux61-shadow.csv.zst"), |_| golden::bare(Native));
    passed(&report, 1, 2000);
}
