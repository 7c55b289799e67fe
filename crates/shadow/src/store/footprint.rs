//! [`Footprint`]: how many bytes a hypervisor keeps beside the shadow tables themselves.
//!
//! The figures are those of the structures of a real hypervisor, not of this simulator. Source for KVM: `struct
//! kvm_mmu_page` (184 bytes, read from the slab of Linux 6.1 and 6.12), `shadowed_translation`, `pte_list_desc` (128 bytes
//! for 14 entries), `kvm_arch_memory_slot` in `arch/x86/kvm/mmu` and `arch/x86/include/asm/kvm_host.h`.

use super::page::Kind;

/// Bytes of bookkeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Once for a virtual machine.
    pub fixed: u64,
    /// The part of it that is the reverse map.
    pub reverse_map: u64,
    /// For every shadow page.
    pub header: u64,
    /// Besides, for every shadow page that has a guest table behind it.
    pub table: u64,
    /// For each started run of [`Footprint::RUN`] entries in a chain of two or more (of mappings, of parents).
    pub run: u64,
}

impl Footprint {
    /// How many chain entries share one descriptor.
    pub const RUN: u32 = 14;

    /// A hypervisor that keeps a hash of shadow pages, a reverse map and a count of tables for each of `frames` guest frames,
    /// as KVM does.
    #[must_use]
    pub const fn with_reverse_map(frames: u64) -> Self {
        let large = frames / 512 + frames / (512 * 512);
        let rmap = 8 * (frames + large);
        let (large_info, tracked, hash) = (4 * large, 2 * frames, 32 << 10);
        Self { fixed: rmap + large_info + tracked + hash, reverse_map: rmap, header: 184, table: 4096, run: 128 }
    }

    /// A hypervisor that keeps nothing but a descriptor for each shadow page, and the frames its leaves map.
    #[must_use]
    pub const fn headers_only() -> Self {
        Self { fixed: 0, reverse_map: 0, header: 184, table: 4096, run: 0 }
    }

    pub(crate) const fn page(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Table | Kind::Private => self.header + self.table,
            Kind::Direct => self.header,
        }
    }

    pub(crate) const fn chain(&self, len: u32) -> u64 {
        if len < 2 { 0 } else { len.div_ceil(Self::RUN) as u64 * self.run }
    }
}
