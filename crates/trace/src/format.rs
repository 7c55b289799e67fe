//! What a recording was made with, and how its first bytes tell.

use crate::bundle::Member;
use crate::champsim;
use crate::lackey::{self, MemoryCalls};
use crate::text::{perf, strace};

/// What a recording was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Format {
    /// Valgrind lackey, one process.
    Lackey,
    /// Valgrind lackey, a log for each process.
    LackeySet,
    /// `strace -f`.
    Strace,
    /// `perf script`.
    Perf,
    /// ChampSim's records of instructions.
    #[cfg_attr(feature = "serde", serde(rename = "champsim"))]
    ChampSim,
}

impl Format {
    pub(crate) const ALL: [Self; 5] = [Self::Lackey, Self::LackeySet, Self::Strace, Self::Perf, Self::ChampSim];

    /// The name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lackey => "lackey",
            Self::LackeySet => "lackey-set",
            Self::Strace => "strace",
            Self::Perf => "perf",
            Self::ChampSim => "champsim",
        }
    }

    /// The name for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Lackey => "Valgrind lackey",
            Self::LackeySet => "Valgrind lackey, several processes",
            Self::Strace => "strace",
            Self::Perf => "perf",
            Self::ChampSim => "a tracer of ChampSim",
        }
    }

    /// What becomes of calls that change memory areas where nobody says: a log of one process says nothing of the areas that
    /// the program had before, so its calls are not carried out; all others are there for their page-table events.
    pub(crate) const fn calls_by_default(self) -> MemoryCalls {
        match self {
            Self::Lackey => MemoryCalls::Ignore,
            _ => MemoryCalls::Apply,
        }
    }
}

/// What a file is by its first bytes, as far as they decide it: anything else is read as a lackey log, which says itself
/// what is wrong.
pub(crate) fn sniff(head: &[u8]) -> Format {
    if champsim::is_trace(head) {
        return Format::ChampSim;
    }
    let lines = || head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| !line.is_empty());
    let (mut strace, mut perf, mut lackey) = (0, 0, 0);
    for line in lines().take(LINES_LOOKED_AT) {
        if lackey::is_line(line) {
            lackey += 1;
        } else if perf::is_line(line) {
            perf += 1;
        } else if strace::is_line(line) {
            strace += 1;
        }
    }
    match (strace, perf) {
        _ if lackey > strace && lackey > perf => Format::Lackey,
        (0, 0) => Format::Lackey,
        (strace, perf) if perf >= strace => Format::Perf,
        _ => Format::Strace,
    }
}

/// Lines that are looked at to tell what a file is.
const LINES_LOOKED_AT: usize = 200;

/// Whether the first bytes of a file show that it is a recording.
pub(crate) fn is_recognized(head: &[u8]) -> bool {
    sniff(head) != Format::Lackey || head.split(|b| *b == b'\n').any(lackey::is_line)
}

/// How much a file of a bundle says, where several are recordings of one program: 0 for none at all.
pub(crate) fn worth(member: &Member) -> u8 {
    match sniff(&member.head) {
        Format::Perf => 3,
        Format::ChampSim => 2,
        Format::Strace => 1,
        Format::Lackey => u8::from(is_recognized(&member.head)),
        Format::LackeySet => 0,
    }
}
