//! `[tlb]`: the arrays of a machine's TLB.

use memvirt_addr::PageSize;
use memvirt_tlb::{ArrayGeometry, CacheLevel, Geometry, GeometryError, GigabytePages, Inclusion, Replacement, Sizes};
use serde::{Deserialize, Serialize};

use super::number::{shortened, text, whole};
use super::place::Problem;

/// One TLB array.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlbArray {
    /// The page sizes it holds: `"4K"`, `"2M"`, `"1G"`.
    pub pages: Vec<String>,
    /// Its entries; 0 for no array.
    #[serde(deserialize_with = "whole::<_, _, 0, 65536>")]
    pub entries: u32,
    /// Entries of a set.
    #[serde(deserialize_with = "whole::<_, _, 1, 65536>")]
    pub ways: u32,
}

/// How a set makes room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplacementName {
    /// The least recently used entry goes.
    #[default]
    Lru,
    /// A binary tree of bits points to the entry that goes.
    TreePlru,
    /// Any entry goes; the seed is fixed.
    Random,
    /// The entry filled longest ago goes.
    Fifo,
}

impl ReplacementName {
    /// The name in machine files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::TreePlru => "tree-plru",
            Self::Random => "random",
            Self::Fifo => "fifo",
        }
    }
}

impl From<ReplacementName> for Replacement {
    fn from(name: ReplacementName) -> Self {
        match name {
            ReplacementName::Lru => Self::Lru,
            ReplacementName::TreePlru => Self::TreePlru,
            ReplacementName::Random => Self::Random { seed: 0 },
            ReplacementName::Fifo => Self::Fifo,
        }
    }
}

/// How pages of 1 GiB are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GigabyteName {
    /// Whole, where an array holds the size.
    #[default]
    Whole,
    /// As pieces of 2 MiB.
    Split,
}

impl GigabyteName {
    /// The name in machine files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Split => "split",
        }
    }
}

/// Whether the first level holds only what the second holds too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InclusionName {
    /// It may hold more.
    #[default]
    NonInclusive,
    /// It may not.
    Inclusive,
}

impl InclusionName {
    /// The name in machine files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NonInclusive => "non-inclusive",
            Self::Inclusive => "inclusive",
        }
    }
}

/// The shape of a machine's TLB.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlbShape {
    /// Where the shape comes from.
    #[serde(deserialize_with = "text")]
    pub source: String,
    /// What is replaced, in both levels.
    #[serde(default)]
    pub replacement: ReplacementName,
    /// How pages of 1 GiB are cached.
    #[serde(default)]
    pub gigabyte_pages: GigabyteName,
    /// What the levels hold in common.
    #[serde(default)]
    pub inclusion: InclusionName,
    /// The arrays of the first level.
    pub l1: Vec<TlbArray>,
    /// The arrays of the second level.
    pub l2: Vec<TlbArray>,
}

impl TlbShape {
    pub(super) fn geometry(&self) -> Result<Geometry, Problem> {
        let l1 = arrays("tlb.l1", &self.l1)?;
        let l2 = arrays("tlb.l2", &self.l2)?;
        for (i, array) in l1.iter().enumerate() {
            self.check(&format!("tlb.l1[{i}]"), CacheLevel::L1, *array)?;
        }
        for (i, array) in l2.iter().enumerate() {
            self.check(&format!("tlb.l2[{i}]"), CacheLevel::L2, *array)?;
        }
        self.built(&l1, &l2).map_err(|error| {
            let level =
                if matches!(error, GeometryError::SizeTwice { level: CacheLevel::L1, .. }) { "l1" } else { "l2" };
            Problem::new(format!("tlb.{level}"), error)
        })
    }

    fn check(&self, field: &str, level: CacheLevel, array: ArrayGeometry) -> Result<(), Problem> {
        let made = match level {
            CacheLevel::L1 => self.built(&[array], &[]),
            CacheLevel::L2 => self.built(&[], &[array]),
        };
        made.map(drop).map_err(|error| {
            let name = match error {
                GeometryError::TooManyEntries { .. } => "entries",
                GeometryError::NoSizes { .. } => "pages",
                _ => "ways",
            };
            Problem::new(format!("{field}.{name}"), error)
        })
    }

    fn built(&self, l1: &[ArrayGeometry], l2: &[ArrayGeometry]) -> Result<Geometry, GeometryError> {
        let geometry = Geometry::new(l1, l2)?
            .with_replacement(CacheLevel::L1, self.replacement.into())?
            .with_replacement(CacheLevel::L2, self.replacement.into())?;
        Ok(geometry
            .with_gigabyte_pages(match self.gigabyte_pages {
                GigabyteName::Whole => GigabytePages::Whole,
                GigabyteName::Split => GigabytePages::Split,
            })
            .with_inclusion(match self.inclusion {
                InclusionName::NonInclusive => Inclusion::NonInclusive,
                InclusionName::Inclusive => Inclusion::Inclusive,
            }))
    }
}

fn arrays(field: &str, shapes: &[TlbArray]) -> Result<Vec<ArrayGeometry>, Problem> {
    shapes.iter().enumerate().map(|(i, shape)| array(&format!("{field}[{i}]"), shape)).collect()
}

fn array(field: &str, shape: &TlbArray) -> Result<ArrayGeometry, Problem> {
    let mut sizes = Sizes::NONE;
    for (i, page) in shape.pages.iter().enumerate() {
        let size: PageSize = page.parse().map_err(|_| {
            Problem::new(
                format!("{field}.pages[{i}]"),
                shortened(&format!("unknown page size `{page}`; accepted: 4K, 2M, 1G")),
            )
        })?;
        if sizes.contains(size) {
            let reason = format!("{size} stands here twice; name each size once");
            return Err(Problem::new(format!("{field}.pages[{i}]"), reason));
        }
        sizes = sizes.with(size);
    }
    if sizes == Sizes::NONE {
        return Err(Problem::new(format!("{field}.pages"), "no page size; accepted: one or more of 4K, 2M, 1G"));
    }
    Ok(ArrayGeometry::new(sizes, shape.entries, shape.ways))
}
