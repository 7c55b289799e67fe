//! x86-64 paging: 4-level and 5-level tables of 512 8-byte entries.
//!
//! The same bits serve guest tables (GVA to GPA), shadow tables (GVA to HPA) and AMD's nested tables (GPA to HPA): the two
//! spaces are type parameters. Source: Intel SDM volume 3, section 4.5, tables 4-14 to 4-20; AMD APM volume 2, section 5.3.
//! Not modelled: protection keys (bits 62:59) and the bits 58:52 free for software read as 0.

use core::marker::PhantomData;

use memvirt_addr::{Frame, GuestPhys, GuestVirt, HostPhys, Level, Space};

use super::{ADDRESS, Attrs, BitMap, Entry, Format};

/// x86-64 paging with `N` levels (4 or 5), translating `In` to `Out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongMode<const N: u8, In = GuestVirt, Out = GuestPhys>(PhantomData<fn() -> (In, Out)>);

/// A guest's own 4-level tables.
pub type Guest4 = LongMode<4, GuestVirt, GuestPhys>;
/// 4-level shadow tables, and the tables of a machine without virtualization.
pub type Shadow4 = LongMode<4, GuestVirt, HostPhys>;
/// AMD nested page tables with 4 levels.
pub type Npt4 = LongMode<4, GuestPhys, HostPhys>;

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const LARGE_PAT: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;

/// R/W and U/S; PWT, PCD and A; the software bits 11:9.
const TABLE: BitMap<3> = BitMap([(0b110, 0), (0b111 << 3, 1), (0b111 << 9, 0)]);
/// As tables, and D beside A, G beside the software bits.
const LEAF: BitMap<3> = BitMap([(0b110, 0), (0b1111 << 3, 1), (0b1111 << 8, 0)]);

/// Where a leaf of `level` keeps PAT: bit 7 of a PTE, bit 12 of larger leaves.
const fn pat_bit(level: Level) -> u64 {
    match level {
        Level::L1 => LARGE,
        _ => LARGE_PAT,
    }
}

const fn read_and_exec(raw: u64) -> Attrs {
    if raw & NO_EXECUTE == 0 { Attrs::READ.union(Attrs::EXEC) } else { Attrs::READ }
}

impl<const N: u8, In: Space, Out: Space> LongMode<N, In, Out> {
    const ROOT_LEVEL: Level = {
        assert!(N == 4 || N == 5, "x86-64 paging has 4 or 5 levels");
        if N == 4 { Level::L4 } else { Level::L5 }
    };

    #[inline]
    fn leaf(raw: u64, level: Level) -> Entry<Out> {
        let Some(size) = level.page_size() else { return Entry::Reserved };
        let pat = pat_bit(level);
        let below = if level == Level::L1 { 0 } else { (size.bytes() - 1) & ADDRESS & !LARGE_PAT };
        if raw & below != 0 {
            return Entry::Reserved;
        }
        let mut attrs = LEAF.to_attrs(raw) | read_and_exec(raw);
        if raw & pat != 0 {
            attrs |= Attrs::PAT;
        }
        Entry::Leaf { frame: Frame::new((raw & ADDRESS) >> 12).align_down(size), size, attrs }
    }
}

impl<const N: u8, In: Space, Out: Space> Format for LongMode<N, In, Out> {
    type In = In;
    type Out = Out;
    const NAME: &'static str = if N == 4 { "x86-64, 4 levels" } else { "x86-64, 5 levels" };
    const ROOT: Level = Self::ROOT_LEVEL;
    const RAW_ACCESSED: u64 = 1 << 5;
    const RAW_DIRTY: u64 = 1 << 6;
    const RAW_WRITE: u64 = 1 << 1;

    fn supports(level: Level, leaf: bool) -> Attrs {
        let both = Attrs::READ | Attrs::EXEC;
        match (leaf, Self::has_leaves(level)) {
            (true, true) => LEAF.attrs() | both | Attrs::PAT,
            (true, false) => Attrs::empty(),
            (false, _) if level == Level::L1 => Attrs::empty(),
            (false, _) => TABLE.attrs() | both,
        }
    }

    fn implied(_level: Level, _leaf: bool) -> Attrs {
        Attrs::READ
    }

    #[inline]
    fn decode(raw: u64, level: Level) -> Entry<Out> {
        if raw & PRESENT == 0 {
            return Entry::Absent;
        }
        if level == Level::L1 || raw & LARGE != 0 {
            return Self::leaf(raw, level);
        }
        Entry::Table { next: Frame::new((raw & ADDRESS) >> 12), attrs: TABLE.to_attrs(raw) | read_and_exec(raw) }
    }

    #[inline]
    fn encode(entry: Entry<Out>, level: Level) -> u64 {
        let (frame, mut raw, attrs) = match entry {
            Entry::Leaf { frame, size, attrs } if level.page_size() == Some(size) => {
                let large = if level == Level::L1 { 0 } else { LARGE };
                let pat = if attrs.contains(Attrs::PAT) { pat_bit(level) } else { 0 };
                (frame.align_down(size), PRESENT | large | pat | LEAF.to_raw(attrs), attrs)
            }
            Entry::Table { next, attrs } if level != Level::L1 => (next, PRESENT | TABLE.to_raw(attrs), attrs),
            _ => return 0,
        };
        if !attrs.contains(Attrs::EXEC) {
            raw |= NO_EXECUTE;
        }
        raw | (frame.base().as_u64() & ADDRESS)
    }
}
