//! One generic address, with its space as a type parameter.
//!
//! [`Addr<S>`] is a `u64` that is valid in its [`Space`]: virtual addresses are canonical for 57-bit linear addresses
//! (every 48-bit canonical address is), physical ones at most 52 bits wide (Intel SDM volume 3, sections 4.1 and 4.5).
//! There is no `+`: overflow is chosen at each call ([`Addr::checked_add`]).

use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;

use crate::{Level, PageSize};

mod sealed {
    #[expect(unnameable_types, reason = "this is how a trait is sealed")]
    pub trait Sealed {}
}

/// An address space. Sealed: the three spaces of a virtual machine, a fourth where hypervisors are nested, and no conversion
/// between them.
pub trait Space: sealed::Sealed + Copy + fmt::Debug + Ord + Hash + 'static {
    /// The prefix in debug output, as in `gpa:0x1000`.
    const NAME: &'static str;
    /// Address width in bits.
    const BITS: u32;
    /// Virtual addresses are sign-extended, physical ones are not.
    const SIGN_EXTENDED: bool;
}

macro_rules! space {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $bits:literal, $sign:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl Space for $name {
            const NAME: &'static str = $prefix;
            const BITS: u32 = $bits;
            const SIGN_EXTENDED: bool = $sign;
        }
    };
}

space!(
    /// The virtual address space of a guest process.
    GuestVirt, "gva", 57, true
);
space!(
    /// The memory a guest believes to be physical.
    GuestPhys, "gpa", 52, false
);
space!(
    /// What a hypervisor that is itself a guest (L1) believes to be the machine's memory: it lies between the guest-physical
    /// memory of its own guest (L2) and the host's.
    L1Phys, "l1pa", 52, false
);
space!(
    /// The memory of the machine, owned by the hypervisor.
    HostPhys, "hpa", 52, false
);

/// An address in space `S`. See the type aliases [`Gva`], [`Gpa`] and [`Hpa`].
#[repr(transparent)]
pub struct Addr<S: Space>(u64, PhantomData<S>);

/// Guest-virtual address.
pub type Gva = Addr<GuestVirt>;
/// Guest-physical address.
pub type Gpa = Addr<GuestPhys>;
/// Host-physical address.
pub type Hpa = Addr<HostPhys>;
/// Address in the memory of a hypervisor that is itself a guest.
pub type L1pa = Addr<L1Phys>;

/// A raw number is not an address of the space: not canonical, or too wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrError {
    /// The refused number.
    pub raw: u64,
    /// The name of the space: `gva`, `gpa` or `hpa`.
    pub space: &'static str,
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} is not a valid {} address", self.raw, self.space)
    }
}

impl core::error::Error for AddrError {}

impl<S: Space> Addr<S> {
    /// Address zero.
    pub const ZERO: Self = Self(0, PhantomData);

    /// The address with this number.
    ///
    /// # Panics
    ///
    /// Where the number is not an address of the space (see [`Addr::try_new`]). For constants and tests; data from
    /// outside goes through `try_new`.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        assert!(Self::is_valid(raw), "not an address of this space");
        Self(raw, PhantomData)
    }

    /// The address with this number.
    ///
    /// # Errors
    ///
    /// [`AddrError`] for a virtual address that is not canonical (bits above the width must equal the top bit) or a
    /// physical one wider than 52 bits.
    pub const fn try_new(raw: u64) -> Result<Self, AddrError> {
        if Self::is_valid(raw) { Ok(Self(raw, PhantomData)) } else { Err(AddrError { raw, space: S::NAME }) }
    }

    /// The address in the low bits of `raw`: higher bits are dropped, virtual addresses sign-extended.
    #[must_use]
    #[inline]
    pub const fn new_truncate(raw: u64) -> Self {
        Self(Self::canonical(raw), PhantomData)
    }

    const fn canonical(raw: u64) -> u64 {
        let spare = 64 - S::BITS;
        if S::SIGN_EXTENDED {
            #[expect(clippy::cast_sign_loss, reason = "sign extension on purpose")]
            #[expect(clippy::cast_possible_wrap, reason = "sign extension on purpose")]
            {
                (((raw << spare) as i64) >> spare) as u64
            }
        } else {
            (raw << spare) >> spare
        }
    }

    const fn is_valid(raw: u64) -> bool {
        Self::canonical(raw) == raw
    }

    /// The number of the address.
    #[must_use]
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The 4 KiB frame (or virtual page) that holds the address.
    #[must_use]
    #[inline]
    pub const fn frame(self) -> Frame<S> {
        Frame(self.0 >> 12, PhantomData)
    }

    /// The index into a 512-entry table of `level` that this address selects.
    #[must_use]
    #[inline]
    pub const fn index(self, level: Level) -> usize {
        ((self.0 >> level.entry_shift()) & 511) as usize
    }

    /// The first address of the page of `size` that holds this one.
    #[must_use]
    #[inline]
    pub const fn align_down(self, size: PageSize) -> Self {
        Self(self.0 & !(size.bytes() - 1), PhantomData)
    }

    /// Bytes between the start of the page of `size` and this address.
    #[must_use]
    #[inline]
    pub const fn page_offset(self, size: PageSize) -> u64 {
        self.0 & (size.bytes() - 1)
    }

    /// Whether the address is the start of a page of `size`.
    #[must_use]
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.page_offset(size) == 0
    }

    /// `self + bytes`, or `None` where that leaves the space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) if Self::is_valid(raw) => Some(Self(raw, PhantomData)),
            _ => None,
        }
    }

    /// `self + bytes`, wrapped into the width of the space.
    #[must_use]
    #[inline]
    pub const fn wrapping_add(self, bytes: u64) -> Self {
        Self::new_truncate(self.0.wrapping_add(bytes))
    }
}

