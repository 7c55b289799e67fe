//! `perf script` text: page faults, and the kernel's tracepoints around them.
//!
//! A line is `COMM PID[/TID] [CPU] TIME: [PERIOD] EVENT: FIELDS`. Read are
//!
//! * `page-faults` and its kin (address and instruction pointer), `exceptions:page_fault_user` (with the error code): an
//!   access at the address. Without an error code a fault at its own instruction pointer is a fetch, and one at the page that
//!   the instruction there reaches into; the second fault on a page of a process is a store, any other a load;
//! * `syscalls:sys_enter_*` and `sys_exit_*`: system calls; those that change memory areas are carried out;
//! * `sched:sched_process_fork`, `_exec`, `_exit`, `sched_switch`. A fork after which the parent sleeps uninterruptibly (`D`)
//!   before anything else happens is a vfork (`kernel/fork.c`, `wait_for_vfork_done`);
//!
//! `PID/TID` names a thread and its process. Where lines name tasks alone, those that end while others of their group live on
//! (`group_dead=false`) have been threads, which only a second reading can know from the beginning.
//!
//! * `tlb:tlb_flush`: counted by reason, for comparison; nothing is done.
//!
//! Who ran where by `sched_switch` is kept beside the stream ([`super::schedule`]).
//!
//! Time between two events of a task, nobody else running, is counted as one instruction a nanosecond: perf says how long, not
//! how many. Sources: perf-script(1); Linux `include/trace/events/{sched,tlb}.h`, `arch/x86/include/asm/trace/exceptions.h`.

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::AccessKind;
use memvirt_ops::process::Op;

use super::numbers::{OTHER_CALL, call, number, task, value};
use super::schedule::{Schedule, Side, Switched};
use super::{Grammar, Timeline};
use crate::calls::{BRK, EXECVE, EXIT, EXIT_GROUP, FORK, Files, MADVISE, MMAP, MPROTECT, MREMAP, MUNMAP, VFORK, lower};

/// Calls and pages that are remembered at most.
const MAX_OPEN: usize = 1 << 12;
const MAX_PAGES: usize = 1 << 22;
/// The reason of a flush by which another address space is loaded.
const TASK_SWITCH: &[u8] = b"flush on task switch";
/// No pause counts for more nanoseconds than this.
const MAX_PAUSE: u64 = 1_000_000_000;

/// A line, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    comm: &'a [u8],
    /// The process, where the line names it beside the task.
    process: Option<u32>,
    task: u32,
    cpu: Option<u32>,
    nanoseconds: u64,
    event: &'a [u8],
    fields: &'a [u8],
}

/// How it is found out that a process has executed a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Execs {
    /// By the scheduler's events, which take privilege to record.
    #[default]
    Recorded,
    /// Also by the name of the process, which exec changes. A program may change it too (`prctl`).
    Renamed,
}

/// What has to be remembered between lines.
#[derive(Debug, Default)]
pub(crate) struct Perf {
    execs: Execs,
    /// The name that each task had last.
    names: BTreeMap<u32, Vec<u8>>,
    open: BTreeMap<u32, (u32, [u64; 6])>,
    files: Files,
    /// A fork that may turn out to be a vfork: the parent and the child.
    fork: Option<(u32, u32)>,
    /// Who acted last, and when.
    last: Option<(u32, u64)>,
    /// Who was switched from to a program that is no part of the recording, just now.
    left: Option<u32>,
    /// Who ran where, for replays.
    schedule: Schedule,
    /// Tasks that are threads, where that is known.
    threads: BTreeSet<u32>,
    /// Tasks that have ended while others of their group lived on.
    left_a_group: BTreeSet<u32>,
    /// Pages that each process has faulted on, where no error codes say what an access was.
    touched: BTreeSet<(u32, u64)>,
}

/// Whether a line looks like one of perf's.
pub(crate) fn is_line(line: &[u8]) -> bool {
    parse(line).is_some_and(|line| is_fault(line.event) || line.event.contains(&b':'))
}

