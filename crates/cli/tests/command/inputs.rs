//! Bad command lines and bad inputs: one clear error each, exit status 2, no panic.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::{memvirt, memvirt_in, shipped_trace};

/// A trace file with these bytes.
fn trace(bytes: &[u8]) -> (TempDir, Vec<String>) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("app.log"), bytes).unwrap();
    (folder, ["compare", "--trace", "app.log"].map(str::to_owned).to_vec())
}

fn refused(bytes: &[u8]) -> String {
    let (folder, args) = trace(bytes);
    let info = memvirt_in(folder.path(), ["trace", "info", "app.log"]);
    let error = info.only_error().to_owned();
    assert_eq!(memvirt_in(folder.path(), args).only_error(), error, "compare and info agree");
    error
}

#[test]
fn without_arguments_the_help_is_printed() {
    let ran = memvirt("");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("Usage:") && ran.stderr.contains("memvirt compare --workload zipf"), "{}", ran.stderr);
}

#[test]
fn bad_flags_are_named_with_what_is_accepted() {
    let cases = [
        ("compare", "--workload"),
        ("compare --workload zipf --trace x", "cannot be used with"),
        ("compare --workload zipf --frobnicate", "--frobnicate"),
        ("compare --workload zipf --regimes bogus", "shadow:write-protect"),
        ("compare --workload zipf --format xml", "json"),
        ("compare --workload zipf --host-page 3K", "4K, 2M, 1G"),
        ("compare --workload zipf --guest-page 1G", "4K or 2M"),
        ("compare --workload zipf --kpti maybe", "maybe"),
        ("compare --workload zipf --memory 1K", "64MiB to 2TiB"),
        ("compare --workload zipf --tick 5", "1000"),
        ("compare --workload zipf --threads 0", "--threads"),
        ("compare --workload zipf --seed -1", "-1"),
        ("run --workload zipf", "--regime"),
        ("walk --guest 6", "4, 5, pae, none"),
        ("walk --host pae", "none, 4, 5"),
        ("walk --format xml", "svg"),
        ("replay x --platform bogus", "write-protect/propagate"),
        ("walk --address what", "hexadecimal"),
        ("trace info", "FILE"),
        ("frobnicate", "frobnicate"),
    ];
    for (args, named) in cases {
        let ran = memvirt(args);
        assert_eq!(ran.status, 2, "{args}");
        assert_eq!(ran.stdout, "", "{args}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(named), "{args}: {}", ran.stderr);
    }
}

#[test]
fn unknown_names_list_the_known_ones() {
    let machine = memvirt("compare --workload hot --machine pdp-11");
    assert!(machine.only_error().contains("skylake-sp"));
    let workload = memvirt("compare --workload zip");
    assert!(workload.only_error().contains("nearest first: zipf"), "{}", workload.stderr);
}

#[test]
fn missing_files_are_named() {
    for args in [
        "compare --trace no/such.log",
        "trace info no/such.log",
        "compare --workload no/such.toml",
        "compare --workload hot --machine no/such.toml",
        "workloads no/such.toml",
        "machines no/such.toml",
    ] {
        let ran = memvirt(args);
        let error = ran.only_error();
        assert!(error.contains("no/such.") && error.matches("No such file").count() == 1, "{error}");
    }
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    for args in [["compare", "--workload", "./inner"], ["replay", ".", "--strict"]] {
        let ran = memvirt_in(folder.path(), args);
        assert!(ran.only_error().contains("directory"), "{}", ran.stderr);
    }
    // A directory of logs is a recording of several processes; this one holds none.
    let ran = memvirt_in(folder.path(), ["compare", "--trace", "inner"]);
    assert!(ran.only_error().contains("none of the 0 files in it is a Valgrind lackey log"), "{}", ran.stderr);
    let ran = memvirt_in(folder.path(), ["machines", "./"]);
    assert!(ran.only_error().contains("is not a machine file: it is a directory"), "{}", ran.stderr);
}

#[test]
fn files_that_are_no_logs_are_refused_in_one_sentence() {
    assert!(refused(b"").contains("empty"));
    let binary: Vec<u8> = (0u32..100_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    assert!(refused(&binary).contains("not a Valgrind lackey log"));
    assert!(refused(b"It was a dark and stormy night.\n").contains("not a Valgrind lackey log"));
    let long = refused(&vec![b'x'; 10_000_000]);
    assert!(long.contains("not a Valgrind lackey log") && long.len() < 1000, "{}", long.len());
}

#[test]
fn a_long_line_within_a_log_is_skipped_and_named() {
    let mut log = b"==1== Lackey\nI  04001000,3\n L 1ffe000010,8\n".to_vec();
    log.extend(vec![b'y'; 10_000_000]);
    log.extend(b"\n S 1ffe000010,8\n");
    let (folder, mut args) = trace(&log);
    args.extend(["--format", "json"].map(str::to_owned));
    let ran = memvirt_in(folder.path(), args);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("warning: 1 of 5 lines of app.log were skipped; the first: line 4"), "{}", ran.stderr);
    assert!(ran.stderr.len() < 500);
    let results = ran.json();
    assert_eq!(results["workload"]["malformed"], 1);
    assert_eq!(results["results"][0]["guest"]["user_accesses"], 3);
}

#[test]
fn a_truncated_trace_gives_results_up_to_there_and_one_error() {
    let whole = fs::read(shipped_trace()).unwrap();
    let (folder, mut args) = trace(&whole[..whole.len() / 2]);
    args.extend(["--format", "json", "--out", "report"].map(str::to_owned));
    let ran = memvirt_in(folder.path(), args);
    assert_eq!(ran.status, 2);
    let results = ran.json();
    for result in results["results"].as_array().unwrap() {
        assert_eq!(result["outcome"], "input_error");
        assert!(result["accesses"].as_u64().unwrap() > 10_000);
    }
    let errors: Vec<_> = ran.stderr.lines().filter(|line| line.contains("error")).collect();
    assert!(errors.len() == 1 && errors[0].contains("app.log is cut off"), "{}", ran.stderr);
    let page = fs::read_to_string(folder.path().join("report/index.html")).unwrap();
    assert!(page.contains("Ended early"));

    // Cut off before the first access there is nothing to show.
    let (folder, args) = trace(&whole[..20]);
    let ran = memvirt_in(folder.path(), args);
    assert!(ran.only_error().contains("app.log"));
}

#[test]
fn a_recording_of_the_other_kernel_is_recognized() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm/fuzz2-linux612-shadow.csv.zst");
    let replay = |kernel: &str| memvirt(&format!("replay {} --no-oracle --kernel {kernel}", file.display()));
    let ran = replay("6.1");
    assert_eq!(ran.status, 1);
    assert_eq!(ran.stderr, "memvirt: hint: on kvm-shadow of Linux 6.12, 0 of 2000 rows differ; try --kernel 6.12\n");
    let ran = replay("6.12");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_recording_of_nested_paging_is_recognized_and_one_of_shadow_paging_too() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/kvm");
    let replay = |file: &str, platform: &str| {
        memvirt(&format!("replay {} --no-oracle --platform {platform}", data.join(file).display()))
    };
    let ran = replay("fuzz1-linux61-nested.csv.zst", "kvm-shadow");
    assert_eq!(ran.status, 1);
    let hint = "memvirt: hint: on kvm-nested of Linux 6.1, 0 of 4500 rows differ; try --platform kvm-nested\n";
    assert_eq!(ran.stderr, hint);
    let ran = replay("fuzz2-linux612-shadow.csv.zst", "kvm-nested");
    assert!(ran.stderr.ends_with("0 of 2000 rows differ; try --platform kvm-shadow --kernel 6.12\n"), "{}", ran.stderr);
}

