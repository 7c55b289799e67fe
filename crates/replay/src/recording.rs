//! Reading a recording: sections that start a fresh machine, and one row for each operation.
//!
//! ```text
//! ## FUZZ seed=1 n=1500
//! idx,op,a,b,exits,pf_taken,pf_fixed,pf_emulate,pf_spurious,pf_guest,tlb_flush,invlpg,...,guest_pf,ec,cr2,rdval
//! 0,INVLPG,800020c000,0,1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0
//! ```
//!
//! `a`, `b`, `ec`, `cr2` and `rdval` are hexadecimal, the rest decimal. The line with the columns' names may be missing; lines
//! may end in CR LF, a byte-order mark may stand first; empty lines are skipped. Rows are numbered through from 0 in each
//! section, and a section has no more of them than it announces; fewer are for the reader's user to judge. Reading streams: nothing
//! but the current line is held.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use nom::bytes::complete::tag;
use nom::character::complete::{digit1, space1};
use nom::combinator::{all_consuming, map_res, opt};
use nom::{IResult, Parser};

use crate::counters::{Column, Counts};
use crate::error::{Place, RecordingError, excerpt};
use crate::golden::Sequence;
use crate::op::GuestOp;

/// The start of a fresh machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// The number of its line, counted from 1.
    pub line: u64,
    /// Which machine, and which operations may come.
    pub sequence: Sequence,
    /// The seed of the operations; only a name here.
    pub seed: u64,
    /// How many operations were recorded.
    pub announced: u64,
}

/// One operation and what it did on the real machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of its line, counted from 1.
    pub line: u64,
    /// Its number in the section.
    pub idx: u64,
    /// The operation.
    pub op: GuestOp,
    /// How KVM's counters moved.
    pub counts: Counts,
    /// What the guest saw.
    pub seen: Seen,
}

/// What the guest saw of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Page faults delivered to it.
    pub faults: u64,
    /// The error code of the last one, 0 without any.
    pub code: u64,
    /// The address of the last one.
    pub cr2: u64,
    /// The 8 bytes that a load returned, 0 for other operations.
    pub value: u64,
}

/// An item of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every item is a row")]
pub enum Item {
    /// A fresh machine starts.
    Section(Section),
    /// An operation.
    Row(Row),
}

/// The names of the columns around the counters.
const BEFORE: [&str; 4] = ["idx", "op", "a", "b"];
const AFTER: [&str; 4] = ["guest_pf", "ec", "cr2", "rdval"];
const FIELDS: usize = BEFORE.len() + Column::COUNT + AFTER.len();

/// The names of all columns, in order.
fn names() -> impl Iterator<Item = &'static str> {
    BEFORE.into_iter().chain(Column::ALL.iter().map(|column| column.key())).chain(AFTER)
}

/// No operation moves a counter by more: enough for any, and so little that sums over all rows that can be replayed are exact.
const LARGEST_COUNT: i64 = 1 << 32;

/// No line of a recording is nearly as long; one that is longer is no line, and is not read to its end.
const LONGEST_LINE_BYTES: u64 = 64 << 10;

/// A recording being read: an iterator that ends at the first error.
#[derive(Debug)]
pub struct Recording<R> {
    input: R,
    file: String,
    line: u64,
    bytes: Vec<u8>,
    /// The section being read.
    open: Option<Open>,
    failed: bool,
}

/// The section whose rows are being read.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Its line.
    line: u64,
    announced: u64,
    /// The number of the row that comes next.
    next: u64,
}

impl Recording<Box<dyn BufRead>> {
    /// Opens a recording, plain or compressed with zstd; its first bytes say which.
    ///
    /// # Errors
    ///
    /// [`RecordingError::Open`], [`RecordingError::Directory`], [`RecordingError::Compression`].
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| RecordingError::Open { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(RecordingError::Directory { path: path.to_path_buf() });
        }
        let mut input = BufReader::new(file);
        let name = path.display().to_string();
        match input.fill_buf().map_err(failed)? {
            // A frame (RFC 8878, section 3.1.1), or a skippable one, with which some zstd tools begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let decoder = zstd::Decoder::with_buffer(input).map_err(failed)?;
                Ok(Self::new(name, Box::new(BufReader::new(decoder))))
            }
            [0x1f, 0x8b, ..] => Err(RecordingError::Compression { path: path.to_path_buf(), found: "gzip" }),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                Err(RecordingError::Compression { path: path.to_path_buf(), found: "xz" })
            }
            _ => Ok(Self::new(name, Box::new(input))),
        }
    }
}

