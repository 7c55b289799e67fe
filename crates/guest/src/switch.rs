//! Kernel entries, context switches, flushes and process-context identifiers.
//!
//! Sources: Linux `arch/x86/mm/tlb.c` (`choose_new_asid`, `switch_mm_irqs_off`, `flush_tlb_func`),
//! `arch/x86/entry/calling.h` (the CR3 switch of kernel-page-table isolation).

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, Invpcid, Pcid};
use memvirt_ops::process::ProcessId;
use memvirt_platform::{Ledger, Platform};

use super::layout::{ENTRY_AREA, Site, alias};
use super::memory::Hands;
use super::{FlushRange, Guest, Halted, Invlpg};

/// How many address spaces keep their translations at once (`TLB_NR_DYN_ASIDS`).
const PCIDS: usize = 6;
/// The bit that tells a process' own PCID from its kernel's under isolation (`X86_CR3_PTI_PCID_USER_BIT`).
const USER_PCID: u16 = 1 << 11;

/// Which process holds which PCID.
#[derive(Debug, Default)]
pub(crate) struct Pcids {
    slots: [Option<ProcessId>; PCIDS],
    next: usize,
    current: usize,
    /// The process' own PCID must be flushed when it is loaded again.
    user_stale: [bool; PCIDS],
}

impl Pcids {
    /// The slot of a process, and whether its translations are still there.
    fn choose(&mut self, id: ProcessId) -> bool {
        let known = self.slots.iter().position(|slot| *slot == Some(id));
        self.current = known.unwrap_or_else(|| {
            let slot = self.next;
            self.next = (self.next + 1) % PCIDS;
            self.slots[slot] = Some(id);
            self.user_stale[slot] = true;
            slot
        });
        known.is_some()
    }

    /// An address space has another holder.
    pub(crate) fn pass(&mut self, from: ProcessId, to: ProcessId) {
        for slot in self.slots.iter_mut().filter(|slot| **slot == Some(from)) {
            *slot = Some(to);
        }
    }

    /// Forgets a process, or an address space that it has left.
    pub(crate) fn forget(&mut self, id: ProcessId) {
        for slot in self.slots.iter_mut().filter(|slot| **slot == Some(id)) {
            *slot = None;
        }
    }

    fn kernel(&self) -> Pcid {
        Pcid::try_new(u16::try_from(self.current + 1).unwrap_or(0)).unwrap_or_default()
    }

    fn user(&self) -> Pcid {
        Pcid::try_new(self.kernel().number() | USER_PCID).unwrap_or_default()
    }
}

