//! `strace -f` text: processes, address spaces, no accesses.
//!
//! A line is `[TASK] [TIME] NAME(ARGUMENTS) = RESULT ...`. A call during which another task runs is printed in two lines,
//! `NAME(ARGUMENTS <unfinished ...>` and `<... NAME resumed>REST) = RESULT`. Besides there are signals (`--- SIG... ---`)
//! and ends (`+++ exited with 0 +++`, `+++ killed by SIG... +++`). Source: strace(1), sections "Output format" and
//! `-f`, `-t`, `-r`, `-T`.

use std::collections::BTreeMap;

use memvirt_ops::process::Op;

use super::numbers::{OTHER_CALL, call, task, value};
use super::{Grammar, Timeline};
use crate::calls::{
    CLONE, CLONE_THREAD, CLONE_VFORK, CLONE3, CLOSE, EXECVE, EXECVEAT, EXIT, EXIT_GROUP, FORK, Files, OPEN, OPENAT,
    VFORK, WAIT4, file_named, lower,
};

/// Tasks whose calls are remembered at most.
const MAX_TASKS: usize = 1 << 12;

/// A line, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Call { name: &'a [u8], arguments: &'a [u8], result: Option<&'a [u8]> },
    Resumed { name: &'a [u8], rest: &'a [u8], result: Option<&'a [u8]> },
    Ended,
    Signal,
}

/// A call that has not returned.
#[derive(Debug)]
struct Open {
    name: Vec<u8>,
    arguments: Vec<u8>,
    /// The child was made when its first event came.
    forked: bool,
}

/// What has to be remembered between lines.
#[derive(Debug, Default)]
pub(crate) struct Strace {
    open: BTreeMap<u32, Open>,
    files: BTreeMap<u32, Files>,
}

/// Whether a line looks like one of strace's.
pub(crate) fn is_line(line: &[u8]) -> bool {
    match parse(line) {
        Some((_, Line::Call { name, result, .. })) => result.is_some() || call(name).is_some(),
        Some((task, _)) => task.is_some(),
        None => false,
    }
}

fn is_time(word: &[u8]) -> bool {
    word.contains(&b'.') | word.contains(&b':')
        && word.iter().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b':' | b'+'))
        && word.iter().any(u8::is_ascii_digit)
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|b| *b == b' ').unwrap_or(text.len());
    text.split_at(end)
}

/// The task in front of a line, where there is one, and the line.
fn parse(line: &[u8]) -> Option<(Option<u32>, Line<'_>)> {
    let mut rest = line.trim_ascii_start();
    let mut who = None;
    if let Some(inner) = rest.strip_prefix(b"[pid ") {
        let end = inner.iter().position(|b| *b == b']')?;
        who = Some(task(inner[..end].trim_ascii())?);
        rest = inner[end + 1..].trim_ascii_start();
    } else if let (first, after) = word(rest)
        && !first.is_empty()
        && first.iter().all(u8::is_ascii_digit)
    {
        who = Some(task(first)?);
        rest = after.trim_ascii_start();
    }
    while let (first, after) = word(rest)
        && is_time(first)
    {
        rest = after.trim_ascii_start();
    }
    if rest.starts_with(b"---") {
        return Some((who, Line::Signal));
    }
    if let Some(end) = rest.strip_prefix(b"+++ ") {
        let ended = end.starts_with(b"exited") || end.starts_with(b"killed") || end.starts_with(b"superseded");
        return ended.then_some((who, Line::Ended));
    }
    if let Some(resumed) = rest.strip_prefix(b"<... ") {
        let (name, rest) = word(resumed);
        let rest = rest.trim_ascii_start().strip_prefix(b"resumed>")?;
        let (rest, result) = split_result(rest);
        return Some((who, Line::Resumed { name, rest, result }));
    }
    let open = rest.iter().position(|b| *b == b'(')?;
    let name = &rest[..open];
    let is_name = !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
    if !is_name {
        return None;
    }
    let (arguments, result) = split_result(&rest[open + 1..]);
    Some((who, Line::Call { name, arguments, result }))
}

/// Splits at the last `) = `, padded as strace does; without it the call is unfinished.
fn split_result(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let close = text.windows(2).rposition(|pair| pair == b"= ").and_then(|equals| {
        let before = text[..equals].trim_ascii_end();
        before.strip_suffix(b")").map(|arguments| (arguments, &text[equals + 2..]))
    });
    match close {
        Some((arguments, result)) => (arguments, Some(word(result).0)),
        None => {
            let end = b"<unfinished ...>";
            (text.trim_ascii_end().strip_suffix(end).unwrap_or(text), None)
        }
    }
}

