//! What the hypervisor counts about its nested tables, by KVM's names.

use memvirt_addr::PageSize;

/// KVM's counters of nested paging (`struct kvm_vcpu_stat` and `kvm_vm_stat`), sums over the vCPUs of a virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestedStats {
    /// Present leaf entries, by page size (4K, 2M, 1G): `pages_4k`, `pages_2m`, `pages_1g`. Entries of devices do not count.
    pub leaves: [u64; 3],
    /// Violations that reached the MMU, those by which an entry for a device was made included.
    pub pf_taken: u64,
    /// Violations fixed by changing a leaf.
    pub pf_fixed: u64,
    /// `pf_fast`: those of them fixed without the MMU lock: stores to pages that are write-protected for dirty logging.
    pub fast_fixes: u64,
    /// Violations after which the instruction was emulated.
    pub pf_emulate: u64,
    /// Entries made for the pages of devices.
    pub pf_mmio_spte_created: u64,
    /// Accesses to devices handed to the host.
    pub mmio_exits: u64,
    /// Instructions emulated.
    pub insn_emulation: u64,
    /// Flushes served at entry: requested flushes of the nested translations, and the guest's own (`guest_flushes`).
    pub tlb_flush: u64,
    /// Flushes of the guest's own translations that the hypervisor carries out for it: one for each intercepted store to CR4
    /// that changes PGE.
    pub guest_flushes: u64,
    /// Requests to flush the translations of all vCPUs.
    pub remote_tlb_flush_requests: u64,
    /// Accessed and dirty bits that hardware set in nested entries; not a counter of KVM's.
    pub ad_updates_nested: u64,
}

impl NestedStats {
    /// The number of leaves of `size`.
    #[must_use]
    pub const fn pages(&self, size: PageSize) -> u64 {
        self.leaves[size as usize - 1]
    }

    /// KVM's counters with their names.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("pf_taken", self.pf_taken),
            ("pf_fixed", self.pf_fixed),
            ("pf_fast", self.fast_fixes),
            ("pf_emulate", self.pf_emulate),
            ("pf_mmio_spte_created", self.pf_mmio_spte_created),
            ("mmio_exits", self.mmio_exits),
            ("insn_emulation", self.insn_emulation),
            ("tlb_flush", self.tlb_flush),
            ("remote_tlb_flush_requests", self.remote_tlb_flush_requests),
            ("pages_4k", self.pages(PageSize::Size4K)),
            ("pages_2m", self.pages(PageSize::Size2M)),
            ("pages_1g", self.pages(PageSize::Size1G)),
        ]
        .into_iter()
    }
}
