//! Entries of shadow tables, bit for bit as KVM on AMD lays them out.
//!
//! Besides the bits that hardware reads, a leaf carries three of KVM's own: that it is present for KVM, that the host lets
//! the page be written, and that the MMU does. Source: spec A3, A16; `arch/x86/kvm/mmu/spte.{h,c}`.

use memvirt_addr::Hfn;

use super::role::Access;

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spte(pub(crate) u64);

/// What an MMIO entry remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mmio {
    pub(crate) gfn: u64,
    pub(crate) access: Access,
    pub(crate) generation: u32,
}

impl Spte {
    pub(crate) const ABSENT: Self = Self(0);
    pub(crate) const P: u64 = 1 << 0;
    pub(crate) const W: u64 = 1 << 1;
    pub(crate) const U: u64 = 1 << 2;
    pub(crate) const A: u64 = 1 << 5;
    pub(crate) const D: u64 = 1 << 6;
    pub(crate) const LARGE: u64 = 1 << 7;
    /// The host lets the page be written. Fixed while the entry is present.
    pub(crate) const HOST_WRITABLE: u64 = 1 << 9;
    /// No shadow page forbids that the page be written.
    pub(crate) const MMU_WRITABLE: u64 = 1 << 10;
    /// Present for KVM, as opposed to an MMIO entry, which hardware takes for present.
    pub(crate) const MMU_PRESENT: u64 = 1 << 11;
    pub(crate) const NX: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Address bits above the host's physical width: hardware refuses an entry that has one set.
    pub(crate) const RESERVED: u64 = 0x000f_c000_0000_0000;
    const MMIO: u64 = 1 << 51;

    /// A link to a table: all permissions, which live in the leaf and in the role.
    pub(crate) fn link(table: Hfn) -> Self {
        Self(Self::MMU_PRESENT | table.base().as_u64() | Self::P | Self::W | Self::U | Self::A)
    }

    /// An MMIO entry: a reserved bit makes hardware fault with RSVD; the rest saves KVM the walk.
    pub(crate) fn mmio(of: Mmio) -> Self {
        let generation = u64::from(of.generation);
        let access = u64::from(of.access.0 & (Access::WRITE | Access::USER));
        let low = (generation & 0xff) << 3;
        let high = (generation >> 8 & 0x7ff) << 52;
        Self(Self::MMIO | Self::P | access | low | high | (of.gfn << 12 & (Self::MMIO - 1) & Self::ADDRESS))
    }

    /// The MMIO entry that this is, if it is one.
    pub(crate) fn as_mmio(self) -> Option<Mmio> {
        if self.0 & (Self::MMIO | Self::P | Self::MMU_PRESENT) != Self::MMIO | Self::P {
            return None;
        }
        let generation = (self.0 >> 3 & 0xff | (self.0 >> 52 & 0x7ff) << 8) & 0x7_ffff;
        Some(Mmio {
            gfn: (self.0 & Self::ADDRESS & (Self::MMIO - 1)) >> 12,
            access: Access((self.0 & 6) as u8),
            generation: generation as u32,
        })
    }

    pub(crate) const fn is_present(self) -> bool {
        self.0 & Self::MMU_PRESENT != 0
    }

    pub(crate) const fn is_writable(self) -> bool {
        self.0 & Self::W != 0
    }

    pub(crate) const fn is_mmu_writable(self) -> bool {
        self.0 & Self::MMU_WRITABLE != 0
    }

    pub(crate) const fn is_host_writable(self) -> bool {
        self.0 & Self::HOST_WRITABLE != 0
    }

    pub(crate) const fn is_large(self) -> bool {
        self.0 & Self::LARGE != 0
    }

    /// Whether a present entry of a table of `level` is a leaf.
    pub(crate) const fn is_leaf(self, level: u8) -> bool {
        level == 1 || self.is_large()
    }

    pub(crate) fn frame(self) -> Hfn {
        Hfn::new((self.0 & Self::ADDRESS) >> 12)
    }

    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    const fn lost(self, new: Self, bit: u64) -> bool {
        self.0 & bit != 0 && new.0 & bit == 0
    }

    /// Whether replacing this entry by `new` (same page) leaves translations behind that hardware must forget: a page that
    /// could be written becomes read-only, or the accessed or dirty state is lost. (`mmu_spte_update`)
    pub(crate) const fn needs_flush(self, new: Self) -> bool {
        self.is_present()
            && (self.is_mmu_writable() && !new.is_writable() || self.lost(new, Self::A) || self.lost(new, Self::D))
    }

    /// Whether the writable bits of a present leaf are in one of the four states that KVM knows: all three set, hardware's
    /// clear, the host's alone, none.
    pub(crate) const fn writable_bits_are_sane(self) -> bool {
        matches!(
            (self.is_host_writable(), self.is_mmu_writable(), self.is_writable()),
            (true, true, _) | (_, false, false)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn an_mmio_entry_keeps_what_it_was_given(gfn in 0u64..1 << 34, access in 0u8..8, generation in 0u32..1 << 19) {
            let given = Mmio { gfn, access: Access(access & 6), generation };
            let entry = Spte::mmio(given);
            prop_assert_eq!(entry.as_mmio(), Some(given));
            prop_assert!(!entry.is_present() && entry.0 & Spte::RESERVED != 0 && entry.0 & Spte::P != 0);
        }

        #[test]
        fn links_and_leaves_are_no_mmio_entries(frame in 1u64..1 << 30, bits in 0u64..128) {
            prop_assert_eq!(Spte::link(Hfn::new(frame)).as_mmio(), None);
            prop_assert_eq!(Spte(Spte::MMU_PRESENT | frame << 12 | bits).as_mmio(), None);
        }
    }

    #[test]
    fn a_flush_is_needed_where_rights_or_history_are_lost() {
        let w = Spte(Spte::MMU_PRESENT | Spte::P | Spte::W | Spte::MMU_WRITABLE | Spte::HOST_WRITABLE);
        let logged = w.without(Spte::W);
        assert!(w.needs_flush(w.without(Spte::W | Spte::MMU_WRITABLE)));
        assert!(logged.needs_flush(logged), "MMU-writable and read-only: some CPU may still cache the writable entry");
        assert!(!w.needs_flush(w.with(Spte::A | Spte::D)));
        assert!(w.with(Spte::A).needs_flush(w));
        assert!(w.with(Spte::D).needs_flush(w));
        assert!(!Spte::ABSENT.needs_flush(w));
    }
}
