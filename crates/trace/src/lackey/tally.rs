//! What a log holds, counted while it is read.

use std::collections::BTreeMap;

use memvirt_ops::process::Op;

use super::access::Kind;
use super::line::Remark;
use crate::error::{Malformed, excerpt};

/// Counts of what was read so far. Lines that were read further than the last batch delivered are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Tally {
    /// Lines, of any kind.
    pub lines: u64,
    /// Bytes of the log, decompressed.
    pub raw_bytes: u64,
    /// Instruction fetches: instructions executed.
    pub fetches: u64,
    /// Loads.
    pub loads: u64,
    /// Stores.
    pub stores: u64,
    /// Modifies: a load and a store by one instruction to one address.
    pub modifies: u64,
    /// Accesses that lie in more than one 4 KiB page; each is delivered as one access a page.
    pub page_crossings: u64,
    /// Processes, where the recording tells them apart.
    pub processes: u64,
    /// Processes made by fork, vfork and clone.
    pub forks: u64,
    /// Programs started by exec.
    pub execs: u64,
    /// Processes that ended.
    pub exits: u64,
    /// Times that another thread of a process went on.
    pub handoffs: u64,
    /// Flushes of TLBs that the recorded kernel made, by its reasons; for comparison, nothing is done with them.
    pub flushes: BTreeMap<String, u64>,
    /// Those among them that switches to programs outside of the recording made.
    pub flushes_for_others: u64,
    /// Recorded page faults that were stores to pages which were present and read-only; they are among the stores.
    pub protection_faults: u64,
    /// System calls by name.
    pub syscalls: BTreeMap<String, u64>,
    /// Lines that are Valgrind's own.
    pub remarks: u64,
    /// Those among them by the scheduler.
    pub schedule_remarks: u64,
    /// Empty lines.
    pub blank_lines: u64,
    /// Lines that could not be understood and were skipped.
    pub malformed: u64,
    /// The first of them.
    pub first_malformed: Option<Malformed>,
    /// The command line of the program, as Valgrind printed it.
    pub command: Option<String>,
    /// The process numbers in the log, in order of appearance; at most the first 16.
    pub pids: Vec<u32>,
}

impl Tally {
    /// Memory access lines of all kinds.
    #[must_use]
    pub fn access_lines(&self) -> u64 {
        self.fetches + self.loads + self.stores + self.modifies
    }

    /// System calls of all names.
    #[must_use]
    pub fn syscall_count(&self) -> u64 {
        self.syscalls.values().sum()
    }

    /// Counts an operation as it is delivered.
    pub(crate) fn operation(&mut self, op: &Op) {
        match op {
            Op::Fork { .. } | Op::Vfork { .. } => self.forks += 1,
            Op::Exec | Op::Load { .. } => self.execs += 1,
            Op::Exit => self.exits += 1,
            _ => {}
        }
    }

    /// Adds the counts of another part of the same recording.
    pub(crate) fn add(&mut self, other: &Self) {
        let sums = [
            (&mut self.lines, other.lines),
            (&mut self.raw_bytes, other.raw_bytes),
            (&mut self.fetches, other.fetches),
            (&mut self.loads, other.loads),
            (&mut self.stores, other.stores),
            (&mut self.modifies, other.modifies),
            (&mut self.page_crossings, other.page_crossings),
            (&mut self.processes, other.processes),
            (&mut self.forks, other.forks),
            (&mut self.execs, other.execs),
            (&mut self.exits, other.exits),
            (&mut self.handoffs, other.handoffs),
            (&mut self.remarks, other.remarks),
            (&mut self.schedule_remarks, other.schedule_remarks),
            (&mut self.blank_lines, other.blank_lines),
            (&mut self.malformed, other.malformed),
            (&mut self.flushes_for_others, other.flushes_for_others),
            (&mut self.protection_faults, other.protection_faults),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        for (name, count) in &other.syscalls {
            *self.syscalls.entry(name.clone()).or_default() += count;
        }
        for (reason, count) in &other.flushes {
            *self.flushes.entry(reason.clone()).or_default() += count;
        }
        self.first_malformed = self.first_malformed.take().or_else(|| other.first_malformed.clone());
        self.command = self.command.take().or_else(|| other.command.clone());
        for pid in &other.pids {
            self.pid(*pid);
        }
    }

    pub(crate) fn access(&mut self, kind: Kind) {
        match kind {
            Kind::Fetch => self.fetches += 1,
            Kind::Load => self.loads += 1,
            Kind::Store => self.stores += 1,
            Kind::Modify => self.modifies += 1,
        }
    }

    pub(crate) fn syscall(&mut self, name: &[u8]) {
        count(&mut self.syscalls, name);
    }

    pub(crate) fn flush(&mut self, reason: &[u8]) {
        count(&mut self.flushes, reason);
    }

    pub(crate) fn pid(&mut self, pid: u32) {
        const MAX_PIDS: usize = 16;
        if self.pids.len() < MAX_PIDS && !self.pids.contains(&pid) {
            self.pids.push(pid);
        }
    }

    pub(crate) fn remark(&mut self, remark: &Remark<'_>) {
        self.remarks += 1;
        match *remark {
            Remark::Command { pid, command } => {
                self.pid(pid);
                self.command.get_or_insert_with(|| String::from_utf8_lossy(command).trim().to_owned());
            }
            Remark::Schedule { .. } => self.schedule_remarks += 1,
            Remark::Text { pid } => self.pid(pid),
            Remark::Other => {}
        }
    }

    /// Counts a malformed line, which is the one after those counted in `lines`.
    pub(crate) fn malformed(&mut self, file: &str, expected: &str, found: &[u8]) {
        self.malformed += 1;
        if self.first_malformed.is_none() {
            let (line, expected) = (self.lines + 1, expected.to_owned());
            self.first_malformed = Some(Malformed { file: file.to_owned(), line, expected, found: excerpt(found) });
        }
    }
}

/// Counts a name. Those of real calls and reasons are few and short; others must not fill the memory.
fn count(names: &mut BTreeMap<String, u64>, name: &[u8]) {
    const MAX_NAME_BYTES: usize = 40;
    const MAX_NAMES: usize = 512;
    let name = String::from_utf8_lossy(name.get(..MAX_NAME_BYTES).unwrap_or(name));
    if let Some(count) = names.get_mut(name.as_ref()) {
        *count += 1;
    } else if names.len() < MAX_NAMES {
        names.insert(name.into_owned(), 1);
    } else {
        *names.entry("(other names)".into()).or_default() += 1;
    }
}
