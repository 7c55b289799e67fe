#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod area;
mod boot;
mod config;
mod fault;
mod file;
mod fork;
mod frames;
mod huge;
mod image;
mod layout;
mod memory;
mod mm;
mod objects;
mod owners;
mod prefault;
mod process;
mod remap;
mod stats;
mod switch;
#[cfg(test)]
mod tests;
mod tick;

use std::collections::BTreeMap;

use memvirt_addr::{Acc, Gfn};
use memvirt_ops::arch::GuestFault;
use memvirt_ops::process::{Batch, Op, ProcessId};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Horizon, Ledger, Platform, Stop};

pub use config::{FlushRange, GuestConfig, Invlpg, LazySwitch, PageCache, TableFrames, Undeclared};
use file::FileView;
use frames::Frames;
pub use layout::DIRECT_MAP;
use memory::Hands;
use objects::Objects;
pub use owners::ProcessTables;
use process::Process;
pub use stats::{GuestStats, Ignored};
use switch::Pcids;

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
    /// The root that the kernel runs on.
    loaded: Gfn,
    /// Children of vfork that run in their parent's address space, and the parent that has lent it.
    lent: BTreeMap<ProcessId, ProcessId>,
    /// The current process holds the address space that its parent has just lent it, but the parent is on the CPU still.
    parent_on_cpu: bool,
    /// The tables of the kernel alone, which every process' upper half repeats.
    kernel_root: Gfn,
    /// The frame of zeros that untouched anonymous memory shows.
    zero_page: Gfn,
    pcids: Pcids,
    /// A root to be freed once the next one is loaded.
    doomed: Option<Process>,
    clock: tick::Clock,
    stats: GuestStats,
}

/// How often one access may fault in a row: a store to a copy-on-write page faults at most twice.
const MAX_FAULTS: u32 = 8;

impl Guest {
    /// What the guest did so far.
    #[must_use]
    pub fn stats(&self) -> GuestStats {
        let ignored_ops = self.stats.ignored.total();
        GuestStats { peak_data_frames: self.frames.peak_data(), ignored_ops, ..self.stats }
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
            self.stats.ignored.without_process += 1;
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

    fn operation(&mut self, op: &Op, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        if let Op::Switch { to } = *op {
            return self.switch(to, platform, ledger);
        }
        let Some(current) = self.current else {
            if let Op::Fork { child } = *op {
                return self.orphan(child, platform, ledger);
            }
            self.stats.ignored.without_process += 1;
            return Ok(());
        };
        match *op {
            Op::Interrupt => return self.interrupt(platform, ledger),
            Op::Handoff { .. } => return self.kernel(layout::Site::Schedule, platform, ledger, |_, _| Ok(())),
            Op::Trap { trap, times } => {
                return self.with_hands(platform, ledger, |_, hands| hands.traps(trap, times));
            }
            _ => self.stats.syscalls += 1,
        }
        self.kernel(layout::Site::Syscall, platform, ledger, |guest, hands| guest.system_call(hands, current, op))
    }

    fn system_call(&mut self, hands: &mut Hands<'_>, current: ProcessId, op: &Op) -> Result<(), Halted> {
        match *op {
            Op::Mmap { range, prot, backing } => self.mmap(hands, current, range, prot, backing),
            Op::MapFile { range, prot, sharing, file, first_page } => {
                self.map_file(hands, current, range, prot, FileView { sharing, file, first_page })
            }
            Op::Munmap { range } => self.munmap(hands, current, range),
            Op::Mprotect { range, prot } => self.mprotect(hands, current, range, prot),
            Op::Mremap { from, to } => self.mremap(hands, current, from, to),
            Op::Brk { end } => self.brk(hands, current, end),
            Op::Discard { range } => self.discard(hands, current, range),
            Op::Fork { child } => self.fork(hands, current, child),
            Op::Vfork { child } => {
                self.vfork(hands, current, child);
                Ok(())
            }
            Op::Exec => self.exec(hands, current),
            Op::Load { ref image } => self.load_image(hands, current, image),
            Op::Exit => self.exit(hands, current),
            Op::Copy { transfer, range, .. } => self.user_copy(hands, transfer, range),
            Op::Switch { .. }
            | Op::Handoff { .. }
            | Op::Wait { .. }
            | Op::Syscall { .. }
            | Op::Interrupt
            | Op::Trap { .. } => Ok(()),
        }
    }
}
