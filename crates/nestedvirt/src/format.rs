//! Tables of 2 to 5 levels: one entry format, the root at any level.
//!
//! Hardware has x86-64 tables and EPT of 4 and 5 levels. The published counts of one fault are given for any depth, so the depth
//! is a number here: [`Depth`] takes the entries of a format (512 of 8 bytes in each table) and puts the root at level `N`. With
//! 4 and 5 that is the hardware's format bit by bit; with 2 and 3 it is the same radix tree cut off, for the counts alone.

use core::fmt::Debug;
use core::marker::PhantomData;

use memvirt_addr::{GuestPhys, GuestVirt, HostPhys, L1Phys, Level};
use memvirt_pagetable::{Attrs, Entry, Ept, Format, LongMode};

/// The entries of `F` under a root of level `N`, 2 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth<const N: u8, F>(PhantomData<fn() -> F>);

/// L2's own tables, in L2-physical memory.
pub type Guest<const N: u8> = Depth<N, LongMode<5, GuestVirt, GuestPhys>>;
/// L1's shadow of them (SPT12), in L1-physical memory.
pub type Shadow12<const N: u8> = Depth<N, LongMode<5, GuestVirt, L1Phys>>;
/// L1's nested tables for L2 (EPT12), in L1-physical memory.
pub type Ept12<const N: u8> = Depth<N, Ept<5, GuestPhys, L1Phys>>;
/// L0's nested tables for L1 (EPT01), in host memory: 4 levels whatever the guest's depth.
pub type Nested01 = Ept<4, L1Phys, HostPhys>;
/// EPT12 and EPT01 in one (EPT02), in host memory.
pub type Merged02<const N: u8> = Depth<N, Ept<5, GuestPhys, HostPhys>>;

const fn root(levels: u8) -> Level {
    match levels {
        2 => Level::L2,
        3 => Level::L3,
        4 => Level::L4,
        5 => Level::L5,
        _ => panic!("tables have 2 to 5 levels"),
    }
}

impl<const N: u8, F: Format> Format for Depth<N, F> {
    type In = F::In;
    type Out = F::Out;
    const NAME: &'static str = F::NAME;
    const ROOT: Level = root(N);
    const RAW_ACCESSED: u64 = F::RAW_ACCESSED;
    const RAW_DIRTY: u64 = F::RAW_DIRTY;
    const RAW_WRITE: u64 = F::RAW_WRITE;

    fn supports(level: Level, leaf: bool) -> Attrs {
        F::supports(level, leaf)
    }

    fn implied(level: Level, leaf: bool) -> Attrs {
        F::implied(level, leaf)
    }

    #[inline]
    fn decode(raw: u64, level: Level) -> Entry<F::Out> {
        F::decode(raw, level)
    }

    #[inline]
    fn encode(entry: Entry<F::Out>, level: Level) -> u64 {
        F::encode(entry, level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_addr::Gva;
    use memvirt_pagetable::Guest4;

    #[test]
    fn four_levels_are_the_hardwares_own() {
        for raw in [0, 0x1027, 0x20_00e7, 0x8000_0000_0000_1025, 0x1067, 0xffff_ffff_ffff_ffff] {
            for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
                assert_eq!(Guest::<4>::decode(raw, level), Guest4::decode(raw, level), "{raw:#x} at {level:?}");
            }
        }
        assert_eq!((Guest::<4>::ROOT, Guest::<4>::input_bits()), (Guest4::ROOT, Guest4::input_bits()));
    }

    #[test]
    fn a_tree_of_n_levels_translates_nine_bits_for_each() {
        assert_eq!(Guest::<2>::input_bits(), 30);
        assert_eq!(Guest::<3>::input_bits(), 39);
        assert_eq!(Guest::<5>::input_bits(), 57);
        assert!(Guest::<2>::covers(Gva::new(0x1fff_f000)) && !Guest::<2>::covers(Gva::new(0x4000_0000)));
    }
}
