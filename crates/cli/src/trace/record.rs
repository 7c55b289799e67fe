//! `memvirt trace record`: a program under Valgrind's lackey, packed.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use memvirt_trace::{Reading, Recording};

use super::RecordArgs;
use super::convert::pack;
use crate::failure::{Status, warn};
use crate::progress::Bytes;

/// What makes the logs that `memvirt-trace` reads: every access, every child, every system call, and who runs.
const OPTIONS: [&str; 6] =
    ["--tool=lackey", "--trace-mem=yes", "--trace-children=yes", "--trace-syscalls=yes", "-v", "-v"];

pub(crate) fn record(args: &RecordArgs) -> anyhow::Result<Status> {
    let Some(program) = args.command.first() else { bail!("nothing to record; give a command after `--`") };
    check_valgrind(&args.valgrind)?;
    let output = args.output.clone().unwrap_or_else(|| default_output(program));
    let scratch = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let logs = tempfile::Builder::new()
        .prefix("memvirt-record-")
        .tempdir_in(&scratch)
        .with_context(|| format!("cannot make a folder for the logs in {}", scratch.display()))?;
    let status = run(args, logs.path())?;
    if size(logs.path()) == 0 {
        bail!("{} left no log: Valgrind could not run it ({status})", program.display());
    }
    if !status.success() {
        warn(&format!("{} ended with {status}; what it did is recorded all the same", program.display()));
    }
    pack(Recording::open(logs.path(), Reading::default())?, &output, args.density.into())
}

/// The program's name with `.mvt`.
fn default_output(program: &OsStr) -> PathBuf {
    let mut name = Path::new(program).file_name().map_or_else(|| OsString::from("recorded"), OsStr::to_owned);
    name.push(".mvt");
    name.into()
}

fn check_valgrind(valgrind: &OsStr) -> anyhow::Result<()> {
    let version = Command::new(valgrind).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    match version {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("`{} --version` ended with {}: this is no Valgrind", valgrind.display(), output.status),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "there is no `{}`: recording needs Valgrind with its tool lackey; install it (Debian, Ubuntu: `apt install \
             valgrind`; Fedora: `dnf install valgrind`) or name it with --valgrind PROGRAM",
            valgrind.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot run `{}`", valgrind.display())),
    }
}

fn run(args: &RecordArgs, logs: &Path) -> anyhow::Result<ExitStatus> {
    let mut log_file = OsString::from("--log-file=");
    // The pattern is Valgrind's; a percent sign of the folder itself would be taken for one.
    log_file.push(logs.display().to_string().replace('%', "%%"));
    log_file.push("/log.%p.%n.log");
    let child = Command::new(&args.valgrind).args(OPTIONS).arg(log_file).arg("--").args(&args.command).spawn();
    let child = child.with_context(|| format!("cannot run `{}`", args.valgrind.display()))?;
    watch(child, logs)
}

/// Waits for the program and shows how much was recorded.
fn watch(mut child: Child, logs: &Path) -> anyhow::Result<ExitStatus> {
    let bar = Bytes::new(None);
    let mut pause = Duration::from_millis(5);
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the program")? {
            break status;
        }
        bar.show(size(logs));
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(250));
    };
    bar.clear();
    Ok(status)
}

/// Bytes of all logs.
fn size(logs: &Path) -> u64 {
    let files = std::fs::read_dir(logs).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}
