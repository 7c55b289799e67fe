//! Paging-structure formats: how bits become meaning, and nothing else.
//!
//! A [`Format`] says how many levels a tree has, which index bits select an entry and how the raw bits of an entry decode to
//! an [`Entry`] and back. Walks, mappings and allocation live elsewhere and are written once for all formats.

mod ept;
mod long_mode;
mod pae;

use core::fmt::Debug;

use bitflags::bitflags;
use memvirt_addr::{Addr, Frame, Level, PageSize, Space};

pub use ept::{Ept, Ept4};
pub use long_mode::{Guest4, LongMode, Npt4, Shadow4};
pub use pae::Pae;

bitflags! {
    /// What an entry permits and carries, independent of where a format keeps the bit.
    ///
    /// The numbers are chosen so that runs of bits keep their order in the formats: decoding is a few shifts.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Attrs: u32 {
        /// Loads. Implied by presence in the x86-64 formats, a bit of its own in EPT.
        const READ = 1 << 0;
        /// Stores.
        const WRITE = 1 << 1;
        /// User-mode accesses (x86-64 only).
        const USER = 1 << 2;
        /// Instruction fetches (x86-64: NX clear; EPT: X, for supervisor mode where mode-based execute control is on).
        const EXEC = 1 << 3;
        /// PWT (x86-64).
        const WRITE_THROUGH = 1 << 4;
        /// PCD (x86-64).
        const CACHE_DISABLE = 1 << 5;
        /// Set by hardware when the entry is used.
        const ACCESSED = 1 << 6;
        /// Set by hardware when the page is stored to. Leaves only.
        const DIRTY = 1 << 7;
        /// Survives CR3 loads while CR4.PGE is set (x86-64 leaves).
        const GLOBAL = 1 << 8;
        /// First bit free for software (x86-64 bit 9, EPT bit 11).
        const SOFT_0 = 1 << 9;
        /// Second bit free for software (x86-64 bit 10, EPT bit 52).
        const SOFT_1 = 1 << 10;
        /// Third bit free for software (x86-64 bit 11, EPT bit 53).
        const SOFT_2 = 1 << 11;
        /// PAT (x86-64 leaves; bit 7 of a PTE, bit 12 of larger leaves).
        const PAT = 1 << 12;
        /// Bit 0 of the EPT memory type (leaves). UC = 0, WC = 1, WT = 4, WP = 5, WB = 6.
        const MEMTYPE_0 = 1 << 13;
        /// Bit 1 of the EPT memory type.
        const MEMTYPE_1 = 1 << 14;
        /// Bit 2 of the EPT memory type.
        const MEMTYPE_2 = 1 << 15;
        /// Ignore PAT (EPT leaves).
        const IGNORE_PAT = 1 << 16;
        /// User-mode fetches under mode-based execute control (EPT bit 10).
        const USER_EXEC = 1 << 17;
        /// Suppress #VE (EPT bit 63).
        const SUPPRESS_VE = 1 << 18;

        /// The permissions that accumulate (AND) along a walk.
        const PERMISSIONS = Self::READ.bits() | Self::WRITE.bits() | Self::EXEC.bits() | Self::USER.bits();
        /// Loads, stores and fetches: a kernel's own mapping.
        const RWX = Self::READ.bits() | Self::WRITE.bits() | Self::EXEC.bits();
        /// EPT memory type 6, write-back.
        const WRITE_BACK = Self::MEMTYPE_1.bits() | Self::MEMTYPE_2.bits();
    }
}

/// A decoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<Out: Space> {
    /// Nothing is mapped here.
    Absent,
    /// Points to the table of the next lower level.
    Table {
        /// The frame of that table.
        next: Frame<Out>,
        /// Permissions and flags of the entry.
        attrs: Attrs,
    },
    /// Maps a page.
    Leaf {
        /// The first frame of the page; aligned to its size.
        frame: Frame<Out>,
        /// The page's size; follows from the level.
        size: PageSize,
        /// Permissions and flags of the entry.
        attrs: Attrs,
    },
    /// Present, with bits that the format reserves: a reserved-bit page fault, or an EPT misconfiguration.
    Reserved,
}

impl<Out: Space> Entry<Out> {
    /// Whether the entry maps a page or points to a table.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        matches!(self, Self::Table { .. } | Self::Leaf { .. })
    }

    /// The attributes; empty for absent and reserved entries.
    #[must_use]
    pub const fn attrs(&self) -> Attrs {
        match self {
            Self::Table { attrs, .. } | Self::Leaf { attrs, .. } => *attrs,
            Self::Absent | Self::Reserved => Attrs::empty(),
        }
    }

    /// The entry with its attributes changed by `change`; absent and reserved entries stay what they are.
    #[must_use]
    pub fn map_attrs(self, change: impl FnOnce(Attrs) -> Attrs) -> Self {
        match self {
            Self::Table { next, attrs } => Self::Table { next, attrs: change(attrs) },
            Self::Leaf { frame, size, attrs } => Self::Leaf { frame, size, attrs: change(attrs) },
            other => other,
        }
    }
}

