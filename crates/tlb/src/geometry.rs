//! [`Geometry`]: how many entries a TLB has, and for which page sizes.
//!
//! Plain data, checked once on construction, so that the arrays need no checks of their own.

use alloc::vec::Vec;
use core::fmt;

use memvirt_addr::PageSize;

/// A set of page sizes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Sizes(u8);

impl Sizes {
    /// No size.
    pub const NONE: Self = Self(0);
    /// 4 KiB, 2 MiB and 1 GiB.
    pub const ALL: Self = Self(0b1110);

    /// One size.
    #[must_use]
    pub const fn only(size: PageSize) -> Self {
        Self(1 << size as u8)
    }

    /// These and one more.
    #[must_use]
    pub const fn with(self, size: PageSize) -> Self {
        Self(self.0 | 1 << size as u8)
    }

    /// Whether the size is one of them.
    #[must_use]
    pub const fn contains(self, size: PageSize) -> bool {
        self.0 & (1 << size as u8) != 0
    }

    /// The sizes, smallest first.
    pub fn iter(self) -> impl Iterator<Item = PageSize> {
        PageSize::ALL.into_iter().filter(move |size| self.contains(*size))
    }
}

impl fmt::Debug for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// One array of a level: which page sizes it holds, how many entries, how many of them in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArrayGeometry {
    /// The page sizes that share the array.
    pub sizes: Sizes,
    /// Entries; 0 stands for "no such array".
    pub entries: u32,
    /// Entries in a set; equal to `entries` in a fully associative array.
    pub ways: u32,
}

impl ArrayGeometry {
    /// An array of `entries` in sets of `ways` for `sizes`.
    #[must_use]
    pub const fn new(sizes: Sizes, entries: u32, ways: u32) -> Self {
        Self { sizes, entries, ways }
    }

    /// A fully associative array.
    #[must_use]
    pub const fn full(sizes: Sizes, entries: u32) -> Self {
        Self { sizes, entries, ways: entries }
    }

    fn check(&self, level: CacheLevel) -> Result<(), GeometryError> {
        let Self { entries, ways, .. } = *self;
        if self.sizes == Sizes::NONE {
            return Err(GeometryError::NoSizes { level });
        }
        if entries > level.max_entries() {
            return Err(GeometryError::TooManyEntries { level, entries });
        }
        if ways == 0 || entries % ways != 0 {
            return Err(GeometryError::WaysDoNotDivide { level, entries, ways });
        }
        if !(entries / ways).is_power_of_two() {
            return Err(GeometryError::SetsNotPowerOfTwo { level, entries, ways });
        }
        Ok(())
    }
}

/// The first or the second level of a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheLevel {
    /// The small, fast arrays that each access looks at.
    L1,
    /// The large array behind them.
    L2,
}

impl CacheLevel {
    /// The most entries an array of this level may have.
    #[must_use]
    pub const fn max_entries(self) -> u32 {
        match self {
            Self::L1 => 1024,
            Self::L2 => 65536,
        }
    }
}

impl fmt::Display for CacheLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "first",
            Self::L2 => "second",
        })
    }
}

/// How a set chooses the entry that makes room for a new one. An empty way is always taken first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replacement {
    /// The least recently used entry.
    #[default]
    Lru,
    /// The entry that a binary tree of bits points to, each bit away from the half used last. The ways must be a power of
    /// two, at most 64.
    TreePlru,
    /// Any entry, drawn from a generator with this seed.
    Random {
        /// The seed; equal seeds give equal choices.
        seed: u64,
    },
    /// The entry filled longest ago.
    Fifo,
}

/// Whether the first level holds only what the second holds too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Inclusion {
    /// An entry that leaves the second level may stay in the first.
    #[default]
    NonInclusive,
    /// An entry that leaves the second level leaves the first as well. Sizes that only the first level caches are exempt.
    Inclusive,
}

