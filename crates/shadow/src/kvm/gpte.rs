//! Entries of guest tables as KVM's software walk sees them.
//!
//! Source: `gpte_access`, `protect_clean_gpte` in `arch/x86/kvm/mmu/paging_tmpl.h`; Intel SDM volume 3, section 4.5.

use super::role::Access;

/// One guest entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gpte(pub(crate) u64);

impl Gpte {
    pub(crate) const A: u64 = 1 << 5;
    pub(crate) const D: u64 = 1 << 6;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    pub(crate) const fn is_accessed(self) -> bool {
        self.0 & Self::A != 0
    }

    pub(crate) const fn is_dirty(self) -> bool {
        self.0 & Self::D != 0
    }

    /// What the entry by itself grants.
    pub(crate) const fn access(self) -> Access {
        let bits = (self.0 & 6) as u8;
        Access(if self.0 >> 63 == 0 { bits | Access::EXEC } else { bits })
    }

    /// The frame that an entry of `level` points to or maps.
    pub(crate) const fn gfn(self, level: u8) -> u64 {
        (self.0 & Self::ADDRESS) >> 12 & !((1 << (9 * (level - 1))) - 1)
    }

    /// `access` without the right to write if the page is clean: the first store has to fault, so that D gets set.
    pub(crate) const fn protect_clean(self, access: Access) -> Access {
        if self.is_dirty() { access } else { access.without(Access::WRITE) }
    }
}
