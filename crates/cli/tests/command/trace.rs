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

/// The accesses that `trace verify` counts in intact blocks.
fn intact(folder: &Path, trace: &str) -> String {
    let said = memvirt_in(folder, ["trace", "verify", trace]).stdout;
    let counts = said.lines().find(|line| line.contains(" blocks intact: ")).unwrap().to_owned();
    counts.split(", ").find_map(|count| count.strip_suffix(" accesses")).unwrap().replace(',', "")
}

/// What is intact is shown to the last access also where the first process, which forks all others, is behind the cut.
#[test]
fn a_damaged_packed_trace_is_shown_as_far_as_it_is_intact_and_the_damage_named() {
    let folder = tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/mvt");
    for (file, half) in [("fork-shell.mvt", true), ("redis-bgsave.mvt", true), ("gcc-compile.mvt", false)] {
        let mut bytes = fs::read(data.join(file)).unwrap();
        let (length, what) = (bytes.len(), if half { "it is cut off" } else { "another .mvt trace is appended" });
        if half {
            bytes.truncate(length / 2)
        } else {
            bytes.extend_from_within(..)
        }
        fs::write(folder.path().join("damaged.mvt"), bytes).unwrap();
        let info = memvirt_in(folder.path(), ["trace", "info", "damaged.mvt", "--format", "json"]);
        assert_eq!(info.status, 2, "{file}: {}", info.stderr);
        assert!(info.stderr.contains("damaged.mvt is damaged: byte ") && info.stderr.contains(what), "{}", info.stderr);
        assert_eq!(info.json()["accesses"].to_string(), intact(folder.path(), "damaged.mvt"), "{file}");
        if file != "redis-bgsave.mvt" {
            let cat = memvirt_in(folder.path(), ["trace", "cat", "damaged.mvt"]);
            assert!(cat.status == 2 && cat.stderr.contains(what), "{}", cat.stderr);
            assert!(cat.stdout.lines().count() > 1000 && cat.stdout.ends_with('\n'));
        }
    }
}

#[test]
fn a_packed_trace_with_a_broken_beginning_is_called_one() {
    let folder = tempdir().unwrap();
    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/mvt/gcc-compile.mvt")).unwrap();
    let mut wrong = whole.clone();
    wrong[2] ^= 1;
    let as_text: Vec<u8> = whole.iter().copied().filter(|byte| *byte != b'\r').collect();
    for (name, bytes, what) in [
        ("wrong.bin", &wrong[..], "its signature is damaged"),
        ("text.bin", &as_text, "copied as text"),
        ("short.mvt", &whole[..3], "ends within its signature"),
        ("empty.mvt", &[], "it is empty"),
        ("other.mvt", b"no trace of any kind\n", "its first bytes are others"),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        for command in ["info", "cat", "verify"] {
            let ran = memvirt_in(folder.path(), ["trace", command, name]);
            let error = ran.only_error();
            assert!(error.contains("is not an .mvt trace") && error.contains(what), "{command}: {error}");
            // The advice must not overwrite what it is about.
            assert!(error.contains("convert RECORDING NEW.mvt"), "{error}");
        }
    }
    // A recording is one whatever it is called.
    fs::copy(shipped_trace(), folder.path().join("log.mvt")).unwrap();
    let info = memvirt_in(folder.path(), ["trace", "info", "log.mvt"]);
    assert!(info.status == 0 && info.stdout.contains("Valgrind lackey"), "{}", info.stderr);
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
    let args = ["trace", "cut", &trace, "beyond.mvt", "--from", "4000000000", "--to", "5000000000"];
    let beyond = memvirt_in(folder.path(), args);
    assert!(beyond.only_error().contains("begin before the end"), "{}", beyond.stderr);
    assert_eq!(beyond.status, 2);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["part.mvt"], "nothing of the refused one is left");
}

fn compiler() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/perf/gcc-compile.kernel-events.tar.zst");
    path.display().to_string()
}

#[test]
fn counts_mean_the_same_of_a_recording_and_of_what_it_is_packed_as() {
    let folder = tempdir().unwrap();
    let packed = memvirt_in(folder.path(), ["trace", "convert", &compiler(), "gcc.mvt"]);
    // Three processes in one stream, in the order that was recorded.
    assert!(packed.stdout.contains(" 3 processes in 1 block"), "{}", packed.stdout);
    let info = |name: &str| memvirt_in(folder.path(), ["trace", "info", name, "--format", "json"]).json();
    let (raw, packed) = (info(&compiler()), info("gcc.mvt"));
    for field in ["instructions", "accesses", "operations", "pages"] {
        assert_eq!(raw[field], packed[field], "{field}");
    }
    assert_eq!((&raw["tally"]["fetches"], &packed["tally"]["fetches"]), (&345.into(), &345.into()));
    // The file's size is the file's, whatever is in it, and what was not read of it is named.
    assert_eq!(raw["file_bytes"], fs::metadata(compiler()).unwrap().len());
    let beside = raw["left_out"].to_string();
    assert!(beside.contains("gcc.strace.txt") && !beside.contains("gcc.perf-kernel.txt"), "{beside}");
    let cut = memvirt_in(folder.path(), ["trace", "cut", "gcc.mvt", "one.mvt", "--from", "5", "--to", "9"]);
    assert!(cut.stdout.contains(" 4 accesses") && cut.stdout.contains(" 1 process in 1 block\n"), "{}", cut.stdout);
}

#[test]
fn equal_is_said_with_the_lines_that_were_not_compared() {
    let folder = tempdir().unwrap();
    let log =
        "==7== Lackey, an example Valgrind tool\n==7== Command: x\nI  04001090,3\n S 1ffefff888,8\nI  0400109,z\n";
    fs::write(folder.path().join("odd.lackey"), log).unwrap();
    assert_eq!(memvirt_in(folder.path(), ["trace", "convert", "odd.lackey", "odd.mvt"]).status, 0);
    let ran = memvirt_in(folder.path(), ["trace", "verify", "odd.mvt", "--against", "odd.lackey"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("equal to odd.lackey but for 1 line that no reader understands"), "{}", ran.stdout);
    assert!(ran.stdout.contains("line 5"), "{}", ran.stdout);
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

#[cfg(unix)]
#[test]
fn an_output_that_is_no_file_is_refused_and_a_link_is_written_through() {
    let folder = tempdir().unwrap();
    let refused = memvirt_in(folder.path(), ["trace", "convert", &shell(), "."]);
    assert!(refused.only_error().contains("it is no file"), "{}", refused.stderr);
    fs::write(folder.path().join("old.mvt"), "old").unwrap();
    std::os::unix::fs::symlink("old.mvt", folder.path().join("link.mvt")).unwrap();
    let written = memvirt_in(folder.path(), ["trace", "convert", &shell(), "link.mvt"]);
    assert_eq!(written.status, 0, "{}", written.stderr);
    assert!(folder.path().join("link.mvt").is_symlink());
    assert_eq!(memvirt_in(folder.path(), ["trace", "verify", "old.mvt"]).status, 0);
}
