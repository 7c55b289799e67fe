//! The counters of KVM, under KVM's names.
//!
//! Source: the statistics descriptors of KVM (`KVM_GET_STATS_FD`); what increments each is in section D of the specification
//! that the model follows. Gauges are values of now, all others sums since the virtual machine was made.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// KVM's counters for one virtual machine, all vCPUs together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct KvmStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl KvmStats {
            /// The names and values of all counters.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

stats! {
    /// VM exits.
    exits,
    /// Page faults that reached the MMU: all but hits of a valid MMIO entry.
    pf_taken,
    /// Faults that changed a leaf; the guest tried again.
    pf_fixed,
    /// Faults after which the instruction was to be emulated.
    pf_emulate,
    /// Faults whose leaf was right already: only upper tables had to be linked.
    pf_spurious,
    /// Page faults passed on to the guest.
    pf_guest,
    /// Faults fixed without the MMU lock. Never under shadow paging.
    pf_fast,
    /// MMIO entries installed.
    pf_mmio_spte_created,
    /// Flush requests served at entry.
    tlb_flush,
    /// INVLPG, and INVPCID of one address.
    invlpg,
    /// Instructions decoded for emulation.
    insn_emulation,
    /// Accesses handed to the host as MMIO.
    mmio_exits,
    /// Shadow pages zapped, for whatever reason; a root in use counts once when zapped and once when freed.
    mmu_shadow_zapped,
    /// Emulated stores while any guest table was shadowed.
    mmu_pte_write,
    /// Upper-level entries, per shadow page, overwritten with something other than zero.
    mmu_pde_zapped,
    /// Shadow pages zapped because their tables were written too often, or in a way tables are not.
    mmu_flooded,
    /// Shadow pages zapped to stay below the limit.
    mmu_recycled,
    /// Shadow pages made.
    mmu_cache_miss,
    /// Gauge: shadow pages whose tables the guest may write without an exit.
    mmu_unsync,
    /// Gauge: present leaves of 4 KiB.
    pages_4k,
    /// Gauge: present leaves of 2 MiB.
    pages_2m,
    /// Gauge: present leaves of 1 GiB.
    pages_1g,
    /// Flushes asked of all vCPUs.
    remote_tlb_flush_requests,
    /// Those of them for which another vCPU had to be interrupted.
    remote_tlb_flush,
    /// High-water mark: leaves that a guest frame already had when one more was added.
    max_mmu_rmap_size,
    /// High-water mark: pages passed over in a hash bucket during one lookup.
    max_mmu_page_hash_collisions,
}
