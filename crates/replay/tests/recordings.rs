//! The recordings of real KVM, replayed.

use std::path::PathBuf;

use memvirt_nested::{AdBits, Nested};
use memvirt_pagetable::Npt4;
use memvirt_platform::{Engine, Native, Vendor};
use memvirt_replay::{Recording, Report, Tolerance, check, compare, golden};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};

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

fn kvm(kernel: Kernel) -> Engine<Kvm> {
    golden::engine(|_| Some(Kvm::new(KvmConfig::new(kernel, Vendor::Svm)))).unwrap()
}

#[test]
fn shadow_paging_of_linux_6_1_equals_kvm_counter_by_counter() {
    let report = compare(open("fuzz1-linux61-shadow.csv.zst"), Tolerance::Strict, |_| kvm(Kernel::V6_1));
    passed(&report, 3, 4500);
    let report = compare(open("fuzz2-linux61-shadow.csv.zst"), Tolerance::Strict, |_| kvm(Kernel::V6_1));
    passed(&report, 1, 2000);
}

#[test]
fn shadow_paging_of_linux_6_12_equals_kvm_counter_by_counter() {
    let report = compare(open("fuzz1-linux612-shadow.csv.zst"), Tolerance::Strict, |_| kvm(Kernel::V6_12));
    passed(&report, 1, 1500);
    let report = compare(open("fuzz2-linux612-shadow.csv.zst"), Tolerance::Flushes, |_| kvm(Kernel::V6_12));
    passed(&report, 1, 2000);
}