/// Arguments at commas outside of brackets and quotes, at most six.
fn arguments(text: &[u8]) -> [Option<&[u8]>; 6] {
    let mut all = [None; 6];
    let (mut depth, mut quoted, mut start, mut index) = (0u32, false, 0, 0);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' if at == 0 || text[at - 1] != b'\\' => quoted = !quoted,
            _ if quoted => {}
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                if let Some(slot) = all.get_mut(index) {
                    *slot = Some(text[start..at].trim_ascii());
                }
                (index, start) = (index + 1, at + 1);
            }
            _ => {}
        }
    }
    let last = text[start..].trim_ascii();
    if let Some(slot) = all.get_mut(index)
        && !last.is_empty()
    {
        *slot = Some(last);
    }
    all
}

/// The flags among the arguments of clone (`flags=...`) and clone3 (`{flags=...`).
fn clone_flags(arguments: &[u8]) -> u64 {
    const BEFORE: &[u8] = b"flags=";
    let Some(at) = arguments.windows(BEFORE.len()).position(|window| window == BEFORE) else { return 0 };
    let rest = &arguments[at + BEFORE.len()..];
    let end = rest.iter().position(|b| matches!(b, b',' | b'}' | b' ')).unwrap_or(rest.len());
    value(&rest[..end]).unwrap_or(0)
}

impl Strace {
    /// The task that acts in a line. One that is new was made by whoever is in a fork.
    fn act(&mut self, who: Option<u32>, timeline: &mut Timeline) -> u32 {
        // Without numbers there is one process; 0 is the number of none.
        let who = who.unwrap_or(0);
        if !timeline.is_alive(who) && !timeline.is_idle() {
            let forking = self.open.iter_mut().find(|(_, open)| {
                !open.forked && call(&open.name).is_some_and(|number| matches!(number, CLONE | CLONE3 | FORK | VFORK))
            });
            if let Some((parent, open)) = forking {
                open.forked = true;
                let (parent, name, arguments) = (*parent, open.name.clone(), open.arguments.clone());
                self.forked(parent, who, &name, &arguments, timeline);
            }
        }
        timeline.act(who);
        who
    }

    fn forked(&mut self, parent: u32, child: u32, name: &[u8], arguments: &[u8], timeline: &mut Timeline) {
        timeline.act(parent);
        let flags = if name == b"vfork" { CLONE_VFORK } else { clone_flags(arguments) };
        if flags & CLONE_THREAD != 0 {
            timeline.thread(child);
        } else {
            timeline.fork(child, flags & CLONE_VFORK != 0);
        }
        if let Some(files) = self.files.get(&parent).cloned()
            && self.files.len() < MAX_TASKS
        {
            self.files.insert(child, files);
        }
    }

    /// A call that has returned.
    fn done(
        &mut self,
        who: u32,
        name: &[u8],
        arguments_text: &[u8],
        result: &[u8],
        forked: bool,
        timeline: &mut Timeline,
    ) -> Result<(), &'static str> {
        let number = call(name).unwrap_or(OTHER_CALL);
        let plain = Op::Syscall { number };
        let Some(result) = value(result).filter(|result| result.cast_signed() >= 0) else {
            timeline.op(plain);
            return Ok(());
        };
        let given = arguments(arguments_text);
        let pid = || u32::try_from(result).ok();
        match number {
            CLONE | CLONE3 | FORK | VFORK => {
                if let Some(child) = pid().filter(|_| !forked) {
                    self.forked(who, child, name, arguments_text, timeline);
                }
                return Ok(());
            }
            EXECVE | EXECVEAT => {
                self.files.remove(&who);
                timeline.op(Op::Exec);
                return Ok(());
            }
            WAIT4 => {
                let child = pid().filter(|pid| *pid > 0).and_then(|pid| timeline.process(pid));
                timeline.op(child.map_or(plain, |child| Op::Wait { child: Some(child) }));
                return Ok(());
            }
            OPEN | OPENAT => {
                let path = given[usize::from(number == OPENAT)];
                if let Some(path) = path
                    && self.files.len() < MAX_TASKS
                {
                    self.files.entry(who).or_default().opened(result, file_named(path.trim_ascii()));
                }
            }
            CLOSE => {
                if let (Some(files), Some(descriptor)) = (self.files.get_mut(&who), given[0].and_then(value)) {
                    files.closed(descriptor);
                }
            }
            _ => {}
        }
        let mut numbers = [0; 6];
        let matters = matches!(number, 9..=12 | 25 | 28);
        for (slot, text) in numbers.iter_mut().zip(given) {
            if let Some(text) = text.filter(|_| matters) {
                // A descriptor may be followed by its path, as in `3</usr/lib/libc.so.6>`.
                let end = text.iter().position(|b| *b == b'<').unwrap_or(text.len());
                *slot = value(&text[..end]).ok_or("numbers and flags as the arguments of the call")?;
            }
        }
        let files = self.files.entry(who).or_default();
        timeline.op(lower(number, &numbers, result, files)?.unwrap_or(plain));
        Ok(())
    }
}

