//! Scripts: what processes do, step by step, as the `[generator]` table of a workload file says it.
//!
//! A script declares areas, each with an address of its own, a list of steps that runs once (`setup`) and one that runs again
//! and again (`body`). Most steps are what a process does; `fork`, `vfork` and `workers` hold the steps of other processes.
//! [`Spec`](crate::spec::Spec) holds scripts beside the other generators, and checks them.

use std::collections::BTreeMap;

use memvirt_ops::arch::Trap;
use serde::{Deserialize, Serialize};

use crate::program;
use crate::spec::SpecError;
use crate::units::{Base, Count, Exponent, Footprint, InstructionsPerAccess, Share};

/// Processes that follow a script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// First address of the first area; the others follow in the order of their names. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// The areas by name. They are mapped by `map` steps.
    #[serde(default)]
    pub areas: BTreeMap<String, Area>,
    /// What happens first, once. Default: nothing.
    #[serde(default)]
    pub setup: Vec<Step>,
    /// How often the body runs.
    pub iterations: Count,
    /// What happens then.
    pub body: Vec<Step>,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// An area of a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// Its size.
    pub size: Footprint,
    /// Where its contents come from. Default: zero-filled and private.
    #[serde(default)]
    pub of: AreaKind,
    /// The number of its file, where it shows one. Default 100.
    #[serde(default = "first_file")]
    pub file: u32,
}

const fn first_file() -> u32 {
    100
}

/// Where the contents of an area come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AreaKind {
    /// Zeros; private to the process.
    #[default]
    Anonymous,
    /// Zeros; shared with the children.
    Shared,
    /// A file, for reading and execution.
    Text,
    /// A file; stores stay in the process.
    File,
    /// A file; stores go to it.
    FileShared,
}

/// What an area permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Nothing.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
    Write,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Maps an area, anew where it is mapped.
    Map(String),
    /// Unmaps it.
    Unmap(String),
    /// Forgets its pages and keeps it.
    Discard(String),
    /// Changes what it permits.
    Protect(Protect),
    /// Accesses.
    Touch(Touch),
    /// System calls without effect on memory.
    Call(Call),
    /// A system call that moves data to or from the beginning of an area.
    Copy(Transfer),
    /// So many instructions without accesses worth mentioning.
    Compute(Count),
    /// A program with its start is executed, or, without an image of its own, what it does is done.
    Run(String),
    /// A child does this and ends; its parent waits for it.
    Fork(Fork),
    /// A child does this in its parent's address space until it executes a program, and ends; its parent waits for it.
    Vfork(Vec<Step>),
    /// Children that live on: so many, each does this at once and waits then.
    Workers(Workers),
    /// Another worker runs from here on.
    Turn(Order),
    /// The first process runs from here on.
    First,
    /// A part is done several times.
    Loop(Loop),
    /// Instructions that leave every virtual machine.
    Trap(Traps),
    /// So many device interrupts.
    Interrupt(Count),
}

/// See [`Step::Fork`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// What the child does.
    pub child: Vec<Step>,
    /// What the parent does before it waits. Default: nothing.
    #[serde(default)]
    pub parent: Vec<Step>,
}

/// See [`Step::Protect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protect {
    /// The area.
    pub area: String,
    /// What it permits from now on.
    pub to: Permission,
    /// How many of its pages, from the first on. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Count>,
}

/// See [`Step::Touch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touch {
    /// The area.
    pub area: String,
    /// Accesses.
    pub count: Count,
    /// Where they go.
    pub pattern: Pattern,
    /// Share of accesses that are stores. Default 0.
    #[serde(default)]
    pub write_share: Share,
    /// Whether the others are instruction fetches. Default no.
    #[serde(default)]
    pub fetch: bool,
    /// How many of the area's pages, from the first on. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Count>,
}

/// Where accesses go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// The first word of each page in turn.
    Pages,
    /// The first word of each page, in an order drawn anew each time.
    ShuffledPages,
    /// Each 64-byte line in turn.
    Lines,
    /// Words, each with the same probability.
    Uniform,
    /// Words of pages with Zipf-distributed frequencies.
    Zipf(Exponent),
    /// Lookups in a B-tree that fills the area: nodes of 4 KiB with 128 children, a node's header and seven probes at each
    /// level.
    BTree,
    /// Binary searches for random keys among the 16-byte records of the first quarter, each followed by 8 reads of the rest:
    /// the lookup of a cross-section.
    Bisect,
    /// A random vertex's offset (first 1/16), its 16 edges in a row (next 3/4), and for each edge the word of the neighbour
    /// (the rest), which is what is stored to.
    Graph,
    /// One relation read in a row (first half), and for each of its 16-byte rows one random bucket of a hash table (the rest).
    Join,
}

/// See [`Step::Call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The system call's number.
    pub number: u32,
    /// How often. Default 1.
    #[serde(default = "once")]
    pub times: Count,
}

const fn once() -> Count {
    Count::MIN
}

/// See [`Step::Copy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The area.
    pub area: String,
    /// Bytes from its beginning on.
    pub bytes: Count,
    /// Which way.
    pub to: Direction,
    /// The system call's number.
    pub number: u32,
}

/// Which way data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the process.
    User,
    /// To the kernel.
    Kernel,
}

/// See [`Step::Workers`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// How many.
    pub count: Count,
    /// What each does first.
    #[serde(default)]
    pub body: Vec<Step>,
}

/// Which worker runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The next in a ring.
    Next,
    /// Any.
    Random,
}

