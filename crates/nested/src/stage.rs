//! The second stage: how a nested format checks an access and what it records.
//!
//! EPT and NPT differ in what their permissions mean and in how the references of the guest's walk count. Sources: Intel SDM
//! volume 3, sections 28.2.3 (EPT violations) and 28.2.4 (accessed and dirty flags); AMD APM volume 2, section 15.25 (every
//! nested access is a user access; guest page-table references are writes).

use memvirt_addr::{AccessKind, GuestPhys, HostPhys};
use memvirt_pagetable::{Attrs, Ept, Format, LongMode};

/// Whether hardware maintains accessed and dirty bits in the nested tables (EPTP bit 6; always on under NPT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdBits {
    /// It does. References to guest tables then count as writes.
    On,
    /// It does not. References to guest tables are reads, save where a guest A or D bit must be set.
    Off,
}

/// What an access asks of the nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Permissions needed at every level.
    pub perms: Attrs,
    /// Whether the page will be stored to.
    pub write: bool,
}

/// A format of nested tables.
pub trait SecondStage: Format<In = GuestPhys, Out = HostPhys> {
    /// The attributes of a leaf that permits everything, as a hypervisor installs it.
    const LEAF: Attrs;
    /// The attributes of entries that point to tables.
    const TABLE: Attrs;
    /// Whether accessed and dirty bits can be switched off.
    const AD_OPTIONAL: bool;
    /// Permission to access at all: R in EPT, U in NPT.
    const BASE: Attrs;

    /// What reading an entry of a guest table needs.
    #[must_use]
    fn table_read(ad: AdBits) -> Want {
        match ad {
            AdBits::On => Want { perms: Self::BASE | Attrs::READ | Attrs::WRITE, write: true },
            AdBits::Off => Want { perms: Self::BASE | Attrs::READ, write: false },
        }
    }

    /// What setting an accessed or dirty bit in a guest table needs.
    #[must_use]
    fn table_update() -> Want {
        Want { perms: Self::BASE | Attrs::READ | Attrs::WRITE, write: true }
    }

    /// What the guest's access itself needs.
    #[must_use]
    fn data(kind: AccessKind) -> Want {
        match kind {
            AccessKind::Read => Want { perms: Self::BASE | Attrs::READ, write: false },
            AccessKind::Write => Want { perms: Self::BASE | Attrs::WRITE, write: true },
            AccessKind::Fetch => Want { perms: Self::BASE | Attrs::EXEC, write: false },
        }
    }
}

impl<const N: u8> SecondStage for Ept<N> {
    const LEAF: Attrs = Attrs::RWX.union(Attrs::WRITE_BACK);
    const TABLE: Attrs = Attrs::RWX;
    const AD_OPTIONAL: bool = true;
    const BASE: Attrs = Attrs::empty();
}

impl<const N: u8> SecondStage for LongMode<N, GuestPhys, HostPhys> {
    const LEAF: Attrs = Attrs::RWX.union(Attrs::USER);
    const TABLE: Attrs = Attrs::RWX.union(Attrs::USER);
    const AD_OPTIONAL: bool = false;
    const BASE: Attrs = Attrs::USER;
}
