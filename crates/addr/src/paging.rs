//! Page sizes and table levels of the x86 paging structures.
//!
//! Levels count from the leaf: level 1 is the page table (PTE), level 5 the PML5. Source: Intel SDM volume 3, section 4.2,
//! table 4-2; the numbering is the one of KVM.

/// The level of a paging-structure table or entry, counted from the leaf (1 = PTE, 5 = PML5E).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Page table; its entries (PTE) map 4 KiB each.
    L1 = 1,
    /// Page directory; its entries (PDE) cover 2 MiB each.
    L2 = 2,
    /// Page-directory-pointer table; its entries (PDPTE) cover 1 GiB each.
    L3 = 3,
    /// PML4 table; its entries cover 512 GiB each.
    L4 = 4,
    /// PML5 table; its entries cover 256 TiB each.
    L5 = 5,
}

impl Level {
    /// All levels, leaf first.
    pub const ALL: [Self; 5] = [Self::L1, Self::L2, Self::L3, Self::L4, Self::L5];

    /// The level with this number, or `None` outside `1..=5`.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::L1),
            2 => Some(Self::L2),
            3 => Some(Self::L3),
            4 => Some(Self::L4),
            5 => Some(Self::L5),
            _ => None,
        }
    }

    /// The number of the level, 1 to 5.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The next level towards the leaf, `None` below level 1.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        Self::from_number(self.number() - 1)
    }

    /// The next level towards the root, `None` above level 5.
    #[must_use]
    pub const fn above(self) -> Option<Self> {
        Self::from_number(self.number() + 1)
    }

    /// log2 of the bytes that one entry of this level covers: 12, 21, 30, 39, 48.
    #[must_use]
    pub const fn entry_shift(self) -> u32 {
        12 + 9 * (self.number() as u32 - 1)
    }

    /// Bytes that one entry of this level covers.
    #[must_use]
    pub const fn entry_bytes(self) -> u64 {
        1 << self.entry_shift()
    }

    /// The page size of a leaf entry at this level; `None` for levels that hold no leaves.
    #[must_use]
    pub const fn page_size(self) -> Option<PageSize> {
        match self {
            Self::L1 => Some(PageSize::Size4K),
            Self::L2 => Some(PageSize::Size2M),
            Self::L3 => Some(PageSize::Size1G),
            Self::L4 | Self::L5 => None,
        }
    }
}

/// The size of a page. Ordered: a smaller page compares less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageSize {
    /// 4 KiB, a leaf at level 1.
    Size4K = 1,
    /// 2 MiB, a leaf at level 2.
    Size2M = 2,
    /// 1 GiB, a leaf at level 3.
    Size1G = 3,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size2M, Self::Size1G];

    /// The level whose leaf entries map pages of this size.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            Self::Size4K => Level::L1,
            Self::Size2M => Level::L2,
            Self::Size1G => Level::L3,
        }
    }

    /// log2 of the size: 12, 21 or 30.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.level().entry_shift()
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// How many 4 KiB frames the page holds: 1, 512 or 262144.
    #[must_use]
    pub const fn frames(self) -> u64 {
        self.bytes() >> 12
    }

    /// The name used in tables and on the command line: `4K`, `2M`, `1G`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size4K => "4K",
            Self::Size2M => "2M",
            Self::Size1G => "1G",
        }
    }
}

impl core::fmt::Display for PageSize {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl core::str::FromStr for PageSize {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|size| size.name().eq_ignore_ascii_case(s)).ok_or("expected one of 4K, 2M, 1G")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_sizes_agree() {
        for size in PageSize::ALL {
            assert_eq!(size.level().page_size(), Some(size));
            assert_eq!(size.name().parse(), Ok(size));
        }
        assert_eq!(Level::L4.page_size(), None);
        assert_eq!(Level::L1.below(), None);
        assert_eq!(Level::L5.above(), None);
        assert_eq!(Level::L2.entry_bytes(), 2 << 20);
        assert_eq!(PageSize::Size1G.frames(), 262_144);
    }
}