fn is_fault(event: &[u8]) -> bool {
    let name = event.split(|b| *b == b':').next().unwrap_or_default();
    matches!(name, b"page-faults" | b"faults" | b"minor-faults" | b"major-faults")
}

/// The first address of the upper half. Who may see the kernel records its faults too, as when it copies arguments for a new
/// program; those of the program are what `page-faults:u` and the kernel's `page_fault_user` count.
const KERNEL: u64 = 1 << 63;

/// Whether an instruction at `pointer` faults at `address` by being fetched: at its first byte, or at the page that its other
/// bytes lie in. An instruction has 15 bytes at most (Intel SDM volume 2, section 2.3.11).
const fn is_fetch(address: u64, pointer: u64) -> bool {
    address == pointer || (address.trailing_zeros() >= 12 && address > pointer && address - pointer < 15)
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

/// `SECONDS.FRACTION:` in nanoseconds.
fn time(word: &[u8]) -> Option<u64> {
    let word = std::str::from_utf8(word.strip_suffix(b":")?).ok()?;
    let (seconds, fraction) = word.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10u64.pow(u32::try_from(9 - fraction.len()).ok()?);
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction.parse::<u64>().ok()? * scale)
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut all = words(line);
    // The program's name may hold spaces: what counts stands around the time.
    let (mut before, mut task_word) = (None, None);
    let nanoseconds = loop {
        let word = all.next()?;
        if let Some(nanoseconds) = time(word) {
            break nanoseconds;
        }
        (task_word, before) = (before, Some(word));
    };
    let cpu_word = before.and_then(|word| word.strip_prefix(b"["));
    let who = if cpu_word.is_some() { task_word? } else { before? };
    let cpu = cpu_word.and_then(|word| std::str::from_utf8(word.strip_suffix(b"]")?).ok()?.parse().ok());
    // A pointer's distance is where the word lies in the line.
    let offset = |word: &[u8]| word.as_ptr().addr() - line.as_ptr().addr();
    let comm = line[..offset(who)].trim_ascii();
    let process = who.iter().position(|b| *b == b'/').and_then(|slash| task(&who[..slash]));
    let who = who.split(|b| *b == b'/').next_back()?;
    let event = all.by_ref().find(|word| !word.iter().all(u8::is_ascii_digit))?;
    let end = offset(event) + event.len();
    Some(Line {
        comm,
        process,
        task: task(who)?,
        cpu,
        nanoseconds,
        event: event.strip_suffix(b":")?,
        fields: line[end..].trim_ascii(),
    })
}

