//! VM exits: why the guest stopped, what the hypervisor did, and what it held while doing it. Counted here, priced elsewhere.

use memvirt_ops::arch::{Trap, VcpuSet};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $key:literal,)*) => {
        /// Why a vCPU left guest mode.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ExitReason {
            $($(#[$doc])* $name,)*
        }

        impl ExitReason {
            /// Every reason, in the order of tables and files.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable key in results: lower case, underscores.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self {
                    $(Self::$name => $key,)*
                }
            }
        }
    };
}

reasons! {
    /// Only the shadow lacked the translation (or the permission): the hypervisor repairs it and resumes.
    HiddenFault = "hidden_fault",
    /// The guest's own tables forbid the access: the hypervisor passes the fault on.
    ReflectedFault = "reflected_fault",
    /// A store to a write-protected guest table, carried out by the hypervisor.
    TableWrite = "table_write",
    /// INVLPG.
    Invlpg = "invlpg",
    /// MOV to CR3.
    Cr3Load = "cr3_load",
    /// An access to CR0 or CR4.
    CrAccess = "cr_access",
    /// INVPCID.
    Invpcid = "invpcid",
    /// The nested tables do not map the page or forbid the access (EPT violation, nested page fault).
    EptViolation = "ept_violation",
    /// An entry of the nested tables has illegal bits.
    EptMisconfig = "ept_misconfig",
    /// An access to an address that is not memory.
    Mmio = "mmio",
    /// The page-modification log is full.
    PmlFull = "pml_full",
    /// An inter-processor interrupt was sent or received.
    Ipi = "ipi",
    /// A hypercall.
    Hypercall = "hypercall",
    /// Port I/O.
    PortIo = "port_io",
    /// A model-specific register was read or written.
    Msr = "msr",
    /// CPUID.
    Cpuid = "cpuid",
    /// HLT.
    Halt = "halt",
}

impl ExitReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl From<Trap> for ExitReason {
    fn from(trap: Trap) -> Self {
        match trap {
            Trap::Hypercall => Self::Hypercall,
            Trap::PortIo => Self::PortIo,
            Trap::Msr => Self::Msr,
            Trap::Cpuid => Self::Cpuid,
            Trap::Halt => Self::Halt,
        }
    }
}

/// How an exit's handler holds the virtual machine's MMU lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Alone (shadow paging: every fault, emulated store, sync and INVLPG; nested paging: zaps).
    Exclusive,
    /// Together with others (nested paging: faults).
    Shared,
}

macro_rules! work {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a handler did, in units whose cost a machine file can state. Sums of these over a run are part of its result.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        pub struct Work {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Work {
            /// The names and values of all units.
            pub fn units(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl core::ops::AddAssign for Work {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

work! {
    /// Entries of shadow or nested tables written with a present value.
    entries_set,
    /// Present entries of shadow or nested tables removed or made more restrictive.
    entries_cleared,
    /// Entries of a guest table compared with their shadow during a sync.
    entries_synced,
    /// Entries of guest tables read by the hypervisor's own walks.
    guest_entries_read,
    /// Shadow or nested tables allocated and cleared.
    tables_allocated,
    /// Shadow or nested tables freed.
    tables_freed,
    /// Host frames allocated and zeroed to back guest frames.
    frames_backed,
    /// Reverse-map entries visited.
    rmap_visited,
    /// Instructions emulated.
    instructions_emulated,
    /// Translations flushed on all vCPUs of the virtual machine: one for each request.
    remote_flushes,
}

/// One VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The index of the access in its run; 0 for events.
    pub at: usize,
    /// Why.
    pub reason: ExitReason,
    /// What the handler did.
    pub work: Work,
    /// The MMU lock, where the handler took it.
    pub lock: Option<LockMode>,
    /// The other vCPUs that had to leave guest mode before the handler could go on.
    pub kick: VcpuSet,
}
