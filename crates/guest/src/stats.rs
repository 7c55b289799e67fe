//! What the guest's kernel did: events of the guest's side, the same under every regime.

use serde::Serialize;

/// Operations that made no sense where they stood. Each has a defined outcome, the one that Linux gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// Accesses and operations while no process was running, after an exit; they were dropped.
    pub without_process: u64,
    /// Switches to a process that does not live: before its fork, or after its exit.
    pub unknown_process: u64,
    /// Forks of a number that is in use.
    pub number_in_use: u64,
    /// Ranges that are empty or leave user space (1 EiB): refused, `EINVAL` or `ENOMEM`.
    pub bad_range: u64,
    /// Moves whose old and new range overlap, and moves of nothing: refused, `EINVAL` or `EFAULT`.
    pub bad_move: u64,
    /// Ends of the heap below its beginning, or beyond another area: refused.
    pub bad_heap: u64,
    /// Unmappings, protections and discards of addresses where nothing is mapped.
    pub nothing_there: u64,
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

/// Counts of the guest's own events. They do not depend on what the guest runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GuestStats {
    /// Instructions executed by processes.
    pub instructions: u64,
    /// Accesses made by processes.
    pub user_accesses: u64,
    /// Accesses made by the kernel.
    pub kernel_accesses: u64,
    /// Entries into the kernel, by faults, system calls and ticks.
    pub kernel_entries: u64,
    /// System calls, memory ones included.
    pub syscalls: u64,
    /// Timer ticks.
    pub ticks: u64,
    /// Context switches to another process.
    pub switches: u64,
    /// Page faults that mapped the shared zero page.
    pub faults_zero_page: u64,
    /// Page faults that mapped a fresh page.
    pub faults_fresh: u64,
    /// Page faults that mapped a page of a file.
    pub faults_file: u64,
    /// Page faults that mapped a page which the process had before its recording began.
    pub faults_adopted: u64,
    /// Page faults that copied a shared page for a store.
    pub faults_copy: u64,
    /// Page faults that made a page writable in place.
    pub faults_reuse: u64,
    /// Accesses that no area permits; each was dropped.
    pub faults_refused: u64,
    /// 4 KiB pages cleared.
    pub pages_cleared: u64,
    /// 4 KiB pages copied.
    pub pages_copied: u64,
    /// Stores to page tables.
    pub table_stores: u64,
    /// INVLPG instructions.
    pub invlpgs: u64,
    /// CR3 loads.
    pub cr3_loads: u64,
    /// Flushes of a whole address space.
    pub full_flushes: u64,
    /// Processes forked.
    pub forks: u64,
    /// Address spaces replaced by exec.
    pub execs: u64,
    /// Processes ended.
    pub exits: u64,
    /// Device interrupts.
    pub interrupts: u64,
    /// Instructions that leave every virtual machine for reasons other than paging.
    pub traps: u64,
    /// Page faults taken by the kernel itself while it copied to or from a process; the others are the process' own.
    pub faults_in_kernel: u64,
    /// Pages of files mapped with a faulting one, beside it.
    pub pages_around: u64,
    /// Pages moved to other addresses.
    pub pages_moved: u64,
    /// Large pages made of small ones in the background.
    pub collapses: u64,
    /// Large pages broken into small ones.
    pub splits: u64,
    /// Accessed bits that reclaim cleared.
    pub entries_aged: u64,
    /// File pages that gave up their memory because it ran short.
    pub pages_evicted: u64,
    /// Operations that made no sense where they stood (exit of a dead process, a fork of a number in use), by what was wrong.
    pub ignored: Ignored,
    /// All of them.
    pub ignored_ops: u64,
    /// Pages of data in use at most, in 4 KiB frames.
    pub peak_data_frames: u64,
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
