//! Fork, exec and exit.
//!
//! Source: Linux `mm/memory.c` (`copy_page_range`: only areas with private pages are copied, writable entries are
//! write-protected in the parent with a locked AND, shared in the child, where they are made old; `vma_needs_copy`),
//! `kernel/fork.c` (`dup_mmap` flushes the parent at its end), `fs/exec.c` (`exec_mmap`: the new address space is loaded before
//! the old one is torn down), `mm/mmap.c` (`exit_mmap`: `unmap_vmas` clears the entries of all areas, then `free_pgtables` frees
//! the tables from the leaves up, then `tlb_finish_mmu` flushes).

use memvirt_ops::process::ProcessId;
use memvirt_pagetable::tree::Mapping;
use memvirt_pagetable::{Attrs, Guest4, Teardown};
use memvirt_platform::{Ledger, Platform};

use super::area::Area;
use super::layout::Site;
use super::memory::Hands;
use super::process::{Process, Roots, USER_END};
use super::{Guest, Halted, LazySwitch};

/// The W bit of an entry.
const WRITE: u64 = <memvirt_pagetable::Guest4 as memvirt_pagetable::Format>::RAW_WRITE;

impl Guest {
    pub(crate) fn fork(&mut self, hands: &mut Hands<'_>, parent: ProcessId, child: ProcessId) -> Result<(), Halted> {
        if self.is_in_use(child) {
            hands.stats.ignored.number_in_use += 1;
            return Ok(());
        }
        hands.stats.forks += 1;
        let mut process = self.new_process(hands)?;
        let Some(old) = self.processes.get(&parent) else { return Ok(()) };
        process.areas = old.areas.clone();
        process.heap = old.heap;
        process.hidden.clone_from(&old.hidden);
        let (from, to) = (old.roots, process.roots);
        let areas: Vec<Area> = old.areas.iter().copied().collect();
        for (frame, size) in process.hidden.values() {
            if *frame != self.zero_page {
                self.frames.share(*frame, *size);
            }
        }
        self.processes.insert(child, process);
        for area in areas.iter().filter(|area| area.is_private() && area.has_private_pages) {
            self.copy_area(hands, from, to, area)?;
        }
        self.flush_all(hands)
    }

    fn copy_area(&mut self, hands: &mut Hands<'_>, from: Roots, to: Roots, area: &Area) -> Result<(), Halted> {
        for mapping in self.leaves(hands, from, area.start, area.end)? {
            if mapping.attrs.contains(Attrs::WRITE) {
                hands.clear_entry_bits(mapping.entry_at, WRITE)?;
            }
            if mapping.frame != self.zero_page {
                self.frames.share(mapping.frame, mapping.size);
            }
            let attrs = mapping.attrs - Attrs::WRITE - Attrs::ACCESSED;
            self.map(hands, to, mapping.at, mapping.frame, mapping.size, attrs)?;
        }
        Ok(())
    }

    pub(crate) fn exec(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        hands.stats.execs += 1;
        let fresh = self.new_process(hands)?;
        self.replace(hands, id, fresh)
    }

    /// A child that runs in its parent's address space until it executes a program or ends; the parent waits meanwhile.
    pub(crate) fn vfork(&mut self, hands: &mut Hands<'_>, parent: ProcessId, child: ProcessId) {
        if self.is_in_use(child) {
            hands.stats.ignored.number_in_use += 1;
            return;
        }
        let Some(process) = self.processes.remove(&parent) else { return };
        hands.stats.forks += 1;
        self.processes.insert(child, process);
        self.lent.insert(child, parent);
        // The parent goes on until the next switch, in the address space that the child holds now; so do its other threads.
        self.rename_threads(parent, child);
        let me = self.me_mut();
        (me.current, me.parent_on_cpu) = (Some(child), true);
    }

