//! `[walk_caches]`: the paging-structure caches of both dimensions, and the nested TLB.

use memvirt_addr::Level;
use memvirt_platform::MmuGeometry;
use memvirt_tlb::{Shape, WalkGeometry};
use serde::{Deserialize, Serialize};

use super::figures::{Figure, Listed};
use super::number::{text, whole};
use super::place::Problem;
use super::tlb::ReplacementName;

/// The level whose entries are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WalkCacheLevel {
    /// Entries of the PML5 table.
    Pml5e,
    /// Entries of the PML4 table.
    Pml4e,
    /// Entries of a page-directory-pointer table.
    Pdpte,
    /// Entries of a page directory.
    Pde,
}

impl WalkCacheLevel {
    /// The level, counted from the leaf.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            Self::Pml5e => Level::L5,
            Self::Pml4e => Level::L4,
            Self::Pdpte => Level::L3,
            Self::Pde => Level::L2,
        }
    }

    /// The name in machine files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pml5e => "PML5E",
            Self::Pml4e => "PML4E",
            Self::Pdpte => "PDPTE",
            Self::Pde => "PDE",
        }
    }
}

/// The cache of one level's entries.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WalkCacheArray {
    /// The level: `"PML5E"`, `"PML4E"`, `"PDPTE"`, `"PDE"`.
    pub level: WalkCacheLevel,
    /// Its entries.
    #[serde(deserialize_with = "whole::<_, _, 1, 65536>")]
    pub entries: u32,
    /// Entries of a set.
    #[serde(deserialize_with = "whole::<_, _, 1, 65536>")]
    pub ways: u32,
}

/// A cache of guest-physical pages.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NestedTlbArray {
    /// Where the shape comes from.
    #[serde(deserialize_with = "text")]
    pub source: String,
    /// Its entries.
    #[serde(deserialize_with = "whole::<_, _, 1, 65536>")]
    pub entries: u32,
    /// Entries of a set.
    #[serde(deserialize_with = "whole::<_, _, 1, 65536>")]
    pub ways: u32,
}

/// The caches that shorten walks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WalkCaches {
    /// Where the shapes come from.
    #[serde(deserialize_with = "text")]
    pub source: String,
    /// What is replaced.
    #[serde(default)]
    pub replacement: ReplacementName,
    /// Over guest-virtual addresses: for the guest's tables, or the shadow's.
    pub guest: Vec<WalkCacheArray>,
    /// Over guest-physical addresses: for the nested tables.
    pub host: Vec<WalkCacheArray>,
    /// The cache of guest-physical pages, where the machine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_tlb: Option<NestedTlbArray>,
    /// A hit in one of them, in cycles.
    pub latency: Figure,
    /// Walks that the machine makes at a time. Runs use one unless asked for more.
    pub walkers: Figure,
}

/// More walks at a time than any core makes.
const MOST_WALKERS: u32 = 64;

impl WalkCaches {
    pub(super) fn geometry(&self) -> Result<MmuGeometry, Problem> {
        if !(1..=MOST_WALKERS).contains(&self.walkers.value) {
            let reason = format!("{} walks at a time; accepted: 1 to {MOST_WALKERS}", self.walkers.value);
            return Err(Problem::new("walk_caches.walkers.value", reason));
        }
        let nested = self.nested_tlb.as_ref();
        Ok(MmuGeometry {
            guest: self.dimension("walk_caches.guest", &self.guest)?,
            host: self.dimension("walk_caches.host", &self.host)?,
            nested_tlb: nested.map(|tlb| self.shape("walk_caches.nested_tlb", tlb.entries, tlb.ways)).transpose()?,
        })
    }

    fn dimension(&self, field: &str, arrays: &[WalkCacheArray]) -> Result<WalkGeometry, Problem> {
        let mut geometry = WalkGeometry::NONE;
        for (i, array) in arrays.iter().enumerate() {
            let (level, field) = (array.level.level(), format!("{field}[{i}]"));
            if geometry.shape(level).is_some() {
                let reason =
                    format!("{} has a cache already; one for each of PML5E, PML4E, PDPTE, PDE", array.level.name());
                return Err(Problem::new(format!("{field}.level"), reason));
            }
            geometry = geometry.with(level, self.shape(&field, array.entries, array.ways)?);
        }
        Ok(geometry)
    }

    fn shape(&self, field: &str, entries: u32, ways: u32) -> Result<Shape, Problem> {
        Shape::new(entries, ways)
            .and_then(|shape| shape.with_replacement(self.replacement.into()))
            .map_err(|error| Problem::new(format!("{field}.ways"), error))
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        let figures = [("latency", "cycles", &self.latency), ("walkers", "walks at a time", &self.walkers)];
        figures.into_iter().map(|(name, unit, figure)| Listed { section: "walk_caches", name, unit, figure })
    }
}
