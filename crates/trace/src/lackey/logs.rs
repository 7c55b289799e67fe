//! A set of logs: one for each process and for each program that a process ran.
//!
//! `--log-file=PREFIX.%p.%n.log --trace-children=yes` makes a log for each process (`%p`) and begins another when a process
//! executes a program. What a log is stands in its first lines, so names do not matter: the number of the process in every
//! remark and system call; `Parent PID`; ` --> ` in front of everything else where it is of a fork's child; no header at all
//! where it goes on with a process whose beginning stands elsewhere. A process' logs follow each other in that order: what
//! the fork's child did before its exec, then programs, then continuations, each kind by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use memvirt_ops::process::{Batch, Op, ProcessId, Source};

use super::calls::Calls;
use super::family::Kin;
use super::line::{self, Line, Remark};
use super::{LackeyReader, Tally};
use crate::bundle::{Bundle, MemberReader};
use crate::error::TraceError;
use crate::input::Progress;
use crate::interleave::Family;

/// How a log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Beginning {
    /// In the child of a fork.
    Fork,
    /// With a program.
    Program,
    /// In the middle.
    Middle,
}

/// What the first lines of a log say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pid: u32,
    parent: Option<u32>,
    beginning: Beginning,
}

/// Reads the first bytes of a file; `None` where they are of no log, or of one that names no process.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let (mut pid, mut parent, mut beginning, mut lines) = (None, None, None, 0);
    // The last line may be cut.
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    for text in bytes[..whole].split(|b| *b == b'\n') {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let Ok((_, line)) = line::line(text) else { continue };
        lines += u32::from(line != Line::Blank);
        let named = match line {
            Line::Remark(Remark::Command { pid, .. } | Remark::Text { pid }) => Some(pid),
            Line::Call(call) => Some(call.caller.pid),
            Line::Result { caller: Some(caller), .. } => Some(caller.pid),
            _ => None,
        };
        pid = pid.or(named);
        parent = parent.or_else(|| parent_of(text));
        let is_remark = matches!(line, Line::Remark(_) | Line::Blank);
        if beginning.is_none() && !is_remark {
            beginning = Some(match line {
                Line::Result { caller: None, .. } => Beginning::Fork,
                _ if lines > 1 => Beginning::Program,
                _ => Beginning::Middle,
            });
        }
        if pid.is_some() && beginning.is_some() {
            break;
        }
    }
    Some(Head { pid: pid?, parent, beginning: beginning.unwrap_or(Beginning::Program) })
}

/// The number in `==PID== Parent PID: NUMBER`.
fn parent_of(text: &[u8]) -> Option<u32> {
    const BEFORE: &[u8] = b"== Parent PID: ";
    let at = text.windows(BEFORE.len()).position(|window| window == BEFORE)?;
    std::str::from_utf8(&text[at + BEFORE.len()..]).ok()?.trim().parse().ok()
}

/// The logs of all processes of a recording.
pub(crate) struct LogSet {
    bundle: Arc<Bundle>,
    /// By process: its number in the operating system, its logs as indices of members.
    processes: Vec<(u32, Vec<usize>)>,
    roots: Vec<ProcessId>,
    kin: Kin,
    tally: Arc<Mutex<Tally>>,
    progress: Progress,
}

impl LogSet {
    /// The logs among the members of a bundle; `None` where there are none.
    pub(crate) fn new(bundle: Bundle) -> Option<Self> {
        let mut logs: BTreeMap<u32, Vec<(Head, usize)>> = BTreeMap::new();
        for (index, member) in bundle.members.iter().enumerate() {
            if let Some(head) = head(&member.head) {
                logs.entry(head.pid).or_default().push((head, index));
            }
        }
        for logs in logs.values_mut() {
            logs.sort_by_key(|(head, index)| (head.beginning, *index));
        }
        let known: Vec<u32> = logs.keys().copied().collect();
        let rooted = |logs: &Vec<(Head, usize)>| {
            logs.iter().find_map(|(head, _)| head.parent).is_none_or(|parent| !known.contains(&parent))
        };
        // Roots first, each kind by number, which is the order in which an operating system gives them out.
        let mut order: Vec<_> = logs.iter().map(|(pid, logs)| (!rooted(logs), *pid)).collect();
        order.sort_unstable();
        let first = order.first()?.1;
        let number = |index: usize| u32::try_from(index).ok().map(ProcessId);
        let numbers = order.iter().enumerate().filter_map(|(index, (_, pid))| Some((*pid, number(index)?)));
        let kin = Kin::new(numbers.collect());
        let roots = order.iter().enumerate().filter(|(_, (child, pid))| !child || *pid == first);
        let roots = roots.filter_map(|(index, _)| number(index)).collect();
        let members = |pid: u32| logs.get(&pid).into_iter().flatten().map(|(_, index)| *index).collect::<Vec<_>>();
        let processes: Vec<_> = order.iter().map(|(_, pid)| (*pid, members(*pid))).collect();
        let bytes = processes.iter().flat_map(|(_, logs)| logs).map(|index| bundle.members[*index].bytes).sum();
        let progress = Progress::new(Some(bytes));
        let tally = Arc::new(Mutex::new(Tally { processes: processes.len() as u64, ..Tally::default() }));
        Some(Self { bundle: Arc::new(bundle), processes, roots, kin, tally, progress })
    }

