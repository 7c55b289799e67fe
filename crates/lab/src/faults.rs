//! User page faults and TLB flushes that the guest predicts for a program, beside those that a kernel counted.
//!
//! The input is what an unprivileged user can record of a program: areas by strace, addresses of faults by perf
//! ([`memvirt_trace::Pair`]). The guest executes the calls and touches the addresses; which of the accesses fault, in which way, and
//! what is flushed, follows from its rules. Beside it stands what the kernel's own tracepoints counted, where the bundle holds
//! them; of these the schedule, who ran when on which CPU, is an input as the areas are, and no count of faults or flushes is.
//! Nothing is fitted.
//!
//! Flushes are counted as the kernel's tracepoint `tlb_flush` does, on behalf of the program's own processes: the load of an
//! address space belongs to whoever leaves the CPU, so that switches from other programs to this one are not among them.

mod play;
mod verdict;

use std::path::Path;

use memvirt_machine::{GuestConfig, GuestStats, Outcome, Undeclared};
use memvirt_trace::{FaultText, Followed, Found, Pair};
use serde::Serialize;

pub use verdict::{FAULTS_BAND, FLUSHES_BAND, Kind, Verdict};

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
    /// Those among them that kept all translations, under a PCID.
    pub kept: u64,
    /// By or for other CPUs (`TLB_REMOTE_SEND_IPI`, `TLB_REMOTE_SHOOTDOWN`).
    pub remote: u64,
}

impl Flushes {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.local + self.task_switch + self.remote
    }
}

/// What the load of an address space did to the translations that the CPU had of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// They stayed, under their PCID.
    Kept,
    /// They were dropped, or there were none.
    Dropped,
}

impl Load {
    const fn of(kept: bool) -> Self {
        if kept { Self::Kept } else { Self::Dropped }
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
    /// The loads of an address space among them, in order.
    pub loads: Vec<Load>,
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
    /// The loads of an address space among them, in order.
    pub loads: Vec<Load>,
    /// Each kind beside what was recorded, with its band and whether it holds.
    pub kinds: Vec<Kind>,
    /// The schedule that was followed; `None` where none was recorded: switches then stand where calls of different processes
    /// follow each other, and those to other programs are missing.
    pub schedule: Option<Followed>,
    /// How the replay ended.
    pub outcome: Outcome,
    /// Everything else that the guest did for the program.
    pub guest: GuestStats,
}

/// A bundle's predictions, one for each text of addresses, and its kernel's counts where it holds them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// One for each text of addresses.
    pub predicted: Vec<Predicted>,
    /// The kernel's own counts.
    pub recorded: Option<Recorded>,
    /// What is wrong with the bundle, where it breaks off: what is predicted is of what stands before.
    pub damage: Option<String>,
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
    let recorded = pair.fault_texts().find(|text| !text.tally.flushes.is_empty() && text.has_kinds).map(recorded);
    let mut predicted = Vec::new();
    let mut unusable = None;
    for text in pair.fault_texts() {
        match one(&pair, text, recorded.as_ref()) {
            Ok(one) => predicted.push(one),
            // Of a bundle that breaks off the texts that are whole will do.
            Err(error) if pair.damage().is_some() => unusable = unusable.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if let (true, Some(error)) = (predicted.is_empty(), unusable) {
        return Err(error);
    }
    let (malformed, first) = pair.malformed();
    let damage = pair.damage().map(str::to_owned);
    Ok(Prediction { predicted, recorded, damage, malformed, first_malformed: first.map(ToString::to_string) })
}

fn one(pair: &Pair, text: &FaultText, recorded: Option<&Recorded>) -> Result<Predicted, LabError> {
    let replay = pair.replay(&text.name)?;
    let (found, schedule) = (replay.found, replay.schedule.clone());
    let played = play::play(replay, guest())?;
    let guest = played.own;
    let faults = Faults {
        load: guest.faults_by_load,
        fetch: guest.faults_by_fetch,
        store: guest.faults_by_store,
        protection: guest.faults_by_protection,
    };
    let flushes = Flushes {
        local: guest.flushes,
        task_switch: guest.space_switches,
        kept: guest.space_switches_kept,
        remote: guest.flushes_sent + played.interrupted,
    };
    let kinds = verdict::kinds(&faults, &flushes, recorded.map(|known| (&known.faults, &known.flushes)));
    let (addresses, has_kinds, outcome, loads) = (text.name.clone(), text.has_kinds, played.outcome, played.loads);
    Ok(Predicted { addresses, has_kinds, found, faults, flushes, loads, kinds, schedule, outcome, guest })
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
        flushes: Flushes {
            local,
            task_switch,
            kept: text.loads.iter().filter(|kept| **kept).count() as u64,
            remote: tally.flushes.values().sum::<u64>() - local - task_switch,
        },
        loads: text.loads.iter().map(|kept| Load::of(*kept)).collect(),
        to_other_programs: tally.flushes_for_others,
    }
}
