//! Figures with their sources, and the sections that price what the simulator counts.

use serde::{Deserialize, Serialize};

use super::number::{text, whole};

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The number; the field says in which unit.
    #[serde(deserialize_with = "whole::<_, _, 0, 1_000_000_000>")]
    pub value: u32,
    /// Manual, paper or measurement; `estimate` where there is none.
    #[serde(deserialize_with = "text")]
    pub source: String,
}

impl Figure {
    /// The price of `count` things.
    #[must_use]
    pub fn times(&self, count: u64) -> u64 {
        u64::from(self.value) * count
    }

    /// Whether nobody measured it.
    #[must_use]
    pub fn is_estimate(&self) -> bool {
        is_estimate(&self.source)
    }
}

/// Whether a source says that there is none.
#[must_use]
pub fn is_estimate(source: &str) -> bool {
    source.starts_with("estimate")
}

/// A figure, and where in the machine file it stands.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The section of the file.
    pub section: &'static str,
    /// The field.
    pub name: &'static str,
    /// What the number counts.
    pub unit: &'static str,
    /// The figure.
    pub figure: &'a Figure,
}

macro_rules! figures {
    ($(#[$doc:meta])* $name:ident $section:literal { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Figure,)*
        }

        impl $name {
            /// Every figure with its name.
            pub fn figures(&self) -> impl Iterator<Item = (&'static str, &Figure)> {
                [$((stringify!($field), &self.$field),)*].into_iter()
            }

            /// The same, with section and unit.
            pub(super) fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
                self.figures().map(|(name, figure)| Listed { section: $section, name, unit: unit(name), figure })
            }
        }
    };
}

fn unit(name: &str) -> &'static str {
    if name == "per_1000_instructions" { "cycles / 1000 instructions" } else { "cycles" }
}

figures! {
    /// What the guest's own work costs, in cycles (where the name does not say otherwise).
    BaseCosts "base" {
        /// Cycles of 1000 instructions, accesses to data in caches included.
        per_1000_instructions,
        /// Entry into the guest's kernel and return.
        kernel_entry,
        /// The page-fault handler beside what it does to pages and tables.
        fault_handler,
        /// A system call's own work.
        syscall,
        /// A context switch beside the CR3 load.
        context_switch,
        /// Clearing one 4 KiB page.
        clear_page,
        /// Copying one 4 KiB page.
        copy_page,
        /// One store to a page table.
        table_store,
        /// INVLPG that does not exit.
        invlpg,
        /// A CR3 load that does not exit.
        cr3_load,
    }
}

figures! {
    /// What translation costs, in cycles.
    TranslationCosts "translation" {
        /// A hit in the second TLB level, beyond a hit in the first.
        l2_tlb_hit,
        /// A walk's reference to a guest table.
        guest_reference,
        /// A walk's reference to a shadow table.
        shadow_reference,
        /// A walk's reference to a nested table.
        host_reference,
        /// Setting an accessed or dirty bit.
        ad_update,
    }
}

figures! {
    /// What leaving the guest costs, in cycles: the round trip alone, and the handler's fixed part by kind.
    ExitCosts "exits" {
        /// Exit and entry.
        round_trip,
        /// Handler of a hidden fault, beside its work units.
        hidden_fault,
        /// Handler of a reflected fault.
        reflected_fault,
        /// Handler of a trapped table store.
        table_write,
        /// Handler of INVLPG and INVPCID.
        invlpg,
        /// Handler of a CR3 load.
        cr3_load,
        /// Handler of an access to CR0 or CR4.
        cr_access,
        /// Handler of an EPT violation.
        ept_violation,
        /// Handler of a device access, EPT misconfigurations included.
        mmio,
        /// Handler of everything else.
        other,
    }
}

figures! {
    /// What the units of a handler's work cost, in cycles.
    WorkCosts "work" {
        /// An entry of a shadow or nested table written.
        entries_set,
        /// An entry removed or restricted.
        entries_cleared,
        /// An entry compared during a sync.
        entries_synced,
        /// An entry of a guest table read.
        guest_entries_read,
        /// A table allocated and cleared.
        tables_allocated,
        /// A table freed.
        tables_freed,
        /// A host frame allocated and zeroed.
        frames_backed,
        /// A reverse-map entry visited.
        rmap_visited,
        /// An instruction emulated.
        instructions_emulated,
        /// A flush on all vCPUs.
        remote_flushes,
    }
}
