//! The command from outside: what it prints, where, and with which exit status.
#![expect(clippy::unwrap_used, reason = "a test: what cannot be read is a failure")]

mod calibrate;
mod exits;
mod faults;
mod footprint;
mod inputs;
mod lists;
mod model;
mod nested_virt;
mod phase;
mod plan;
mod report;
mod results;
mod trace;
mod walk;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run of the command left.
struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The one line of an error; nothing on standard output.
    fn only_error(&self) -> &str {
        assert_eq!(self.status, 2, "{}", self.stderr);
        assert_eq!(self.stdout, "", "results beside an error: {}", self.stderr);
        let line = self.stderr.trim_end();
        assert!(line.starts_with("memvirt: error: ") && !line.contains('\n'), "{line}");
        line
    }
}

/// Runs the command in a folder.
fn memvirt_in<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_memvirt")).args(args).current_dir(folder).output().unwrap();
    let Output { status, stdout, stderr } = output;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { status: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) };
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

/// Runs the command with words separated by spaces.
fn memvirt(args: &str) -> Ran {
    memvirt_in(Path::new("."), args.split_whitespace())
}

/// The recorded program that the repository ships.
fn shipped_trace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/lackey/compress-300-lines.lackey.zst")
}
