//! `memvirt trace`: packing, checking, cutting, showing and making recordings.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::{memvirt, memvirt_in, shipped_trace};

fn shell() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/lackey/fork-two.lackey.tar.zst");
    path.display().to_string()
}

#[test]
fn a_recording_is_packed_checked_and_compared() {
    let folder = tempdir().unwrap();
    let packed = memvirt_in(folder.path(), ["trace", "convert", &shell(), "shell.mvt"]);
    assert_eq!(packed.status, 0, "{}", packed.stderr);
    assert!(packed.stdout.contains("5 processes"), "{}", packed.stdout);
    assert!(!folder.path().join("shell.mvt.part").exists());
    let verified = memvirt_in(folder.path(), ["trace", "verify", "shell.mvt", "--against", &shell()]);
    assert!(verified.status == 0 && verified.stdout.contains("equal to"), "{}", verified.stdout);
    // Another recording is another.
    let trace = shipped_trace().display().to_string();
    let other = memvirt_in(folder.path(), ["trace", "verify", "shell.mvt", "--against", &trace]);
    assert!(other.status == 1 && other.stdout.contains("differs from"), "{}", other.stdout);
    let info = memvirt_in(folder.path(), ["trace", "info", "shell.mvt", "--format", "json"]).json();
    assert_eq!(
        (&info["tally"]["forks"], &info["tally"]["execs"], &info["tally"]["exits"]),
        (&4.into(), &1.into(), &5.into())
    );
    // A bit that changes is noticed, and what stands before is used.
    let path = folder.path().join("shell.mvt");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).unwrap();
    let damaged = memvirt_in(folder.path(), ["trace", "verify", "shell.mvt"]);
    assert!(damaged.status == 1 && damaged.stdout.contains("damaged: byte"), "{}", damaged.stdout);
}

#[test]
fn a_packed_trace_runs_as_the_recording_does_and_pages_are_refused_where_lines_matter() {
    let folder = tempdir().unwrap();
    assert_eq!(memvirt_in(folder.path(), ["trace", "convert", &shell(), "shell.mvt"]).status, 0);
    let results = |trace: &str| {
        let args =
            ["run", "--regime", "nested", "--format", "json", "--quantum", "5000", "--seed", "3", "--trace", trace];
        memvirt_in(folder.path(), args).json()["results"].clone()
    };
    assert_eq!(results("shell.mvt"), results(&shell()));
    let args = ["run", "--regime", "native", "--mode", "cycles", "--trace", "shell.mvt"];
    let refused = memvirt_in(folder.path(), args);
    assert!(refused.only_error().contains("--density lines"), "{}", refused.stderr);
}

#[test]
fn a_part_is_cut_out_and_shown() {
    let folder = tempdir().unwrap();
    let trace = shipped_trace().display().to_string();
    let cut = memvirt_in(folder.path(), ["trace", "cut", &trace, "part.mvt", "--from", "1000", "--to", "1500"]);
    assert!(cut.status == 0 && cut.stdout.contains("500 accesses"), "{}{}", cut.stdout, cut.stderr);
    let lines = memvirt_in(folder.path(), ["trace", "cat", "part.mvt", "--lines", "7"]).stdout;
    assert_eq!(lines.lines().count(), 7);
    assert!(lines.lines().all(|line| line.starts_with("0 ")), "{lines}");
    let nothing = memvirt_in(folder.path(), ["trace", "cut", &trace, "part.mvt", "--from", "5", "--to", "5"]);
    assert!(nothing.only_error().contains("nothing lies between"), "{}", nothing.stderr);
}

#[test]
fn recording_without_valgrind_says_what_to_install() {
    let ran = memvirt("trace record --valgrind no-such-valgrind -- true");
    assert!(ran.only_error().contains("install"), "{}", ran.stderr);
    assert!(memvirt("trace record").stderr.contains("COMMAND"));
}

#[test]
fn a_program_is_recorded_where_valgrind_is_installed() {
    let installed =
        std::process::Command::new("valgrind").arg("--version").output().is_ok_and(|it| it.status.success());
    if !installed {
        return;
    }
    let folder = tempdir().unwrap();
    let args = ["trace", "record", "--output", "true.mvt", "--", "/bin/sh", "-c", "(exit 0); exit 0"];
    let ran = memvirt_in(folder.path(), args);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let info = memvirt_in(folder.path(), ["trace", "info", "true.mvt", "--format", "json"]).json();
    assert_eq!((&info["tally"]["forks"], &info["tally"]["exits"]), (&1.into(), &2.into()), "{info}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "one file is left");
}
