//! `[caches]`: the hierarchy that holds the lines of page tables and data, for the mode `cycles`.

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
    #[serde(deserialize_with = "whole::<_, _, 16, 1024>")]
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

    /// Sets of a power of two, so that address bits select one.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if !self.line_bytes.is_power_of_two() {
            let reason = format!("{} bytes in a line; accepted: 16, 32, 64, 128, 256, 512, 1024", self.line_bytes);
            return Err(Problem::new("caches.line_bytes", reason));
        }
        for (name, shape) in self.levels() {
            let set = u64::from(self.line_bytes) * u64::from(shape.ways);
            let sets = shape.bytes / set;
            if !shape.bytes.is_multiple_of(set) || !sets.is_power_of_two() {
                let CacheShape { bytes, ways, .. } = shape;
                let reason = format!(
                    "{bytes} bytes in sets of {ways} lines of {}; they must make a power of two of sets",
                    self.line_bytes
                );
                return Err(Problem::new(format!("caches.{name}.ways"), reason));
            }
        }
        Ok(())
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        let names = ["l1.latency", "l2.latency", "llc.latency", "dram"];
        let figures = self.levels().map(|(_, shape)| &shape.latency).chain([&self.dram]);
        names.into_iter().zip(figures).map(|(name, figure)| Listed { section: "caches", name, unit: "cycles", figure })
    }
}
