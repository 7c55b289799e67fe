#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod area;
mod boot;
mod fault;
mod fork;
mod frames;
mod layout;
mod memory;
mod mm;
mod objects;
mod prefault;
mod process;
mod stats;
mod switch;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use memvirt_addr::{Acc, Gfn, PageSize};
use memvirt_ops::arch::GuestFault;
use memvirt_ops::process::{Backing, Batch, Op, ProcessId};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Horizon, Ledger, Platform, Stop};
use serde::Serialize;

use frames::Frames;
use objects::Objects;
use process::Process;
pub use stats::GuestStats;
use switch::Pcids;

fn page_size<S: serde::Serializer>(size: &PageSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(size.name())
}

/// What happens to an access outside all areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Undeclared {
    /// It is refused, as by a segmentation fault: generated workloads declare their areas.
    Refuse,
    /// Its page is taken as one that the process already had, all accesses permitted: recordings start after the program
    /// was loaded, and the areas of its text, data and stack stand nowhere in them.
    Adopt,
}

/// Switches of the guest. The defaults are stated with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuestConfig {
    /// Memory in bytes; default 4 GiB.
    pub memory_bytes: u64,
    /// Kernel-page-table isolation: two roots for each process, a CR3 load on each kernel entry and exit; default off.
    pub kpti: bool,
    /// Process-context identifiers, 6 in rotation as in Linux; default off.
    pub pcid: bool,
    /// Pages for anonymous memory, where an aligned one fits into the area; default 4 KiB.
    #[serde(serialize_with = "page_size")]
    pub guest_page: PageSize,
    /// Pages of the kernel's direct map; default 2 MiB.
    #[serde(serialize_with = "page_size")]
    pub direct_map_page: PageSize,
    /// Instructions between timer ticks, 0 for none; default 10 million.
    pub tick_instructions: u64,
    /// Up to how many pages are flushed one by one; default 33 (`tlb_single_page_flush_ceiling`).
    pub flush_ceiling: u64,
    /// What happens outside all areas; default: refused.
    pub undeclared: Undeclared,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 4 << 30,
            kpti: false,
            pcid: false,
            guest_page: PageSize::Size4K,
            direct_map_page: PageSize::Size2M,
            tick_instructions: 10_000_000,
            flush_ceiling: 33,
            undeclared: Undeclared::Refuse,
        }
    }
}

/// Why a guest cannot go on. What happened before stays counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// Its page allocator is empty.
    GuestOutOfMemory,
    /// The host's is.
    HostOutOfMemory,
    /// Its kernel took a page fault on its own memory: the platform hands out wrong translations.
    KernelFault(GuestFault),
    /// The same access faulted again and again although the kernel had mapped it.
    Livelock(GuestFault),
}

/// A guest in being.
#[derive(Debug)]
pub struct Guest {
    config: GuestConfig,
    vm: VmId,
    vcpu: VcpuId,
    frames: Frames,
    objects: Objects,
    processes: BTreeMap<ProcessId, Process>,
    current: Option<ProcessId>,
    /// The tables of the kernel alone, which every process' upper half repeats.
    kernel_root: Gfn,
    /// The frame of zeros that untouched anonymous memory shows.
    zero_page: Gfn,
    pcids: Pcids,
    /// A root to be freed once the next one is loaded.
    doomed: Option<Process>,
    to_tick: u64,
    stats: GuestStats,
}

/// How often one access may fault in a row: a store to a copy-on-write page faults at most twice.
const MAX_FAULTS: u32 = 8;

impl Guest {
    /// What the guest did so far.
    #[must_use]
    pub fn stats(&self) -> GuestStats {
        GuestStats { peak_data_frames: self.frames.peak_data(), ..self.stats }
    }

    /// Bytes of the guest's page tables now.
    #[must_use]
    pub const fn table_bytes(&self) -> u64 {
        self.frames.tables() * 4096
    }

    /// Runs one batch of the current process.
    ///
    /// # Errors
    ///
    /// [`Halted`], where the guest cannot go on.
    pub fn batch(&mut self, batch: &Batch, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        if self.current.is_some() {
            self.accesses(&batch.run, platform, ledger)?;
        } else if !batch.run.is_empty() {
            self.stats.ignored_ops += 1;
        }
        self.elapse(batch.instructions, platform, ledger)?;
        match &batch.then {
            Some(op) => self.operation(op, platform, ledger),
            None => Ok(()),
        }
    }

    fn accesses(&mut self, run: &[Acc], platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        let mut done = 0;
        let mut faults = 0;
        while done < run.len() {
            let (count, stop) = platform.accesses(self.vcpu, &run[done..], Horizon::Open, ledger);
            done += count;
            self.stats.user_accesses += count as u64;
            faults = if count > 0 { 0 } else { faults };
            match stop {
                Stop::Done | Stop::Horizon => break,
                Stop::HostOutOfMemory => return Err(Halted::HostOutOfMemory),
                Stop::GuestFault(fault) if faults >= MAX_FAULTS => return Err(Halted::Livelock(fault)),
                Stop::GuestFault(fault) => {
                    faults += 1;
                    if !self.page_fault(fault, platform, ledger)? {
                        done += 1;
                        faults = 0;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets the process' instructions pass; ticks fall due by their number.
    fn elapse(&mut self, instructions: u64, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        self.stats.instructions += instructions;
        if self.config.tick_instructions == 0 {
            return Ok(());
        }
        let mut passed = instructions;
        while passed >= self.to_tick {
            passed -= self.to_tick;
            self.to_tick = self.config.tick_instructions;
            self.stats.ticks += 1;
            if self.current.is_some() {
                self.kernel(layout::Site::Tick, platform, ledger, |_, _| Ok(()))?;
            }
        }
        self.to_tick -= passed;
        Ok(())
    }

    fn operation(&mut self, op: &Op, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        if let Op::Switch { to } = *op {
            return self.switch(to, platform, ledger);
        }
        let Some(current) = self.current else {
            self.stats.ignored_ops += 1;
            return Ok(());
        };
        if let Op::Handoff { .. } = op {
            return self.kernel(layout::Site::Schedule, platform, ledger, |_, _| Ok(()));
        }
        self.stats.syscalls += 1;
        self.kernel(layout::Site::Syscall, platform, ledger, |guest, hands| match *op {
            Op::Mmap { range, prot, backing } => guest.mmap(hands, current, range, prot, backing),
            Op::MapFile { range, prot, sharing, .. } => {
                let shared = sharing == memvirt_ops::process::Sharing::Shared;
                let backing = if shared { Backing::FileShared } else { Backing::FilePrivate };
                guest.mmap(hands, current, range, prot, backing)
            }
            Op::Munmap { range } => guest.munmap(hands, current, range),
            Op::Mprotect { range, prot } => guest.mprotect(hands, current, range, prot),
            Op::Mremap { from, to } => guest.mremap(hands, current, from, to),
            Op::Discard { range } => guest.discard(hands, current, range),
            // A child of vfork gets an address space of its own, as under kernels and emulators without vfork.
            Op::Fork { child } | Op::Vfork { child } => guest.fork(hands, current, child),
            Op::Exec | Op::Load { .. } => guest.exec(hands, current),
            Op::Exit => guest.exit(hands, current),
            // A heap's end, data moved by the kernel, interrupts and traps: kernel entries alone so far.
            Op::Brk { .. } | Op::Copy { .. } | Op::Interrupt | Op::Trap { .. } => Ok(()),
            Op::Switch { .. } | Op::Handoff { .. } | Op::Wait { .. } | Op::Syscall { .. } => Ok(()),
        })
    }
}