    /// A child that is forked while nobody runs, or that nobody forks: the kernel makes it, with an empty address space, as it
    /// does for its own helpers (`call_usermodehelper`).
    pub(crate) fn orphan(
        &mut self,
        child: ProcessId,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<(), Halted> {
        if self.is_in_use(child) {
            self.me_mut().stats.ignored.number_in_use += 1;
            return Ok(());
        }
        self.me_mut().stats.forks += 1;
        let process = if self.current().is_some() {
            self.kernel(Site::Interrupt, platform, ledger, |guest, hands| guest.new_process(hands))?
        } else {
            self.with_hands(platform, ledger, |guest, hands| guest.new_process(hands))?
        };
        self.processes.insert(child, process);
        Ok(())
    }

    pub(crate) fn is_in_use(&self, id: ProcessId) -> bool {
        self.processes.contains_key(&id) || self.lent.values().any(|parent| *parent == id)
    }

    /// Gives a lent address space back; where the process runs in its own, that stays the caller's.
    fn give_back(&mut self, child: ProcessId, process: Process) -> Option<Process> {
        let Some(parent) = self.lent.remove(&child) else { return Some(process) };
        self.processes.insert(parent, process);
        self.rename_threads(child, parent);
        None
    }

    /// The threads of an address space on other CPUs belong to another process from now on.
    fn rename_threads(&mut self, from: ProcessId, to: ProcessId) {
        let here = self.on;
        for (_, cpu) in self.cpus.iter_mut().enumerate().filter(|(i, cpu)| *i != here && cpu.current == Some(from)) {
            cpu.current = Some(to);
        }
    }

    /// Ends the threads that a process has on other CPUs, where its address space is its own.
    fn end_other_threads(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        if self.lent.contains_key(&id) { Ok(()) } else { self.end_threads(hands, id) }
    }

    /// Puts a new address space in the place of a process' old one: it is loaded before the old one is taken down.
    pub(crate) fn replace(&mut self, hands: &mut Hands<'_>, id: ProcessId, fresh: Process) -> Result<(), Halted> {
        self.end_other_threads(hands, id)?;
        let Some(old) = self.processes.remove(&id) else { return Ok(()) };
        let old = self.give_back(id, old);
        self.processes.insert(id, fresh);
        self.load(hands, id)?;
        if let Some(mut old) = old {
            self.tear_down(hands, &mut old)?;
            hands.stats.flushes_sent += u64::from(old.ran_beside(self.on));
            self.flush_borrowers(hands, old.roots.root, |_, _| Ok(()))?;
            self.free_roots(&old);
        }
        Ok(())
    }

    pub(crate) fn exit(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        self.end_other_threads(hands, id)?;
        let Some(process) = self.processes.remove(&id) else { return Ok(()) };
        hands.stats.exits += 1;
        self.me_mut().current = None;
        let Some(mut process) = self.give_back(id, process) else { return Ok(()) };
        self.tear_down(hands, &mut process)?;
        hands.stats.flushes_sent += u64::from(process.ran_beside(self.on));
        let (root, lazy) = (process.roots.root, self.config.lazy_switch);
        self.flush_borrowers(hands, root, |guest, hands| match lazy {
            LazySwitch::Off => {
                hands.stats.flushes += 1;
                guest.flush_by_loading(hands, root, None)
            }
            LazySwitch::On => {
                hands.stats.space_switches += 1;
                guest.load_kernel_space(hands)
            }
        })?;
        self.doomed.push(process);
        Ok(())
    }

    /// Empties the user half of an address space: first every page of every area, then the tables from the leaves up.
    fn tear_down(&mut self, hands: &mut Hands<'_>, process: &mut Process) -> Result<(), Halted> {
        let gone: Vec<Mapping<Guest4>> =
            self.with_tables(hands, process.roots, |mapper, _| Ok(mapper.leaves(..USER_END).collect()))?;
        self.with_tables(hands, process.roots, |mapper, frames| {
            for mapping in &gone {
                mapper.unmap(mapping.at).map_err(|_| Halted::GuestOutOfMemory)?;
            }
            mapper.free_tree(frames, 256..512, Teardown::ClearEntries, |_| {});
            Ok(())
        })?;
        for (frame, size) in std::mem::take(&mut process.hidden).into_values() {
            self.release(frame, size);
        }
        for mapping in gone {
            self.release(mapping.frame, mapping.size);
        }
        Ok(())
    }
}
