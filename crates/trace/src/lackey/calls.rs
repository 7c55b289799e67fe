//! System calls of one process, lowered to operations on its address space.
//!
//! Calls that change memory areas become the operations they stand for once they have succeeded (`crate::calls`); `exit` of
//! the last thread and `exit_group` end the process; `fork` and its kin, `execve` and `wait4` tie the processes of a
//! recording together; everything else is a plain kernel entry, counted where the call is made.

use memvirt_ops::process::{FileId, Op};

use super::family::Kin;
use super::line::{self, Call, Caller, Outcome, arguments, clone_flags};
use crate::calls::{
    BRK, CLONE, CLONE_THREAD, CLONE_VFORK, CLONE3, CLOSE, EXECVE, EXECVEAT, EXIT, EXIT_GROUP, FORK, Files, MADVISE,
    MMAP, MPROTECT, MREMAP, MUNMAP, OPEN, OPENAT, VFORK, WAIT4, file_named, lower,
};

/// Calls that wait for their result at most; Valgrind runs at most 500 threads.
const MAX_WAITING: usize = 512;

/// A call whose effect depends on its result.
#[derive(Clone, Copy, Debug)]
struct Pending {
    caller: Caller,
    number: u32,
    arguments: [u64; 6],
    /// The file that the call names.
    file: Option<FileId>,
}

/// What has to be remembered between calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    /// The process that the log is of: the first that makes a call.
    pid: Option<u32>,
    /// Threads besides the first.
    more_threads: u32,
    waiting: Vec<Pending>,
    files: Files,
    /// The processes that have logs.
    kin: Kin,
}

impl Calls {
    /// Calls of a child, with the files that its parent had open at the fork.
    pub(crate) fn of_child(kin: Kin, files: Files) -> Self {
        Self { files, kin, ..Self::default() }
    }

    /// Whether an `execve` was made whose failure was not reported: the log ends there if it succeeded.
    pub(crate) fn is_in_exec(&self) -> bool {
        self.waiting.iter().any(|pending| matches!(pending.number, EXECVE | EXECVEAT))
    }

    /// A call as it is made. What it does, if that is known already.
    ///
    /// # Errors
    ///
    /// What was expected where arguments are impossible.
    pub(crate) fn call(&mut self, call: &Call<'_>) -> Result<Option<Op>, &'static str> {
        let ours = *self.pid.get_or_insert(call.caller.pid) == call.caller.pid;
        let plain = Some(Op::Syscall { number: call.number });
        match call.number {
            // A child that writes to its parent's log: its calls are not about this address space.
            _ if !ours => Ok(plain),
            MMAP | MPROTECT | MUNMAP | BRK | MREMAP | MADVISE => {
                let (arguments, _) = arguments::<6>(call.arguments).ok_or("numbers as the arguments of the call")?;
                self.until_result(call, arguments, None)
            }
            OPEN | OPENAT => {
                let file = line::path(call.arguments).map(file_named);
                self.until_result(call, [0; 6], file)
            }
            CLOSE => {
                if let Some((arguments, 1)) = arguments::<6>(call.arguments) {
                    self.files.closed(arguments[0]);
                }
                Ok(plain)
            }
            EXECVE | EXECVEAT => self.until_result(call, [0; 6], None),
            WAIT4 => {
                let (arguments, _) = arguments::<6>(call.arguments).unwrap_or_default();
                self.until_result(call, arguments, None)
            }
            // The last thread of a process calls exit_group in every C library; threads made before a log begins are
            // known by their number only.
            EXIT if self.more_threads > 0 || call.caller.tid > 1 => {
                self.more_threads = self.more_threads.saturating_sub(1);
                Ok(plain)
            }
            EXIT | EXIT_GROUP => Ok(Some(Op::Exit)),
            CLONE | CLONE3 | FORK | VFORK => Ok(self.forked(call).or(plain)),
            _ => Ok(plain),
        }
    }

    /// The child that a call made, where it has a log.
    fn forked(&mut self, call: &Call<'_>) -> Option<Op> {
        let flags = if call.number == CLONE { clone_flags(call.arguments).unwrap_or(0) } else { 0 };
        if flags & CLONE_THREAD != 0 {
            self.more_threads = self.more_threads.saturating_add(1);
            return None;
        }
        let child = self.kin.process(line::child(call.arguments)?)?;
        self.kin.inherit(child, &self.files);
        let borrows = call.number == VFORK || flags & CLONE_VFORK != 0;
        Some(if borrows { Op::Vfork { child } } else { Op::Fork { child } })
    }

    /// A result on a later line than its call: of `caller`, or of the last open call. What the call did.
    ///
    /// # Errors
    ///
    /// What was expected where the result is impossible.
    pub(crate) fn result(&mut self, caller: Option<Caller>, outcome: Outcome) -> Result<Option<Op>, &'static str> {
        let index = self.waiting.iter().rposition(|pending| caller.is_none_or(|caller| pending.caller == caller));
        match index {
            Some(index) => {
                let pending = self.waiting.remove(index);
                self.done(&pending, outcome)
            }
            None => Ok(None),
        }
    }