/// The value of `NAME=VALUE`.
fn field<'a>(fields: &'a [u8], name: &str) -> Option<&'a [u8]> {
    words(fields).find_map(|word| word.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn numeric(fields: &[u8], name: &str) -> Option<u64> {
    number(field(fields, name)?)
}

fn hex(word: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(word).ok()?;
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

impl Perf {
    pub(crate) fn with(execs: Execs, threads: BTreeSet<u32>) -> Self {
        Self { execs, threads, ..Self::default() }
    }

    /// The tasks that a reading has found to be threads.
    pub(crate) fn threads(&self) -> BTreeSet<u32> {
        &self.threads | &self.left_a_group
    }

    /// Takes a new name for an exec.
    fn look_at_name(&mut self, line: &Line<'_>, timeline: &mut Timeline) {
        const MAX_TASKS: usize = 1 << 16;
        // A thread may have a name of its own.
        let is_thread = line.process.is_some_and(|process| process != line.task);
        if self.execs == Execs::Recorded
            || is_thread
            || (self.names.len() >= MAX_TASKS && !self.names.contains_key(&line.task))
        {
            return;
        }
        let before = self.names.insert(line.task, line.comm.to_vec());
        if before.is_some_and(|before| before != line.comm) {
            timeline.op(Op::Exec);
            self.touched.retain(|(task, _)| *task != line.task);
        }
    }

    /// Who ran, and where.
    pub(crate) const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Notes a switch for replays.
    fn switched(&mut self, line: &Line<'_>, next: u32, timeline: &Timeline) {
        let previous = numeric(line.fields, "prev_pid").and_then(|pid| u32::try_from(pid).ok()).unwrap_or(line.task);
        let idles = field(line.fields, "prev_state").is_some_and(|state| state.starts_with(b"I"));
        for (pid, name, idles) in [(previous, "prev", idles), (next, "next", false)] {
            let comm = field(line.fields, &format!("{name}_comm")).unwrap_or_default();
            let priority = numeric(line.fields, &format!("{name}_prio"));
            if timeline.process(pid).is_none() {
                self.schedule.look(pid, comm, priority, idles);
            }
        }
        let side = |pid| timeline.process(pid).map_or(Side::Other(pid), Side::Own);
        let (from, to) = (side(previous), side(next));
        if matches!((from, to), (Side::Other(_), Side::Other(_))) {
            return;
        }
        let cpu = line.cpu.unwrap_or(0);
        self.schedule.push(Switched { cpu, from, to, position: timeline.position() });
    }

    fn settle_fork(&mut self, line: &Line<'_>, timeline: &mut Timeline) {
        let Some((parent, child)) = self.fork else { return };
        let sleeps = line.event == b"sched:sched_switch"
            && line.task == parent
            && field(line.fields, "prev_state").is_some_and(|state| state.starts_with(b"D"));
        self.fork = None;
        timeline.act(parent);
        if self.threads.contains(&child) {
            timeline.thread(child);
        } else {
            timeline.fork(child, sleeps);
        }
    }

    /// Makes the task of a line act, and lets the time pass that it ran.
    fn act(&mut self, line: &Line<'_>, timeline: &mut Timeline) {
        if let Some(process) = line.process {
            timeline.join(line.task, process);
        }
        timeline.act(line.task);
        if let Some((_, before)) = self.last.filter(|(task, _)| *task == line.task) {
            timeline.instructions(line.nanoseconds.saturating_sub(before).min(MAX_PAUSE));
        }
        self.last = Some((line.task, line.nanoseconds));
    }

    fn page_fault(&mut self, line: &Line<'_>, timeline: &mut Timeline) -> Result<(), &'static str> {
        const FIELDS: &str = "the address and the instruction pointer of a page fault";
        let mut numbers = words(line.fields);
        let address = numbers.next().and_then(hex).ok_or(FIELDS)?;
        let pointer = numbers.next().and_then(hex).ok_or(FIELDS)?;
        if pointer >= KERNEL {
            timeline.tally.remarks += 1;
            return Ok(());
        }
        self.act(line, timeline);
        self.look_at_name(line, timeline);
        let page = (line.process.unwrap_or(line.task), address >> 12);
        let again = self.touched.contains(&page);
        if self.touched.len() < MAX_PAGES {
            self.touched.insert(page);
        }
        let kind = match (is_fetch(address, pointer), again) {
            (true, _) => AccessKind::Fetch,
            (false, true) => AccessKind::Write,
            (false, false) => AccessKind::Read,
        };
        timeline.access(address, kind)
    }

    fn traced_fault(&mut self, line: &Line<'_>, timeline: &mut Timeline) -> Result<(), &'static str> {
        const FIELDS: &str = "`address=` and `error_code=` of a page fault";
        const PRESENT: u64 = 1;
        const WRITE: u64 = 2;
        const FETCH: u64 = 16;
        let address = numeric(line.fields, "address").ok_or(FIELDS)?;
        let code = numeric(line.fields, "error_code").ok_or(FIELDS)?;
        self.act(line, timeline);
        timeline.tally.protection_faults += u64::from(code & (PRESENT | WRITE) == PRESENT | WRITE);
        let kind = if code & FETCH != 0 {
            AccessKind::Fetch
        } else if code & WRITE != 0 {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        timeline.access(address, kind)
    }

    fn enter(&mut self, name: &[u8], line: &Line<'_>, timeline: &mut Timeline) -> Result<(), &'static str> {
        self.act(line, timeline);
        timeline.tally.syscall(name);
        let number = call(name).unwrap_or(OTHER_CALL);
        let mut arguments = [0; 6];
        for (slot, field) in arguments.iter_mut().zip(line.fields.split(|b| *b == b',')) {
            let value_text = field.splitn(2, |b| *b == b':').nth(1).unwrap_or_default();
            *slot = value(value_text).unwrap_or(0);
        }
        match number {
            EXIT | EXIT_GROUP | FORK | VFORK | EXECVE => {} // the scheduler's events say it
            MMAP | BRK | MREMAP if self.open.len() < MAX_OPEN => {
                self.open.insert(line.task, (number, arguments));
            }
            // Their results say nothing but whether they failed, and are often not recorded.
            MUNMAP | MPROTECT | MADVISE => {
                let op = lower(number, &arguments, 0, &self.files)?;
                timeline.op(op.unwrap_or(Op::Syscall { number }));
            }
            _ => timeline.op(Op::Syscall { number }),
        }
        Ok(())
    }

    fn exit(&mut self, name: &[u8], line: &Line<'_>, timeline: &mut Timeline) -> Result<(), &'static str> {
        self.act(line, timeline);
        let Some((number, arguments)) = self.open.remove(&line.task) else { return Ok(()) };
        if call(name) != Some(number) {
            return Err("the end of the call that began last");
        }
        let result = words(line.fields).next().and_then(value).ok_or("the result of the call")?;
        let failed = result.cast_signed() < 0;
        let op = if failed { None } else { lower(number, &arguments, result, &self.files)? };
        timeline.op(op.unwrap_or(Op::Syscall { number }));
        Ok(())
    }

    fn scheduler(&mut self, line: &Line<'_>, timeline: &mut Timeline) -> Result<(), &'static str> {
        let pid = |name| numeric(line.fields, name).and_then(|pid| u32::try_from(pid).ok());
        match line.event {
            b"sched:sched_process_fork" => {
                let (parent, child) = (pid("pid"), pid("child_pid"));
                let (Some(parent), Some(child)) = (parent, child) else { return Err("`pid=` and `child_pid=`") };
                self.act(line, timeline);
                self.fork = Some((parent, child));
            }
            b"sched:sched_process_exec" => {
                self.act(line, timeline);
                self.touched =
                    std::mem::take(&mut self.touched).into_iter().filter(|(task, _)| *task != line.task).collect();
                timeline.op(Op::Exec);
            }
            b"sched:sched_process_exit" => {
                self.act(line, timeline);
                let group = field(line.fields, "group_dead");
                if group == Some(b"false") {
                    self.left_a_group.insert(line.task);
                }
                timeline.exit(group == Some(b"true"));
            }
            _ => {
                let next = pid("next_pid").ok_or("`next_pid=` of a switch")?;
                if timeline.is_alive(line.task) {
                    self.act(line, timeline);
                }
                self.switched(line, next, timeline);
                // Tasks that are no part of the recording run meanwhile: what they do is not in it.
                if timeline.is_alive(next) {
                    timeline.act(next);
                    self.last = Some((next, line.nanoseconds));
                } else {
                    self.left = Some(line.task);
                    self.last = None;
                }
            }
        }
        Ok(())
    }
}

/// Whether a flush dropped nothing: a load of an address space whose translations were all kept.
fn kept_all(fields: &[u8]) -> bool {
    words(fields).any(|word| word == b"pages:0")
}

/// `pages:N reason:TEXT (NUMBER)` as `TEXT`.
fn flush_reason(fields: &[u8]) -> Option<&[u8]> {
    let at = fields.windows(7).position(|window| window == b"reason:")?;
    Some(fields[at + 7..].split(|b| *b == b'(').next().unwrap_or_default().trim_ascii())
}

impl Grammar for Perf {
    const NAME: &'static str = "perf script";
    const MADE_BY: &'static str =
        "perf record -e page-faults:u -c 1 -d PROGRAM; perf script -F comm,pid,time,event,addr,ip > FILE";

    fn line(&mut self, text: &[u8], timeline: &mut Timeline) -> Result<(), &'static str> {
        if text.starts_with(b"#") {
            timeline.tally.remarks += 1;
            return Ok(());
        }
        let line = parse(text).ok_or("`COMM PID TIME: EVENT: FIELDS`")?;
        if line.event != b"tlb:tlb_flush" {
            self.settle_fork(&line, timeline);
        }
        let left = self.left.take();
        self.schedule.at(line.cpu);
        match line.event {
            event if is_fault(event) => self.page_fault(&line, timeline),
            b"exceptions:page_fault_user" => self.traced_fault(&line, timeline),
            b"tlb:tlb_flush" => {
                let reason = flush_reason(line.fields).ok_or("`reason:` of a flush")?;
                timeline.tally.flush(reason);
                timeline.tally.flushes_for_others += u64::from(left == Some(line.task) && reason == TASK_SWITCH);
                if reason == TASK_SWITCH {
                    self.schedule.load(kept_all(line.fields));
                }
                Ok(())
            }
            b"sched:sched_process_fork"
            | b"sched:sched_process_exec"
            | b"sched:sched_process_exit"
            | b"sched:sched_switch" => self.scheduler(&line, timeline),
            event => {
                if let Some(name) = event.strip_prefix(b"syscalls:sys_enter_") {
                    self.enter(name, &line, timeline)
                } else if let Some(name) = event.strip_prefix(b"syscalls:sys_exit_") {
                    self.exit(name, &line, timeline)
                } else {
                    timeline.tally.remarks += 1;
                    Ok(())
                }
            }
        }
    }

    fn end(&mut self, timeline: &mut Timeline) {
        if let Some((parent, child)) = self.fork.take() {
            timeline.act(parent);
            timeline.fork(child, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_over_two_pages_is_fetched_from_both() {
        // As a compiler's was recorded, by the kernel with error code 0x14.
        for (address, pointer, fetch) in [
            (0x70_0000, 0x6f_fffd, true),
            (0x40_1234, 0x40_1234, true),
            (0x70_0000, 0x6f_fff2, true),
            (0x70_0000, 0x6f_fff1, false), // 15 bytes from there end before the page
            (0x70_0000, 0x70_0004, false),
            (0x70_0008, 0x6f_fffd, false),
        ] {
            assert_eq!(is_fetch(address, pointer), fetch, "{address:x} {pointer:x}");
        }
    }

    #[test]
    fn lines_are_taken_apart() {
        for (text, comm, process, task, cpu, nanoseconds, event, fields) in [
            (
                &b"             gcc 27052/27053  3221.326537: page-faults:u:     7fe2143c6b70     7fe2143c6b70"[..],
                &b"gcc"[..],
                Some(27052),
                27053,
                None,
                3_221_326_537_000,
                &b"page-faults:u"[..],
                &b"7fe2143c6b70     7fe2143c6b70"[..],
            ),
            (
                b"cc1 plus 12 [003] 1.5:   1 exceptions:page_fault_user: address=0x10 ip=0x20 error_code=0x6",
                b"cc1 plus",
                None,
                12,
                Some(3),
                1_500_000_000,
                b"exceptions:page_fault_user",
                b"address=0x10 ip=0x20 error_code=0x6",
            ),
        ] {
            assert_eq!(parse(text), Some(Line { comm, process, task, cpu, nanoseconds, event, fields }));
        }
        for text in
            [&b""[..], b"gcc 1: x:", b"gcc x 1.5: page-faults: 1 2", b"1.5:", b"12 1.5:", b"brk(NULL) = 0x3fa0a000"]
        {
            assert_eq!(parse(text), None, "{}", text.escape_ascii());
        }
        assert_eq!(flush_reason(b"pages:1 reason:local MM shootdown (3)"), Some(&b"local MM shootdown"[..]));
    }
}
