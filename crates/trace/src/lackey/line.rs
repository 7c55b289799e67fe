//! The grammar of a log, line by line, in nom combinators.
//!
//! A log mixes what three parts of Valgrind print to one stream: lackey its accesses (see `access`), the core its own
//! remarks (`==PID==`, `--PID--`), and `--trace-syscalls=yes` the system calls. The last are printed in pieces while the call
//! runs (`coregrind/m_syswrap/syswrap-main.c`): what another part prints meanwhile stands in between. So a result can
//! stand on a later line than its call, and anything can follow a result on the same line; [`line`] returns that as rest.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_until, take_while, take_while_m_n, take_while1};
use nom::character::complete::{char, digit1, space0};
use nom::combinator::{map_opt, opt, rest, value};
use nom::error::{ErrorKind, ParseError};
use nom::multi::fold_many0;
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};

use super::access::{Access, Kind, MAX_ACCESS_BYTES};

/// Where a line is not what it should be, and what it should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch<'a> {
    pub(crate) at: &'a [u8],
    pub(crate) expected: &'static str,
}

impl<'a> ParseError<&'a [u8]> for Mismatch<'a> {
    fn from_error_kind(at: &'a [u8], _: ErrorKind) -> Self {
        Self { at, expected: "a line of a lackey log" }
    }

    fn append(_: &'a [u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

type Parsed<'a, T> = IResult<&'a [u8], T, Mismatch<'a>>;

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A memory access.
    Access(Access),
    /// A system call, with its result where that follows at once.
    Call(Call<'a>),
    /// The result of a call that was printed before: of this thread, or of whichever call stands open.
    Result { caller: Option<Caller>, outcome: Outcome },
    /// A remark of Valgrind's core.
    Remark(Remark<'a>),
    /// Nothing.
    Blank,
}

/// A remark of Valgrind's core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remark<'a> {
    /// `==PID== Command: ...`.
    Command { pid: u32, command: &'a [u8] },
    /// The scheduler's; the thread where it says that one goes on.
    Schedule { thread: Option<u32> },
    /// Any other with the process' number in front.
    Text { pid: u32 },
    /// One without it.
    Other,
}

/// Who makes a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
}

/// A system call as printed on entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call<'a> {
    pub(crate) caller: Caller,
    /// The number of the system call (Linux x86-64).
    pub(crate) number: u32,
    /// Its name, without `sys_`.
    pub(crate) name: &'a [u8],
    /// From the opening parenthesis on; see [`arguments`].
    pub(crate) arguments: &'a [u8],
    /// `None`: it comes on a later line.
    pub(crate) outcome: Option<Outcome>,
}

/// How a system call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With this value.
    Success(u64),
    /// With an error number, or without a value.
    Other,
}

/// Turns the failure of `parser` into the final verdict that `expected` should stand here.
fn expect<'a, T, P>(expected: &'static str, mut parser: P) -> impl FnMut(&'a [u8]) -> Parsed<'a, T>
where
    P: Parser<&'a [u8], Output = T, Error = Mismatch<'a>>,
{
    move |at| parser.parse(at).map_err(|_| nom::Err::Failure(Mismatch { at, expected }))
}

fn hex(input: &[u8]) -> Parsed<'_, u64> {
    let digit = |sum: u64, &b: &u8| sum << 4 | u64::from(char::from(b).to_digit(16).unwrap_or(0));
    let digits = take_while_m_n(1, 16, |b: u8| b.is_ascii_hexdigit());
    digits.map(|text: &[u8]| text.iter().fold(0, digit)).parse(input)
}

fn decimal<T: std::str::FromStr>(input: &[u8]) -> Parsed<'_, T> {
    map_opt(digit1, |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok()).parse(input)
}

fn size(input: &[u8]) -> Parsed<'_, u32> {
    map_opt(decimal::<u32>, |bytes| (1..=MAX_ACCESS_BYTES).contains(&bytes).then_some(bytes)).parse(input)
}

