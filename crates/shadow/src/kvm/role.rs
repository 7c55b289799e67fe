//! What kind of shadow page it is: the word that, with the guest frame, identifies a shadow page.
//!
//! One guest table can have several shadow pages: one per level at which it is used, per access accumulated above it, per
//! paging mode. Source: spec A2; `union kvm_mmu_page_role` in `arch/x86/include/asm/kvm_host.h`. Roles of 32-bit guests
//! (quadrants), nested guests and system-management mode do not occur here.

use core::fmt;

use memvirt_platform::Regs;

/// Accumulated permissions, KVM's encoding: execute 1, write 2, user 4. Reading is implied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access(pub(crate) u8);

impl Access {
    pub(crate) const EXEC: u8 = 1;
    pub(crate) const WRITE: u8 = 2;
    pub(crate) const USER: u8 = 4;
    pub(crate) const ALL: Self = Self(7);

    pub(crate) const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    pub(crate) const fn with(self, bits: u8) -> Self {
        Self(self.0 | bits)
    }

    pub(crate) const fn without(self, bits: u8) -> Self {
        Self(self.0 & !bits)
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The role word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role(u32);

impl Role {
    const LEVEL: u32 = 0xf;
    const DIRECT: u32 = 1 << 7;
    const ACCESS_SHIFT: u32 = 8;
    const INVALID: u32 = 1 << 11;
    const EFER_NX: u32 = 1 << 12;
    const CR0_WP: u32 = 1 << 13;
    const SMEP_ANDNOT_WP: u32 = 1 << 14;

    /// The role of a slot without a page.
    pub(crate) const NONE: Self = Self(0);

    /// The role of a root under these registers (64-bit paging, no-execute always on for the shadow).
    pub(crate) fn root(regs: &Regs) -> Self {
        let mut word = 4 | u32::from(Access::ALL.0) << Self::ACCESS_SHIFT | Self::EFER_NX;
        if regs.write_protect {
            word |= Self::CR0_WP;
        } else if regs.smep {
            word |= Self::SMEP_ANDNOT_WP;
        }
        Self(word)
    }

    /// The role of a child: one level down, with the access accumulated on the way to it.
    pub(crate) const fn child(self, kind: Backing, access: Access) -> Self {
        let kept = self.0 & !(Self::LEVEL | Self::DIRECT | 7 << Self::ACCESS_SHIFT);
        let direct = if matches!(kind, Backing::Direct) { Self::DIRECT } else { 0 };
        Self(kept | (self.level() as u32 - 1) | direct | (access.0 as u32) << Self::ACCESS_SHIFT)
    }

    pub(crate) const fn level(self) -> u8 {
        (self.0 & Self::LEVEL) as u8
    }

    /// Whether the page stands for part of a large guest page, not for a guest table.
    pub(crate) const fn is_direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }

    pub(crate) const fn access(self) -> Access {
        Access((self.0 >> Self::ACCESS_SHIFT & 7) as u8)
    }

    /// Zapped while some vCPU still held it as a root.
    pub(crate) const fn is_invalid(self) -> bool {
        self.0 & Self::INVALID != 0
    }

    pub(crate) const fn invalidated(self) -> Self {
        Self(self.0 | Self::INVALID)
    }

    /// Whether the supervisor's stores respect read-only pages: CR0.WP is set.
    pub(crate) const fn respects_write_protection(self) -> bool {
        self.0 & Self::CR0_WP != 0
    }

    /// Whether a page of this role can be synced by a vCPU with this root role: same paging mode.
    pub(crate) const fn same_mode(self, root: Self) -> bool {
        (self.0 ^ root.0) & !(Self::LEVEL | 7 << Self::ACCESS_SHIFT) == 0
    }
}

/// What a shadow page is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A guest table.
    Table,
    /// A region inside a large guest page.
    Direct,
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.is_direct() { " direct" } else { "" };
        let invalid = if self.is_invalid() { " invalid" } else { "" };
        write!(f, "L{} access {:#05b}{direct}{invalid} ({:#x})", self.level(), self.access().0, self.0)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05b}", self.0)
    }
}
