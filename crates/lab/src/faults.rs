//! User page faults and TLB flushes that the guest predicts for a program, beside those that a kernel counted.
//!
//! The input is what an unprivileged user can record of a program: areas by strace, addresses of faults by perf
//! ([`memvirt_trace::Pair`]). The guest executes the calls and touches the addresses; which of the accesses fault, in which way, and
//! what is flushed, follows from its rules. Beside it stands what the kernel's own tracepoints counted, where the bundle holds
//! them. Nothing is fitted.

use std::path::Path;

use memvirt_machine::{GuestConfig, GuestStats, HostConfig, MachineSpec, Measure, RegimeKind, Setup, Undeclared, run};
use memvirt_trace::{FaultText, Found, Pair, TraceError};
use serde::Serialize;

use crate::error::LabError;

/// Page faults of user mode, by what the access was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Loads.
    pub load: u64,
    /// Instruction fetches.
    pub fetch: u64,
    /// Stores to pages that were not present.
    pub store: u64,
    /// Stores to pages that were present and read-only.
    pub protection: u64,
}

impl Faults {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.load + self.fetch + self.store + self.protection
    }
}

/// TLB flushes by the kernel's reasons for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flushes {
    /// Of the current address space (`TLB_LOCAL_MM_SHOOTDOWN`).
    pub local: u64,
    /// Loads of another address space (`TLB_FLUSH_ON_TASK_SWITCH`), whether entries were kept or not.
    pub task_switch: u64,
    /// By or for other CPUs.
    pub remote: u64,
}

impl Flushes {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.local + self.task_switch + self.remote
    }
}

/// What a kernel's tracepoints counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recorded {
    /// The text that says it.
    pub text: String,
    /// Page faults.
    pub faults: Faults,
    /// Flushes.
    pub flushes: Flushes,
    /// Those among `flushes.task_switch` that led to programs outside of the recording, of which it says nothing else.
    pub to_other_programs: u64,
}

/// What the guest did with the addresses of one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predicted {
    /// The text that the addresses are from.
    pub addresses: String,
    /// Whether it says what each access was.
    pub has_kinds: bool,
    /// What joining it with the areas found.
    pub found: Found,
    /// Page faults.
    pub faults: Faults,
    /// Flushes.
    pub flushes: Flushes,
    /// Everything else that the guest did.
    pub guest: GuestStats,
}

/// A bundle's predictions, one for each text of addresses, and its kernel's counts where it holds them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// One for each text of addresses.
    pub predicted: Vec<Predicted>,
    /// The kernel's own counts.
    pub recorded: Option<Recorded>,
    /// Lines of the texts that were not understood and skipped: what is predicted is of the rest.
    pub malformed: u64,
    /// The first of them.
    pub first_malformed: Option<String>,
}

/// The guest that predictions are made with: Linux as distributions build it, with process-context identifiers, and pages that
/// no call maps taken as the process' own.
#[must_use]
pub fn guest() -> GuestConfig {
    GuestConfig { pcid: true, undeclared: Undeclared::Adopt, ..GuestConfig::linux() }
}

/// Predicts for a directory or an archive that holds texts of strace and perf of one program.
///
/// # Errors
///
/// [`LabError::Trace`] where it does not.
pub fn predict(path: &Path) -> Result<Prediction, LabError> {
    let pair = Pair::open(path)?;
    let predicted = pair.fault_texts().map(|text| one(&pair, text)).collect::<Result<_, _>>()?;
    let recorded = pair.fault_texts().find(|text| !text.tally.flushes.is_empty() && text.has_kinds).map(recorded);
    let (malformed, first) = pair.malformed();
    Ok(Prediction { predicted, recorded, malformed, first_malformed: first.map(ToString::to_string) })
}

fn one(pair: &Pair, text: &FaultText) -> Result<Predicted, LabError> {
    let mut source = pair.join(&text.name)?;
    let machine = MachineSpec::load(MachineSpec::DEFAULT)?;
    let (regime, host, measure) = (RegimeKind::Native, HostConfig::default(), Measure::default());
    let setup = Setup { regime, guest: guest(), host, machine, measure, check: false };
    let finished = run(&setup, &mut source, &mut |_| {})?;
    if let Some(error) = finished.input_error {
        return Err(TraceError::into(error));
    }
    let guest = finished.result.guest;
    Ok(Predicted {
        addresses: text.name.clone(),
        has_kinds: text.has_kinds,
        found: source.found,
        faults: Faults {
            load: guest.faults_by_load,
            fetch: guest.faults_by_fetch,
            store: guest.faults_by_store,
            protection: guest.faults_by_protection,
        },
        flushes: Flushes { local: guest.flushes, task_switch: guest.space_switches, remote: guest.shootdowns },
        guest,
    })
}

fn recorded(text: &FaultText) -> Recorded {
    let tally = &text.tally;
    let of = |reason: &str| tally.flushes.get(reason).copied().unwrap_or(0);
    let (local, task_switch) = (of("local MM shootdown"), of("flush on task switch"));
    Recorded {
        text: text.name.clone(),
        faults: Faults {
            load: tally.loads,
            fetch: tally.fetches,
            store: tally.stores - tally.protection_faults,
            protection: tally.protection_faults,
        },
        flushes: Flushes { local, task_switch, remote: tally.flushes.values().sum::<u64>() - local - task_switch },
        to_other_programs: tally.flushes_for_others,
    }
}