impl Guest {
    pub(crate) fn with_hands<T>(
        &mut self,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
        act: impl FnOnce(&mut Self, &mut Hands<'_>) -> Result<T, Halted>,
    ) -> Result<T, Halted> {
        let mut stats = self.stats;
        let mut hands = Hands { platform, ledger, stats: &mut stats, vm: self.vm, vcpu: self.vcpu };
        let before = self.stats;
        let result = act(self, &mut hands);
        debug_assert!(self.stats == before, "within the kernel, count through the hands");
        self.stats = stats;
        result
    }

    /// One stay in the kernel: entry, what it does there, exit. Under isolation both ends load CR3.
    pub(crate) fn kernel<T>(
        &mut self,
        site: Site,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
        act: impl FnOnce(&mut Self, &mut Hands<'_>) -> Result<T, Halted>,
    ) -> Result<T, Halted> {
        self.with_hands(platform, ledger, |guest, hands| {
            hands.stats.kernel_entries += 1;
            guest.enter(hands, site)?;
            let result = act(guest, hands)?;
            guest.leave(hands)?;
            Ok(result)
        })
    }

    fn enter(&mut self, hands: &mut Hands<'_>, site: Site) -> Result<(), Halted> {
        let Some(process) = self.current.and_then(|id| self.processes.get(&id)) else { return Ok(()) };
        let (root, stack) = (process.roots.root, process.kernel_stack);
        if self.config.kpti {
            hands.run(&[
                Acc::supervisor(Gva::new_truncate(ENTRY_AREA), AccessKind::Fetch),
                Acc::supervisor(Gva::new_truncate(ENTRY_AREA + 4096), AccessKind::Write),
            ])?;
            hands.control(Control::Cr3(self.cr3(root.base(), self.pcids.kernel(), true)))?;
        }
        hands.run(&[
            Acc::supervisor(site.ip(), AccessKind::Fetch),
            Acc::supervisor(alias(stack.base()), AccessKind::Write),
        ])
    }

    fn leave(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        let Some(process) = self.current.and_then(|id| self.processes.get(&id)) else { return Ok(()) };
        if let Some(user_root) = process.roots.user_root {
            let stale = std::mem::take(&mut self.pcids.user_stale[self.pcids.current]);
            hands.control(Control::Cr3(self.cr3(user_root.base(), self.pcids.user(), !stale)))?;
            hands.run(&[Acc::supervisor(Gva::new_truncate(ENTRY_AREA), AccessKind::Fetch)])?;
        }
        Ok(())
    }

    fn cr3(&self, root: memvirt_addr::Gpa, pcid: Pcid, keep: bool) -> Cr3 {
        if self.config.pcid { Cr3 { root, pcid, keep } } else { Cr3::flushing(root) }
    }

    /// Makes another process current.
    pub(crate) fn switch(
        &mut self,
        to: ProcessId,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<(), Halted> {
        if !self.processes.contains_key(&to) {
            self.stats.ignored.unknown_process += 1;
            return Ok(());
        }
        if self.current == Some(to) && !std::mem::take(&mut self.parent_on_cpu) {
            return Ok(());
        }
        self.kernel(Site::Schedule, platform, ledger, |guest, hands| {
            hands.stats.switches += 1;
            guest.load(hands, to)?;
            guest.current = Some(to);
            if let Some(dead) = guest.doomed.take() {
                guest.free_roots(&dead);
            }
            Ok(())
        })
    }

    /// Loads the address space of a process.
    pub(crate) fn load(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        let Some(root) = self.processes.get(&id).map(|process| process.roots.root) else { return Ok(()) };
        if root == self.loaded {
            return Ok(());
        }
        let keep = self.config.pcid && self.pcids.choose(id);
        self.loaded = root;
        hands.control(Control::Cr3(self.cr3(root.base(), self.pcids.kernel(), keep)))
    }

    /// Flushes pages of the current address space: one by one up to the ceiling, else all of it. The pages are in order.
    pub(crate) fn flush_pages(&mut self, hands: &mut Hands<'_>, pages: &[(Gva, PageSize)]) -> Result<(), Halted> {
        let (Some((first, _)), Some((last, last_size))) = (pages.first(), pages.last()) else { return Ok(()) };
        if self.config.flush_range == FlushRange::Mapped {
            if pages.len() as u64 > self.config.flush_ceiling {
                return self.flush_all(hands);
            }
            return pages.iter().try_for_each(|(at, _)| self.flush_page(hands, *at));
        }
        let stride = pages.iter().map(|(_, size)| size.bytes()).min().unwrap_or(4096);
        let span = last.as_u64() + last_size.bytes() - first.as_u64();
        if span / stride > self.config.flush_ceiling {
            return self.flush_all(hands);
        }
        (0..span / stride).try_for_each(|i| self.flush_page(hands, first.wrapping_add(i * stride)))
    }

    fn flush_page(&mut self, hands: &mut Hands<'_>, at: Gva) -> Result<(), Halted> {
        if self.config.invlpg == Invlpg::Forgotten {
            return Ok(());
        }
        hands.invlpg(at)?;
        if self.config.kpti && self.config.pcid {
            hands.control(Control::Invpcid(Invpcid::Address(self.pcids.user(), at)))?;
        }
        Ok(())
    }

    /// Flushes the current address space: a load of CR3 with its own value.
    pub(crate) fn flush_all(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        let Some(root) = self.current.and_then(|id| self.processes.get(&id)).map(|process| process.roots.root) else {
            return Ok(());
        };
        self.flush_by_loading(hands, root)
    }

    /// Flushes the address space that the CPU is on by loading `root`.
    pub(crate) fn flush_by_loading(&mut self, hands: &mut Hands<'_>, root: Gfn) -> Result<(), Halted> {
        hands.stats.full_flushes += 1;
        self.loaded = root;
        self.pcids.user_stale[self.pcids.current] = true;
        hands.control(Control::Cr3(self.cr3(root.base(), self.pcids.kernel(), false)))
    }
}
