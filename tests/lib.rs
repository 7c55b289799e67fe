//! What the end-to-end tests share: the repository's root and ready-made runs.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, RegimeKind, RunResult, Setup, Undeclared, run};
use memvirt_ops::process::Source;

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the recorded data that the repository ships.
#[must_use]
pub fn data(path: &str) -> PathBuf {
    root().join("tests/data").join(path)
}

/// A run with the default switches and machine; the oracle watches where `check` is set.
///
/// # Panics
///
/// Where the run does not end well: a test that asks for a result wants a whole one.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn result_of<S: Source<Error: std::fmt::Debug>>(
    regime: RegimeKind,
    guest: GuestConfig,
    check: bool,
    source: &mut S,
) -> RunResult {
    let machine = MachineSpec::load(MachineSpec::DEFAULT).expect("the default machine is sound");
    let (host, measure) = (HostConfig::default(), Measure::default());
    let setup = Setup { regime, guest, host, machine, measure, check };
    let finished = run(&setup, source, &mut |_| {}).expect("the default machine is sound");
    assert!(finished.input_error.is_none(), "{:?}", finished.input_error);
    assert!(finished.violations.is_empty(), "{regime}: {:#?}", finished.violations);
    finished.result
}

/// The guest for a recorded trace: what was loaded before the recording began is adopted.
#[must_use]
pub fn trace_guest() -> GuestConfig {
    GuestConfig { undeclared: Undeclared::Adopt, ..GuestConfig::default() }
}
