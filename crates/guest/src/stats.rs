//! What the guest's kernel did: events of the guest's side, the same under every regime.

use serde::Serialize;

/// Defines a structure of counts, with sums and differences of all of them.
macro_rules! counts {
    ($(#[$outer:meta])* $of:ident { $($(#[$inner:meta])* $name:ident,)* } also { $($(#[$other:meta])* $also:ident: $kind:ty,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct $of {
            $($(#[$inner])* pub $name: u64,)*
            $($(#[$other])* pub $also: $kind,)*
        }

        impl core::ops::AddAssign for $of {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
                $(self.$also += other.$also;)*
            }
        }

        impl core::ops::Sub for $of {
            type Output = Self;

            /// What was counted since `earlier`.
            fn sub(self, earlier: Self) -> Self {
                Self { $($name: self.$name - earlier.$name,)* $($also: self.$also - earlier.$also,)* }
            }
        }
    };
}

counts! {
    /// Operations that made no sense where they stood. Each has a defined outcome, the one that Linux gives.
    Ignored {
        /// Accesses and operations while no process was running, after an exit; they were dropped.
        without_process,
        /// Switches to a process that does not live: before its fork, or after its exit.
        unknown_process,
        /// Forks of a number that is in use.
        number_in_use,
        /// Ranges that are empty or leave user space (1 EiB): refused, `EINVAL` or `ENOMEM`.
        bad_range,
        /// Moves whose old and new range overlap, and moves of nothing: refused, `EINVAL` or `EFAULT`.
        bad_move,
        /// Ends of the heap below its beginning, or beyond another area: refused.
        bad_heap,
        /// Unmappings, protections and discards of addresses where nothing is mapped.
        nothing_there,
    } also {}
}

impl Ignored {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.without_process
            + self.unknown_process
            + self.number_in_use
            + self.bad_range
            + self.bad_move
            + self.bad_heap
            + self.nothing_there
    }
}

counts! {
    /// Counts of the guest's own events. They do not depend on what the guest runs on.
    GuestStats {
        /// Instructions executed by processes.
        instructions,
        /// Accesses made by processes.
        user_accesses,
        /// Accesses made by the kernel.
        kernel_accesses,
        /// Entries into the kernel, by faults, system calls and ticks.
        kernel_entries,
        /// System calls, memory ones included.
        syscalls,
        /// Timer ticks.
        ticks,
        /// Context switches to another process.
        switches,
        /// Page faults that mapped the shared zero page.
        faults_zero_page,
        /// Page faults that mapped a fresh page.
        faults_fresh,
        /// Page faults that mapped a page of a file.
        faults_file,
        /// Page faults that mapped a page which the process had before its recording began.
        faults_adopted,
        /// Page faults that copied a shared page for a store.
        faults_copy,
        /// Page faults that made a page writable in place.
        faults_reuse,
        /// Accesses that no area permits; each was dropped.
        faults_refused,
        /// 4 KiB pages cleared.
        pages_cleared,
        /// 4 KiB pages copied.
        pages_copied,
        /// Stores to page tables.
        table_stores,
        /// INVLPG instructions.
        invlpgs,
        /// CR3 loads.
        cr3_loads,
        /// Flushes of a whole address space.
        full_flushes,
        /// Flushes of the current address space, of some pages or all (Linux: `TLB_LOCAL_MM_SHOOTDOWN`).
        flushes,
        /// Loads of another address space, also of the kernel's by a process that ends, and of one that went out of date while its
        /// CPU idled on it (`TLB_FLUSH_ON_TASK_SWITCH`).
        space_switches,
        /// Those among them that kept the translations under the PCID, none of which was out of date.
        #[serde(skip_serializing_if = "is_zero")]
        space_switches_kept,
        /// Flushes of an address space that was loaded on other CPUs too since the last one that freed tables: each asks those,
        /// whether it is loaded there still or not (Linux since 6.13: `mm_cpumask` is cleared lazily; `TLB_REMOTE_SEND_IPI`).
        #[serde(skip_serializing_if = "is_zero")]
        flushes_sent,
        /// Processes forked.
        forks,
        /// Address spaces replaced by exec.
        execs,
        /// Processes ended.
        exits,
        /// Device interrupts.
        interrupts,
        /// Instructions that leave every virtual machine for reasons other than paging.
        traps,
        /// Page faults taken by the kernel itself while it copied to or from a process; the others are the process' own.
        faults_in_kernel,
        /// Faults of the processes' own loads.
        faults_by_load,
        /// Faults of their fetches.
        faults_by_fetch,
        /// Faults of their stores to pages that were not present.
        faults_by_store,
        /// Faults of their stores to pages that were present and read-only.
        faults_by_protection,
        /// Pages of files mapped with a faulting one, beside it.
        pages_around,
        /// Pages moved to other addresses.
        pages_moved,
        /// Large pages made of small ones in the background.
        collapses,
        /// Large pages broken into small ones.
        splits,
        /// Accessed bits that reclaim cleared.
        entries_aged,
        /// File pages that gave up their memory because it ran short.
        pages_evicted,
        /// Requests to other CPUs to drop translations or to end a thread; one for each, however many CPUs it went to.
        #[serde(skip_serializing_if = "is_zero")]
        shootdowns,
        /// Interrupts by other CPUs, for those requests.
        #[serde(skip_serializing_if = "is_zero")]
        interrupted,
    } also {
        /// Operations that made no sense where they stood (exit of a dead process, a fork of a number in use), by what was wrong.
        ignored: Ignored,
        /// All of them.
        ignored_ops: u64,
        /// Pages of data in use at most, in 4 KiB frames.
        peak_data_frames: u64,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl GuestStats {
    /// All page faults handled.
    #[must_use]
    pub const fn faults(&self) -> u64 {
        self.faults_zero_page
            + self.faults_fresh
            + self.faults_file
            + self.faults_adopted
            + self.faults_copy
            + self.faults_reuse
            + self.faults_refused
    }
}