fn access(input: &[u8]) -> Parsed<'_, Line<'_>> {
    let kind = alt((
        value(Kind::Fetch, tag("I  ")),
        value(Kind::Load, tag(" L ")),
        value(Kind::Store, tag(" S ")),
        value(Kind::Modify, tag(" M ")),
    ));
    let address = expect("an address of 1 to 16 hexadecimal digits", hex);
    let comma = expect("`,` after the address", char(','));
    let bytes = expect("a size of 1 to 1048576 bytes after the comma", size);
    let end = expect("the end of the line after the size", nom::combinator::eof);
    (kind, address, comma, bytes, end)
        .map(|(kind, address, _, bytes, _)| Line::Access(Access { kind, address, bytes }))
        .parse(input)
}

/// `Success(0x0) `, `Failure(0x2) ` or `NoWriteResult `, after an optional `[pre-success] ` or `[pre-fail] `.
fn outcome(input: &[u8]) -> Parsed<'_, Outcome> {
    let stage = delimited(char('['), take_till(|b| b == b']'), tag("] "));
    let success = delimited(tag("Success(0x"), hex, char(')')).map(Outcome::Success);
    let failure = value(Outcome::Other, delimited(tag("Failure(0x"), hex, char(')')));
    let none = value(Outcome::Other, tag("NoWriteResult"));
    preceded(opt(stage), terminated(alt((success, failure, none)), opt(char(' ')))).parse(input)
}

fn caller(input: &[u8]) -> Parsed<'_, (Caller, u32)> {
    let pid = preceded(tag("SYSCALL["), expect("a process number", decimal));
    let tid = expect("`,` and a thread number", preceded(char(','), decimal));
    let number = delimited(tag("]("), preceded(space0, decimal), (char(')'), space0));
    let number = expect("`](` and the number of a system call", number);
    (pid, tid, number).map(|(pid, tid, number)| (Caller { pid, tid }, number)).parse(input)
}

/// `SYSCALL[pid,tid](nr) name ( arguments ) --> outcome`, and the later `SYSCALL[pid,tid](nr) ... [async] --> outcome`.
fn call(input: &[u8]) -> Parsed<'_, Line<'_>> {
    const RESULT: &str = "`Success(0x...)`, `Failure(0x...)` or `NoWriteResult`";
    let (input, (caller, number)) = caller(input)?;
    if let (after, Some(_)) = opt(tag("... [async] --> ")).parse(input)? {
        let later = |outcome| Line::Result { caller: Some(caller), outcome };
        return expect(RESULT, outcome).map(later).parse(after);
    }
    let name = preceded(opt(tag("sys_")), take_while1(|b: u8| b.is_ascii_alphanumeric() || b == b'_'));
    let (input, name) = expect("the name of a system call", name).parse(input)?;
    let open = |arguments| Line::Call(Call { caller, number, name, arguments, outcome: None });
    let Ok((after, arguments)) = terminated(take_until("--> "), tag::<_, _, Mismatch<'_>>("--> ")).parse(input) else {
        return rest.map(open).parse(input);
    };
    if let (after, Some(_)) = opt((tag("[async] ..."), space0)).parse(after)? {
        return Ok((after, open(arguments)));
    }
    let (after, outcome) = expect(RESULT, outcome).parse(after)?;
    Ok((after, Line::Call(Call { caller, number, name, arguments, outcome: Some(outcome) })))
}

/// ` --> outcome`, where something was printed between a call and its result.
fn result(input: &[u8]) -> Parsed<'_, Line<'_>> {
    let stage = (char('['), take_while(|b: u8| b.is_ascii_lowercase()), char(']'));
    let (after, _) = (opt(stage), tag(" --> ")).parse(input)?;
    let open = |outcome| Line::Result { caller: None, outcome };
    expect("`Success(0x...)`, `Failure(0x...)` or `NoWriteResult`", outcome).map(open).parse(after)
}

/// After `SCHED[`: `TID]:  acquired lock (...)` where a thread goes on, and other things.
fn schedule(input: &[u8]) -> Parsed<'_, Remark<'_>> {
    let acquired = terminated(decimal::<u32>, (tag("]:"), space0, tag("acquired lock"), rest));
    alt((
        acquired.map(|thread| Remark::Schedule { thread: Some(thread) }),
        value(Remark::Schedule { thread: None }, rest),
    ))
    .parse(input)
}