/// The number of a 4 KiB frame (physical spaces) or page (virtual space): the address shifted right by 12.
#[repr(transparent)]
pub struct Frame<S: Space>(u64, PhantomData<S>);

/// Guest frame number.
pub type Gfn = Frame<GuestPhys>;
/// Host frame number.
pub type Hfn = Frame<HostPhys>;
/// Frame number in the memory of a hypervisor that is itself a guest.
pub type L1fn = Frame<L1Phys>;
/// Guest-virtual page number.
pub type Vpn = Frame<GuestVirt>;

impl<S: Space> Frame<S> {
    /// The frame with this number; bits above the width of the space are dropped.
    #[must_use]
    #[inline]
    pub const fn new(number: u64) -> Self {
        Self(Addr::<S>::canonical(number << 12) >> 12, PhantomData)
    }

    /// The number.
    #[must_use]
    #[inline]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The number as an index.
    ///
    /// # Panics
    ///
    /// Never on a 64-bit machine.
    #[must_use]
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "frame numbers have at most 52 bits; usize has 64")]
    pub const fn as_index(self) -> usize {
        self.0 as usize
    }

    /// The first address of the frame.
    #[must_use]
    #[inline]
    pub const fn base(self) -> Addr<S> {
        Addr::new_truncate(self.0 << 12)
    }

    /// The address `offset` bytes into the frame; the offset is taken modulo 4096.
    #[must_use]
    #[inline]
    pub const fn at(self, offset: u64) -> Addr<S> {
        Addr::new_truncate((self.0 << 12) | (offset & 0xfff))
    }

    /// The address of 8-byte entry `index` (modulo 512) of the table in this frame.
    #[must_use]
    #[inline]
    pub const fn entry(self, index: usize) -> Addr<S> {
        Addr::new_truncate((self.0 << 12) | ((index as u64 & 511) << 3))
    }

    /// The frame `count` frames further, wrapped into the width of the space.
    #[must_use]
    #[inline]
    pub const fn offset(self, count: u64) -> Self {
        Self::new(self.0.wrapping_add(count))
    }

    /// The first frame of the naturally aligned page of `size` that holds this frame.
    #[must_use]
    #[inline]
    pub const fn align_down(self, size: PageSize) -> Self {
        Self(self.0 & !(size.frames() - 1), PhantomData)
    }

    /// Whether the frame starts a page of `size`.
    #[must_use]
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.0 & (size.frames() - 1) == 0
    }
}

macro_rules! number_traits {
    ($name:ident, $tag:literal) => {
        impl<S: Space> Clone for $name<S> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<S: Space> Copy for $name<S> {}
        impl<S: Space> PartialEq for $name<S> {
            #[inline]
            fn eq(&self, other: &Self) -> bool {
                self.0 == other.0
            }
        }
        impl<S: Space> Eq for $name<S> {}
        impl<S: Space> PartialOrd for $name<S> {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        impl<S: Space> Ord for $name<S> {
            fn cmp(&self, other: &Self) -> Ordering {
                self.0.cmp(&other.0)
            }
        }
        impl<S: Space> Hash for $name<S> {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }
        impl<S: Space> fmt::Debug for $name<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}:{:#x}", S::NAME, $tag, self.0)
            }
        }
        impl<S: Space> fmt::Display for $name<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl<S: Space> fmt::LowerHex for $name<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

number_traits!(Addr, "");
number_traits!(Frame, "-frame");

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::format;

    #[test]
    fn widths_are_held_at_the_boundary() {
        assert!(Gva::try_new(0x00ff_ffff_ffff_ffff).is_ok());
        assert!(Gva::try_new(0x0100_0000_0000_0000).is_err());
        assert!(Gva::try_new(0xff00_0000_0000_0000).is_ok());
        assert!(Gva::try_new(0xfe00_0000_0000_0000).is_err());
        assert!(Gpa::try_new((1 << 52) - 1).is_ok());
        let refused = Hpa::try_new(1 << 52).unwrap_err();
        assert_eq!(format!("{refused}"), "0x10000000000000 is not a valid hpa address");
        assert_eq!(format!("{:?}", Gpa::new(0x1000)), "gpa:0x1000");
        assert_eq!(Gpa::new((1 << 52) - 1).checked_add(1), None);
    }

    #[test]
    #[should_panic(expected = "not an address of this space")]
    fn new_refuses_a_non_canonical_address() {
        let _ = Gva::new(1 << 60);
    }

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn truncated_addresses_are_valid(raw: u64) {
            prop_assert!(Gva::try_new(Gva::new_truncate(raw).as_u64()).is_ok());
            prop_assert!(Gpa::try_new(Gpa::new_truncate(raw).as_u64()).is_ok());
        }

        #[test]
        fn indices_and_offset_rebuild_the_address(raw in 0u64..1 << 48) {
            let gva = Gva::new(raw);
            let mut rebuilt = gva.page_offset(PageSize::Size4K);
            for level in &Level::ALL[..4] {
                rebuilt |= (gva.index(*level) as u64) << level.entry_shift();
            }
            prop_assert_eq!(rebuilt, raw);
        }

        #[test]
        fn frame_and_offset_rebuild_the_address(raw: u64) {
            let gva = Gva::new_truncate(raw);
            prop_assert_eq!(gva.frame().at(gva.page_offset(PageSize::Size4K)), gva);
            let gpa = Gpa::new_truncate(raw);
            prop_assert_eq!(gpa.frame().at(gpa.page_offset(PageSize::Size4K)), gpa);
        }
    }
}
