//! Traces of memvirt's own against the recordings they were packed from: every counter of every regime the same.
//!
//! `MEMVIRT_SAMPLES=DIR cargo test -p memvirt-tests --test packed` does the same for further recordings, all that lie in DIR.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::fs::File;
use std::path::{Path, PathBuf};

use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, RegimeKind, RunResult, Setup, run};
use memvirt_mvt::Density;
use memvirt_tests::{data, trace_guest};
use memvirt_trace::{MemoryCalls, Reading, Recording, Turns, convert};

/// Native, shadow tables kept right by write protection, nested tables: and a shadow that drifts, whose work depends on when
/// which page is touched.
const REGIMES: [RegimeKind; 4] =
    [RegimeKind::Native, RegimeKind::ShadowWriteProtect, RegimeKind::NestedEpt, RegimeKind::ShadowLazyFill];

struct Packed {
    /// Deletes the file at the end.
    _folder: tempfile::TempDir,
    path: PathBuf,
    /// Bytes of the recording, decompressed, and of the file.
    bytes: (u64, u64),
}

fn pack(recording: &Path, density: Density) -> Packed {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.mvt");
    let mut raw = 0;
    let opened = Recording::open(recording, Reading::default()).unwrap();
    let file = File::create(&path).unwrap();
    let mut look = |recording: &Recording| raw = recording.tally().raw_bytes;
    let (converted, _) = convert(opened, file, "packed.mvt", density, &mut look).unwrap();
    assert!(converted.broken_off.is_none());
    Packed { _folder: folder, path, bytes: (raw, converted.written.bytes) }
}

fn result(path: &Path, reading: Reading, regime: RegimeKind, guest: GuestConfig) -> RunResult {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).unwrap();
    let setup =
        Setup { regime, guest, host: HostConfig::default(), machine, measure: Measure::default(), check: false };
    let finished = run(&setup, &mut Recording::open(path, reading).unwrap(), &mut |_| {}).unwrap();
    assert!(finished.input_error.is_none(), "{:?}", finished.input_error);
    finished.result
}

/// Where processes take short turns and ticks come often, an access more or less between two of them would show.
fn restless() -> (Reading, GuestConfig) {
    let turns = Turns { quantum: 20_000, seed: 7 };
    let guest = GuestConfig { tick_instructions: 10_000, kpti: true, ..trace_guest() };
    (Reading { memory_calls: Some(MemoryCalls::Apply), turns }, guest)
}

fn counters_are_the_same(recording: &Path) {
    for density in [Density::Pages, Density::Lines] {
        let packed = pack(recording, density);
        let (raw, bytes) = packed.bytes;
        println!("{}: {density:?}: {raw} bytes become {bytes}", recording.display());
        for (reading, guest) in [(Reading::default(), trace_guest()), restless()] {
            for regime in REGIMES {
                let of_raw = result(recording, reading, regime, guest);
                let of_packed = result(&packed.path, reading, regime, guest);
                assert!(of_raw.guest.user_accesses > 0 || of_raw.guest.syscalls > 0);
                assert_eq!(of_raw, of_packed, "{} packed as {density:?} under {regime}", recording.display());
            }
        }
    }
}

#[test]
fn a_log_of_one_process_gives_the_same_counters_packed() {
    counters_are_the_same(&data("lackey/compress-300-lines.lackey.zst"));
    counters_are_the_same(&data("lackey/threads.lackey"));
}

#[test]
fn logs_of_several_processes_give_the_same_counters_packed() {
    counters_are_the_same(&data("lackey/fork-two.lackey.tar.zst"));
}

#[test]
fn packing_a_packed_trace_changes_nothing() {
    for name in ["fork-shell", "gcc-compile"] {
        counters_are_the_same_coarse(&data(&format!("mvt/{name}.mvt")));
    }
}

fn counters_are_the_same_coarse(recording: &Path) {
    let packed = pack(recording, Density::Pages);
    let (reading, guest) = restless();
    assert_eq!(
        result(recording, reading, RegimeKind::Native, guest),
        result(&packed.path, reading, RegimeKind::Native, guest)
    );
}

#[test]
fn a_packed_log_has_at_most_a_fortieth_of_the_bytes() {
    for name in ["compress-300-lines.lackey.zst", "fork-two.lackey.tar.zst"] {
        for density in [Density::Pages, Density::Lines] {
            let (raw, bytes) = pack(&data("lackey").join(name), density).bytes;
            assert!(raw > 5_000_000 && bytes * 40 <= raw, "{name}: {raw} bytes become {bytes} as {density:?}");
        }
    }
}

#[test]
fn further_samples_give_the_same_counters_packed() {
    let Some(folder) = std::env::var_os("MEMVIRT_SAMPLES") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "zst" || extension == "xz") {
            counters_are_the_same(&path);
        }
    }
}
