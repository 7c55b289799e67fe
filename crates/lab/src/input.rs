//! What is run: a workload, or a recorded trace; opened anew for each regime, so that runs share nothing.

use std::path::{Path, PathBuf};

use memvirt_ops::process::{Batch, Source};
use memvirt_trace::{MemoryCalls, Progress, Reading, Recording, Repairs, TraceError};
use memvirt_workload::{GuestSwitches, Workload};
use serde::Serialize;

/// What is run.
#[derive(Clone, Debug)]
pub enum Input {
    /// A generated stream.
    Workload(Box<Workload>),
    /// A recording of real programs, and how it is read.
    Trace(PathBuf, Reading),
}

impl Input {
    /// The stream from its beginning. The seed concerns generators only.
    ///
    /// # Errors
    ///
    /// Where a trace cannot be opened.
    pub(crate) fn open(&self, seed: u64) -> Result<Stream, TraceError> {
        Ok(match self {
            Self::Workload(workload) => Stream::Generator(Box::new(workload.generator(seed))),
            Self::Trace(path, reading) => Stream::Trace(Box::new(Recording::open(path, *reading)?)),
        })
    }

    /// What the input asks of the guest.
    #[must_use]
    pub fn guest(&self) -> GuestSwitches {
        match self {
            Self::Workload(workload) => workload.guest(),
            Self::Trace(..) => GuestSwitches::default(),
        }
    }

    /// Bytes that are mapped at the same time, where that is known before the run.
    #[must_use]
    pub fn footprint_bytes(&self) -> u64 {
        match self {
            Self::Workload(workload) => workload.facts().footprint_bytes,
            Self::Trace(..) => 0,
        }
    }
}

/// An opened input.
pub(crate) enum Stream {
    Generator(Box<memvirt_workload::Generator>),
    Trace(Box<Recording>),
}

impl Source for Stream {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        match self {
            Self::Generator(generator) => generator.next_batch(batch).map_err(|never| match never {}),
            Self::Trace(reader) => reader.next_batch(batch),
        }
    }
}

impl Stream {
    /// How far the reader of a trace has come.
    pub(crate) fn progress(&self) -> Option<Progress> {
        match self {
            Self::Generator(_) => None,
            Self::Trace(reader) => Some(reader.progress()),
        }
    }

    /// Refuses a trace without lines, for models with caches for data.
    pub(crate) fn must_have_lines(&self) -> Result<(), TraceError> {
        match self {
            Self::Trace(recording) if !recording.has_lines() => {
                Err(TraceError::TooCoarse { name: recording.name().to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// What was read of `input`.
    pub(crate) fn describe(&self, input: &Input) -> Described {
        match (self, input) {
            (Self::Trace(recording), Input::Trace(path, _)) => Described::Trace(TraceSummary::new(path, recording)),
            (_, Input::Workload(workload)) => Described::Workload(workload.clone()),
            (Self::Generator(_), Input::Trace(path, _)) => {
                Described::Trace(TraceSummary { name: file_name(path), ..TraceSummary::default() })
            }
        }
    }
}

/// The input as it stands in results.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one stands in a comparison")]
pub enum Described {
    /// A generated stream: its workload file.
    Workload(Box<Workload>),
    /// A trace: what was read of it.
    Trace(TraceSummary),
}

impl Described {
    /// The name for headings and files.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Workload(workload) => workload.name(),
            Self::Trace(trace) => &trace.name,
        }
    }

    /// One line on what it is.
    #[must_use]
    pub fn title(&self) -> String {
        match self {
            Self::Workload(workload) => workload.title().to_owned(),
            Self::Trace(trace) => match &trace.program {
                Some(program) => format!("recorded with {}: {program}", trace.format_title),
                None => format!("recorded with {}", trace.format_title),
            },
        }
    }
}

/// What was read of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TraceSummary {
    /// The name of the file, without its folders: results do not depend on where it lies.
    pub name: String,
    /// What it was recorded with.
    pub format: &'static str,
    /// The same for people.
    #[serde(skip)]
    pub format_title: &'static str,
    /// How the file is compressed.
    pub compression: &'static str,
    /// What is kept of addresses, in a trace of memvirt's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<&'static str>,
    /// Files of a bundle that were not read: the recording is one of them alone, that which says most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Processes.
    pub processes: u64,
    /// What had to be decided to put processes in order, where anything had.
    #[serde(skip_serializing_if = "is_default")]
    pub repairs: Repairs,
    /// Lines read.
    pub lines: u64,
    /// Lines that could not be understood and were skipped.
    pub malformed: u64,
    /// The first of them: its number and what is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_malformed: Option<String>,
    /// Instructions that the program executed.
    pub instructions: u64,
    /// Loads.
    pub loads: u64,
    /// Stores.
    pub stores: u64,
    /// Loads and stores of one instruction to one address.
    pub modifies: u64,
    /// System calls.
    pub syscalls: u64,
    /// Whether mmap, munmap, mprotect, mremap and brk were carried out, or were plain system calls.
    pub memory_calls: bool,
    /// The command line of the recorded program, where the log holds it.
    pub program: Option<String>,
}

impl TraceSummary {
    fn new(path: &Path, recording: &Recording) -> Self {
        let tally = recording.tally();
        Self {
            name: file_name(path),
            format: recording.format().name(),
            format_title: recording.format().title(),
            compression: recording.compression().name(),
            density: recording.header().map(|header| header.density.name()),
            left_out: recording.left_out().0,
            processes: tally.processes.max(1),
            repairs: recording.repairs(),
            lines: tally.lines,
            malformed: tally.malformed,
            first_malformed: tally
                .first_malformed
                .as_ref()
                .map(|bad| format!("line {}: expected {}, found `{}`", bad.line, bad.expected, bad.found)),
            instructions: tally.fetches,
            loads: tally.loads,
            stores: tally.stores,
            modifies: tally.modifies,
            syscalls: tally.syscall_count(),
            memory_calls: recording.memory_calls() == MemoryCalls::Apply,
            program: tally.command,
        }
    }
}

fn is_default(repairs: &Repairs) -> bool {
    *repairs == Repairs::default()
}

/// The last part of a path.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
