//! System calls of one process, lowered to operations on its address space.
//!
//! `mmap`, `munmap`, `mprotect`, `brk` and `mremap` become the operations they stand for once they have succeeded, `exit` of
//! the last thread and `exit_group` end the process, and everything else is a plain kernel entry, counted where the call
//! is made. Numbers and flags are those of Linux on x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`, mmap(2), brk(2)).

use memvirt_addr::{Gva, PageSize};
use memvirt_ops::process::{Backing, Op, Prot, Range};

use super::line::{Call, Caller, Outcome, arguments, clone_flags};

const MMAP: u32 = 9;
const MPROTECT: u32 = 10;
const MUNMAP: u32 = 11;
const BRK: u32 = 12;
const MREMAP: u32 = 25;
const CLONE: u32 = 56;
const EXIT: u32 = 60;
const EXIT_GROUP: u32 = 231;

const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MAP_TYPE: u64 = 0xf;
const MAP_PRIVATE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;
const CLONE_THREAD: u64 = 0x1_0000;

/// Calls that wait for their result at most; Valgrind runs at most 500 threads.
const MAX_WAITING: usize = 512;

/// The operations of one call, in order.
pub(crate) type Ops = [Option<Op>; 2];

/// A call whose effect depends on its result.
#[derive(Clone, Copy, Debug)]
struct Pending {
    caller: Caller,
    number: u32,
    arguments: [u64; 4],
}

/// What has to be remembered between calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// The process that the log is of: the first that makes a call.
    pid: Option<u32>,
    /// The program break, as the last `brk` returned it.
    brk: Option<u64>,
    /// Threads besides the first.
    more_threads: u32,
    waiting: Vec<Pending>,
}

const fn one(op: Op) -> Ops {
    [Some(op), None]
}

const fn prot(bits: u64) -> Prot {
    Prot { read: bits & PROT_READ != 0, write: bits & PROT_WRITE != 0, execute: bits & PROT_EXEC != 0 }
}

const fn backing(flags: u64) -> Backing {
    match (flags & MAP_TYPE == MAP_PRIVATE, flags & MAP_ANONYMOUS != 0) {
        (true, true) => Backing::AnonymousPrivate,
        (true, false) => Backing::FilePrivate,
        (false, true) => Backing::AnonymousShared,
        (false, false) => Backing::FileShared,
    }
}

/// The range, where it has bytes and its last one is a canonical address above its first.
fn range(start: u64, bytes: u64) -> Option<Range> {
    let first = Gva::try_new(start).ok()?;
    first.checked_add(bytes.checked_sub(1)?)?;
    Some(Range { start: first, bytes })
}

fn page_up(raw: u64) -> Option<u64> {
    raw.checked_next_multiple_of(PageSize::Size4K.bytes())
}

impl Calls {
    /// A call as it is made. What it does, if that is known already.
    ///
    /// # Errors
    ///
    /// What was expected where arguments are impossible.
    pub(crate) fn call(&mut self, call: &Call<'_>) -> Result<Ops, &'static str> {
        let ours = *self.pid.get_or_insert(call.caller.pid) == call.caller.pid;
        let plain = one(Op::Syscall { number: call.number });
        match call.number {
            // A child that writes to its parent's log: its calls are not about this address space.
            _ if !ours => Ok(plain),
            MMAP | MPROTECT | MUNMAP | BRK | MREMAP => {
                let (arguments, _) = arguments::<4>(call.arguments).ok_or("numbers as the arguments of the call")?;
                let pending = Pending { caller: call.caller, number: call.number, arguments };
                match call.outcome {
                    Some(outcome) => self.done(&pending, outcome),
                    None => {
                        self.wait(pending);
                        Ok([None; 2])
                    }
                }
            }
            // The last thread of a process calls exit_group in every C library; threads made before a log begins are
            // known by their number only.
            EXIT if self.more_threads > 0 || call.caller.tid > 1 => {
                self.more_threads = self.more_threads.saturating_sub(1);
                Ok(plain)
            }
            EXIT | EXIT_GROUP => Ok(one(Op::Exit)),
            CLONE => {
                let is_thread = clone_flags(call.arguments).is_some_and(|flags| flags & CLONE_THREAD != 0);
                self.more_threads = self.more_threads.saturating_add(u32::from(is_thread));
                Ok(plain)
            }
            _ => Ok(plain),
        }
    }

    /// A result on a later line than its call: of `caller`, or of the last open call. What the call did.
    ///
    /// # Errors
    ///
    /// What was expected where the result is impossible.
    pub(crate) fn result(&mut self, caller: Option<Caller>, outcome: Outcome) -> Result<Ops, &'static str> {
        let index = self.waiting.iter().rposition(|pending| caller.is_none_or(|caller| pending.caller == caller));
        match index {
            Some(index) => {
                let pending = self.waiting.remove(index);
                self.done(&pending, outcome)
            }
            None => Ok([None; 2]),
        }
    }