/// What INVLPG does while a fractured entry is cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FracturedInvlpg {
    /// It drops the guest's page, in all its pieces: what the architecture asks for.
    #[default]
    DropsPage,
    /// It drops everything of the VPID, global entries too. Intel processors do so (N. Amit, "Huge pages, nested paging and
    /// TLB flushes", 2018; not documented by Intel).
    DropsVpid,
}

/// How a 1 GiB page is cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GigabytePages {
    /// As it is, where an array holds the size.
    #[default]
    Whole,
    /// As 2 MiB pieces, each filled by the first walk that needs it.
    Split,
}

/// A TLB cannot have this shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GeometryError {
    /// An array holds no page size.
    NoSizes {
        /// Where.
        level: CacheLevel,
    },
    /// Two arrays of one level hold the same page size.
    SizeTwice {
        /// Where.
        level: CacheLevel,
        /// The size.
        size: PageSize,
    },
    /// An array is larger than the simulator supports.
    TooManyEntries {
        /// Where.
        level: CacheLevel,
        /// The entries asked for.
        entries: u32,
    },
    /// The entries do not fill whole sets.
    WaysDoNotDivide {
        /// Where.
        level: CacheLevel,
        /// The entries asked for.
        entries: u32,
        /// The ways asked for.
        ways: u32,
    },
    /// Tree replacement over ways that make no full binary tree of at most 64 leaves.
    NoTree {
        /// Where.
        level: CacheLevel,
        /// The ways asked for.
        ways: u32,
    },
    /// The number of sets is not a power of two, so address bits cannot select one.
    SetsNotPowerOfTwo {
        /// Where.
        level: CacheLevel,
        /// The entries asked for.
        entries: u32,
        /// The ways asked for.
        ways: u32,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSizes { level } => {
                write!(f, "an array of the {level} TLB level holds no page size; name at least one of 4K, 2M, 1G")
            }
            Self::SizeTwice { level, size } => {
                write!(f, "two arrays of the {level} TLB level hold {size} pages; leave the size to one of them")
            }
            Self::TooManyEntries { level, entries } => write!(
                f,
                "{entries} entries in an array of the {level} TLB level; at most {} are supported",
                level.max_entries()
            ),
            Self::WaysDoNotDivide { level, entries, ways } => write!(
                f,
                "{entries} entries in sets of {ways} ways in the {level} TLB level; the ways must divide the entries"
            ),
            Self::NoTree { level, ways } => write!(
                f,
                "tree replacement over {ways} ways in the {level} TLB level; the ways must be a power of two up to 64, or \
                 the replacement another"
            ),
            Self::SetsNotPowerOfTwo { level, entries, ways } => write!(
                f,
                "{entries} entries in sets of {ways} ways make {} sets in the {level} TLB level; that must be a power \
                 of two",
                entries / ways
            ),
        }
    }
}

impl core::error::Error for GeometryError {}

/// The shape of a two-level TLB.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    l1: Vec<ArrayGeometry>,
    l2: Vec<ArrayGeometry>,
    replacement: [Replacement; 2],
    pub(crate) inclusion: Inclusion,
    pub(crate) fractured: FracturedInvlpg,
    pub(crate) gigabyte: GigabytePages,
}

impl Geometry {
    /// A TLB of these arrays, at most one per page size and level. Arrays of 0 entries are left out; a size that no
    /// array of a level holds is not cached there.
    ///
    /// ```
    /// use memvirt_addr::PageSize::{Size1G, Size2M, Size4K};
    /// use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};
    /// // A second level of 1536 entries in 12 ways, shared by 4K and 2M pages, and no third size there.
    /// let shared = Sizes::only(Size4K).with(Size2M);
    /// let l1 = [ArrayGeometry::new(Sizes::only(Size4K), 64, 4), ArrayGeometry::full(Sizes::only(Size2M), 32)];
    /// assert!(Geometry::new(&l1, &[ArrayGeometry::new(shared, 1536, 12)]).is_ok());
    /// assert!(Geometry::new(&l1, &[ArrayGeometry::new(shared, 1536, 8)]).is_err()); // 192 sets
    /// ```
    ///
    /// # Errors
    ///
    /// [`GeometryError`] where the ways do not divide the entries, the sets are not a power of two in number, an array
    /// is larger than [`CacheLevel::max_entries`] or holds no size, or a size stands twice in a level.
    pub fn new(l1: &[ArrayGeometry], l2: &[ArrayGeometry]) -> Result<Self, GeometryError> {
        Ok(Self::plain(checked(CacheLevel::L1, l1)?, checked(CacheLevel::L2, l2)?))
    }

