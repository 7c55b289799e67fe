#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod area;
mod boot;
mod config;
mod cpu;
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
mod shootdown;
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
use cpu::Cpu;
use file::FileView;
use frames::Frames;
pub use layout::DIRECT_MAP;
use memory::Hands;
use objects::Objects;
pub use owners::ProcessTables;
use process::Process;
pub use shootdown::{Cause, Mark, Shootdown, Target};
pub use stats::{GuestStats, Ignored};

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
    /// Its CPUs, the boot CPU first.
    cpus: Vec<Cpu>,
    /// The CPU that the kernel's code runs on now.
    on: usize,
    frames: Frames,
    objects: Objects,
    processes: BTreeMap<ProcessId, Process>,
    /// Children of vfork that run in their parent's address space, and the parent that has lent it.
    lent: BTreeMap<ProcessId, ProcessId>,
    /// The tables of the kernel alone, which every process' upper half repeats.
    kernel_root: Gfn,
    /// The frame of zeros that untouched anonymous memory shows.
    zero_page: Gfn,
    /// Ended processes, whose roots are freed once no CPU has them loaded.
    doomed: Vec<Process>,
    /// The number of the address space made last.
    next_space: u64,
    /// What the call that runs has made other CPUs do.
    shootdowns: Vec<Shootdown>,
    /// The frames before this one were brought in by the host with [`Guest::prefault`].
    populated_end: u64,
}

/// How often one access may fault in a row: a store to a copy-on-write page faults at most twice.
const MAX_FAULTS: u32 = 8;

impl Guest {
    /// What the guest did so far, on all CPUs.
    #[must_use]
    pub fn stats(&self) -> GuestStats {
        let mut sum = GuestStats::default();
        self.cpus.iter().for_each(|cpu| sum += cpu.stats);
        GuestStats { peak_data_frames: self.frames.peak_data(), ignored_ops: sum.ignored.total(), ..sum }
    }

    /// What the guest did on one CPU, for itself and interrupted by others; without what [`Guest::stats`] adds at the end, the
    /// peak of frames and the sum of ignored operations.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    #[must_use]
    pub fn stats_on(&self, cpu: usize) -> GuestStats {
        self.cpus[cpu].stats
    }

    /// How many CPUs the guest has.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The vCPU of each CPU.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    #[must_use]
    pub fn vcpu_of(&self, cpu: usize) -> VcpuId {
        self.cpus[cpu].vcpu
    }

    /// The process that runs on a CPU; `None` where the CPU idles.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    #[must_use]
    pub fn current_on(&self, cpu: usize) -> Option<ProcessId> {
        self.cpus[cpu].current
    }

    fn me(&self) -> &Cpu {
        &self.cpus[self.on]
    }

    fn me_mut(&mut self) -> &mut Cpu {
        &mut self.cpus[self.on]
    }

    /// The process that runs on the CPU that the kernel runs on.
    fn current(&self) -> Option<ProcessId> {
        self.me().current
    }

    /// Bytes of the guest's page tables now.
    #[must_use]
    pub const fn table_bytes(&self) -> u64 {
        self.frames.tables() * 4096
    }

    /// Runs one batch of the process that is current on the boot CPU.
    ///
    /// # Errors
    ///
    /// [`Halted`], where the guest cannot go on.
    pub fn batch(&mut self, batch: &Batch, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        self.batch_on(0, batch, platform, ledger)
    }

    /// Runs one batch of the process that is current on a CPU. `ledger` gets what that CPU did; what others were made to do
    /// meanwhile is told by [`Guest::take_shootdowns`], with ledgers of its own.
    ///
    /// A switch to a process that runs on another CPU too is a switch to another thread of it.
    ///
    /// # Errors
    ///
    /// [`Halted`], where the guest cannot go on.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    pub fn batch_on(
        &mut self,
        cpu: usize,
        batch: &Batch,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<(), Halted> {
        self.begin(cpu);
        if self.current().is_some() {
            self.accesses(&batch.run, platform, ledger)?;
        } else if !batch.run.is_empty() {
            self.me_mut().stats.ignored.without_process += 1;
        }
        self.elapse(batch.instructions, platform, ledger)?;
        match &batch.then {
            Some(op) => self.operation(op, platform, ledger),
            None => Ok(()),
        }
    }

    /// Makes a process with an empty address space on a CPU, as the kernel does for its own helpers, and switches to it there.
    /// A number in use is ignored.
    ///
    /// # Errors
    ///
    /// [`Halted`], where the guest cannot go on.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    pub fn spawn_on(
        &mut self,
        cpu: usize,
        id: ProcessId,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<(), Halted> {
        self.begin(cpu);
        if self.is_in_use(id) {
            self.me_mut().stats.ignored.number_in_use += 1;
            return Ok(());
        }
        self.orphan(id, platform, ledger)?;
        self.switch(id, platform, ledger)
    }

    /// Switches a CPU to a thread of a process, which may run on other CPUs as well. An unknown process is ignored.
    ///
    /// # Errors
    ///
    /// [`Halted`], where the guest cannot go on.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    pub fn share_on(
        &mut self,
        cpu: usize,
        id: ProcessId,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<(), Halted> {
        self.begin(cpu);
        self.switch(id, platform, ledger)
    }

    /// Lets a CPU idle: the kernel's idle thread borrows the address space of the process that ran last (`enter_lazy_tlb`),
    /// until [`Guest::share_on`] or a switch.
    ///
    /// # Errors
    ///
    /// [`Halted`], where the guest cannot go on.
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    pub fn idle_on(&mut self, cpu: usize, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        self.begin(cpu);
        if self.current().is_none() {
            return Ok(());
        }
        self.kernel(layout::Site::Schedule, platform, ledger, |guest, hands| {
            hands.stats.switches += 1;
            guest.me_mut().current = None;
            Ok(())
        })
    }

    /// What begins with every call: the CPU that it is about, and a new list of what others were made to do.
    fn begin(&mut self, cpu: usize) {
        assert!(cpu < self.cpus.len(), "the guest has {} CPUs", self.cpus.len());
        self.on = cpu;
        self.shootdowns.clear();
    }

    fn accesses(&mut self, run: &[Acc], platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        let mut done = 0;
        let mut faults = 0;
        while done < run.len() {
            let (count, stop) = platform.accesses(self.me().vcpu, &run[done..], Horizon::Open, ledger);
            done += count;
            self.me_mut().stats.user_accesses += count as u64;
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
        let Some(current) = self.current() else {
            if let Op::Fork { child } = *op {
                return self.orphan(child, platform, ledger);
            }
            self.me_mut().stats.ignored.without_process += 1;
            return Ok(());
        };
        match *op {
            Op::Interrupt => return self.interrupt(platform, ledger),
            Op::Handoff { .. } => return self.kernel(layout::Site::Schedule, platform, ledger, |_, _| Ok(())),
            Op::Trap { trap, times } => {
                return self.with_hands(platform, ledger, |_, hands| hands.traps(trap, times));
            }
            _ => self.me_mut().stats.syscalls += 1,
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
