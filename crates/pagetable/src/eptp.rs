//! The EPT pointer as a checked value: what VM entry and INVEPT accept.
//!
//! Source: Intel SDM volume 3, section 25.6.11, table 25-9 (format of the extended-page-table pointer); the checks are those
//! of VM entry, section 27.2.1.1. Enforcement for supervisor shadow-stack pages (bit 7) is not modelled and counts as
//! reserved, as on a processor without it. Addresses may use all 52 bits.

use core::fmt;

use memvirt_addr::{Frame, HostPhys, Hpa, Level};

/// How many levels an EPT walk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EptLevels {
    /// Rooted in a PML4 table.
    Four = 4,
    /// Rooted in a PML5 table.
    Five = 5,
}

impl EptLevels {
    /// The level of the root table.
    #[must_use]
    pub const fn root(self) -> Level {
        match self {
            Self::Four => Level::L4,
            Self::Five => Level::L5,
        }
    }
}

/// The memory type with which the processor reads the paging structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EptMemoryType {
    /// Type 0.
    Uncacheable = 0,
    /// Type 6.
    WriteBack = 6,
}

/// Whether the processor sets accessed and dirty bits in the EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EptAd {
    /// It does not; bits 8 and 9 of entries are ignored.
    Disabled,
    /// It does, and treats each access to a guest table as a write.
    Enabled,
}

/// An EPT pointer whose fields VM entry accepts.
///
/// ```
/// use memvirt_addr::Hfn;
/// use memvirt_pagetable::{Eptp, EptAd, EptLevels, EptMemoryType, EptpError};
///
/// let eptp = Eptp::new(Hfn::new(0x1234), EptLevels::Four, EptMemoryType::WriteBack, EptAd::Enabled);
/// assert_eq!(eptp.to_raw(), 0x123_405e);
/// assert_eq!(Eptp::try_from_raw(0x123_405e), Ok(eptp));
/// assert_eq!(Eptp::try_from_raw(0x123_4059), Err(EptpError::MemoryType { found: 1 }));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Eptp(u64);

const MEMORY_TYPE: u64 = 0b111;
const WALK_SHIFT: u32 = 3;
const ENABLE_AD: u64 = 1 << 6;
const SHADOW_STACK: u64 = 1 << 7;
const RESERVED: u64 = 0xf << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const HIGH: u64 = 0xfff << 52;

impl Eptp {
    /// The pointer to the root table in frame `root`.
    #[must_use]
    pub const fn new(root: Frame<HostPhys>, levels: EptLevels, memory_type: EptMemoryType, ad: EptAd) -> Self {
        let ad = match ad {
            EptAd::Disabled => 0,
            EptAd::Enabled => ENABLE_AD,
        };
        Self(root.base().as_u64() | ad | ((levels as u64 - 1) << WALK_SHIFT) | memory_type as u64)
    }

    /// The pointer with these bits.
    ///
    /// # Errors
    ///
    /// [`EptpError`] names the first field, from bit 0 up, that VM entry would refuse.
    pub const fn try_from_raw(raw: u64) -> Result<Self, EptpError> {
        let (memory_type, length) = ((raw & MEMORY_TYPE) as u8, ((raw >> WALK_SHIFT) & 0b111) as u8);
        if !matches!(memory_type, 0 | 6) {
            return Err(EptpError::MemoryType { found: memory_type });
        }
        if !matches!(length, 3 | 4) {
            return Err(EptpError::WalkLength { found: length + 1 });
        }
        if raw & SHADOW_STACK != 0 {
            return Err(EptpError::ShadowStack);
        }
        if raw & RESERVED != 0 {
            return Err(EptpError::Reserved { bits: raw & RESERVED });
        }
        if raw & HIGH != 0 {
            return Err(EptpError::TooWide { bits: raw & HIGH });
        }
        Ok(Self(raw))
    }

    /// The bits, as VMWRITE takes them.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// The frame of the root table.
    #[must_use]
    pub const fn root(self) -> Frame<HostPhys> {
        self.ep4ta().frame()
    }