#[test]
fn a_guest_without_memory_says_what_to_do() {
    let ran = memvirt("run --regime native --workload uniform --memory 64M");
    assert_eq!(ran.status, 2);
    assert!(ran.stdout.contains("guest out of memory"), "{}", ran.stdout);
    assert!(ran.stderr.contains("--memory"), "{}", ran.stderr);
}

#[test]
fn bad_fields_of_a_workload_file_are_named_with_their_line() {
    let folder = TempDir::new().unwrap();
    let text = include_str!("../../../../models/workloads/zipf.toml").replace("\"1GiB\"", "\"1Gi\"");
    fs::write(folder.path().join("mine.toml"), text).unwrap();
    let ran = memvirt_in(folder.path(), ["compare", "--workload", "mine.toml"]);
    let error = ran.only_error();
    assert!(error.contains("mine.toml:") && error.contains("generator.footprint"), "{error}");
}

#[test]
fn results_are_printed_before_an_unwritable_report_fails() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("out/index.html")).unwrap();
    let args = "compare --workload touch-and-free --scale 0.01 --regimes native --out out";
    let ran = memvirt_in(folder.path(), args.split(' '));
    assert_eq!(ran.status, 2);
    assert!(ran.stdout.contains("= cycles"), "{}", ran.stdout);
    assert!(ran.stderr.starts_with("memvirt: error: cannot write the report: out"), "{}", ran.stderr);
}