/// One paging-structure format.
///
/// `decode(encode(e, l), l) == e` for every entry that is valid at level `l`: its attributes lie between
/// [`Format::implied`] and [`Format::supports`], and the format does not reserve their combination.
pub trait Format: Copy + Debug + Eq + 'static {
    /// The space of the addresses that the tables translate.
    type In: Space;
    /// The space in which the tables lie and the pages they map.
    type Out: Space;

    /// The name used in tables and plots.
    const NAME: &'static str;
    /// The level of the root table.
    const ROOT: Level;
    /// The ACCESSED bit of an entry, as it lies in memory.
    const RAW_ACCESSED: u64;
    /// The DIRTY bit of a leaf, as it lies in memory.
    const RAW_DIRTY: u64;
    /// The WRITE bit of an entry, as it lies in memory.
    const RAW_WRITE: u64;

    /// Index bits of `level`: 9, save for special roots (PAE: 2).
    #[must_use]
    fn index_bits(level: Level) -> u32 {
        let _ = level;
        9
    }

    /// The index that `at` selects in a table of `level`.
    #[must_use]
    #[inline]
    fn index(at: Addr<Self::In>, level: Level) -> usize {
        at.index(level) & ((1 << Self::index_bits(level)) - 1)
    }

    /// How many entries a table of `level` has.
    #[must_use]
    fn entries(level: Level) -> usize {
        1 << Self::index_bits(level)
    }

    /// How many low bits of an input address the tables translate: 48 for 4 levels, 57 for 5, never more than the space has.
    #[must_use]
    fn input_bits() -> u32 {
        (Self::ROOT.entry_shift() + Self::index_bits(Self::ROOT)).min(Self::In::BITS)
    }

    /// The input address with these low [`Format::input_bits`]; virtual addresses are sign-extended from the highest.
    #[must_use]
    fn input(linear: u64) -> Addr<Self::In> {
        let spare = 64 - Self::input_bits();
        let sign = if Self::In::SIGN_EXTENDED { u64::MAX } else { 0 };
        let high = if (linear << spare) >> 63 == 1 { sign & !(u64::MAX >> spare) } else { 0 };
        Addr::new_truncate(((linear << spare) >> spare) | high)
    }

    /// Whether the tables can translate `at`: canonical for this number of levels, or within a physical space's width.
    #[must_use]
    #[inline]
    fn covers(at: Addr<Self::In>) -> bool {
        Self::input(at.as_u64()) == at
    }

    /// The first address of the upper half, where the space is sign-extended and has one.
    #[must_use]
    fn upper_half() -> Option<Addr<Self::In>> {
        let first = Self::input(1 << (Self::input_bits() - 1));
        (first.as_u64() >> 63 == 1).then_some(first)
    }

    /// The attributes that an entry of `level` can carry; `leaf` tells leaves from pointers to tables.
    #[must_use]
    fn supports(level: Level, leaf: bool) -> Attrs;

    /// The attributes that every present entry of `level` has, whatever its bits: they cannot be taken away.
    #[must_use]
    fn implied(level: Level, leaf: bool) -> Attrs;

    /// The accessed bit of an entry of `level`, as it lies in memory; 0 where such entries have none.
    #[must_use]
    #[inline]
    fn accessed_bit(level: Level) -> u64 {
        let _ = level;
        Self::RAW_ACCESSED
    }

    /// Whether `level` can hold leaf entries.
    #[must_use]
    fn has_leaves(level: Level) -> bool {
        level.page_size().is_some()
    }

    /// What the raw bits mean at `level`.
    #[must_use]
    fn decode(raw: u64, level: Level) -> Entry<Self::Out>;

    /// The raw bits of `entry` at `level`. Attributes that the format does not support there are dropped; an entry that the
    /// level cannot hold (a leaf at level 4, a table at level 1) and `Reserved` encode to 0.
    #[must_use]
    fn encode(entry: Entry<Self::Out>, level: Level) -> u64;
}

/// Copies runs of attribute bits to raw bits and back: each run is its mask in the raw entry and how far to the left it lies
/// in [`Attrs`] (negative: to the right).
#[derive(Clone, Copy)]
pub(crate) struct BitMap<const N: usize>(pub(crate) [(u64, i8); N]);

impl<const N: usize> BitMap<N> {
    #[inline]
    pub(crate) const fn to_raw(self, attrs: Attrs) -> u64 {
        let (mut raw, mut run) = (0, 0);
        while run < N {
            let (mask, left) = self.0[run];
            raw |= shift(attrs.bits() as u64, -left) & mask;
            run += 1;
        }
        raw
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "every run lands within the bits of Attrs; a test compares all"
    )]
    pub(crate) const fn to_attrs(self, raw: u64) -> Attrs {
        let (mut bits, mut run) = (0, 0);
        while run < N {
            let (mask, left) = self.0[run];
            bits |= shift(raw & mask, left) as u32;
            run += 1;
        }
        Attrs::from_bits_retain(bits)
    }

    /// Every attribute that the map knows.
    pub(crate) const fn attrs(self) -> Attrs {
        self.to_attrs(u64::MAX)
    }
}

const fn shift(bits: u64, left: i8) -> u64 {
    if left >= 0 { bits << left } else { bits >> -left }
}

/// Physical-address bits 51:12 of an entry.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