    /// Bits 51:12, with which the processor tags cached mappings (EP4TA); also the address of the root table.
    #[must_use]
    pub const fn ep4ta(self) -> Hpa {
        Hpa::new_truncate(self.0 & ADDRESS)
    }

    /// How many levels a walk has.
    #[must_use]
    pub const fn levels(self) -> EptLevels {
        if (self.0 >> WALK_SHIFT) & 0b111 == 3 { EptLevels::Four } else { EptLevels::Five }
    }

    /// The memory type of the paging structures.
    #[must_use]
    pub const fn memory_type(self) -> EptMemoryType {
        if self.0 & MEMORY_TYPE == 0 { EptMemoryType::Uncacheable } else { EptMemoryType::WriteBack }
    }

    /// Whether accessed and dirty bits are set by the processor.
    #[must_use]
    pub const fn ad(self) -> EptAd {
        if self.0 & ENABLE_AD == 0 { EptAd::Disabled } else { EptAd::Enabled }
    }
}

impl fmt::Debug for Eptp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Eptp({:?}, {:?}, {:?}, A/D {:?})", self.root(), self.levels(), self.memory_type(), self.ad())
    }
}

/// The field of an EPT pointer that VM entry refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EptpError {
    /// Bits 2:0 are neither 0 nor 6.
    #[error("EPTP bits 2:0: memory type {found} is neither 0 (uncacheable) nor 6 (write-back)")]
    MemoryType {
        /// The memory type.
        found: u8,
    },
    /// Bits 5:3 (levels minus 1) are neither 3 nor 4.
    #[error("EPTP bits 5:3: a walk of {found} levels, where 4 or 5 are allowed (write the number minus 1)")]
    WalkLength {
        /// Bits 5:3 plus 1.
        found: u8,
    },
    /// Bit 7 asks for supervisor shadow-stack control, which is not modelled.
    #[error("EPTP bit 7: supervisor shadow-stack control is not supported and must be 0")]
    ShadowStack,
    /// Some of bits 11:8 are set.
    #[error("EPTP bits 11:8 are reserved and must be 0, found {bits:#x}")]
    Reserved {
        /// Those set, in place.
        bits: u64,
    },
    /// Some of bits 63:52 are set: beyond the widest physical address.
    #[error("EPTP bits 63:52 lie beyond the physical-address width and must be 0, found {bits:#x}")]
    TooWide {
        /// Those set, in place.
        bits: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_illegal_field_is_named() {
        let good = 0x5000 | 3 << 3 | 6;
        let case = |change: u64| Eptp::try_from_raw(good ^ change);
        assert!(case(0).is_ok());
        for memory_type in [1, 2, 3, 4, 5, 7] {
            assert_eq!(case(6 ^ u64::from(memory_type)), Err(EptpError::MemoryType { found: memory_type }));
        }
        for length in [0u8, 1, 2, 5, 6, 7] {
            let refused = case((3 ^ u64::from(length)) << 3);
            assert_eq!(refused, Err(EptpError::WalkLength { found: length + 1 }));
        }
        assert_eq!(case(1 << 7), Err(EptpError::ShadowStack));
        for bit in 8..12 {
            assert_eq!(case(1 << bit), Err(EptpError::Reserved { bits: 1 << bit }));
        }
        for bit in 52..64 {
            assert_eq!(case(1 << bit), Err(EptpError::TooWide { bits: 1 << bit }));
        }
    }

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn accepted_bits_are_kept(raw: u64) {
            // Biased towards legal values: most random numbers set a reserved bit.
            for raw in [raw, raw & (ADDRESS | 0x7f), (raw & (ADDRESS | ENABLE_AD)) | 0x1e] {
                if let Ok(eptp) = Eptp::try_from_raw(raw) {
                    prop_assert_eq!(eptp.to_raw(), raw);
                    prop_assert_eq!(Eptp::new(eptp.root(), eptp.levels(), eptp.memory_type(), eptp.ad()), eptp);
                }
            }
            prop_assert!(Eptp::try_from_raw((raw & (ADDRESS | ENABLE_AD)) | 0x1e).is_ok());
        }
    }
}