/// `==PID== text`, `--PID-- text`, `**PID** text`.
fn pid_remark(input: &[u8]) -> Parsed<'_, Remark<'_>> {
    let marks = |mark: &'static str| delimited(tag(mark), decimal::<u32>, tag(mark));
    let (text, pid) = alt((marks("=="), marks("--"), marks("**"))).parse(input)?;
    alt((
        preceded(tag(" Command: "), rest).map(|command| Remark::Command { pid, command }),
        preceded((space0, tag("SCHED[")), schedule),
        value(Remark::Text { pid }, rest),
    ))
    .parse(text)
}

/// Remarks without a process number: the scheduler's, superblocks (`--trace-superblocks`), and the second lines of what
/// `-v -v` says of debug information (`0x50: [0]={ ...`).
fn bare_remark(input: &[u8]) -> Parsed<'_, Remark<'_>> {
    alt((
        preceded(tag("SCHED["), schedule),
        value(Remark::Schedule { thread: None }, (tag("SCHED"), rest)),
        value(Remark::Other, (tag("SB "), hex, nom::combinator::eof)),
        value(Remark::Other, (tag("0x"), hex, tag(": [0]={"), rest)),
    ))
    .parse(input)
}

fn blank(input: &[u8]) -> Parsed<'_, Line<'_>> {
    value(Line::Blank, (space0, nom::combinator::eof)).parse(input)
}

/// Parses one line, given without its newline. The rest, where not empty, is to be read as a line of its own.
///
/// # Errors
///
/// What was expected, and where.
pub(crate) fn line(input: &[u8]) -> Result<(&[u8], Line<'_>), Mismatch<'_>> {
    let remark = alt((pid_remark, bare_remark)).map(Line::Remark);
    alt((access, call, result, remark, blank)).parse(input).map_err(|error| match error {
        nom::Err::Failure(mismatch) => mismatch,
        nom::Err::Error(_) | nom::Err::Incomplete(_) => Mismatch {
            at: input,
            expected: "an access (`I  ADDRESS,SIZE`, ` L `, ` S `, ` M `), `SYSCALL[`, `==PID==` or `--PID--`",
        },
    })
}

/// The numbers between the parentheses of a call, in the base they are printed in (`0x` for hexadecimal), at most `N`;
/// `None` where one is no number.
pub(crate) fn arguments<const N: usize>(input: &[u8]) -> Option<([u64; N], usize)> {
    let number = alt((preceded(tag("0x"), hex), decimal::<u64>));
    let separated = terminated(number, (space0, opt(char(',')), space0));
    let collect = fold_many0(
        separated,
        || ([0; N], 0),
        |(mut all, count), number| {
            if let Some(slot) = all.get_mut(count) {
                *slot = number;
            }
            (all, count + 1)
        },
    );
    let mut list = delimited((space0, char('('), space0), collect, char::<_, Mismatch<'_>>(')'));
    list.parse(input).ok().map(|(_, list)| list)
}

/// The path that Valgrind prints behind the pointer to it, as in `0x4034bb0(/usr/lib/libc.so.6)`.
pub(crate) fn path(input: &[u8]) -> Option<&[u8]> {
    let (_, path) = delimited((take_until("(/"), char('(')), take_till(|b| b == b')'), char::<_, Mismatch<'_>>(')'))
        .parse(input)
        .ok()?;
    Some(path)
}

/// The process that a fork made, as Valgrind prints behind the arguments: `clone(fork): process 7 created child 8`.
pub(crate) fn child(input: &[u8]) -> Option<u32> {
    const BEFORE: &str = " created child ";
    let (_, child) = preceded((take_until(BEFORE), tag::<_, _, Mismatch<'_>>(BEFORE)), decimal).parse(input).ok()?;
    Some(child)
}

/// The first argument of `clone`, its flags, which are printed in hexadecimal without `0x`.
pub(crate) fn clone_flags(input: &[u8]) -> Option<u64> {
    preceded((space0, char('('), space0), hex).parse(input).ok().map(|(_, flags)| flags)
}
