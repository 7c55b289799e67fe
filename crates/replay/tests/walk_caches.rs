//! Walk caches shorten walks and change nothing else: with them every recording is met row by row as without, and every other
//! platform is as little wrong.

use std::io::BufRead;
use std::path::PathBuf;

use memvirt_nested::{AdBits, Nested};
use memvirt_oracle::FaultRule;
use memvirt_pagetable::{Ept4, Npt4};
use memvirt_platform::{Engine, MmuGeometry, Native, Regime, Vendor};
use memvirt_replay::platforms::{kvm_nested, kvm_shadow};
use memvirt_replay::{KvmCounters, Recording, Report, Tolerance, Watch, check, compare, golden};
use memvirt_shadow::kvm::Kernel;
use memvirt_shadow::{LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_testkit::caches::skylake;

fn open(name: &str) -> Recording<impl BufRead + use<>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm").join(name);
    Recording::open(&path).expect("the recordings are part of the repository")
}

/// Demands that a recording is met on `make`'s platform with walk caches, the oracle beside it.
fn met<R: Regime>(name: &str, rows: u64, tolerance: Tolerance, make: impl Fn() -> Engine<R>)
where
    Engine<R>: KvmCounters,
{
    let report = compare(open(name), tolerance, Watch::On, |_| make().with_walk_caches(&skylake()));
    sound(&report, rows);
}

fn sound(report: &Report, rows: u64) {
    assert!(report.passed(), "{report}");
    assert_eq!((report.rows, report.announced_rows), (rows, rows));
}

#[test]
fn recordings_of_nested_paging_are_met() {
    met("fuzz1-linux61-nested.csv.zst", 4500, Tolerance::Strict, kvm_nested);
}

#[test]
fn recordings_of_shadow_paging_are_met() {
    for (name, rows, kernel, tolerance) in [
        ("fuzz1-linux61-shadow.csv.zst", 4500, Kernel::V6_1, Tolerance::Strict),
        ("fuzz2-linux61-shadow.csv.zst", 2000, Kernel::V6_1, Tolerance::Strict),
        ("fuzz1-linux612-shadow.csv.zst", 1500, Kernel::V6_12, Tolerance::Flushes),
        ("fuzz2-linux612-shadow.csv.zst", 2000, Kernel::V6_12, Tolerance::Flushes),
    ] {
        met(name, rows, tolerance, || kvm_shadow(kernel));
    }
}

#[test]
fn all_other_platforms_are_never_wrong() {
    let caches = skylake();
    let (zap, renew, vendor) = (OnStore::Zap, OnStore::Propagate, Vendor::Svm);
    watched(|| golden::bare(Native), &caches);
    watched(|| golden::engine(|_, map| WriteProtect::new(map, zap, vendor)), &caches);
    watched(|| golden::engine(|_, map| WriteProtect::new(map, renew, vendor)), &caches);
    watched(|| golden::engine(|_, map| LazyFill::new(map, vendor)), &caches);
    watched(|| golden::engine(|_, map| Vtlb::new(map, vendor)), &caches);
    watched(|| golden::engine(|_, map| Xen::new(map, 1, vendor)), &caches);
    watched(|| golden::engine(|_, map| Vbox::new(map, vendor)), &caches);
    let full = "an empty host has a frame";
    watched(|| golden::engine(|host, _| Nested::<Ept4>::new(host, AdBits::On, Vendor::Vmx).expect(full)), &caches);
    watched(|| golden::engine(|host, _| Nested::<Ept4>::new(host, AdBits::Off, Vendor::Vmx).expect(full)), &caches);
    watched(|| golden::engine(|host, _| Nested::<Npt4>::new(host, AdBits::On, vendor).expect(full)), &caches);
}

fn watched<R: Regime>(make: impl Fn() -> Engine<R>, caches: &MmuGeometry) {
    for (name, rows) in [("fuzz1-linux61-shadow.csv.zst", 4500), ("fuzz2-linux61-shadow.csv.zst", 2000)] {
        let report = check(open(name), FaultRule::Architecture, |_| make().with_walk_caches(caches));
        sound(&report, rows);
    }
}