impl Grammar for Strace {
    const NAME: &'static str = "strace";
    const MADE_BY: &'static str = "strace -f -o FILE PROGRAM";

    fn line(&mut self, line: &[u8], timeline: &mut Timeline) -> Result<(), &'static str> {
        let (who, line) = parse(line).ok_or("`NAME(ARGUMENTS) = RESULT`, a signal or an end")?;
        match line {
            Line::Signal => timeline.tally.remarks += 1,
            Line::Ended => {
                if timeline.is_alive(who.unwrap_or(0)) {
                    self.act(who, timeline);
                    timeline.exit(false);
                }
                timeline.tally.remarks += 1;
            }
            Line::Call { name, arguments, result } => {
                timeline.tally.syscall(name);
                let who = self.act(who, timeline);
                match (call(name), result) {
                    (Some(EXIT_GROUP), _) => timeline.exit(true),
                    (Some(EXIT), _) => timeline.exit(false),
                    (_, Some(result)) => return self.done(who, name, arguments, result, false, timeline),
                    (_, None) if self.open.len() < MAX_TASKS => {
                        let open = Open { name: name.to_vec(), arguments: arguments.to_vec(), forked: false };
                        self.open.insert(who, open);
                    }
                    _ => {}
                }
            }
            // The process ended where the call began; the line only says that nothing came back.
            Line::Resumed { name, .. } if matches!(call(name), Some(EXIT | EXIT_GROUP)) => timeline.tally.remarks += 1,
            Line::Resumed { name, rest, result } => {
                let Some(open) = self.open.remove(&who.unwrap_or(0)).filter(|open| open.name == name) else {
                    return Err("the call that is resumed, on an earlier line");
                };
                let who = self.act(who, timeline);
                let arguments = [&open.arguments[..], rest].concat();
                if let Some(result) = result {
                    return self.done(who, name, &arguments, result, open.forked, timeline);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, _: &mut Timeline) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let call = |name, arguments, result| Line::Call { name, arguments, result };
        for (text, who, line) in [
            (
                &b"27114 1795353082.714924 brk(NULL)       = 0x3fa0a000"[..],
                Some(27114),
                call(&b"brk"[..], &b"NULL"[..], Some(&b"0x3fa0a000"[..])),
            ),
            (
                b"[pid    12] 10:20:30.5 close(3) = -1 EBADF (Bad file descriptor)",
                Some(12),
                call(b"close", b"3", Some(b"-1")),
            ),
            (b"vfork( <unfinished ...>", None, call(b"vfork", b" ", None)),
            (b"7 <... vfork resumed>) = 8", Some(7), Line::Resumed { name: b"vfork", rest: b"", result: Some(b"8") }),
            (b"7 +++ exited with 0 +++", Some(7), Line::Ended),
            (b"7 --- SIGCHLD {si_signo=SIGCHLD} ---", Some(7), Line::Signal),
            (b"write(1, \"a) = 3\", 6) = 6", None, call(b"write", b"1, \"a) = 3\", 6", Some(b"6"))),
        ] {
            assert_eq!(parse(text), Some((who, line)), "{}", text.escape_ascii());
        }
        for text in [&b"hello world"[..], b"I  04001090,3", b"==7== x", b"", b"(x) = 3", b"99999999999 close(3) = 0"] {
            assert_eq!(parse(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn arguments_may_hold_commas() {
        let all = arguments(b"\"a,b\", [1, 2], {x=(3, 4)}, 7");
        assert_eq!(all[0], Some(&b"\"a,b\""[..]));
        assert_eq!((all[1], all[3], all[4]), (Some(&b"[1, 2]"[..]), Some(&b"7"[..]), None));
        assert_eq!(clone_flags(b"child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD"), CLONE_VFORK | 0x100);
    }
}
