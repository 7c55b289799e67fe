//! The parameters of each generator, as they stand in the `[generator]` table of a workload file.
//!
//! One struct per kind; [`Spec`] is any of them. Field types carry their own bounds ([`units`](crate::units));
//! [`Spec::check`] holds what concerns several fields together. Every field says its unit and default: this page is the
//! reference for workload files.

mod check;

use serde::{Deserialize, Serialize};

use crate::facts::Facts;
use crate::script::Script;
use crate::units::{Areas, Base, Count, Exponent, Footprint, InstructionsPerAccess, Share, Stride, Weight};

/// Walks through an area in equal steps and begins again at its end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequential {
    /// First address of the area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of the area.
    pub footprint: Footprint,
    /// Accesses in all.
    pub accesses: Count,
    /// Bytes from one access to the next, modulo the footprint.
    pub stride: Stride,
    /// Share of accesses that are stores, drawn independently for each.
    pub write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// Touches the 8-byte words of an area with equal probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uniform {
    /// First address of the area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of the area.
    pub footprint: Footprint,
    /// Accesses in all.
    pub accesses: Count,
    /// Share of accesses that are stores (or read-modify-writes, which need the same permission).
    pub write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// Touches pages with Zipf-distributed frequencies: the page of rank `k` with probability proportional to `k^-exponent`.
/// Ranks are spread over the area at random; the 8-byte word within the page is uniform.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zipf {
    /// First address of the area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of the area, at most 64 GiB (the generator keeps 12 bytes a page).
    pub footprint: Footprint,
    /// Accesses in all.
    pub accesses: Count,
    /// The exponent, above 0 and up to 10.
    pub exponent: Exponent,
    /// Share of accesses that are stores.
    pub write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// Follows a chain through all nodes of an area: one cycle in random order, without end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointerChase {
    /// First address of the area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of the area.
    pub footprint: Footprint,
    /// Size of a node: `"64B"` chases through cache lines, `"4KiB"` through pages. Divides the footprint into at least 2
    /// and at most 2^26 nodes (the generator keeps 4 bytes a node).
    pub node: Stride,
    /// Accesses in all.
    pub accesses: Count,
    /// Share of visited nodes that are also changed: the access is a store.
    pub write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// Demand paging at its purest: maps an area, touches each page once in ascending order, unmaps it; again and again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TouchAndFree {
    /// First address of the area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of the area that is mapped each time.
    pub footprint: Footprint,
    /// How often it is mapped, touched and unmapped.
    pub iterations: Count,
    /// Share of touches that are stores; the others load (and get the zero page).
    pub write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// A parent that stores once to each page of its area, then forks again and again: the child stores to some pages (each
/// a copy-on-write fault), exits, and the parent stores to some.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkAndExit {
    /// First address of the parent's area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of the parent's area, at most 1 TiB (the generator keeps 4 bytes a page).
    pub footprint: Footprint,
    /// How many children are forked, one after the other.
    pub forks: Count,
    /// Share of pages that each child stores to: so many distinct pages, drawn anew each time, in random order.
    pub child_write_share: Share,
    /// Share of pages that the parent stores to after each child, drawn likewise.
    pub parent_write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// Processes that live beside each other: each maps an area of its own, stores once to some or all of its pages, and stays. How many
/// bytes of page tables so many processes of such a size need is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residents {
    /// First address of the area, the same in each process. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// Size of each process' area.
    pub footprint: Footprint,
    /// How many processes.
    pub processes: Areas,
    /// Share of its pages that each process stores to, at least one page: all of them in ascending order (1, the default), or so many
    /// distinct ones, drawn by each process for itself, in random order (the generator keeps at most 8 bytes for each).
    #[serde(default = "all")]
    pub touched: Share,
    /// How often each process comes round to store to its pages, the same each time. Default 1.
    #[serde(default = "once")]
    pub rounds: Count,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

const fn all() -> Share {
    Share::ONE
}

const fn once() -> Count {
    Count::MIN
}

impl Residents {
    /// Pages that each process stores to.
    #[must_use]
    pub fn touched_pages(&self) -> u64 {
        self.touched.of(self.footprint.pages()).max(1)
    }
}

/// How often each operation of [`Churn`] is drawn, in relation to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Maps an area of which nothing is mapped; where there is none, maps one anew, which replaces what it held.
    pub mmap: Weight,
    /// Unmaps an area, or part of it.
    pub munmap: Weight,
    /// Turns writable pages read-only or read-only pages writable.
    pub mprotect: Weight,
    /// Accesses mapped pages of one area.
    pub touch: Weight,
}

impl Mix {
    /// The sum of all weights.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.mmap.get() + self.munmap.get() + self.mprotect.get() + self.touch.get()
    }
}

/// Changes a set of areas without end: `mmap`, `munmap`, `mprotect` and touches in a given mix. All areas are mapped first;
/// whenever nothing is left that an operation could concern, an area is mapped before it (and is no operation of its own).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// First address of the first area. Default `0x10_0000_0000`.
    #[serde(default)]
    pub base: Base,
    /// How many areas; one unmapped page lies between neighbours.
    pub areas: Areas,
    /// Size of each area. All areas together have at most 2^26 pages (the generator keeps a byte a page).
    pub area: Footprint,
    /// Operations in all, after the areas are mapped.
    pub operations: Count,
    /// How often each operation is drawn. At least one weight is above 0.
    pub mix: Mix,
    /// Share of `munmap` and `mprotect` operations that concern a random part of an area instead of all of it.
    pub partial_share: Share,
    /// Accesses of one touch operation.
    pub touches: Count,
    /// Share of touches that are stores where the page is writable; read-only pages are only loaded from.
    pub write_share: Share,
    /// Instructions for each access. Default 3.
    #[serde(default)]
    pub instructions_per_access: InstructionsPerAccess,
}

