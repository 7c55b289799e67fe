//! Moving areas and the end of the heap.
//!
//! Source: Linux `mm/mremap.c` (`move_page_tables`, `move_ptes`: each entry is cleared and stored at its new place, the old
//! range flushed; then the old range is unmapped, which frees its tables), `mm/mmap.c` (`brk`: the heap's area grows and
//! shrinks; it does not grow into another area). Linux moves a whole leaf table at once where both ranges are aligned to 2 MiB
//! (`move_normal_pmd`); here entries move one by one.

use memvirt_addr::{Gva, PageSize};
use memvirt_ops::process::{Backing, ProcessId, Prot, Range};

use super::area::{Area, pages_of};
use super::memory::Hands;
use super::mm::page_address;
use super::process::Roots;
use super::shootdown::FreedTables;
use super::{Guest, Halted};

impl Guest {
    pub(crate) fn mremap(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        from: Range,
        to: Range,
    ) -> Result<(), Halted> {
        let (Some(old), Some(new)) = (pages_of(from), pages_of(to)) else {
            hands.stats.ignored.bad_range += 1;
            return Ok(());
        };
        let areas = self.processes.get(&id).map(|process| process.areas.overlapping(old.0, old.1)).unwrap_or_default();
        let overlap = old.0 != new.0 && old.0 < new.1 && new.0 < old.1;
        if areas.is_empty() || overlap {
            hands.stats.ignored.bad_move += 1;
            return Ok(());
        }
        if old.0 == new.0 {
            return self.resize(hands, id, old, new.1);
        }
        self.unmap_pages(hands, id, new.0, new.1)?;
        let length = new.1 - new.0;
        if length < old.1 - old.0 {
            self.unmap_pages(hands, id, old.0 + length, old.1)?;
        }
        let kept = (old.0, old.1.min(old.0 + length));
        self.move_areas(id, kept, new.0);
        if let Some(process) = self.processes.get_mut(&id) {
            process.areas.extend(new.0 + (kept.1 - kept.0), new.1);
        }
        let Some(roots) = self.processes.get(&id).map(|process| process.roots) else { return Ok(()) };
        self.move_pages(hands, roots, kept, new.0)?;
        self.move_hidden(id, kept, new.0);
        Ok(())
    }

    /// Lets an area end elsewhere.
    fn resize(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        (start, old_end): (u64, u64),
        new_end: u64,
    ) -> Result<(), Halted> {
        if new_end <= old_end {
            return if new_end == old_end { Ok(()) } else { self.unmap_pages(hands, id, new_end, old_end) };
        }
        self.unmap_pages(hands, id, old_end, new_end)?;
        let grown = self.processes.get_mut(&id).is_some_and(|process| process.areas.extend(old_end, new_end));
        if !grown {
            debug_assert!(start < old_end);
            hands.stats.ignored.bad_move += 1;
        }
        Ok(())
    }

    fn move_areas(&mut self, id: ProcessId, (start, end): (u64, u64), to: u64) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        for area in process.areas.remove(start, end) {
            let moved = Area { start: area.start - start + to, end: area.end - start + to, ..area };
            process.areas.insert(moved);
        }
    }

    fn move_hidden(&mut self, id: ProcessId, (start, end): (u64, u64), to: u64) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let moved: Vec<_> = process.hidden.range(start..end).map(|(page, kept)| (*page, *kept)).collect();
        for (page, kept) in moved {
            process.hidden.remove(&page);
            process.hidden.insert(page - start + to, kept);
        }
    }

    /// Moves the pages of a range, flushes where they were, and frees the tables that this leaves empty.
    pub(crate) fn move_pages(
        &mut self,
        hands: &mut Hands<'_>,
        roots: Roots,
        (start, end): (u64, u64),
        to: u64,
    ) -> Result<(), Halted> {
        let mut flushed = Vec::new();
        for mapping in self.leaves(hands, roots, start, end)? {
            let at = page_address(mapping.at.frame().number() - start + to);
            if mapping.size > PageSize::Size4K && !at.is_aligned(mapping.size) {
                self.split(hands, roots, mapping.at)?;
            }
            flushed.push((mapping.at, mapping.size));
        }
        for mapping in self.leaves(hands, roots, start, end)? {
            let at = page_address(mapping.at.frame().number() - start + to);
            hands.stats.pages_moved += mapping.size.frames();
            self.unmap_entry(hands, roots, mapping.at)?;
            if !self.map(hands, roots, at, mapping.frame, mapping.size, mapping.attrs)? {
                self.release(mapping.frame, mapping.size);
            }
        }
        self.flush_pages(hands, &flushed, FreedTables::Yes)?;
        self.with_tables(hands, roots, |mapper, frames| {
            mapper.prune(page_address(start)..page_address(end), frames);
            Ok(())
        })
    }

    /// Moves the end of the heap.
    pub(crate) fn brk(&mut self, hands: &mut Hands<'_>, id: ProcessId, end: Gva) -> Result<(), Halted> {
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let page = end.as_u64().div_ceil(4096);
        let Some((first, old)) = process.heap else {
            process.heap = Some((page, end));
            return Ok(());
        };
        let old_page = old.as_u64().div_ceil(4096);
        let taken = page > old_page && !process.areas.overlapping(old_page, page).is_empty();
        if page < first || end >= super::process::USER_END || taken {
            hands.stats.ignored.bad_heap += 1;
            return Ok(());
        }
        process.heap = Some((first, end));
        if page < old_page {
            return self.unmap_pages(hands, id, page, old_page);
        }
        // The area that ends where the heap does is the heap's own, unless the heap is empty.
        let last = process.areas.find(page_address(old_page.saturating_sub(1)));
        let plain = last.is_some_and(|area| area.prot == Prot::RW && area.backing == Backing::AnonymousPrivate);
        let own = old_page > first && plain && process.areas.extend(old_page, page);
        if page > old_page && !own {
            let object = self.objects.create();
            let area = Area {
                start: old_page,
                end: page,
                prot: Prot::RW,
                backing: Backing::AnonymousPrivate,
                object,
                first: 0,
                has_private_pages: false,
            };
            process.areas.insert(area);
        }
        Ok(())
    }
}
