//! How a run is measured: what is counted, from when on, and what is there before.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::Serialize;

/// Whether references are followed to the caches that hold their lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything is counted; a reference of each kind has one price. The fast one.
    #[default]
    Counts,
    /// Each reference to a table and to data goes through the machine's cache hierarchy and costs what the level that holds
    /// its line costs.
    Cycles,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Counts, Self::Cycles];

    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Cycles => "cycles",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == s);
        found.ok_or_else(|| format!("unknown mode `{s}`; known: counts, cycles"))
    }
}

/// What is measured of a run. The defaults are stated with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measure {
    /// Whether references are followed to the caches; default: they are not. Stands in results apart.
    #[serde(skip)]
    pub mode: Mode,
    /// Walks that a CPU makes at a time, in the mode `cycles`; default 1. What several mean: [`memvirt_platform::timed`].
    pub walkers: NonZeroU32,
    /// Whether every page of anonymous memory is there as soon as it is mapped, in the guest's tables and in nested ones, as if
    /// touched before; default no. None of that is counted, nor does it leave anything in TLBs and caches.
    pub prefault: bool,
    /// Accesses of processes before counting begins: with the first batch of the input after so many; default 0.
    pub warm_up_accesses: u64,
}

impl Default for Measure {
    fn default() -> Self {
        Self { mode: Mode::Counts, walkers: NonZeroU32::MIN, prefault: false, warm_up_accesses: 0 }
    }
}
