//! Files in memory: mapping them, the page cache, and faulting around.
//!
//! Source: Linux `mm/filemap.c` (`filemap_map_pages` maps what is in the cache and not yet mapped), `mm/memory.c`
//! (`do_fault_around`: an aligned window of `fault_around_bytes`, cut to the area and to one leaf table; `do_set_pte`: entries
//! are young on x86, and writable only where the area's default permission is, which for files that track dirty pages it is
//! not), `mm/vmscan.c` (clean pages that nobody maps go first).

use memvirt_addr::{Gfn, PageSize};
use memvirt_ops::process::{Backing, FileId, ProcessId, Prot, Range, Sharing};

use super::area::{Area, ObjectId, pages_of};
use super::fault::{Fault, leaf};
use super::memory::Hands;
use super::mm::page_address;
use super::{Guest, Halted, PageCache};

/// Entries of a leaf table: a window around a fault ends with its table.
const TABLE_PAGES: u64 = 512;
/// Pages that give up their memory at once where it runs short (`SWAP_CLUSTER_MAX`).
const EVICT_BATCH: usize = 32;

/// What an area shows of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileView {
    pub(crate) sharing: Sharing,
    pub(crate) file: FileId,
    pub(crate) first_page: u64,
}

impl Guest {
    /// Maps a file, over whatever was there.
    pub(crate) fn map_file(
        &mut self,
        hands: &mut Hands<'_>,
        id: ProcessId,
        range: Range,
        prot: Prot,
        view: FileView,
    ) -> Result<(), Halted> {
        let Some((start, end)) = pages_of(range) else {
            hands.stats.ignored.bad_range += 1;
            return Ok(());
        };
        self.unmap_pages(hands, id, start, end)?;
        self.add_file_area(id, (start, end), prot, view);
        Ok(())
    }

    /// Adds an area that shows a file where none is.
    pub(crate) fn add_file_area(&mut self, id: ProcessId, (start, end): (u64, u64), prot: Prot, view: FileView) {
        let backing = match view.sharing {
            Sharing::Private => Backing::FilePrivate,
            Sharing::Shared => Backing::FileShared,
        };
        let object = ObjectId::File(view.file);
        let area = Area { start, end, prot, backing, object, first: view.first_page, has_private_pages: false };
        if let Some(process) = self.processes.get_mut(&id) {
            process.areas.insert(area);
        }
    }

    /// A frame for data; where memory is used up, unmapped file pages give theirs.
    pub(crate) fn data_page(&mut self, hands: &mut Hands<'_>) -> Result<Gfn, Halted> {
        if let Some(frame) = self.frames.allocate_data(PageSize::Size4K) {
            return Ok(frame);
        }
        let unmapped: Vec<Gfn> =
            self.objects.kept().filter(|frame| self.frames.uses(*frame) == 1).take(EVICT_BATCH).collect();
        for frame in unmapped {
            hands.stats.pages_evicted += 1;
            self.frames.release(frame);
            self.objects.forget(frame);
        }
        self.frames.allocate_data(PageSize::Size4K).ok_or(Halted::GuestOutOfMemory)
    }

    fn is_kept(&self, object: ObjectId) -> bool {
        self.config.page_cache == PageCache::Kept && object.is_file()
    }

    /// The page of an object, brought in where it is not in memory; the caller has one use of it. A device fills it, so the
    /// kernel clears it only where it must not show what a page table left.
    pub(crate) fn cached(&mut self, hands: &mut Hands<'_>, object: ObjectId, page: u64) -> Result<Gfn, Halted> {
        if let Some(frame) = self.objects.find(object, page) {
            self.frames.share(frame, PageSize::Size4K);
            return Ok(frame);
        }
        let frame = self.data_page(hands)?;
        if self.frames.take_was_table(frame) {
            hands.zero_words(frame)?;
        }
        self.objects.insert(object, page, frame);
        if self.is_kept(object) {
            self.objects.keep(frame);
            self.frames.share(frame, PageSize::Size4K);
        }
        Ok(frame)
    }

    /// Maps the page of a fault on a file, and those around it that are in memory.
    pub(crate) fn map_object(&mut self, hands: &mut Hands<'_>, fault: &Fault) -> Result<(), Halted> {
        hands.stats.faults_file += 1;
        let (area, page) = (fault.area, fault.gva.frame().number());
        let writable = fault.write || area.backing == Backing::AnonymousShared;
        let window = if fault.write { page..page + 1 } else { self.window(&area, page) };
        for near in window {
            if near == page {
                let frame = self.cached(hands, area.object, area.object_page(near))?;
                self.install(hands, fault, frame, leaf(area.prot, writable, fault.write))?;
            } else {
                self.map_near(hands, fault, near, writable)?;
            }
        }
        Ok(())
    }

    fn map_near(&mut self, hands: &mut Hands<'_>, fault: &Fault, page: u64, writable: bool) -> Result<(), Halted> {
        let area = fault.area;
        let in_memory = self.is_kept(area.object) || self.objects.find(area.object, area.object_page(page)).is_some();
        let at = page_address(page);
        if !in_memory || self.is_hidden(page) || self.mapping(hands, fault.roots, at)?.is_some() {
            return Ok(());
        }
        let frame = self.cached(hands, area.object, area.object_page(page))?;
        hands.stats.pages_around += 1;
        self.map(hands, fault.roots, at, frame, PageSize::Size4K, leaf(area.prot, writable, false))?;
        Ok(())
    }

    fn is_hidden(&self, page: u64) -> bool {
        self.current().and_then(|id| self.processes.get(&id)).is_some_and(|process| process.hidden.contains_key(&page))
    }

    /// The pages around `page` that a fault maps with it, itself included.
    fn window(&self, area: &Area, page: u64) -> std::ops::Range<u64> {
        let pages = self.config.fault_around_pages.clamp(1, TABLE_PAGES);
        let table = page - page % TABLE_PAGES;
        let first = (page - page % pages).max(area.start);
        first..(first + pages).min(area.end).min(table + TABLE_PAGES)
    }

    /// A page of an object that was brought in only to be copied: its use is given back.
    pub(crate) fn drop_use(&mut self, frame: Gfn) {
        if self.frames.release(frame) {
            self.objects.forget(frame);
        }
    }
}