/// See [`Step::Loop`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    /// How often.
    pub times: Count,
    /// What.
    pub body: Vec<Step>,
}

/// See [`Step::Trap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traps {
    /// The instruction.
    pub what: Instruction,
    /// How often. Default 1.
    #[serde(default = "once")]
    pub times: Count,
}

/// An instruction that leaves every virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Instruction {
    Hypercall,
    PortIo,
    Msr,
    Cpuid,
    Halt,
}

impl Instruction {
    pub(crate) const fn trap(self) -> Trap {
        match self {
            Self::Hypercall => Trap::Hypercall,
            Self::PortIo => Trap::PortIo,
            Self::Msr => Trap::Msr,
            Self::Cpuid => Trap::Cpuid,
            Self::Halt => Trap::Halt,
        }
    }
}

/// Bytes that areas are aligned to, and that lie between them at least: every page size but the largest can map them.
const ALIGNMENT: u64 = 2 << 20;
/// How deep steps may hold steps.
const MAX_DEPTH: u32 = 16;
/// The most accesses, calls and operations of a script, as of any generator.
const MAX_WORK: u64 = 1_000_000_000_000;

impl Script {
    /// The first address of each area.
    #[must_use]
    pub fn layout(&self) -> BTreeMap<&str, u64> {
        let mut next = self.base.get().next_multiple_of(ALIGNMENT);
        let mut places = BTreeMap::new();
        for (name, area) in &self.areas {
            places.insert(name.as_str(), next);
            next = next.saturating_add(area.size.bytes().next_multiple_of(ALIGNMENT)).saturating_add(ALIGNMENT);
        }
        places
    }

    /// Bytes from the base to the end of the last area.
    pub(crate) fn span(&self) -> u64 {
        let gaps = self.areas.len() as u64 * 2 * ALIGNMENT + ALIGNMENT;
        self.areas.values().fold(gaps, |sum, area| sum.saturating_add(area.size.bytes()))
    }

    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if self.body.is_empty() {
            return refuse("body", "is empty: nothing would happen");
        }
        let setup = self.check_steps("setup", &self.setup, 0)?;
        let body = self.check_steps("body", &self.body, 0)?;
        let all = body.checked_mul(self.iterations.get()).and_then(|all| all.checked_add(setup));
        match all {
            Some(all) if all <= MAX_WORK => Ok(()),
            _ => refuse("iterations", "more than 10^12 accesses and operations in all; fewer iterations"),
        }
    }

    /// Accesses and operations of steps.
    fn check_steps(&self, field: &'static str, steps: &[Step], depth: u32) -> Result<u64, SpecError> {
        if depth > MAX_DEPTH {
            return refuse(field, "steps within steps within steps: at most 16 deep");
        }
        let mut sum = 0u64;
        for step in steps {
            sum = sum.saturating_add(self.check_step(field, step, depth)?);
        }
        Ok(sum)
    }

    fn check_step(&self, field: &'static str, step: &Step, depth: u32) -> Result<u64, SpecError> {
        match step {
            Step::Map(area) | Step::Unmap(area) | Step::Discard(area) => self.area(field, area, None).map(|()| 1),
            Step::Protect(protect) => self.area(field, &protect.area, protect.pages).map(|()| 1),
            Step::Touch(touch) => self.area(field, &touch.area, touch.pages).map(|()| touch.count.get()),
            Step::Copy(copy) => {
                let pages = Count::try_new(copy.bytes.get().div_ceil(4096)).ok();
                self.area(field, &copy.area, pages).map(|()| 1)
            }
            Step::Call(call) => Ok(call.times.get()),
            Step::Compute(_) | Step::Turn(_) | Step::First => Ok(1),
            Step::Run(name) => match program::find(name) {
                Some(program) => Ok(program.actions().len() as u64),
                None => refuse(field, &format!("there is no program `{name}`; there are {}", program::NAMES)),
            },
            Step::Fork(Fork { child, parent }) => {
                let child = self.check_steps(field, child, depth + 1)?;
                Ok(self.check_steps(field, parent, depth + 1)?.saturating_add(child).saturating_add(4))
            }
            Step::Vfork(body) => Ok(self.check_steps(field, body, depth + 1)?.saturating_add(4)),
            Step::Workers(Workers { count, body }) | Step::Loop(Loop { times: count, body }) => {
                Ok(self.check_steps(field, body, depth + 1)?.saturating_add(3).saturating_mul(count.get()))
            }
            Step::Trap(traps) if traps.times.get() > u64::from(u32::MAX) => refuse(field, "more than 2^32 - 1 traps"),
            Step::Trap(_) => Ok(1),
            Step::Interrupt(times) => Ok(times.get()),
        }
    }

    fn area(&self, field: &'static str, name: &str, pages: Option<Count>) -> Result<(), SpecError> {
        let Some(area) = self.areas.get(name) else {
            let known: Vec<_> = self.areas.keys().map(String::as_str).collect();
            return refuse(field, &format!("there is no area `{name}`; declared are: {}", known.join(", ")));
        };
        match pages {
            Some(pages) if pages.get() > area.size.pages() => {
                let (asked, has) = (pages.get(), area.size.pages());
                refuse(field, &format!("{asked} pages of area `{name}`, which has {has}"))
            }
            _ => Ok(()),
        }
    }
}

fn refuse<T>(field: &'static str, message: &str) -> Result<T, SpecError> {
    Err(SpecError { field, message: message.to_owned() })
}