    /// Whether `caller`, or where `None` the only thread there is, waits for a child.
    pub(crate) fn is_in_wait(&self, caller: Option<Caller>) -> bool {
        let theirs = |other: Caller| caller.map_or(self.more_threads == 0, |caller| caller == other);
        self.waiting.iter().any(|pending| pending.number == WAIT4 && theirs(pending.caller))
    }

    /// Ends a wait whose result was not printed, where there is one: a signal came (nearly always that of the child that
    /// ended), and Valgrind printed nothing after its handler.
    pub(crate) fn interrupted_wait(&mut self, caller: Option<Caller>) -> Option<Op> {
        const ANY: u64 = 0xffff_ffff;
        const WNOHANG: u64 = 1;
        if !self.is_in_wait(caller) {
            return None;
        }
        let theirs = |pending: &Pending| caller.is_none_or(|caller| pending.caller == caller);
        let index = self.waiting.iter().position(|pending| pending.number == WAIT4 && theirs(pending))?;
        let [which, _, options, ..] = self.waiting.remove(index).arguments;
        let named = u32::try_from(which).ok().and_then(|pid| self.kin.process(pid));
        Some(match named {
            Some(child) => Op::Wait { child: Some(child) },
            None if self.kin.is_known() && options & WNOHANG == 0 && which == ANY => Op::Wait { child: None },
            None => Op::Syscall { number: WAIT4 },
        })
    }

    fn until_result(
        &mut self,
        call: &Call<'_>,
        arguments: [u64; 6],
        file: Option<FileId>,
    ) -> Result<Option<Op>, &'static str> {
        let pending = Pending { caller: call.caller, number: call.number, arguments, file };
        if let Some(outcome) = call.outcome {
            return self.done(&pending, outcome);
        }
        self.waiting.retain(|other| other.caller != pending.caller);
        if self.waiting.len() == MAX_WAITING {
            self.waiting.remove(0);
        }
        self.waiting.push(pending);
        Ok(None)
    }

    fn done(&mut self, pending: &Pending, outcome: Outcome) -> Result<Option<Op>, &'static str> {
        let plain = Op::Syscall { number: pending.number };
        let Outcome::Success(result) = outcome else { return Ok(Some(plain)) };
        match (pending.number, pending.file) {
            (OPEN | OPENAT, Some(file)) => self.files.opened(result, file),
            (WAIT4, _) => {
                let child = u32::try_from(result).ok().and_then(|pid| self.kin.process(pid));
                return Ok(Some(child.map_or(plain, |child| Op::Wait { child: Some(child) })));
            }
            _ => {}
        }
        lower(pending.number, &pending.arguments, result, &self.files).map(|op| Some(op.unwrap_or(plain)))
    }
}
