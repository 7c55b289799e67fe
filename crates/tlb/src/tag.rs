//! [`Tag`]: whom a cached translation belongs to.
//!
//! A translation is tagged with a VPID (Intel, SDM volume 3, section 28.1) or ASID (AMD, APM volume 2, section 15.16)
//! and with a PCID (SDM volume 3, section 4.10.1). Without virtualization the VPID is 0, without PCIDs the PCID is 0.

use core::fmt;

/// Whom a cached entry belongs to: a VPID or ASID (16 bits) and a PCID (12 bits).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    vpid: u16,
    pcid: u16,
}

impl Tag {
    /// The largest PCID.
    pub const PCID_MAX: u16 = 0xfff;

    /// The tag of process `pcid` in virtual machine (or vCPU) `vpid`. Bits 12 and above of `pcid` are dropped, as CR3
    /// has no room for them.
    #[must_use]
    #[inline]
    pub const fn new(vpid: u16, pcid: u16) -> Self {
        Self { vpid, pcid: pcid & Self::PCID_MAX }
    }

    /// The VPID or ASID.
    #[must_use]
    #[inline]
    pub const fn vpid(self) -> u16 {
        self.vpid
    }

    /// The PCID, 0 to 4095.
    #[must_use]
    #[inline]
    pub const fn pcid(self) -> u16 {
        self.pcid
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vpid:{} pcid:{}", self.vpid(), self.pcid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_packing_at_their_bounds() {
        for vpid in [0, 1, u16::MAX] {
            for pcid in [0, 1, Tag::PCID_MAX] {
                let tag = Tag::new(vpid, pcid);
                assert_eq!((tag.vpid(), tag.pcid()), (vpid, pcid));
            }
        }
        assert_eq!(Tag::new(3, 0x1000), Tag::new(3, 0));
    }
}
