//! Kinds of access, the packed access [`Acc`] that hot loops run over, and page-fault error codes.

use core::fmt;

use crate::Gva;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AccessKind {
    /// A data load.
    Read = 0,
    /// A data store (or a read-modify-write, which needs write permission).
    Write = 1,
    /// An instruction fetch.
    Fetch = 2,
}

/// Who performs an access: CPL 3, or CPL 0 to 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Privilege {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2.
    Supervisor = 1,
}

/// One access, packed into 8 bytes: virtual address, kind and privilege. The hot path's unit.
///
/// Bits 0 to 56 hold the low bits of the canonical address, bit 61 the privilege, bits 62 and 63 the kind.
///
/// ```
/// use memvirt_addr::{Acc, AccessKind, Gva, Privilege};
/// let gva = Gva::new(0xffff_8880_0000_1008);
/// let acc = Acc::new(gva, AccessKind::Write, Privilege::Supervisor);
/// assert_eq!((acc.gva(), acc.kind(), acc.privilege()), (gva, AccessKind::Write, Privilege::Supervisor));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Acc(u64);

impl Acc {
    const ADDRESS: u64 = (1 << 57) - 1;
    const SUPERVISOR: u64 = 1 << 61;
    const KIND_SHIFT: u32 = 62;

    /// Packs an access.
    #[must_use]
    #[inline]
    pub const fn new(gva: Gva, kind: AccessKind, privilege: Privilege) -> Self {
        Self((gva.as_u64() & Self::ADDRESS) | ((privilege as u64) << 61) | ((kind as u64) << Self::KIND_SHIFT))
    }

    /// A user-mode access.
    #[must_use]
    #[inline]
    pub const fn user(gva: Gva, kind: AccessKind) -> Self {
        Self::new(gva, kind, Privilege::User)
    }

    /// A supervisor-mode access.
    #[must_use]
    #[inline]
    pub const fn supervisor(gva: Gva, kind: AccessKind) -> Self {
        Self::new(gva, kind, Privilege::Supervisor)
    }

    /// The virtual address.
    #[must_use]
    #[inline]
    pub const fn gva(self) -> Gva {
        Gva::new_truncate(self.0)
    }

    /// The low 57 bits of the virtual address shifted right by `shift`: what a TLB compares.
    #[must_use]
    #[inline]
    pub const fn page_bits(self, shift: u32) -> u64 {
        (self.0 & Self::ADDRESS) >> shift
    }

    /// The packed word, laid out as the type says: for loops that test kind and privilege of many accesses at once.
    ///
    /// ```
    /// use memvirt_addr::{Acc, AccessKind, Gva};
    /// let fetch = Acc::supervisor(Gva::new(0x1008), AccessKind::Fetch);
    /// assert_eq!(fetch.to_bits(), 0x1008 | 1 << 61 | (AccessKind::Fetch as u64) << 62);
    /// ```
    #[must_use]
    #[inline]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The kind of access.
    #[must_use]
    #[inline]
    pub const fn kind(self) -> AccessKind {
        match self.0 >> Self::KIND_SHIFT {
            0 => AccessKind::Read,
            1 => AccessKind::Write,
            _ => AccessKind::Fetch,
        }
    }

    /// The privilege.
    #[must_use]
    #[inline]
    pub const fn privilege(self) -> Privilege {
        if self.0 & Self::SUPERVISOR == 0 { Privilege::User } else { Privilege::Supervisor }
    }

    /// Whether the access needs write permission.
    #[must_use]
    #[inline]
    pub const fn is_write(self) -> bool {
        matches!(self.kind(), AccessKind::Write)
    }
}

impl fmt::Debug for Acc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.privilege(), self.kind(), self.gva())
    }
}

/// The error code of a page fault. Source: Intel SDM volume 3, section 4.7, figure 4-12.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PfCode(u32);

impl PfCode {
    /// The fault was a protection violation; clear: a page was not present.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in some entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (reported where NX or SMEP is on).
    pub const FETCH: u32 = 1 << 4;

    /// The code with these bits.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The code of a fault raised by `acc`: `PRESENT` where the translation exists but forbids the access.
    #[must_use]
    pub const fn of(acc: Acc, present: bool) -> Self {
        let mut bits = if present { Self::PRESENT } else { 0 };
        bits |= match acc.kind() {
            AccessKind::Read => 0,
            AccessKind::Write => Self::WRITE,
            AccessKind::Fetch => Self::FETCH,
        };
        if matches!(acc.privilege(), Privilege::User) {
            bits |= Self::USER;
        }
        Self(bits)
    }

    /// This code with the reserved-bit flag (which implies `PRESENT`).
    #[must_use]
    pub const fn with_reserved(self) -> Self {
        Self(self.0 | Self::RESERVED | Self::PRESENT)
    }

    /// All bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether every bit of `bits` is set.
    #[must_use]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

impl fmt::Debug for PfCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PfCode({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn packing_loses_nothing(raw: u64, kind in 0u8..3, supervisor: bool) {
            let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][usize::from(kind)];
            let privilege = if supervisor { Privilege::Supervisor } else { Privilege::User };
            let gva = Gva::new_truncate(raw);
            let acc = Acc::new(gva, kind, privilege);
            prop_assert_eq!(acc.gva(), gva);
            prop_assert_eq!(acc.kind(), kind);
            prop_assert_eq!(acc.privilege(), privilege);
            prop_assert_eq!(acc.to_bits() & Acc::ADDRESS, acc.page_bits(0));
            prop_assert_eq!(acc.to_bits() >> 61, (kind as u64) << 1 | privilege as u64);
            prop_assert_eq!(acc.page_bits(12), (gva.as_u64() & ((1 << 57) - 1)) >> 12);
        }
    }

    #[test]
    fn error_codes_name_the_access() {
        let store = Acc::user(Gva::new(0x1000), AccessKind::Write);
        assert_eq!(PfCode::of(store, true).bits(), 7);
        let fetch = Acc::supervisor(Gva::new(0x1000), AccessKind::Fetch);
        assert_eq!(PfCode::of(fetch, false).bits(), PfCode::FETCH);
        assert_eq!(PfCode::of(fetch, false).with_reserved().bits(), 0x19);
    }
}