/// The parameters of a generator of any kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each variant is documented at the struct that it holds")]
pub enum Spec {
    Sequential(Sequential),
    Uniform(Uniform),
    Zipf(Zipf),
    PointerChase(PointerChase),
    TouchAndFree(TouchAndFree),
    ForkAndExit(ForkAndExit),
    Churn(Churn),
    Residents(Residents),
    Script(Script),
}

/// Fields that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// The field to change, a path from the generator's table (`mix.mmap`).
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Spec {
    /// The names of all kinds, as `kind = "..."` in files.
    pub const KINDS: [&'static str; 9] = [
        "sequential",
        "uniform",
        "zipf",
        "pointer-chase",
        "touch-and-free",
        "fork-and-exit",
        "churn",
        "residents",
        "script",
    ];

    /// Most pages of a [`Zipf`] area.
    pub const MAX_ZIPF_PAGES: u64 = 1 << 24;
    /// Most nodes of a [`PointerChase`].
    pub const MAX_CHASE_NODES: u64 = 1 << 26;
    /// Most pages of a [`ForkAndExit`] parent.
    pub const MAX_FORK_PAGES: u64 = 1 << 28;
    /// Most children of a [`ForkAndExit`] parent: processes have 32-bit numbers and the parent is number 0.
    pub const MAX_FORKS: u64 = u32::MAX as u64;
    /// Most pages that a process of [`Residents`] draws.
    pub const MAX_DRAWN_PAGES: u64 = 1 << 28;
    /// Most pages of all [`Churn`] areas together.
    pub const MAX_CHURN_PAGES: u64 = 1 << 26;

    /// The name of the kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sequential(_) => Self::KINDS[0],
            Self::Uniform(_) => Self::KINDS[1],
            Self::Zipf(_) => Self::KINDS[2],
            Self::PointerChase(_) => Self::KINDS[3],
            Self::TouchAndFree(_) => Self::KINDS[4],
            Self::ForkAndExit(_) => Self::KINDS[5],
            Self::Churn(_) => Self::KINDS[6],
            Self::Residents(_) => Self::KINDS[7],
            Self::Script(_) => Self::KINDS[8],
        }
    }

    /// Instructions for each access.
    #[must_use]
    pub const fn instructions_per_access(&self) -> InstructionsPerAccess {
        match self {
            Self::Sequential(s) => s.instructions_per_access,
            Self::Uniform(s) => s.instructions_per_access,
            Self::Zipf(s) => s.instructions_per_access,
            Self::PointerChase(s) => s.instructions_per_access,
            Self::TouchAndFree(s) => s.instructions_per_access,
            Self::ForkAndExit(s) => s.instructions_per_access,
            Self::Churn(s) => s.instructions_per_access,
            Self::Residents(s) => s.instructions_per_access,
            Self::Script(s) => s.instructions_per_access,
        }
    }

    /// Figures for listings, without running anything.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts::of(self)
    }

    /// These parameters with the length of the run multiplied by `factor`.
    pub(crate) fn scaled(mut self, factor: f64) -> Result<Self, String> {
        let length = match &mut self {
            Self::Sequential(s) => &mut s.accesses,
            Self::Uniform(s) => &mut s.accesses,
            Self::Zipf(s) => &mut s.accesses,
            Self::PointerChase(s) => &mut s.accesses,
            Self::TouchAndFree(s) => &mut s.iterations,
            Self::ForkAndExit(s) => &mut s.forks,
            Self::Churn(s) => &mut s.operations,
            Self::Residents(s) => &mut s.rounds,
            Self::Script(s) => &mut s.iterations,
        };
        *length = length.scaled(factor)?;
        self.check().map_err(|error| error.to_string())?;
        Ok(self)
    }

    /// These parameters over an area of another size.
    pub(crate) fn with_footprint(mut self, bytes: u64) -> Result<Self, String> {
        let size = match &mut self {
            Self::Sequential(s) => &mut s.footprint,
            Self::Uniform(s) => &mut s.footprint,
            Self::Zipf(s) => &mut s.footprint,
            Self::PointerChase(s) => &mut s.footprint,
            Self::TouchAndFree(s) => &mut s.footprint,
            Self::ForkAndExit(s) => &mut s.footprint,
            Self::Churn(s) => &mut s.area,
            Self::Residents(s) => &mut s.footprint,
            Self::Script(s) => match s.areas.values_mut().max_by_key(|area| area.size.bytes()) {
                Some(area) => &mut area.size,
                None => return Err("the script has no area".to_owned()),
            },
        };
        *size = Footprint::try_new(bytes).map_err(|error| error.to_string())?;
        self.check().map_err(|error| error.to_string())?;
        Ok(self)
    }
}

impl PointerChase {
    /// How many nodes the area holds.
    #[must_use]
    pub const fn nodes(&self) -> u64 {
        self.footprint.bytes() / self.node.bytes()
    }
}

impl ForkAndExit {
    /// How many pages each child stores to.
    #[must_use]
    pub fn child_pages(&self) -> u64 {
        self.child_write_share.of(self.footprint.pages())
    }

    /// How many pages the parent stores to after each child.
    #[must_use]
    pub fn parent_pages(&self) -> u64 {
        self.parent_write_share.of(self.footprint.pages())
    }
}

impl Churn {
    /// Bytes from the start of one area to the start of the next: the area and one page that stays unmapped.
    #[must_use]
    pub const fn pitch(&self) -> u64 {
        self.area.bytes() + 4096
    }
}
