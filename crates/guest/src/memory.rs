//! The guest kernel's hands: every store to a page table is an architectural store through the direct map.
//!
//! [`KernelMem`] is what the kernel's table code writes through. Reads are the kernel's own knowledge of its tables and cost
//! nothing; stores, page clearing and page copying are accesses that the platform executes, traps and counts.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, Gva};
use memvirt_ops::arch::{Control, Event, GuestFault, StoreOp, Trap, Width};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::TableMem;
use memvirt_platform::{Horizon, Ledger, Platform, Refusal, Stop};

use super::Halted;
use super::layout::{Site, alias};
use super::shootdown::Mark;
use super::stats::GuestStats;

/// The platform, the vCPU that the kernel runs on, and where to count.
pub(crate) struct Hands<'a> {
    pub(crate) platform: &'a mut dyn Platform,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) stats: &'a mut GuestStats,
    pub(crate) vm: VmId,
    pub(crate) vcpu: VcpuId,
}

impl Hands<'_> {
    /// A privileged operation.
    pub(crate) fn control(&mut self, control: Control) -> Result<(), Halted> {
        match control {
            Control::Cr3(_) => self.stats.cr3_loads += 1,
            Control::Invlpg(_) => self.stats.invlpgs += 1,
            _ => {}
        }
        self.event(&Event::Control(control))
    }

    /// How far the work of this CPU has come.
    pub(crate) fn mark(&self) -> Mark {
        let exits = self.ledger.exits.as_ref().map_or(0, Vec::len);
        Mark { counters: self.ledger.counters, exits, stats: *self.stats }
    }

    /// Executes an instruction that leaves every virtual machine, `times` times.
    pub(crate) fn traps(&mut self, trap: Trap, times: u32) -> Result<(), Halted> {
        for _ in 0..times {
            self.stats.traps += 1;
            self.control(Control::Trap(trap))?;
        }
        Ok(())
    }

    /// One access of the kernel to an address of the process; the fault that it raised, if any.
    pub(crate) fn reach_user(&mut self, gva: Gva, kind: AccessKind) -> Result<Option<GuestFault>, Halted> {
        self.stats.kernel_accesses += 1;
        let acc = [Acc::supervisor(gva, kind)];
        match self.platform.accesses(self.vcpu, &acc, Horizon::Open, self.ledger).1 {
            Stop::Done | Stop::Horizon => Ok(None),
            Stop::GuestFault(fault) => Ok(Some(fault)),
            Stop::HostOutOfMemory => Err(Halted::HostOutOfMemory),
        }
    }

    /// Accesses of the kernel itself; they cannot fault while the platform is sound.
    pub(crate) fn run(&mut self, run: &[Acc]) -> Result<(), Halted> {
        self.stats.kernel_accesses += run.len() as u64;
        match self.platform.accesses(self.vcpu, run, Horizon::Open, self.ledger).1 {
            Stop::Done | Stop::Horizon => Ok(()),
            Stop::GuestFault(fault) => Err(Halted::KernelFault(fault)),
            Stop::HostOutOfMemory => Err(Halted::HostOutOfMemory),
        }
    }

    fn event(&mut self, event: &Event) -> Result<(), Halted> {
        match self.platform.event(self.vcpu, event, self.ledger) {
            Ok(_) => Ok(()),
            Err(Refusal::GuestFault(fault)) => Err(Halted::KernelFault(fault)),
            Err(Refusal::HostOutOfMemory) => Err(Halted::HostOutOfMemory),
        }
    }

    fn store(&mut self, at: Gpa, op: StoreOp, site: Site) -> Result<(), Halted> {
        self.stats.kernel_accesses += if let StoreOp::RepStos { count, .. } = op { u64::from(count) } else { 1 };
        self.event(&Event::Store { via: alias(at), op, ip: site.ip() })
    }

    /// Stores one page-table entry.
    pub(crate) fn set_entry(&mut self, at: Gpa, value: u64) -> Result<(), Halted> {
        self.stats.table_stores += 1;
        self.store(at, StoreOp::Mov { width: Width::B8, value }, Site::SetPte)
    }

    /// Clears bits of one page-table entry with a locked AND.
    pub(crate) fn clear_entry_bits(&mut self, at: Gpa, bits: u64) -> Result<(), Halted> {
        self.stats.table_stores += 1;
        self.store(at, StoreOp::And { mask: !bits }, Site::SetPte)
    }

    /// Fills a frame with zeros, word by word.
    pub(crate) fn zero_words(&mut self, frame: Gfn) -> Result<(), Halted> {
        self.store(frame.base(), StoreOp::RepStos { value: 0, count: 512 }, Site::ClearPage)
    }

    /// Touches a data frame through the direct map, once: further accesses to the page cannot miss.
    pub(crate) fn touch(&mut self, frame: Gfn, kind: AccessKind) -> Result<(), Halted> {
        self.run(&[Acc::supervisor(alias(frame.base()), kind)])
    }

    /// INVLPG.
    pub(crate) fn invlpg(&mut self, at: Gva) -> Result<(), Halted> {
        self.control(Control::Invlpg(at))
    }
}

/// Guest-physical memory as table code sees it. The first failure is kept, and nothing is stored after it.
pub(crate) struct KernelMem<'h, 'a> {
    pub(crate) hands: &'h mut Hands<'a>,
    /// Under kernel-page-table isolation: the kernel's root and the root used while the process runs. Stores to the user half
    /// of the first are repeated in the second, as `pti_set_user_pgtbl` does.
    pub(crate) mirror: Option<(Gfn, Gfn)>,
    failed: Option<Halted>,
}

impl<'h, 'a> KernelMem<'h, 'a> {
    pub(crate) fn new(hands: &'h mut Hands<'a>, mirror: Option<(Gfn, Gfn)>) -> Self {
        Self { hands, mirror, failed: None }
    }

    /// How it went.
    pub(crate) fn finish(self) -> Result<(), Halted> {
        self.failed.map_or(Ok(()), Err)
    }

    fn keep(&mut self, result: Result<(), Halted>) {
        self.failed = self.failed.or(result.err());
    }
}

impl TableMem<GuestPhys> for KernelMem<'_, '_> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.hands.platform.peek(self.hands.vm, at)
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        if self.failed.is_some() {
            return;
        }
        let result = self.hands.set_entry(at, value);
        self.keep(result);
        if let Some((root, user_root)) = self.mirror
            && at.frame() == root
            && at.page_offset(memvirt_addr::PageSize::Size4K) < 2048
        {
            let result = self.hands.set_entry(user_root.at(at.as_u64()), value);
            self.keep(result);
        }
    }

    fn clear(&mut self, frame: Gfn) {
        if self.failed.is_none() {
            let result = self.hands.zero_words(frame);
            self.keep(result);
        }
    }
}

/// Guest memory before the guest runs: what a boot loader writes.
pub(crate) struct BootMem<'a> {
    pub(crate) platform: &'a mut dyn Platform,
    pub(crate) vm: VmId,
}

impl TableMem<GuestPhys> for BootMem<'_> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.platform.peek(self.vm, at)
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        self.platform.poke(self.vm, at, value);
    }
}
