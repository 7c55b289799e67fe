//! Mapping calls: mmap, munmap, mprotect, and the table operations they and the faults share.
//!
//! Source: Linux `mm/memory.c` (`zap_pte_range`, `free_pgtables`), `mm/mprotect.c` (`change_pte_range`: the entry is cleared
//! with an exchange, then stored anew), `mm/mmu_gather.c` (one flush for all pages of a call, frames freed after it).

use memvirt_addr::{Gfn, Gva, PageSize};
use memvirt_ops::process::{Backing, ProcessId, Prot, Range};
use memvirt_pagetable::tree::Mapping;
use memvirt_pagetable::{Attrs, Guest4, MapError};

use super::area::{Area, pages_of};
use super::fault::leaf;
use super::memory::Hands;
use super::process::Roots;
use super::shootdown::FreedTables;
use super::{Guest, Halted};

/// The first address of a page number of user space.
pub(crate) const fn page_address(page: u64) -> Gva {
    Gva::new_truncate(page << 12)
}

/// What becomes of tables that a zap leaves empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// They stay, as the areas do.
    Stay,
    /// They are freed.
    Pruned,
}

impl Guest {
    pub(crate) fn mmap(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        range: Range,
        prot: Prot,
        backing: Backing,
    ) -> Result<(), Halted> {
        let Some((start, end)) = pages_of(range) else {
            hands.stats.ignored.bad_range += 1;
            return Ok(());
        };
        self.unmap_pages(hands, id, start, end)?;
        let area =
            Area { start, end, prot, backing, object: self.objects.create(), first: 0, has_private_pages: false };
        if let Some(process) = self.processes.get_mut(&id) {
            process.areas.insert(area);
        }
        Ok(())
    }

    pub(crate) fn munmap(&mut self, hands: &mut Hands<'_>, id: ProcessId, range: Range) -> Result<(), Halted> {
        let Some((start, end)) = self.known_pages(hands, id, range) else { return Ok(()) };
        self.unmap_pages(hands, id, start, end)
    }

    /// Forgets the pages of a range; its areas stay.
    pub(crate) fn discard(&mut self, hands: &mut Hands<'_>, id: ProcessId, range: Range) -> Result<(), Halted> {
        let Some((start, end)) = self.known_pages(hands, id, range) else { return Ok(()) };
        self.zap(hands, id, (start, end), Tables::Stay)
    }

    /// The pages of a range that holds areas of the process; anything else is noted.
    pub(crate) fn known_pages(&self, hands: &mut Hands<'_>, id: ProcessId, range: Range) -> Option<(u64, u64)> {
        let Some((start, end)) = pages_of(range) else {
            hands.stats.ignored.bad_range += 1;
            return None;
        };
        let areas = self.processes.get(&id).map(|process| process.areas.overlapping(start, end));
        if areas.is_none_or(|areas| areas.is_empty()) {
            hands.stats.ignored.nothing_there += 1;
            return None;
        }
        Some((start, end))
    }

    /// Removes areas and their pages.
    pub(crate) fn unmap_pages(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        start: u64,
        end: u64,
    ) -> Result<(), Halted> {
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        if process.areas.remove(start, end).is_empty() {
            return Ok(());
        }
        self.zap(hands, id, (start, end), Tables::Pruned)
    }

    /// Clears the entries of a range, flushes once, then gives the pages back.
    fn zap(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        (start, end): (u64, u64),
        tables: Tables,
    ) -> Result<(), Halted> {
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let roots = process.roots;
        let hidden: Vec<_> = process.hidden.range(start..end).map(|(page, kept)| (*page, *kept)).collect();
        for (page, _) in &hidden {
            process.hidden.remove(page);
        }
        let gone = self.leaves(hands, roots, start, end)?;
        self.with_tables(hands, roots, |mapper, frames| {
            for mapping in &gone {
                mapper.unmap(mapping.at).map_err(|_| Halted::GuestOutOfMemory)?;
            }
            if tables == Tables::Pruned {
                mapper.prune(page_address(start)..page_address(end), frames);
            }
            Ok(())
        })?;
        let flushed: Vec<_> = gone.iter().map(|mapping| (mapping.at, mapping.size)).collect();
        let freed = if tables == Tables::Pruned { FreedTables::Yes } else { FreedTables::No };
        self.flush_pages(hands, &flushed, freed)?;
        for mapping in gone {
            self.release(mapping.frame, mapping.size);
        }
        for (_, (frame, size)) in hidden {
            self.release(frame, size);
        }
        Ok(())
    }

