//! L1, L2 and last level together: whose they are, how a line gets into them, what a reference costs.

use memvirt_addr::Hpa;

use crate::cache::Cache;
use crate::shape::{Shape, ShapeError};
use crate::traffic::{Purpose, Served, Traffic};

/// One level: its shape, and what a reference that it serves costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheLevel {
    /// Size, ways and lines.
    pub shape: Shape,
    /// Cycles of a reference served here, from its start.
    pub latency_cycles: u32,
}

/// The caches of a machine: what an L1 and an L2 of each CPU and one last level look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheHierarchy {
    levels: [CacheLevel; 3],
    dram_cycles: u32,
}

impl CacheHierarchy {
    /// A hierarchy; `None` where the levels differ in their lines.
    #[must_use]
    pub fn new(l1: CacheLevel, l2: CacheLevel, llc: CacheLevel, dram_cycles: u32) -> Option<Self> {
        let levels = [l1, l2, llc];
        let same = levels.iter().all(|level| level.shape.line_shift() == l1.shape.line_shift());
        same.then_some(Self { levels, dram_cycles })
    }

    /// The hierarchy of the SagePTE artifact (2024), for examples and tests: 32 KiB/8, 1 MiB/16, 22 MiB/11, lines of 64 bytes;
    /// 4, 14, 54 and 200 cycles.
    #[must_use]
    pub fn example() -> Self {
        let level = |size, ways, latency_cycles| -> Result<CacheLevel, ShapeError> {
            Ok(CacheLevel { shape: Shape::new(size, ways, 64)?, latency_cycles })
        };
        let all = || -> Result<_, ShapeError> {
            Ok([level(32 << 10, 8, 4)?, level(1 << 20, 16, 14)?, level(22 << 20, 11, 54)?])
        };
        match all() {
            Ok(levels) => Self { levels, dram_cycles: 200 },
            Err(_) => unreachable!("the sizes are multiples of their ways"),
        }
    }

    /// Cycles of a reference served by a level.
    #[must_use]
    #[inline]
    pub const fn latency_cycles(&self, served: Served) -> u32 {
        match served {
            Served::Dram => self.dram_cycles,
            cached => self.levels[cached as usize].latency_cycles,
        }
    }

    /// A cache level; `None` for DRAM.
    #[must_use]
    pub const fn level(&self, served: Served) -> Option<CacheLevel> {
        match served {
            Served::Dram => None,
            cached => Some(self.levels[cached as usize]),
        }
    }

    /// Bytes of a line.
    #[must_use]
    pub const fn line_bytes(&self) -> u32 {
        self.levels[0].shape.line_bytes()
    }
}

/// The last level, which all CPUs of a host share.
#[derive(Clone, Debug)]
pub struct SharedCache(Cache);

impl SharedCache {
    /// An empty last level.
    #[must_use]
    pub fn new(spec: &CacheHierarchy) -> Self {
        Self(Cache::new(spec.levels[Served::Llc as usize].shape))
    }
}

/// The private levels of one CPU, and what its references met in all levels.
#[derive(Clone, Debug)]
pub struct CoreCaches {
    l1: Cache,
    l2: Cache,
    line_shift: u32,
    traffic: Traffic,
}

impl CoreCaches {
    /// Empty private levels.
    #[must_use]
    pub fn new(spec: &CacheHierarchy) -> Self {
        let [l1, l2, _] = spec.levels.map(|level| level.shape);
        Self { l1: Cache::new(l1), l2: Cache::new(l2), line_shift: l1.line_shift(), traffic: Traffic::default() }
    }

    /// One reference of this CPU to the line that holds `at`: which level served it. Afterwards every level holds the line
    /// that was asked for it.
    #[inline]
    pub fn access(&mut self, shared: &mut SharedCache, at: Hpa, purpose: Purpose) -> Served {
        let line = at.as_u64() >> self.line_shift;
        let served = if self.l1.touch(line) { Served::L1 } else { self.beyond(shared, line) };
        self.traffic.count(purpose, served);
        served
    }

    #[inline(never)]
    fn beyond(&mut self, shared: &mut SharedCache, line: u64) -> Served {
        if self.l2.touch(line) {
            Served::L2
        } else if shared.0.touch(line) {
            Served::Llc
        } else {
            Served::Dram
        }
    }

    /// What the references of this CPU met.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Counts from 0 again; the contents stay.
    pub fn reset_traffic(&mut self) {
        self.traffic = Traffic::default();
    }
}
