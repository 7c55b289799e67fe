//! Fork, exec and exit.
//!
//! Source: Linux `mm/memory.c` (`copy_page_range`: only areas with private pages are copied, writable entries are
//! write-protected in the parent with a locked AND, shared in the child; `vma_needs_copy`), `kernel/fork.c` (`dup_mmap` flushes
//! the parent at its end), `fs/exec.c` (`exec_mmap`: the new address space is loaded before the old one is torn down),
//! `mm/mmap.c` (`exit_mmap`: entries cleared, then tables freed from the leaves up).

use memvirt_ops::process::ProcessId;
use memvirt_pagetable::{Attrs, Teardown};

use super::area::Area;
use super::memory::Hands;
use super::process::{Process, Roots};
use super::{Guest, Halted};

/// The W bit of an entry.
const WRITE: u64 = <memvirt_pagetable::Guest4 as memvirt_pagetable::Format>::RAW_WRITE;

impl Guest {
    pub(crate) fn fork(&mut self, hands: &mut Hands<'_>, parent: ProcessId, child: ProcessId) -> Result<(), Halted> {
        if self.processes.contains_key(&child) {
            hands.stats.ignored_ops += 1;
            return Ok(());
        }
        hands.stats.forks += 1;
        let mut process = self.new_process(hands)?;
        let Some(old) = self.processes.get(&parent) else { return Ok(()) };
        process.areas = old.areas.clone();
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
            self.map(hands, to, mapping.at, mapping.frame, mapping.size, mapping.attrs - Attrs::WRITE)?;
        }
        Ok(())
    }

    pub(crate) fn exec(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        hands.stats.execs += 1;
        let fresh = self.new_process(hands)?;
        let Some(mut old) = self.processes.insert(id, fresh) else { return Ok(()) };
        self.pcids.forget(id);
        self.load(hands, id)?;
        self.tear_down(hands, &mut old)?;
        self.free_roots(&old);
        Ok(())
    }

    pub(crate) fn exit(&mut self, hands: &mut Hands<'_>, id: ProcessId) -> Result<(), Halted> {
        let Some(mut process) = self.processes.remove(&id) else { return Ok(()) };
        hands.stats.exits += 1;
        self.tear_down(hands, &mut process)?;
        self.processes.insert(id, process);
        self.flush_all(hands)?;
        self.doomed = self.processes.remove(&id);
        self.pcids.forget(id);
        self.current = None;
        Ok(())
    }

    /// Empties the user half of an address space.
    fn tear_down(&mut self, hands: &mut Hands<'_>, process: &mut Process) -> Result<(), Halted> {
        let mut gone = Vec::new();
        self.with_tables(hands, process.roots, |mapper, frames| {
            mapper.free_tree(frames, 256..512, Teardown::ClearEntries, |mapping| gone.push(mapping));
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