impl<R: BufRead> Recording<R> {
    /// Reads from `input`; `file` is its name in messages.
    pub fn new(file: impl Into<String>, input: R) -> Self {
        Self { input, file: file.into(), line: 0, bytes: Vec::new(), open: None, failed: false }
    }

    /// The name of the recording.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    fn next_item(&mut self) -> Result<Option<Item>, RecordingError> {
        loop {
            self.bytes.clear();
            let read = self.input.by_ref().take(LONGEST_LINE_BYTES + 1).read_until(b'\n', &mut self.bytes);
            let read =
                read.map_err(|source| RecordingError::Read { file: self.file.clone(), line: self.line, source })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let text = String::from_utf8_lossy(&self.bytes);
            if read as u64 > LONGEST_LINE_BYTES {
                let expected = format!("a line of at most {} KiB", LONGEST_LINE_BYTES >> 10);
                return Err(Wrong::line(&expected, &text).at(&self.file, self.line));
            }
            let text = text.trim_end_matches(['\n', '\r']);
            // Some editors begin a file with a byte-order mark.
            let text = if self.line == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
            if text.is_empty() || (self.open.is_some() && text.starts_with("idx,") && is_header(text)) {
                continue;
            }
            let item = self.parse(text).map_err(|wrong| wrong.at(&self.file, self.line))?;
            match (&item, &mut self.open) {
                (Item::Section(section), open) => {
                    *open = Some(Open { line: self.line, announced: section.announced, next: 0 });
                }
                (Item::Row(_), Some(open)) => open.next += 1,
                (Item::Row(_), None) => {}
            }
            return Ok(Some(item));
        }
    }

    fn parse(&self, text: &str) -> Result<Item, Wrong> {
        if text.starts_with('#') {
            return match section(text) {
                Ok((_, section)) => Ok(Item::Section(Section { line: self.line, ..section })),
                Err(_) => Err(Wrong::line("`## FUZZ seed=S n=N` or `## FUZZ2 seed=S n=N`", text)),
            };
        }
        let Some(open) = self.open else {
            return Err(Wrong::line("`## FUZZ seed=S n=N` before the first operation", text));
        };
        if text.starts_with("idx,") {
            return Err(wrong_header(text));
        }
        let row = row(text, self.line)?;
        let expected = if open.next >= open.announced {
            format!("a new section or the end: line {} announces {} rows", open.line, open.announced)
        } else if row.idx != open.next {
            format!("row {} of the section: rows are missing, doubled or out of order", open.next)
        } else {
            return Ok(Item::Row(row));
        };
        let place = Place { column: 1, name: BEFORE[0], character: 1 };
        Err(Wrong { place, expected, found: row.idx.to_string() })
    }
}

impl<R: BufRead> Iterator for Recording<R> {
    type Item = Result<Item, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.next_item();
        self.failed = item.is_err();
        item.transpose()
    }
}

/// What is wrong in a line.
struct Wrong {
    place: Place,
    expected: String,
    found: String,
}

impl Wrong {
    fn line(expected: &str, text: &str) -> Self {
        Self { place: Place::LINE, expected: expected.to_owned(), found: text.to_owned() }
    }

    fn at(self, file: &str, line: u64) -> RecordingError {
        let found = excerpt(&self.found);
        RecordingError::Malformed { file: file.to_owned(), line, place: self.place, expected: self.expected, found }
    }
}

fn number(input: &str) -> IResult<&str, u64> {
    map_res(digit1, str::parse).parse(input)
}

/// `## FUZZ seed=S n=N`
fn section(input: &str) -> IResult<&str, Section> {
    let mut sequence = (tag("##"), space1, tag("FUZZ"), opt(tag("2")));
    let (rest, (_, _, _, two)) = sequence.parse(input)?;
    let fields = (space1, tag("seed="), number, space1, tag("n="), number, nom::character::complete::space0);
    let (rest, (_, _, seed, _, _, announced, _)) = all_consuming(fields).parse(rest)?;
    let sequence = if two.is_some() { Sequence::Fuzz2 } else { Sequence::Fuzz };
    Ok((rest, Section { line: 0, sequence, seed, announced }))
}

fn is_header(text: &str) -> bool {
    text.split(',').map(str::trim).eq(names())
}