    /// What was counted so far, in logs that were read to their end.
    pub(crate) fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    pub(crate) fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Names of the files that are no logs.
    pub(crate) fn others(&self) -> Vec<String> {
        let used: Vec<usize> = self.processes.iter().flat_map(|(_, logs)| logs.iter().copied()).collect();
        let members = self.bundle.members.iter().enumerate();
        members.filter(|(index, _)| !used.contains(index)).map(|(_, member)| member.name.clone()).collect()
    }
}

impl Family for LogSet {
    type Stream = ProcessLogs;
    type Error = TraceError;

    fn roots(&self) -> Vec<ProcessId> {
        self.roots.clone()
    }

    fn processes(&self) -> u64 {
        self.processes.len() as u64
    }

    fn stream(&mut self, process: ProcessId) -> Result<ProcessLogs, TraceError> {
        let logs = self.processes.get(process.0 as usize).map(|(_, logs)| logs.clone()).unwrap_or_default();
        Ok(ProcessLogs {
            bundle: Arc::clone(&self.bundle),
            logs: logs.into_iter(),
            reader: None,
            calls: self.kin.calls_of(process),
            kin: self.kin.clone(),
            exited: false,
            tally: Arc::clone(&self.tally),
            progress: self.progress.clone(),
        })
    }
}

/// The logs of one process, one after the other.
pub(crate) struct ProcessLogs {
    bundle: Arc<Bundle>,
    logs: std::vec::IntoIter<usize>,
    reader: Option<LackeyReader<MemberReader>>,
    /// What is known from the logs before.
    calls: Calls,
    kin: Kin,
    exited: bool,
    tally: Arc<Mutex<Tally>>,
    progress: Progress,
}

impl ProcessLogs {
    /// Opens the next log; `false` where there is none.
    fn open_next(&mut self) -> Result<bool, TraceError> {
        let Some(member) = self.logs.next().and_then(|index| self.bundle.members.get(index)) else { return Ok(false) };
        let input = self.bundle.open(member)?;
        let name = self.bundle.member_name(member);
        let calls = std::mem::take(&mut self.calls);
        self.reader = Some(LackeyReader::with_progress(input, name, self.progress.clone()).with_calls(calls));
        Ok(true)
    }

    /// Counts what stands behind the exit: remarks, and what cannot be.
    fn read_rest(&mut self) {
        let mut rest = Batch::default();
        while self.reader.as_mut().is_some_and(|reader| matches!(reader.next_batch(&mut rest), Ok(true))) {}
        self.close();
    }

    /// A log is at its end. What comes of it: an exec where it ends in one.
    fn close(&mut self) -> Option<Op> {
        let reader = self.reader.take()?;
        let mut sums = reader.tally().clone();
        let exec = reader.ends_in_exec().then_some(Op::Exec);
        sums.execs += u64::from(exec.is_some());
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).add(&sums);
        self.calls = if exec.is_some() { self.kin.calls() } else { reader.into_calls() };
        exec
    }
}

impl Drop for ProcessLogs {
    fn drop(&mut self) {
        self.close();
    }
}

impl Source for ProcessLogs {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        loop {
            let Some(reader) = &mut self.reader else {
                batch.clear();
                if self.exited || !self.open_next()? {
                    return Ok(false);
                }
                continue;
            };
            match reader.next_batch(batch) {
                Ok(true) => {
                    if batch.then == Some(Op::Exit) {
                        self.exited = true;
                        self.read_rest();
                    }
                    return Ok(true);
                }
                Ok(false) => {
                    let exec = self.close();
                    if exec.is_some() {
                        batch.then = exec;
                        return Ok(true);
                    }
                }
                Err(error) => {
                    self.close();
                    self.exited = true;
                    return Err(error);
                }
            }
        }
    }
}