#[test]
fn a_folder_that_cannot_be_made_is_found_before_the_work() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "in the way").unwrap();
    let work = ["compare --workload zipf", "scale --workload zipf", "footprint", "report --quick"];
    for words in work {
        let ran = memvirt_in(folder.path(), words.split(' ').chain(["--out", "file"]));
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{words}");
        assert!(ran.stderr.starts_with("memvirt: error: cannot make the folder file"), "{words}: {}", ran.stderr);
    }
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "in the way");
}

#[test]
#[cfg(unix)]
fn a_reader_that_goes_away_is_no_panic() {
    use std::io::Read;
    use std::process::{Command, Stdio};

    // The reader is gone before the command has started.
    let mut child = Command::new(env!("CARGO_BIN_EXE_memvirt"))
        .args(["machines", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(Path::new("."))
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((child.wait().unwrap().code(), errors.as_str()), (Some(0), ""));
}

#[test]
#[cfg(unix)]
fn pipes_and_devices_are_no_files_of_users() {
    let folder = TempDir::new().unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("p.toml")).status().unwrap();
    assert!(made.success());
    // Were the pipe opened, the command would wait for ever.
    for words in ["model check ./p.toml", "workloads ./p.toml", "machines ./p.toml", "plan show ./p.toml"] {
        let ran = memvirt_in(folder.path(), words.split(' '));
        assert!(
            ran.only_error().contains("p.toml is not a ") && ran.stderr.contains("copy what comes out"),
            "{}",
            ran.stderr
        );
    }
    for words in ["model check /dev/zero", "plan show /dev/zero"] {
        assert!(memvirt(words).only_error().contains("it is a device: copy"), "{words}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let folder = TempDir::new().unwrap();
    for (file, text, words) in [
        ("m.model", include_str!("../../../../models/cost/walk-cold.model"), "model check"),
        ("w.toml", include_str!("../../../../models/workloads/zipf.toml"), "workloads"),
        ("h.toml", include_str!("../../../../models/machines/haswell.toml"), "machines"),
        ("p.toml", include_str!("../../../../models/plans/smoke.toml"), "plan show"),
    ] {
        fs::write(folder.path().join(file), format!("\u{feff}{text}")).unwrap();
        let ran = memvirt_in(folder.path(), words.split(' ').chain([format!("./{file}").as_str()]));
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{file}");
    }
}

#[test]
fn what_a_terminal_would_obey_is_shown_and_not_sent() {
    let folder = TempDir::new().unwrap();
    let escape = "\u{1b}[31mred\u{9b}2J";
    let model = include_str!("../../../../models/cost/walk-cold.model").replacen("walk-cold", escape, 1);
    let workload =
        include_str!("../../../../models/workloads/zipf.toml").replacen("title = \"", "title = \"\\u001b[31mred", 1);
    let plan =
        include_str!("../../../../models/plans/smoke.toml").replacen("title = \"", "title = \"\\u001b[31mred", 1);
    for (file, text, words) in [
        ("m.model", &model, "model check"),
        ("m.model", &model, "model show"),
        ("m.model", &model, "model eval"),
        ("w.toml", &workload, "workloads"),
        ("p.toml", &plan, "plan show"),
    ] {
        fs::write(folder.path().join(file), text).unwrap();
        let ran = memvirt_in(folder.path(), words.split(' ').chain([format!("./{file}").as_str()]));
        let all = ran.stdout + &ran.stderr;
        // A workload's file is refused, and its error shows what it holds.
        assert!(all.contains("[31mred") && !all.contains(['\u{1b}', '\u{9b}']), "{words}: {all}");
    }
}
