//! Memory that is there before it is touched: what a program has done by itself before the part that is measured.
//!
//! Every page of a process' anonymous memory is mapped by the kernel's own fault handler, so the tables are those that as many
//! stores, lowest address first, would have made. The difference is that nobody counts: the kernel's stores to its tables go
//! straight to memory, as a boot loader's do, and nothing is left in TLBs or caches.

use memvirt_addr::{Acc, Gfn, Gpa, Gva, Hfn, PageSize, PfCode, Vpn};
use memvirt_ops::arch::{Event, GfnRange, GuestFault, StoreOp, Width};
use memvirt_ops::process::{Backing, Range};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Attribution, Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};

use super::area::pages_of;
use super::layout::DIRECT_MAP;
use super::{Guest, Halted};

impl Guest {
    /// Maps every page of the current process' private anonymous memory within `range` that may be stored to, as stores to them
    /// would, and has the host bring in all memory that the guest uses and has not brought in this way before. Nothing of it is
    /// counted.
    ///
    /// # Errors
    ///
    /// [`Halted::GuestOutOfMemory`].
    pub fn prefault(&mut self, range: Range, platform: &mut dyn Platform) -> Result<(), Halted> {
        self.prefault_on(0, range, platform)
    }

    /// As [`Guest::prefault`], for the process that is current on a CPU.
    ///
    /// # Errors
    ///
    /// [`Halted::GuestOutOfMemory`].
    ///
    /// # Panics
    ///
    /// For a CPU that does not exist.
    pub fn prefault_on(&mut self, cpu: usize, range: Range, platform: &mut dyn Platform) -> Result<(), Halted> {
        self.begin(cpu);
        let Some((start, end)) = pages_of(range) else { return Ok(()) };
        let process = self.current().and_then(|id| self.processes.get(&id));
        let mut parts = process.map_or(Vec::new(), |process| process.areas.overlapping(start, end));
        parts.retain(|area| area.backing == Backing::AnonymousPrivate && area.prot.write);
        let counted = self.me().stats;
        let mut loader = Loader { below: platform, vm: self.vm };
        for part in parts {
            self.prefault_pages(part.start, part.end, &mut loader)?;
        }
        self.me_mut().stats = counted;
        let (old, new) = (self.populated_end, self.frames.used_end());
        if new > old {
            self.populated_end = new;
            platform.populate(self.vm, GfnRange { start: Gfn::new(old), frames: new - old }, &mut Ledger::sums());
        }
        Ok(())
    }

    fn prefault_pages(&mut self, start: u64, end: u64, loader: &mut Loader<'_>) -> Result<(), Halted> {
        let mut page = start;
        while page < end {
            let gva = Vpn::new(page).base();
            let code = PfCode::of(Acc::user(gva, memvirt_addr::AccessKind::Write), false);
            let mut uncounted = Ledger::sums();
            let size = self.with_hands(loader, &mut uncounted, |guest, hands| {
                let Some(roots) = guest.current().and_then(|id| guest.processes.get(&id)).map(|process| process.roots)
                else {
                    return Ok(PageSize::Size4K);
                };
                let mut mapping = guest.mapping(hands, roots, gva)?;
                if mapping.is_none() {
                    guest.handle(hands, GuestFault { gva, code })?;
                    mapping = guest.mapping(hands, roots, gva)?;
                }
                Ok(mapping.map_or(PageSize::Size4K, |mapping| mapping.size))
            })?;
            page = (page & !(size.frames() - 1)) + size.frames();
        }
        Ok(())
    }

    /// Counts from 0 again what the guest did; what it is in the middle of goes on.
    pub fn restart_stats(&mut self) {
        self.cpus.iter_mut().for_each(|cpu| cpu.stats = super::GuestStats::default());
    }
}

/// A platform on which the kernel's stores go straight to memory, and nothing else happens.
struct Loader<'a> {
    below: &'a mut dyn Platform,
    vm: VmId,
}

impl Loader<'_> {
    /// The word at `at` after `op`.
    fn stored(&self, at: Gpa, op: &StoreOp) -> u64 {
        let old = self.below.peek(self.vm, at);
        match *op {
            StoreOp::Mov { width: Width::B8, value } | StoreOp::RepStos { value, .. } => value,
            StoreOp::Mov { width, value } => {
                let shift = (at.as_u64() & 7) * 8;
                let mask = ((1u64 << (8 * width.bytes())) - 1) << shift;
                old & !mask | value << shift & mask
            }
            StoreOp::And { mask } => old & mask,
            StoreOp::Or { bits } => old | bits,
            StoreOp::Vector => 0,
        }
    }

    fn store(&mut self, via: Gva, op: &StoreOp) {
        let words = match *op {
            StoreOp::RepStos { count, .. } => u64::from(count),
            StoreOp::Vector => 2,
            _ => 1,
        };
        for word in 0..words {
            let at = Gpa::new_truncate(via.as_u64().wrapping_sub(DIRECT_MAP)).wrapping_add(8 * word);
            let value = self.stored(at, op);
            // Memory is zero before: a table that is cleared needs no frame yet.
            if self.below.peek(self.vm, at) != value {
                self.below.poke(self.vm, at, value);
            }
        }
    }
}

impl Platform for Loader<'_> {
    fn accesses(&mut self, _: VcpuId, run: &[Acc], _: Horizon, _: &mut Ledger) -> (usize, Stop) {
        (run.len(), Stop::Done)
    }

    fn event(&mut self, _: VcpuId, event: &Event, _: &mut Ledger) -> Result<Option<u64>, Refusal> {
        if let Event::Store { via, op, .. } = event {
            self.store(*via, op);
        }
        Ok(None)
    }

    fn host(&mut self, _: &memvirt_ops::arch::HostEvent, _: &mut Ledger) {}

    fn world_switch(&mut self, _: VcpuId, _: &mut Ledger) {}

    /// The host's memory is brought in once all is loaded, by the platform itself.
    fn populate(&mut self, _: VmId, _: GfnRange, _: &mut Ledger) {}

    fn attribution(&self, vm: VmId) -> Option<Attribution> {
        self.below.attribution(vm)
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        self.below.peek(vm, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        self.below.poke(vm, at, value);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        self.below.backing(vm, gfn)
    }

    fn reached(&self, _: VcpuId, _: Gva) -> Option<Reached> {
        None
    }

    fn table_bytes(&self) -> TableBytes {
        self.below.table_bytes()
    }
}