    fn wait(&mut self, pending: Pending) {
        self.waiting.retain(|other| other.caller != pending.caller);
        if self.waiting.len() == MAX_WAITING {
            self.waiting.remove(0);
        }
        self.waiting.push(pending);
    }

    fn done(&mut self, pending: &Pending, outcome: Outcome) -> Result<Ops, &'static str> {
        const BAD_RANGE: &str = "a range of addresses that exists";
        let plain = Op::Syscall { number: pending.number };
        let Outcome::Success(result) = outcome else { return Ok(one(plain)) };
        let [first, second, third, fourth] = pending.arguments;
        let op = match pending.number {
            MMAP => {
                range(result, second).map(|range| one(Op::Mmap { range, prot: prot(third), backing: backing(fourth) }))
            }
            MUNMAP => range(first, second).map(|range| one(Op::Munmap { range })),
            // A length of zero is permitted here, and does nothing.
            MPROTECT if second == 0 => Some(one(plain)),
            MPROTECT => range(first, second).map(|range| one(Op::Mprotect { range, prot: prot(third) })),
            BRK => self.brk(result, plain),
            MREMAP => remap(result, first, second, third, plain),
            _ => Some(one(plain)),
        };
        op.ok_or(BAD_RANGE)
    }

    /// The heap ends at `end` now. Only whole pages matter, as in Linux (`mm/mmap.c`, brk).
    fn brk(&mut self, end: u64, plain: Op) -> Option<Ops> {
        let new = page_up(end)?;
        Gva::try_new(new).ok()?;
        let old = page_up(self.brk.replace(end).unwrap_or(end))?;
        Some(one(if new > old {
            Op::Mmap { range: range(old, new - old)?, prot: Prot::RW, backing: Backing::AnonymousPrivate }
        } else if new < old {
            Op::Munmap { range: range(new, old - new)? }
        } else {
            plain
        }))
    }
}

/// `mremap` as unmapping what is given up and mapping what is new, as private anonymous memory, which is what `realloc`
/// moves. The vocabulary has no moving of mapped pages: pages that move are touched for the first time again.
fn remap(new: u64, old: u64, old_bytes: u64, new_bytes: u64, plain: Op) -> Option<Ops> {
    let (old_bytes, new_bytes) = (page_up(old_bytes)?, page_up(new_bytes)?);
    let map = |start, bytes| {
        let range = range(start, bytes)?;
        Some(Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate })
    };
    let unmap = |start, bytes| Some(Op::Munmap { range: range(start, bytes)? });
    if new != old {
        // Old size zero: a second mapping of the same pages; nothing is given up.
        let given_up = if old_bytes == 0 { None } else { Some(unmap(old, old_bytes)?) };
        let moved = map(new, new_bytes)?;
        return Some(if given_up.is_some() { [given_up, Some(moved)] } else { one(moved) });
    }
    range(old, old_bytes)?;
    range(old, new_bytes)?;
    Some(one(match new_bytes.cmp(&old_bytes) {
        std::cmp::Ordering::Greater => map(old + old_bytes, new_bytes - old_bytes)?,
        std::cmp::Ordering::Less => unmap(old + new_bytes, old_bytes - new_bytes)?,
        std::cmp::Ordering::Equal => plain,
    }))
}
