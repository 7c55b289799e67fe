//! PAE paging: 32-bit linear addresses, 3 levels, a root of 4 entries.
//!
//! Page directories and page tables are those of x86-64 with bits 62:52 reserved. The 4 entries of the root (PDPTE) have no
//! permissions and no accessed bit: only P, PWT, PCD, the address and the software bits 11:9; the others are reserved.
//! Source: Intel SDM volume 3, section 4.4, tables 4-8 to 4-11. A processor loads the 4 PDPTEs into registers when CR3 is
//! loaded and refuses that with #GP for reserved bits; here they are read as any entry, the root at the start of its frame.

use core::marker::PhantomData;

use memvirt_addr::{Addr, Frame, GuestPhys, GuestVirt, Level, Space};

use super::{ADDRESS, Attrs, BitMap, Entry, Format, LongMode};

/// PAE paging, translating `In` to `Out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pae<In = GuestVirt, Out = GuestPhys>(PhantomData<fn() -> (In, Out)>);

const PRESENT: u64 = 1 << 0;
const ROOT_LEVEL: Level = Level::L3;
/// PWT and PCD; the software bits 11:9.
const ROOT_ENTRY: BitMap<2> = BitMap([(0b11 << 3, 1), (0b111 << 9, 0)]);
/// Bits 2:1, 8:5 and 63:52 of a PDPTE.
const ROOT_RESERVED: u64 = 0b110 | 0b1111 << 5 | 0xfff << 52;
/// Bits 62:52 of a PDE or PTE.
const RESERVED: u64 = 0x7ff << 52;
/// A PDPTE restricts nothing.
const ROOT_PERMITS: Attrs = Attrs::PERMISSIONS;

impl<In: Space, Out: Space> Format for Pae<In, Out> {
    type In = In;
    type Out = Out;
    const NAME: &'static str = "PAE, 3 levels";
    const ROOT: Level = ROOT_LEVEL;
    const RAW_ACCESSED: u64 = 1 << 5;
    const RAW_DIRTY: u64 = 1 << 6;
    const RAW_WRITE: u64 = 1 << 1;

    #[inline]
    fn index_bits(level: Level) -> u32 {
        if level == ROOT_LEVEL { 2 } else { 9 }
    }

    #[inline]
    fn input(linear: u64) -> Addr<In> {
        Addr::new_truncate(linear & 0xffff_ffff)
    }

    fn supports(level: Level, leaf: bool) -> Attrs {
        match level {
            Level::L1 | Level::L2 => LongMode::<4, In, Out>::supports(level, leaf),
            Level::L3 if !leaf => ROOT_PERMITS | ROOT_ENTRY.attrs(),
            _ => Attrs::empty(),
        }
    }

    fn implied(level: Level, leaf: bool) -> Attrs {
        if level == ROOT_LEVEL { ROOT_PERMITS } else { LongMode::<4, In, Out>::implied(level, leaf) }
    }

    #[inline]
    fn accessed_bit(level: Level) -> u64 {
        if level == ROOT_LEVEL { 0 } else { Self::RAW_ACCESSED }
    }

    fn has_leaves(level: Level) -> bool {
        level < ROOT_LEVEL
    }

    #[inline]
    fn decode(raw: u64, level: Level) -> Entry<Out> {
        if raw & PRESENT == 0 {
            return Entry::Absent;
        }
        let reserved = if level < ROOT_LEVEL { RESERVED } else { ROOT_RESERVED };
        if raw & reserved != 0 || level > ROOT_LEVEL {
            return Entry::Reserved;
        }
        if level < ROOT_LEVEL {
            return LongMode::<4, In, Out>::decode(raw, level);
        }
        Entry::Table { next: Frame::new((raw & ADDRESS) >> 12), attrs: ROOT_PERMITS | ROOT_ENTRY.to_attrs(raw) }
    }

    #[inline]
    fn encode(entry: Entry<Out>, level: Level) -> u64 {
        match entry {
            Entry::Table { next, attrs } if level == ROOT_LEVEL => {
                (next.base().as_u64() & ADDRESS) | PRESENT | ROOT_ENTRY.to_raw(attrs)
            }
            _ if level < ROOT_LEVEL => LongMode::<4, In, Out>::encode(entry, level),
            _ => 0,
        }
    }
}
