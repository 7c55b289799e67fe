//! Page faults: demand paging and copy on write.
//!
//! Source: Linux `mm/memory.c`: `do_anonymous_page` (a load maps the shared zero page read-only, a store a fresh zeroed page
//! with accessed and dirty set), `do_read_fault`, `do_cow_fault`, `do_shared_fault`, `do_wp_page` (`wp_page_copy`: entry
//! cleared, page flushed, new entry stored; `wp_page_reuse`: entry changed in place, no flush).

use memvirt_addr::{AccessKind, Gfn, Gva, PageSize, PfCode};
use memvirt_ops::arch::GuestFault;
use memvirt_ops::process::{Backing, Prot};
use memvirt_pagetable::Attrs;
use memvirt_pagetable::tree::Mapping;
use memvirt_platform::{Ledger, Platform};

use super::area::{Area, ObjectId};
use super::layout::Site;
use super::memory::Hands;
use super::process::Roots;
use super::shootdown::FreedTables;
use super::{Guest, Halted, Undeclared};

/// A user leaf as Linux makes it: accessed, since a faulting access follows.
pub(crate) fn leaf(prot: Prot, writable: bool, dirty: bool) -> Attrs {
    let mut attrs = Attrs::READ | Attrs::USER | Attrs::ACCESSED;
    attrs.set(Attrs::EXEC, prot.execute);
    attrs.set(Attrs::WRITE, prot.write && writable);
    attrs.set(Attrs::DIRTY, dirty);
    attrs
}

/// One fault being handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) gva: Gva,
    pub(crate) write: bool,
    fetch: bool,
    pub(crate) roots: Roots,
    pub(crate) area: Area,
}

impl Fault {
    fn page(&self) -> Gva {
        self.gva.align_down(PageSize::Size4K)
    }

    fn object_page(&self) -> u64 {
        self.area.object_page(self.gva.frame().number())
    }
}

