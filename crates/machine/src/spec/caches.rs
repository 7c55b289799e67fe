//! `[caches]`: the hierarchy that holds the lines of page tables and data, for the mode `cycles`.

use memvirt_cache::{CacheHierarchy, CacheLevel, Shape};
use serde::{Deserialize, Serialize};

use super::figures::{Figure, Listed};
use super::number::{text, whole};
use super::place::Problem;

/// One level of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CacheShape {
    /// Its size in bytes.
    #[serde(deserialize_with = "whole::<_, _, 1024, 4_294_967_296>")]
    pub bytes: u64,
    /// Lines of a set.
    #[serde(deserialize_with = "whole::<_, _, 1, 64>")]
    pub ways: u32,
    /// A reference that it serves, in cycles.
    pub latency: Figure,
}

/// The cache hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Caches {
    /// Where sizes and ways come from.
    #[serde(deserialize_with = "text")]
    pub source: String,
    /// Bytes of a line.
    #[serde(deserialize_with = "whole::<_, _, 8, 4096>")]
    pub line_bytes: u32,
    /// The first level, for data.
    pub l1: CacheShape,
    /// The second.
    pub l2: CacheShape,
    /// The last; what the vCPU may use of it.
    pub llc: CacheShape,
    /// A reference that memory serves, in cycles.
    pub dram: Figure,
}

impl Caches {
    /// The levels, nearest first, with their names in machine files.
    pub fn levels(&self) -> impl Iterator<Item = (&'static str, &CacheShape)> {
        [("l1", &self.l1), ("l2", &self.l2), ("llc", &self.llc)].into_iter()
    }

    pub(super) fn hierarchy(&self) -> Result<CacheHierarchy, Problem> {
        let level = |name: &str, shape: &CacheShape| {
            let made = Shape::new(shape.bytes, shape.ways, self.line_bytes);
            let shape_error = |error| Problem::new(format!("caches.{name}.ways"), error);
            Ok(CacheLevel { shape: made.map_err(shape_error)?, latency_cycles: shape.latency.value })
        };
        if !self.line_bytes.is_power_of_two() {
            let reason = format!("{} bytes in a line; accepted: a power of two from 8 to 4096", self.line_bytes);
            return Err(Problem::new("caches.line_bytes", reason));
        }
        let (l1, l2, llc) = (level("l1", &self.l1)?, level("l2", &self.l2)?, level("llc", &self.llc)?);
        CacheHierarchy::new(l1, l2, llc, self.dram.value)
            .ok_or_else(|| Problem::new("caches.line_bytes", "all levels have the same lines"))
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        let names = ["l1.latency", "l2.latency", "llc.latency", "dram"];
        let figures = self.levels().map(|(_, shape)| &shape.latency).chain([&self.dram]);
        names.into_iter().zip(figures).map(|(name, figure)| Listed { section: "caches", name, unit: "cycles", figure })
    }
}
