//! The columns of a recording: KVM's counters, by KVM's names.
//!
//! What each counts is KVM's own documentation (`Documentation/virt/kvm/api.rst`, binary statistics; the descriptors in
//! `arch/x86/kvm/x86.c`). [`KvmCounters`] reads them from a platform that has them.

use core::fmt;
use core::ops::{Index, IndexMut, Sub};

use memvirt_addr::{GuestPhys, GuestVirt, PageSize};
use memvirt_nested::{Nested, SecondStage};
use memvirt_ops::VmId;
use memvirt_oracle::{Checked, FaultRule};
use memvirt_pagetable::Format;
use memvirt_platform::{Engine, ExitReason, Ledger, Platform};
use memvirt_shadow::kvm::Kvm;

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident = $key:literal,)*) => {
        /// A counter of a recording.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Column {
            $($(#[$doc])* $name,)*
        }

        impl Column {
            /// All counters, in the order of a recording's columns.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in recordings and reports.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self {
                    $(Self::$name => $key,)*
                }
            }
        }
    };
}

columns! {
    /// VM exits, the marker's own left out.
    Exits = "exits",
    /// Page faults (nested: violations) that reached the MMU.
    PfTaken = "pf_taken",
    /// Those fixed by changing a leaf.
    PfFixed = "pf_fixed",
    /// Those that asked for emulation.
    PfEmulate = "pf_emulate",
    /// Those that found the leaf already right.
    PfSpurious = "pf_spurious",
    /// Page faults injected into the guest.
    PfGuest = "pf_guest",
    /// Flush requests served at entry.
    TlbFlush = "tlb_flush",
    /// INVLPG exits.
    Invlpg = "invlpg",
    /// Shadow pages zapped.
    ShadowZapped = "mmu_shadow_zapped",
    /// Emulated stores to shadowed tables.
    PteWrite = "mmu_pte_write",
    /// Upper-level entries rewritten by such stores, per shadow.
    PdeZapped = "mmu_pde_zapped",
    /// Shadow pages zapped because too many stores went to them.
    Flooded = "mmu_flooded",
    /// Shadow pages created.
    CacheMiss = "mmu_cache_miss",
    /// Unsynchronized shadow pages, a gauge.
    Unsync = "mmu_unsync",
    /// Present 4 KiB leaves, a gauge.
    Pages4k = "pages_4k",
    /// Requests to flush the TLBs of all vCPUs.
    RemoteReq = "remote_req",
}

impl Column {
    /// How many counters there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether it is a gauge, which may fall; all others only ever grow.
    #[must_use]
    pub const fn is_gauge(self) -> bool {
        matches!(self, Self::Unsync | Self::Pages4k)
    }
}

/// A value of each counter: totals since the machine was made (gauges: their present value), or differences of such.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([i64; Column::COUNT]);

impl Index<Column> for Counts {
    type Output = i64;

    fn index(&self, column: Column) -> &i64 {
        &self.0[column as usize]
    }
}

impl IndexMut<Column> for Counts {
    fn index_mut(&mut self, column: Column) -> &mut i64 {
        &mut self.0[column as usize]
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a -= b;
        }
        self
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = Column::ALL.iter().filter(|column| self[**column] != 0);
        f.debug_map().entries(moved.map(|column| (column.key(), self[*column]))).finish()
    }
}

/// A platform that counts what KVM counts.
pub trait KvmCounters: Platform {
    /// Which page faults end staleness here.
    const FAULTS: FaultRule = FaultRule::Architecture;

    /// The counters now; `ledger` is the one that every call so far was given.
    fn counts(&self, ledger: &Ledger) -> Counts;
}

impl<P: KvmCounters> KvmCounters for Checked<P> {
    const FAULTS: FaultRule = P::FAULTS;

    fn counts(&self, ledger: &Ledger) -> Counts {
        self.inner().counts(ledger)
    }
}

/// The exits of `ledger` without the markers.
#[must_use]
pub fn exits(ledger: &Ledger) -> u64 {
    ledger.counters.total_exits() - ledger.counters.exits_for(ExitReason::PortIo)
}

/// A counter as the signed number that differences are made of.
#[must_use]
pub fn signed(counter: u64) -> i64 {
    i64::try_from(counter).unwrap_or(i64::MAX)
}

/// KVM with nested paging (`npt=1`, the TDP MMU) counts violations as faults and keeps no shadow pages.
impl<H, G> KvmCounters for Engine<Nested<H, G>>
where
    H: SecondStage,
    G: Format<In = GuestVirt, Out = GuestPhys>,
{
    fn counts(&self, ledger: &Ledger) -> Counts {
        let stats = self.regime(VmId::FIRST).stats();
        let exits_for = |reason| signed(ledger.counters.exits_for(reason));
        let mut counts = Counts::default();
        counts[Column::Exits] = signed(exits(ledger));
        counts[Column::PfTaken] = exits_for(ExitReason::EptViolation);
        counts[Column::PfFixed] = exits_for(ExitReason::EptViolation) - signed(stats.fast_fixes);
        counts[Column::TlbFlush] = signed(stats.guest_flushes);
        counts[Column::Pages4k] = signed(stats.leaves[PageSize::Size4K as usize - 1]);
        counts
    }
}

/// KVM with shadow paging (`npt=0`) counts for itself.
impl KvmCounters for Engine<Kvm> {
    const FAULTS: FaultRule = FaultRule::Kvm;

    fn counts(&self, ledger: &Ledger) -> Counts {
        let stats = self.regime(VmId::FIRST).stats();
        let mut counts = Counts::default();
        for (column, value) in [
            (Column::Exits, exits(ledger)),
            (Column::PfTaken, stats.pf_taken),
            (Column::PfFixed, stats.pf_fixed),
            (Column::PfEmulate, stats.pf_emulate),
            (Column::PfSpurious, stats.pf_spurious),
            (Column::PfGuest, stats.pf_guest),
            (Column::TlbFlush, stats.tlb_flush),
            (Column::Invlpg, stats.invlpg),
            (Column::ShadowZapped, stats.mmu_shadow_zapped),
            (Column::PteWrite, stats.mmu_pte_write),
            (Column::PdeZapped, stats.mmu_pde_zapped),
            (Column::Flooded, stats.mmu_flooded),
            (Column::CacheMiss, stats.mmu_cache_miss),
            (Column::Unsync, stats.mmu_unsync),
            (Column::Pages4k, stats.pages_4k),
            (Column::RemoteReq, stats.remote_tlb_flush_requests),
        ] {
            counts[column] = signed(value);
        }
        counts
    }
}