impl Guest {
    /// Handles a page fault of the current process; false where the access is not permitted.
    pub(crate) fn page_fault(
        &mut self,
        fault: GuestFault,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<bool, Halted> {
        self.kernel(Site::Fault, platform, ledger, |guest, hands| {
            let code = fault.code;
            let count = match (code.has(PfCode::WRITE), code.has(PfCode::PRESENT)) {
                (true, true) => &mut hands.stats.faults_by_protection,
                (true, false) => &mut hands.stats.faults_by_store,
                (false, _) if code.has(PfCode::FETCH) => &mut hands.stats.faults_by_fetch,
                (false, _) => &mut hands.stats.faults_by_load,
            };
            *count += 1;
            guest.handle(hands, fault)
        })
    }

    /// The handler itself; false where the access is not permitted.
    pub(crate) fn handle(&mut self, hands: &mut Hands<'_>, fault: GuestFault) -> Result<bool, Halted> {
        let code = fault.code;
        let Some((roots, area)) = self.area_of(fault.gva) else {
            hands.stats.faults_refused += 1;
            return Ok(false);
        };
        let fault =
            Fault { gva: fault.gva, write: code.has(PfCode::WRITE), fetch: code.has(PfCode::FETCH), roots, area };
        let permitted = if fault.write {
            area.prot.write
        } else if fault.fetch {
            area.prot.execute
        } else {
            area.prot.read || area.prot.write
        };
        if !permitted || code.has(PfCode::RESERVED) {
            hands.stats.faults_refused += 1;
            return Ok(false);
        }
        let mapped = self.mapping(hands, fault.roots, fault.gva)?;
        match mapped {
            Some(mapping) if fault.write => self.write_protected(hands, &fault, mapping)?,
            Some(_) => {}
            None => self.missing(hands, &fault)?,
        }
        Ok(true)
    }

    /// The area of an address in the current process, adopted where the stream declares none.
    fn area_of(&mut self, gva: Gva) -> Option<(Roots, Area)> {
        let process = self.processes.get_mut(&self.current()?)?;
        if let Some(area) = process.areas.find(gva) {
            return Some((process.roots, *area));
        }
        let page = gva.frame().number();
        if self.config.undeclared == Undeclared::Refuse || page >= 1 << 35 {
            return None;
        }
        let area = Area {
            start: page,
            end: page + 1,
            prot: Prot::RWX,
            backing: Backing::AnonymousPrivate,
            object: ObjectId::Adopted,
            first: page,
            has_private_pages: true,
        };
        process.areas.insert(area);
        Some((process.roots, area))
    }

    pub(crate) fn mapping(
        &mut self,
        hands: &mut Hands<'_>,
        roots: Roots,
        gva: Gva,
    ) -> Result<Option<Mapping<memvirt_pagetable::Guest4>>, Halted> {
        self.with_tables(hands, roots, |mapper, _| Ok(mapper.leaves(gva..=gva).next()))
    }

    /// The page is not present.
    fn missing(&mut self, hands: &mut Hands<'_>, fault: &Fault) -> Result<(), Halted> {
        match fault.area.backing {
            Backing::AnonymousPrivate if fault.area.object == ObjectId::Adopted => self.adopted(hands, fault),
            Backing::AnonymousPrivate => self.anonymous(hands, fault),
            Backing::FilePrivate if fault.write => self.private_store(hands, fault),
            Backing::FilePrivate | Backing::AnonymousShared | Backing::FileShared => self.map_object(hands, fault),
        }
    }

    /// A page that the process had before: it exists, is its own, and is mapped as a page is that comes back from swap.
    fn adopted(&mut self, hands: &mut Hands<'_>, fault: &Fault) -> Result<(), Halted> {
        let frame = self.data_page(hands)?;
        if self.frames.take_was_table(frame) {
            hands.zero_words(frame)?;
        }
        hands.stats.faults_adopted += 1;
        self.install(hands, fault, frame, leaf(fault.area.prot, true, fault.write))
    }

    fn anonymous(&mut self, hands: &mut Hands<'_>, fault: &Fault) -> Result<(), Halted> {
        if let Some(at) = self.huge_fits(fault)
            && self.huge(hands, fault, at)?
        {
            return Ok(());
        }
        if fault.write {
            return self.fresh(hands, fault);
        }
        hands.stats.faults_zero_page += 1;
        self.install(hands, fault, self.zero_page, leaf(fault.area.prot, false, false))
    }

    /// A zeroed 2 MiB page; false where there is none, or smaller pages stand in its place.
    fn huge(&mut self, hands: &mut Hands<'_>, fault: &Fault, at: Gva) -> Result<bool, Halted> {
        let size = PageSize::Size2M;
        let Some(frame) = self.frames.allocate_data(size) else { return Ok(false) };
        if !self.map(hands, fault.roots, at, frame, size, leaf(fault.area.prot, true, true))? {
            self.frames.release_page(frame, size);
            return Ok(false);
        }
        for i in 0..size.frames() {
            self.clear(hands, frame.offset(i))?;
        }
        hands.stats.faults_fresh += 1;
        self.note_private(at);
        Ok(true)
    }

    /// The start of the aligned 2 MiB page around a fault, where the guest uses such pages and one fits into the area.
    fn huge_fits(&self, fault: &Fault) -> Option<Gva> {
        let at = fault.gva.align_down(PageSize::Size2M);
        let first = at.frame().number();
        let fits = first >= fault.area.start && first + PageSize::Size2M.frames() <= fault.area.end;
        (self.config.guest_page >= PageSize::Size2M && fits).then_some(at)
    }

    /// A zeroed page of its own for a store.
    fn fresh(&mut self, hands: &mut Hands<'_>, fault: &Fault) -> Result<(), Halted> {
        let frame = self.data_page(hands)?;
        self.clear(hands, frame)?;
        hands.stats.faults_fresh += 1;
        self.note_private(fault.gva);
        self.install(hands, fault, frame, leaf(fault.area.prot, true, true))
    }

    /// The first touch of a private file page is a store: a copy of its own.
    fn private_store(&mut self, hands: &mut Hands<'_>, fault: &Fault) -> Result<(), Halted> {
        let source = self.cached(hands, fault.area.object, fault.object_page())?;
        let frame = self.copy(hands, source)?;
        hands.stats.faults_copy += 1;
        self.note_private(fault.gva);
        self.install(hands, fault, frame, leaf(fault.area.prot, true, true))?;
        self.drop_use(source);
        Ok(())
    }

    /// Maps `frame` at the page of the fault.
    pub(crate) fn install(
        &mut self,
        hands: &mut Hands<'_>,
        fault: &Fault,
        frame: Gfn,
        attrs: Attrs,
    ) -> Result<(), Halted> {
        self.map(hands, fault.roots, fault.page(), frame, PageSize::Size4K, attrs)?;
        Ok(())
    }

    /// A store to a present, read-only page of a writable area.
    fn write_protected(
        &mut self,
        hands: &mut Hands<'_>,
        fault: &Fault,
        mapping: Mapping<memvirt_pagetable::Guest4>,
    ) -> Result<(), Halted> {
        if mapping.attrs.contains(Attrs::WRITE) {
            return Ok(()); // fixed meanwhile; the access is simply repeated
        }
        if !fault.area.is_private() || self.is_exclusive(mapping.frame, mapping.size) {
            hands.stats.faults_reuse += 1;
            let attrs = mapping.attrs | Attrs::WRITE | Attrs::DIRTY | Attrs::ACCESSED;
            return self.with_tables(hands, fault.roots, |mapper, _| {
                mapper.protect(mapping.at, |_| attrs).map_err(|_| Halted::GuestOutOfMemory)?;
                Ok(())
            });
        }
        if mapping.size > PageSize::Size4K {
            self.split(hands, fault.roots, mapping.at)?;
            self.flush_pages(hands, &[(mapping.at, mapping.size)], FreedTables::No)?;
            let Some(mapping) = self.mapping(hands, fault.roots, fault.gva)? else { return Ok(()) };
            return self.copy_on_write(hands, fault, mapping);
        }
        self.copy_on_write(hands, fault, mapping)
    }

    fn copy_on_write(
        &mut self,
        hands: &mut Hands<'_>,
        fault: &Fault,
        old: Mapping<memvirt_pagetable::Guest4>,
    ) -> Result<(), Halted> {
        hands.stats.faults_copy += 1;
        let frame = if old.frame == self.zero_page {
            let frame = self.data_page(hands)?;
            self.clear(hands, frame)?;
            frame
        } else {
            self.copy(hands, old.frame)?
        };
        self.note_private(fault.gva);
        self.unmap_entry(hands, fault.roots, old.at)?;
        self.flush_pages(hands, &[(old.at, PageSize::Size4K)], FreedTables::No)?;
        self.map(hands, fault.roots, old.at, frame, PageSize::Size4K, leaf(fault.area.prot, true, true))?;
        self.release(old.frame, PageSize::Size4K);
        Ok(())
    }

    /// Whether this mapping is the only one of a page that belongs to no file.
    pub(crate) fn is_exclusive(&self, frame: Gfn, size: PageSize) -> bool {
        frame != self.zero_page
            && !self.objects.owns(frame)
            && (0..size.frames()).all(|i| self.frames.uses(frame.offset(i)) == 1)
    }

    pub(crate) fn note_private(&mut self, gva: Gva) {
        if let Some(process) = self.current().and_then(|id| self.processes.get_mut(&id)) {
            process.areas.note_private(gva.frame());
        }
    }

    /// Clears a data page: word by word where a page table left something in it.
    pub(crate) fn clear(&mut self, hands: &mut Hands<'_>, frame: Gfn) -> Result<(), Halted> {
        hands.stats.pages_cleared += 1;
        if self.frames.take_was_table(frame) { hands.zero_words(frame) } else { hands.touch(frame, AccessKind::Write) }
    }

    /// A copy of a page.
    fn copy(&mut self, hands: &mut Hands<'_>, source: Gfn) -> Result<Gfn, Halted> {
        let frame = self.data_page(hands)?;
        if self.frames.take_was_table(frame) {
            hands.zero_words(frame)?;
        }
        hands.stats.pages_copied += 1;
        hands.touch(source, AccessKind::Read)?;
        hands.touch(frame, AccessKind::Write)?;
        Ok(frame)
    }
}