/// The first column of a header that does not bear its name.
fn wrong_header(text: &str) -> Wrong {
    let mut fields = Fields::new(text);
    for name in names() {
        match fields.next(name) {
            Ok((_, found)) if found == name => {}
            Ok((place, found)) => {
                return Wrong { place, expected: format!("the column name `{name}`"), found: found.to_owned() };
            }
            Err(wrong) => return wrong,
        }
    }
    fields.end().err().unwrap_or_else(|| Wrong::line("the names of the columns", text))
}

/// The fields of a line, one after the other.
struct Fields<'a> {
    text: &'a str,
    rest: Option<&'a str>,
    column: usize,
}

impl<'a> Fields<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text, rest: Some(text), column: 0 }
    }

    fn next(&mut self, name: &'static str) -> Result<(Place, &'a str), Wrong> {
        self.column += 1;
        let character = |rest: &str| self.text.len() - rest.len() + 1;
        let Some(rest) = self.rest else {
            let place = Place { column: self.column, name, character: self.text.len() + 1 };
            let expected = format!("{FIELDS} columns; this line ends after {}", self.column - 1);
            return Err(Wrong { place, expected, found: String::new() });
        };
        let place = Place { column: self.column, name, character: character(rest) };
        let (field, rest) = rest.split_once(',').map_or((rest, None), |(field, rest)| (field, Some(rest)));
        self.rest = rest;
        Ok((place, field))
    }

    fn end(&self) -> Result<(), Wrong> {
        let Some(rest) = self.rest else { return Ok(()) };
        let place = Place { column: self.column + 1, name: "", character: self.text.len() - rest.len() + 1 };
        Err(Wrong { place, expected: format!("the end of the line after {FIELDS} columns"), found: rest.to_owned() })
    }

    /// How a counter moved.
    fn moved(&mut self, column: Column) -> Result<i64, Wrong> {
        let (place, field) = self.next(column.key())?;
        let lowest = if column.is_gauge() { -LARGEST_COUNT } else { 0 };
        let wrong = |expected: String| Wrong { place, expected, found: field.to_owned() };
        let digits = field.strip_prefix('-').unwrap_or(field);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong("a decimal number".to_owned()));
        }
        // Digits that do not fit are too many.
        let value = field.parse().ok().filter(|value| (lowest..=LARGEST_COUNT).contains(value));
        value.ok_or_else(|| wrong(format!("a number from {lowest} to {LARGEST_COUNT}")))
    }

    fn count(&mut self, name: &'static str) -> Result<u64, Wrong> {
        let (place, field) = self.next(name)?;
        field.parse().map_err(|_| Wrong { place, expected: "a decimal count".to_owned(), found: field.to_owned() })
    }

    fn hex(&mut self, name: &'static str) -> Result<(Place, u64), Wrong> {
        let (place, field) = self.next(name)?;
        let digits = field.strip_prefix("0x").unwrap_or(field);
        let wrong = |_| Wrong { place, expected: "a hexadecimal number".to_owned(), found: field.to_owned() };
        // `from_str_radix` would take a sign.
        let digits = if digits.starts_with(['+', '-']) { "" } else { digits };
        Ok((place, u64::from_str_radix(digits, 16).map_err(wrong)?))
    }
}

fn row(text: &str, line: u64) -> Result<Row, Wrong> {
    let mut fields = Fields::new(text);
    let idx = fields.count("idx")?;
    let (name_at, name) = fields.next("op")?;
    // The name is judged before the operands are read, so that the first wrong column is the one reported.
    let operands_matter = GuestOp::new(name, 0, 0);
    if let Err((0, expected)) = operands_matter {
        return Err(Wrong { place: name_at, expected: expected.to_owned(), found: name.to_owned() });
    }
    let (a_at, a) = fields.hex("a")?;
    let refused =
        |(_, expected): (usize, &str)| Wrong { place: a_at, expected: expected.to_owned(), found: format!("{a:x}") };
    GuestOp::new(name, a, 0).map_err(refused)?;
    let (_, b) = fields.hex("b")?;
    let op = GuestOp::new(name, a, b).map_err(refused)?;
    let mut counts = Counts::default();
    for column in Column::ALL {
        counts[*column] = fields.moved(*column)?;
    }
    let faults = fields.count("guest_pf")?;
    let (_, code) = fields.hex("ec")?;
    let (_, cr2) = fields.hex("cr2")?;
    let (_, value) = fields.hex("rdval")?;
    fields.end()?;
    Ok(Row { line, idx, op, counts, seen: Seen { faults, code, cr2, value } })
}