    fn plain(l1: Vec<ArrayGeometry>, l2: Vec<ArrayGeometry>) -> Self {
        Self {
            l1,
            l2,
            replacement: [Replacement::Lru; 2],
            inclusion: Inclusion::default(),
            fractured: FracturedInvlpg::default(),
            gigabyte: GigabytePages::default(),
        }
    }

    /// The same, with another replacement policy in one level (LRU otherwise).
    ///
    /// # Errors
    ///
    /// [`GeometryError::NoTree`] for [`Replacement::TreePlru`] where an array has ways that are no power of two, or more
    /// than 64.
    pub fn with_replacement(mut self, level: CacheLevel, replacement: Replacement) -> Result<Self, GeometryError> {
        if replacement == Replacement::TreePlru
            && let Some(array) = self.arrays(level).iter().find(|a| !a.ways.is_power_of_two() || a.ways > 64)
        {
            return Err(GeometryError::NoTree { level, ways: array.ways });
        }
        self.replacement[level as usize] = replacement;
        Ok(self)
    }

    /// The same, with this rule between the levels.
    #[must_use]
    pub fn with_inclusion(self, inclusion: Inclusion) -> Self {
        Self { inclusion, ..self }
    }

    /// The same, with this effect of INVLPG on fractured entries.
    #[must_use]
    pub fn with_fractured_invlpg(self, fractured: FracturedInvlpg) -> Self {
        Self { fractured, ..self }
    }

    /// The same, with 1 GiB pages cached in this way.
    #[must_use]
    pub fn with_gigabyte_pages(self, gigabyte: GigabytePages) -> Self {
        Self { gigabyte, ..self }
    }

    /// The replacement policy of a level.
    #[must_use]
    pub fn replacement(&self, level: CacheLevel) -> Replacement {
        self.replacement[level as usize]
    }

    /// The arrays of a level.
    #[must_use]
    pub fn arrays(&self, level: CacheLevel) -> &[ArrayGeometry] {
        match level {
            CacheLevel::L1 => &self.l1,
            CacheLevel::L2 => &self.l2,
        }
    }
}

/// The data TLB of Skylake server: 64 entries in 4 ways for 4K, 32 in 4 for 2M, 4 for 1G; behind them 1536 in 12 ways for
/// 4K and 2M, and 16 in 4 for 1G. Source: Intel optimization reference manual, TLB parameters of the Skylake
/// server microarchitecture.
impl Default for Geometry {
    fn default() -> Self {
        let only = Sizes::only;
        Self::plain(
            [
                ArrayGeometry::new(only(PageSize::Size4K), 64, 4),
                ArrayGeometry::new(only(PageSize::Size2M), 32, 4),
                ArrayGeometry::full(only(PageSize::Size1G), 4),
            ]
            .into(),
            [
                ArrayGeometry::new(only(PageSize::Size4K).with(PageSize::Size2M), 1536, 12),
                ArrayGeometry::new(only(PageSize::Size1G), 16, 4),
            ]
            .into(),
        )
    }
}

fn checked(level: CacheLevel, arrays: &[ArrayGeometry]) -> Result<Vec<ArrayGeometry>, GeometryError> {
    let arrays: Vec<_> = arrays.iter().copied().filter(|array| array.entries > 0).collect();
    for array in &arrays {
        array.check(level)?;
    }
    for size in PageSize::ALL {
        if arrays.iter().filter(|array| array.sizes.contains(size)).count() > 1 {
            return Err(GeometryError::SizeTwice { level, size });
        }
    }
    Ok(arrays)
}
