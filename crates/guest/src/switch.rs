//! Kernel entries, context switches, and what a flush does on one CPU.
//!
//! Sources: Linux `arch/x86/mm/tlb.c` (`switch_mm_irqs_off`, `flush_tlb_func`),
//! `arch/x86/entry/calling.h` (the CR3 switch of kernel-page-table isolation).

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, PageSize};
use memvirt_ops::arch::{Control, Cr3, Invpcid, Pcid};
use memvirt_ops::process::ProcessId;
use memvirt_platform::{Ledger, Platform};

use super::layout::{ENTRY_AREA, Site, alias};
use super::memory::Hands;
use super::shootdown::{Flush, FreedTables};
use super::{FlushRange, Guest, Halted, Invlpg};

impl Guest {
    pub(crate) fn with_hands<T>(
        &mut self,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
        act: impl FnOnce(&mut Self, &mut Hands<'_>) -> Result<T, Halted>,
    ) -> Result<T, Halted> {
        let before = self.me().stats;
        let mut stats = before;
        let mut hands = Hands { platform, ledger, stats: &mut stats, vm: self.vm, vcpu: self.me().vcpu };
        let result = act(self, &mut hands);
        debug_assert!(self.me().stats == before, "within the kernel, count through the hands");
        self.me_mut().stats = stats;
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

    pub(crate) fn enter(&mut self, hands: &mut Hands<'_>, site: Site) -> Result<(), Halted> {
        let Some(process) = self.current().and_then(|id| self.processes.get(&id)) else { return Ok(()) };
        let (root, stack) = (process.roots.root, process.kernel_stack_on(self.on));
        if self.config.kpti {
            hands.run(&[
                Acc::supervisor(Gva::new_truncate(ENTRY_AREA), AccessKind::Fetch),
                Acc::supervisor(Gva::new_truncate(ENTRY_AREA + 4096), AccessKind::Write),
            ])?;
            hands.control(Control::Cr3(self.cr3(root.base(), self.me().pcids.kernel(), true)))?;
        }
        hands.run(&[
            Acc::supervisor(site.ip(), AccessKind::Fetch),
            Acc::supervisor(alias(stack.base()), AccessKind::Write),
        ])
    }

    pub(crate) fn leave(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        let Some(process) = self.current().and_then(|id| self.processes.get(&id)) else { return Ok(()) };
        if let Some(user_root) = process.roots.user_root {
            let stale = self.me_mut().pcids.take_user_stale();
            hands.control(Control::Cr3(self.cr3(user_root.base(), self.me().pcids.user(), !stale)))?;
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
            self.me_mut().stats.ignored.unknown_process += 1;
            return Ok(());
        }
        let takes_over = std::mem::take(&mut self.me_mut().parent_on_cpu);
        if self.current() == Some(to) && !takes_over {
            return Ok(());
        }
        self.kernel(Site::Schedule, platform, ledger, |guest, hands| {
            hands.stats.switches += 1;
            guest.prepare_stack(hands, to)?;
            guest.load(hands, to)?;
            guest.me_mut().current = Some(to);
            guest.free_unloaded_roots();
            Ok(())
        })
    }

    /// Loads the address space of a process. Where it has been flushed since this CPU last looked at it, by others, the load
    /// flushes.
    pub(crate) fn load(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        let on = self.on;
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        process.ran_on.insert(on);
        let (root, space, generation) = (process.roots.root, process.space, process.generation);
        let with_pcid = self.config.pcid;
        let me = self.me_mut();
        if root == me.loaded {
            if me.pcids.generation() == generation {
                return Ok(());
            }
            hands.stats.space_switches += 1;
            return self.flush_by_loading(hands, root, Some((space, generation)));
        }
        me.loaded = root;
        hands.stats.space_switches += 1;
        let keep = if with_pcid {
            me.pcids.choose(space, generation)
        } else {
            me.pcids.occupy(space, generation);
            false
        };
        hands.stats.space_switches_kept += u64::from(keep);
        hands.control(Control::Cr3(self.cr3(root.base(), self.me().pcids.kernel(), keep)))
    }

    /// Leaves an address space that this CPU only borrows for the kernel's own (`switch_mm_irqs_off` to `init_mm`). With PCIDs
    /// the kernel's has a slot as every other, so that what is known of it may stay.
    pub(crate) fn load_kernel_space(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        let root = self.kernel_root;
        if !self.config.pcid {
            return self.flush_by_loading(hands, root, None);
        }
        let me = self.me_mut();
        me.loaded = root;
        let keep = me.pcids.choose_kernel();
        hands.stats.space_switches_kept += u64::from(keep);
        hands.stats.full_flushes += u64::from(!keep);
        hands.control(Control::Cr3(self.cr3(root.base(), self.me().pcids.kernel(), keep)))
    }

    /// Flushes pages of the current address space: one by one up to the ceiling, else all of it. The pages are in order.
    pub(crate) fn flush_pages(
        &mut self,
        hands: &mut Hands<'_>,
        pages: &[(Gva, PageSize)],
        freed: FreedTables,
    ) -> Result<(), Halted> {
        match self.flush_of(pages) {
            Some(Flush::Pages(_)) if self.config.invlpg == Invlpg::Forgotten => Ok(()),
            Some(what) => self.flush(hands, &what, freed),
            None => Ok(()),
        }
    }

    /// How pages are flushed.
    fn flush_of(&self, pages: &[(Gva, PageSize)]) -> Option<Flush> {
        let ((first, _), (last, last_size)) = (pages.first()?, pages.last()?);
        if self.config.flush_range == FlushRange::Mapped {
            let all = pages.len() as u64 > self.config.flush_ceiling;
            return Some(if all { Flush::All } else { Flush::Pages(pages.iter().map(|(at, _)| *at).collect()) });
        }
        let stride = pages.iter().map(|(_, size)| size.bytes()).min().unwrap_or(4096);
        let span = last.as_u64() + last_size.bytes() - first.as_u64();
        if span / stride > self.config.flush_ceiling {
            return Some(Flush::All);
        }
        Some(Flush::Pages((0..span / stride).map(|i| first.wrapping_add(i * stride)).collect()))
    }

    pub(crate) fn flush_page(&mut self, hands: &mut Hands<'_>, at: Gva) -> Result<(), Halted> {
        hands.invlpg(at)?;
        if self.config.kpti && self.config.pcid {
            hands.control(Control::Invpcid(Invpcid::Address(self.me().pcids.user(), at)))?;
        }
        Ok(())
    }

    /// Flushes the current address space: a load of CR3 with its own value.
    pub(crate) fn flush_all(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        self.flush(hands, &Flush::All, FreedTables::No)
    }

    /// Flushes the address space that this CPU is on by loading `root`; that of `space`, with its generation, or none's.
    pub(crate) fn flush_by_loading(
        &mut self,
        hands: &mut Hands<'_>,
        root: Gfn,
        space: Option<(u64, u64)>,
    ) -> Result<(), Halted> {
        hands.stats.full_flushes += 1;
        let me = self.me_mut();
        me.loaded = root;
        me.pcids.flushed(space.map(|(space, _)| space), space.map_or(0, |(_, generation)| generation));
        hands.control(Control::Cr3(self.cr3(root.base(), self.me().pcids.kernel(), false)))
    }
}
