//! The second stage: how a nested format checks an access and what it records.
//!
//! EPT and NPT differ in what their permissions mean and in how the references of the guest's walk count. Sources: Intel SDM
//! volume 3, sections 28.2.3 (EPT violations) and 28.2.4 (accessed and dirty flags); AMD APM volume 2, section 15.25 (every
//! nested access is a user access; guest page-table references are writes).

use memvirt_addr::{AccessKind, Gpa, GuestPhys, HostPhys, Level};
use memvirt_pagetable::{Attrs, Entry, Ept, Format, LongMode};

/// Address bit 51, which no entry may set: simulated machines have physical addresses of at most 51 bits.
const BEYOND_MEMORY: u64 = 1 << 51;

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

/// The bits of a device's entry that hold its generation: 19.
pub(crate) const DEVICE_GENERATION: u32 = (1 << 19) - 1;
/// Bits 2:0 and 51, which tell a device's entry from others.
const DEVICE_MARK: u64 = 0b111 | BEYOND_MEMORY;

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
    /// Raw bits that no entry of level 1 may have, so that hardware stops at it: what KVM puts into entries of devices
    /// (`kvm_mmu_set_ept_masks`, `kvm_mmu_reset_all_pte_masks`).
    const DEVICE: u64;

    /// The bits of an entry that points to a table, permits everything and is nothing special: those that tell it, and their
    /// values. Most entries are such; hot paths know them without decoding.
    const PLAIN_TABLE: (u64, u64);
    /// The same of an entry of level 1 that maps a page.
    const PLAIN_LEAF: (u64, u64);

    /// What hardware makes of an entry: [`Format::decode`], and an address wider than the machine's is reserved.
    #[must_use]
    #[inline]
    fn read(raw: u64, level: Level) -> Entry<HostPhys> {
        let entry = Self::decode(raw, level);
        if raw & BEYOND_MEMORY != 0 && entry.is_present() { Entry::Reserved } else { entry }
    }

    /// The raw entry of a device's page: illegal bits, the page's address and a 19-bit generation in bits that hardware does
    /// not look at then (KVM's `make_mmio_spte`).
    #[must_use]
    fn device_entry(gpa: Gpa, generation: u32) -> u64 {
        let address = gpa.frame().base().as_u64() & (BEYOND_MEMORY - 1);
        let generation = u64::from(generation & DEVICE_GENERATION);
        Self::DEVICE | address | (generation & 0xff) << 3 | generation >> 8 << 52
    }

    /// The generation of a device's entry; `None` for any other entry.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "19 bits")]
    fn device_generation(raw: u64) -> Option<u32> {
        (raw & DEVICE_MARK == Self::DEVICE).then_some((raw >> 3 & 0xff | (raw >> 52 & 0x7ff) << 8) as u32)
    }

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
    /// W and X without R.
    const DEVICE: u64 = 0b110;
    /// R, W, X; bits 3 to 7 of a pointer are 0.
    const PLAIN_TABLE: (u64, u64) = (BEYOND_MEMORY | 0b1111_1111, 0b111);
    /// R, W, X, and the memory type write-back.
    const PLAIN_LEAF: (u64, u64) = (BEYOND_MEMORY | 0b11_1111, 6 << 3 | 0b111);
}

impl<const N: u8> SecondStage for LongMode<N, GuestPhys, HostPhys> {
    const LEAF: Attrs = Attrs::RWX.union(Attrs::USER);
    const TABLE: Attrs = Attrs::RWX.union(Attrs::USER);
    const AD_OPTIONAL: bool = false;
    const BASE: Attrs = Attrs::USER;
    /// Present, with a reserved address bit.
    const DEVICE: u64 = BEYOND_MEMORY | 1;
    /// P, W, U; neither NX nor PS.
    const PLAIN_TABLE: (u64, u64) = (BEYOND_MEMORY | 1 << 63 | 1 << 7 | 0b111, 0b111);
    /// P, W, U; not NX.
    const PLAIN_LEAF: (u64, u64) = (BEYOND_MEMORY | 1 << 63 | 0b111, 0b111);
}