    pub(crate) fn mprotect(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        range: Range,
        prot: Prot,
    ) -> Result<(), Halted> {
        let Some((start, end)) = self.known_pages(hands, id, range) else { return Ok(()) };
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let roots = process.roots;
        let parts = process.areas.remove(start, end);
        for part in &parts {
            process.areas.insert(Area { prot, ..*part });
        }
        if prot != Prot::NONE {
            self.unhide(hands, id, start, end)?;
        }
        let mut changed = Vec::new();
        for part in &parts {
            for mapping in self.leaves(hands, roots, part.start, part.end)? {
                if self.change_protection(hands, id, part, &mapping, prot)? {
                    changed.push((mapping.at, mapping.size));
                }
            }
        }
        self.flush_pages(hands, &changed, FreedTables::No)
    }

    /// Gives one page of an area other permissions; says whether its entry changed.
    fn change_protection(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        area: &Area,
        mapping: &Mapping<Guest4>,
        prot: Prot,
    ) -> Result<bool, Halted> {
        let Some(process) = self.processes.get(&id) else { return Ok(false) };
        let roots = process.roots;
        let dirty = mapping.attrs.contains(Attrs::DIRTY);
        let own = !area.is_private() || self.is_exclusive(mapping.frame, mapping.size);
        let accessed = mapping.attrs & Attrs::ACCESSED;
        let attrs = (leaf(prot, dirty && own, dirty) - Attrs::ACCESSED) | accessed;
        if attrs == mapping.attrs && prot != Prot::NONE {
            return Ok(false);
        }
        self.unmap_entry(hands, roots, mapping.at)?;
        if prot == Prot::NONE {
            if let Some(process) = self.processes.get_mut(&id) {
                process.hidden.insert(mapping.at.frame().number(), (mapping.frame, mapping.size));
            }
        } else {
            self.map(hands, roots, mapping.at, mapping.frame, mapping.size, attrs)?;
        }
        Ok(true)
    }

    /// Maps again what was hidden while its area permitted nothing; permissions follow.
    fn unhide(&mut self, hands: &mut Hands<'_>, id: ProcessId, start: u64, end: u64) -> Result<(), Halted> {
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let roots = process.roots;
        let hidden: Vec<_> = process.hidden.range(start..end).map(|(page, kept)| (*page, *kept)).collect();
        for (page, (frame, size)) in hidden {
            if let Some(process) = self.processes.get_mut(&id) {
                process.hidden.remove(&page);
            }
            self.map(hands, roots, page_address(page), frame, size, leaf(Prot::R, false, true))?;
        }
        Ok(())
    }

    /// The leaves of a page range, with large pages that reach over its ends broken up.
    pub(crate) fn leaves(
        &mut self,
        hands: &mut Hands<'_>,
        roots: Roots,
        start: u64,
        end: u64,
    ) -> Result<Vec<Mapping<Guest4>>, Halted> {
        for edge in [start, end] {
            let at = page_address(edge);
            if let Some(mapping) = self.mapping(hands, roots, at)?
                && mapping.size > PageSize::Size4K
                && mapping.at != at
            {
                self.split(hands, roots, mapping.at)?;
                self.flush_pages(hands, &[(mapping.at, mapping.size)], FreedTables::No)?;
            }
        }
        self.with_tables(hands, roots, |mapper, _| Ok(mapper.leaves(page_address(start)..page_address(end)).collect()))
    }

    /// Maps a page in the user half; false where something else stands there already.
    pub(crate) fn map(
        &mut self,
        hands: &mut Hands<'_>,
        roots: Roots,
        at: Gva,
        frame: Gfn,
        size: PageSize,
        attrs: Attrs,
    ) -> Result<bool, Halted> {
        self.with_tables(hands, roots, |mapper, frames| match mapper.map(at, frame, size, attrs, frames) {
            Ok(_) => Ok(true),
            Err(MapError::OutOfFrames { .. }) => Err(Halted::GuestOutOfMemory),
            Err(_) => Ok(false),
        })
    }

    /// Clears the entry of a page.
    pub(crate) fn unmap_entry(&mut self, hands: &mut Hands<'_>, roots: Roots, at: Gva) -> Result<(), Halted> {
        self.with_tables(hands, roots, |mapper, _| {
            mapper.unmap(at).map_err(|_| Halted::GuestOutOfMemory)?;
            Ok(())
        })
    }

    /// Breaks the large page at `at` into 4 KiB pages.
    pub(crate) fn split(&mut self, hands: &mut Hands<'_>, roots: Roots, at: Gva) -> Result<(), Halted> {
        hands.stats.splits += 1;
        self.with_tables(hands, roots, |mapper, frames| {
            mapper.split(at, PageSize::Size4K, frames).map_err(|_| Halted::GuestOutOfMemory)?;
            Ok(())
        })
    }

    /// One mapping of a page is gone.
    pub(crate) fn release(&mut self, frame: Gfn, size: PageSize) {
        if frame == self.zero_page {
            return;
        }
        if size == PageSize::Size4K {
            if self.frames.release(frame) {
                self.objects.forget(frame);
            }
        } else {
            self.frames.release_page(frame, size);
        }
    }
}
