//! Intel extended page tables: GPA to HPA, with read, write and execute bits of their own.
//!
//! Source: Intel SDM volume 3, section 28.2.2 (format, tables 28-1 to 28-7) and 28.2.3.1 (misconfigurations). Execute-only
//! entries are taken as supported, as on every machine since Nehalem. Mode-based execute control is carried as a bit and
//! does not make an entry present by itself.

use core::marker::PhantomData;

use memvirt_addr::{Frame, GuestPhys, HostPhys, Level, Space};

use super::{ADDRESS, Attrs, BitMap, Entry, Format};

/// EPT with `N` levels (4 or 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept<const N: u8, In = GuestPhys, Out = HostPhys>(PhantomData<fn() -> (In, Out)>);

/// EPT with 4 levels, the usual form.
pub type Ept4 = Ept<4>;

const RWX: u64 = 0b111;
const LARGE: u64 = 1 << 7;
/// Memory type, ignore-PAT: reserved in entries that point to a table.
const LEAF_ONLY: u64 = 0b1111 << 3;

/// R and W; X; A and software bit 11; mode-based execute; software bits 53:52.
const TABLE: BitMap<5> = BitMap([(0b11, 0), (1 << 2, 1), (0x900, -2), (1 << 10, 7), (0b11 << 52, -42)]);
/// As tables, and D beside A; memory type and ignore-PAT; suppress #VE.
const LEAF: BitMap<7> =
    BitMap([TABLE.0[0], TABLE.0[1], (0xb00, -2), TABLE.0[3], TABLE.0[4], (LEAF_ONLY, 10), (1 << 63, -45)]);

impl<const N: u8, In: Space, Out: Space> Ept<N, In, Out> {
    const ROOT_LEVEL: Level = {
        assert!(N == 4 || N == 5, "EPT has 4 or 5 levels");
        if N == 4 { Level::L4 } else { Level::L5 }
    };

    #[inline]
    fn leaf(raw: u64, level: Level) -> Entry<Out> {
        let Some(size) = level.page_size() else { return Entry::Reserved };
        let memory_type = (raw >> 3) & 0b111;
        if matches!(memory_type, 2 | 3 | 7) || raw & ADDRESS & (size.bytes() - 1) != 0 {
            return Entry::Reserved;
        }
        Entry::Leaf { frame: Frame::new((raw & ADDRESS) >> 12), size, attrs: LEAF.to_attrs(raw) }
    }
}

impl<const N: u8, In: Space, Out: Space> Format for Ept<N, In, Out> {
    type In = In;
    type Out = Out;
    const NAME: &'static str = if N == 4 { "EPT, 4 levels" } else { "EPT, 5 levels" };
    const ROOT: Level = Self::ROOT_LEVEL;
    const RAW_ACCESSED: u64 = 1 << 8;
    const RAW_DIRTY: u64 = 1 << 9;
    const RAW_WRITE: u64 = 1 << 1;

    fn supports(level: Level, leaf: bool) -> Attrs {
        match (leaf, Self::has_leaves(level)) {
            (true, true) => LEAF.attrs(),
            (true, false) => Attrs::empty(),
            (false, _) if level == Level::L1 => Attrs::empty(),
            (false, _) => TABLE.attrs(),
        }
    }

    fn implied(_level: Level, _leaf: bool) -> Attrs {
        Attrs::empty()
    }

    #[inline]
    fn decode(raw: u64, level: Level) -> Entry<Out> {
        match raw & RWX {
            0 => return Entry::Absent,
            0b010 | 0b110 => return Entry::Reserved,
            _ => {}
        }
        if level == Level::L1 || raw & LARGE != 0 {
            return Self::leaf(raw, level);
        }
        if raw & LEAF_ONLY != 0 {
            return Entry::Reserved;
        }
        Entry::Table { next: Frame::new((raw & ADDRESS) >> 12), attrs: TABLE.to_attrs(raw) }
    }

    #[inline]
    fn encode(entry: Entry<Out>, level: Level) -> u64 {
        match entry {
            Entry::Leaf { frame, size, attrs } if level.page_size() == Some(size) => {
                let large = if level == Level::L1 { 0 } else { LARGE };
                (frame.align_down(size).base().as_u64() & ADDRESS) | large | LEAF.to_raw(attrs)
            }
            Entry::Table { next, attrs } if level != Level::L1 => {
                (next.base().as_u64() & ADDRESS) | TABLE.to_raw(attrs)
            }
            _ => 0,
        }
    }
}
