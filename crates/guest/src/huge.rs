//! The background collapse of small pages into large ones.
//!
//! Source: Linux `mm/khugepaged.c` (`hpage_collapse_scan_pmd`: an aligned range of one private anonymous area, at least one
//! page of it present and referenced, up to `max_ptes_none` = 511 of them missing; `collapse_huge_page`: the directory entry is
//! cleared and flushed, pages are copied, the old entries cleared, the large entry stored). One deviation: Linux keeps the old
//! leaf table aside for a later split; here it is freed, and a split allocates one.

use memvirt_addr::{AccessKind, Gfn, GuestPhys, Gva, Level, PageSize};
use memvirt_ops::process::{Backing, ProcessId};
use memvirt_pagetable::tree::Mapping;
use memvirt_pagetable::{Attrs, Entry, FrameAllocator, Guest4};

use super::fault::leaf;
use super::memory::Hands;
use super::mm::page_address;
use super::objects::ObjectId;
use super::process::Roots;
use super::{Guest, Halted};

/// Pages of a large page.
const LARGE: u64 = PageSize::Size2M.frames();

/// A range that can become one large page.
struct Candidate {
    roots: Roots,
    at: Gva,
    /// Where the directory entry lies, and the leaf table that it points to.
    entry_at: memvirt_addr::Gpa,
    table: Gfn,
    pages: Vec<Mapping<Guest4>>,
}

impl Guest {
    /// Looks at the next ranges of the current process and collapses what can be.
    pub(crate) fn collapse_some(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        let Some(id) = self.current() else { return Ok(()) };
        for _ in 0..self.config.collapse_scan_pages / LARGE {
            let Some(range) = self.next_range(id) else { return Ok(()) };
            if let Some(candidate) = self.candidate(hands, id, range)? {
                self.collapse(hands, id, &candidate)?;
            }
        }
        Ok(())
    }

    /// The first page of the next aligned range within a private anonymous area; after the last one, none and a new start.
    fn next_range(&mut self, id: ProcessId) -> Option<u64> {
        let process = self.processes.get_mut(&id)?;
        let from = process.collapsed_to;
        let fits = process.areas.iter().filter(|area| {
            area.backing == Backing::AnonymousPrivate && area.object != ObjectId::Adopted && area.prot.write
        });
        let next = fits
            .map(|area| (area.start.max(from).next_multiple_of(LARGE), area.end))
            .find(|(first, end)| first + LARGE <= *end);
        process.collapsed_to = next.map_or(0, |(first, _)| first + LARGE);
        next.map(|(first, _)| first)
    }

    fn candidate(&mut self, hands: &mut Hands<'_>, id: ProcessId, first: u64) -> Result<Option<Candidate>, Halted> {
        let Some(process) = self.processes.get(&id) else { return Ok(None) };
        let (roots, at) = (process.roots, page_address(first));
        if process.hidden.range(first..first + LARGE).next().is_some() {
            return Ok(None);
        }
        let (step, pages) = self.with_tables(hands, roots, |mapper, _| {
            let pages: Vec<_> = mapper.leaves(at..page_address(first + LARGE)).collect();
            Ok((mapper.tree().descend(at, Level::L2), pages))
        })?;
        let Entry::Table { next, .. } = step.entry else { return Ok(None) };
        let whole = step.level == Level::L2 && !pages.is_empty();
        let own = |page: &Mapping<Guest4>| page.frame == self.zero_page || self.is_exclusive(page.frame, page.size);
        let referenced = pages.iter().any(|page| page.attrs.contains(Attrs::ACCESSED));
        let fits = whole && referenced && pages.iter().all(own);
        Ok(fits.then_some(Candidate { roots, at, entry_at: step.entry_at, table: next, pages }))
    }

    fn collapse(&mut self, hands: &mut Hands<'_>, id: ProcessId, range: &Candidate) -> Result<(), Halted> {
        let Some(frame) = self.frames.allocate_data(PageSize::Size2M) else { return Ok(()) };
        hands.stats.collapses += 1;
        hands.set_entry(range.entry_at, 0)?;
        self.flush_all(hands)?;
        let mut pages = range.pages.iter().peekable();
        for i in 0..LARGE {
            let target = frame.offset(i);
            match pages.next_if(|page| page.at == range.at.wrapping_add(i * 4096) && page.frame != self.zero_page) {
                Some(page) => self.move_page(hands, page, target)?,
                None => {
                    pages.next_if(|page| page.at == range.at.wrapping_add(i * 4096));
                    self.clear(hands, target)?;
                }
            }
        }
        FrameAllocator::<GuestPhys>::free(&mut self.frames, range.table, PageSize::Size4K);
        let prot = self.processes.get(&id).and_then(|process| process.areas.find(range.at)).map(|area| area.prot);
        if let Some(prot) = prot {
            self.map(hands, range.roots, range.at, frame, PageSize::Size2M, leaf(prot, true, true))?;
        }
        Ok(())
    }

    /// Copies a small page into its place in a large one and clears its old entry.
    fn move_page(&mut self, hands: &mut Hands<'_>, page: &Mapping<Guest4>, target: Gfn) -> Result<(), Halted> {
        if self.frames.take_was_table(target) {
            hands.zero_words(target)?;
        }
        hands.stats.pages_copied += 1;
        hands.touch(page.frame, AccessKind::Read)?;
        hands.touch(target, AccessKind::Write)?;
        hands.set_entry(page.entry_at, 0)?;
        self.release(page.frame, page.size);
        Ok(())
    }
}
