//! The named scenarios of the micro recordings, as data.
//!
//! ```text
//! ## T3 demand fault: not-present -> present without INVLPG
//! read page0 (not present)                       exits=1 pf_taken=1 pf_guest=1
//!       -> guest #PF x1 ec=0 cr2=8000000000
//! guest writes PTE0 = present,A,D               
//! ```
//!
//! `##` starts a group on a fresh machine. A line is a label and the counters that moved, by KVM's names; a label alone means
//! that nothing moved. Lines that begin with three or more blanks are notes on the line before. What the guest and the host
//! do in each line has to be known to whoever asserts it; here is only what was printed.
//!
//! `exits` is printed less one marker exit, whatever the line holds: [`Line::exits`] undoes that.

use std::collections::BTreeMap;

use nom::bytes::complete::take_while1;
use nom::character::complete::{char, i64 as signed};
use nom::combinator::{all_consuming, opt};
use nom::sequence::separated_pair;
use nom::{IResult, Parser};

use crate::error::{Place, RecordingError, excerpt};

/// The lines of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// `T1`, `T1b`, ...
    pub name: String,
    /// The rest of its heading.
    pub title: String,
    /// Notes before the first line.
    pub notes: Vec<String>,
    /// The lines, in order.
    pub lines: Vec<Line>,
}

/// One printed line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, counted from 1.
    pub number: u64,
    /// What was done, in words.
    pub label: String,
    /// The counters that moved.
    pub counters: BTreeMap<String, i64>,
    /// What was noted below it.
    pub notes: Vec<String>,
}

impl Line {
    /// How a counter moved.
    #[must_use]
    pub fn counter(&self, name: &str) -> i64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// The exits of a line whose guest operations ended in `markers` markers, those not counted. Host work has none.
    #[must_use]
    pub fn exits(&self, markers: i64) -> i64 {
        self.counter("exits").saturating_add(1).saturating_sub(markers)
    }
}

/// Reads a micro recording; `file` is its name in messages.
///
/// # Errors
///
/// [`RecordingError::Malformed`] for a line before the first group, and [`RecordingError::Empty`] for a file without groups.
pub fn parse(file: &str, text: &str) -> Result<Vec<Group>, RecordingError> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, line) in (1u64..).zip(text.lines()) {
        if let Some(heading) = line.strip_prefix("## ") {
            let (name, title) = heading.split_once(' ').unwrap_or((heading, ""));
            groups.push(Group { name: name.to_owned(), title: title.to_owned(), ..Group::default() });
        } else if let Some(group) = groups.last_mut() {
            group.enter(number, line);
        } else if !(line.is_empty() || preamble(line)) {
            return Err(RecordingError::Malformed {
                file: file.to_owned(),
                line: number,
                place: Place::LINE,
                expected: "a group (`## T1 ...`)".to_owned(),
                found: excerpt(line),
            });
        }
    }
    if groups.is_empty() { Err(RecordingError::Empty { file: file.to_owned() }) } else { Ok(groups) }
}

/// What stands above the groups: the module's parameters and the processor's features.
fn preamble(line: &str) -> bool {
    line.starts_with("kvm_") || line.starts_with("pcid=")
}

impl Group {
    fn enter(&mut self, number: u64, text: &str) {
        if text.trim().is_empty() || text == "ALLDONE" {
            return;
        }
        if text.starts_with("   ") {
            let notes = self.lines.last_mut().map_or(&mut self.notes, |line| &mut line.notes);
            notes.push(text.trim().to_owned());
            return;
        }
        let mut line = Line { number, ..Line::default() };
        let mut label = text.trim_end();
        while let Some((rest, word)) = label.rsplit_once(' ') {
            let Ok((_, (name, moved))) = all_consuming(counter).parse(word) else { break };
            line.counters.insert(name.to_owned(), moved);
            label = rest.trim_end();
        }
        label.clone_into(&mut line.label);
        self.lines.push(line);
    }
}

/// `name=3`, `name=+3` or `name=-3`.
fn counter(input: &str) -> IResult<&str, (&str, i64)> {
    let name = take_while1(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    separated_pair(name, (char('='), opt(char('+'))), signed).parse(input)
}
