//! The life of shadow pages: lookup, allocation, zapping, pinning, recycling.

use memvirt_addr::{Gfn, Level, PageSize};
use memvirt_platform::{Host, Work};

use super::nodes::Chain;
use super::{Change, Kind, Page, PageId, ShadowStore, Slot, number};

impl ShadowStore {
    /// The shadow pages that stand for `gfn`, newest first; private ones are not among them.
    pub fn pages_of(&self, gfn: Gfn) -> impl Iterator<Item = PageId> + '_ {
        let mut at = PageId::from_raw(self.by_gfn.get(gfn.as_index()).copied().unwrap_or(0));
        core::iter::from_fn(move || {
            (!at.is_none()).then(|| {
                let id = at;
                at = self.page(id).sibling;
                id
            })
        })
    }

    /// The next page that stands for the same guest frame.
    #[must_use]
    pub fn next_of(&self, id: PageId) -> Option<PageId> {
        let sibling = self.page(id).sibling;
        (!sibling.is_none()).then_some(sibling)
    }

    /// The shadow page for `gfn` at `level`.
    #[must_use]
    pub fn find(&self, gfn: Gfn, level: Level, kind: Kind) -> Option<PageId> {
        self.pages_of(gfn).find(|id| {
            let page = self.page(*id);
            page.level == level && page.kind == kind
        })
    }

    /// A new, empty shadow page. `None` where the host has no frame left. Whoever makes the first shadow of a guest table has
    /// to protect the table ([`ShadowStore::protect`]).
    ///
    /// # Panics
    ///
    /// Where `gfn` is no guest memory and the page is not private.
    pub fn create(&mut self, host: &mut Host, gfn: Gfn, level: Level, kind: Kind, work: &mut Work) -> Option<PageId> {
        let frame = host.allocate(PageSize::Size4K)?;
        if kind == Kind::Table && !self.is_table(gfn) {
            self.count_table(gfn, 1);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.pages.push(Page::empty());
            PageId::new(self.pages.len() - 1)
        });
        let sibling = match kind {
            Kind::Private => PageId::NONE,
            Kind::Table | Kind::Direct => {
                PageId::from_raw(core::mem::replace(&mut self.by_gfn[gfn.as_index()], id.raw()))
            }
        };
        let older = self.append(id);
        let page = &mut self.pages[id.index()];
        (page.frame, page.gfn, page.level, page.kind) = (frame, gfn, level, kind);
        (page.writes, page.mark, page.pins, page.live) = (0, 0, 0, true);
        (page.sibling, page.older, page.newer) = (sibling, older, PageId::NONE);
        page.parents = Chain::default();
        self.used += 1;
        self.by_level[level as usize] += 1;
        self.metadata += self.footprint.page(kind);
        work.tables_allocated += 1;
        Some(id)
    }

    /// Removes all entries of a shadow page.
    pub fn empty(&mut self, host: &mut Host, id: PageId, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        while let Some(index) = self.page(id).next_present(0) {
            change = change.or(self.clear(host, Slot::new(id, index), work));
        }
        change
    }

    /// Removes every entry that points to a shadow page.
    pub fn unlink(&mut self, host: &mut Host, id: PageId, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        loop {
            let first = self.page(id).parents.first;
            if first.is_none() {
                return change;
            }
            change = change.or(self.clear(host, self.nodes.slot(first), work));
        }
    }

    /// Zaps a shadow page: no entry points to it any more, its own entries go, its frame goes back to the host. The pages
    /// below stay, to be found again. A pinned page loses its entries only.
    pub fn zap(&mut self, host: &mut Host, id: PageId, work: &mut Work) -> Change {
        let mut change = self.unlink(host, id, work);
        change = change.or(self.empty(host, id, work));
        if !self.page(id).is_pinned() {
            self.release(host, id, work);
        }
        change
    }

    /// Frees the pages that lost their last parent and are neither pinned nor of the root's level, and what becomes orphaned by
    /// that in turn.
    pub fn reap(&mut self, host: &mut Host, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        while let Some(id) = self.orphans.as_mut().and_then(Vec::pop) {
            let page = self.page(id);
            if page.live && page.parents() == 0 && !page.is_pinned() && page.level < Level::L4 {
                change = change.or(self.zap(host, id, work));
            }
        }
        change
    }

    /// Whether `id` is the live shadow of a top-level table.
    #[must_use]
    pub fn is_root_page(&self, id: PageId) -> bool {
        let page = self.page(id);
        page.live && page.level == Level::L4
    }

    /// The page that points to `id`, where exactly one entry does.
    #[must_use]
    pub fn only_parent(&self, id: PageId) -> Option<PageId> {
        let parents = self.page(id).parents;
        (parents.len == 1).then(|| self.nodes.slot(parents.first).page)
    }

    /// Zaps a private page and all below it.
    pub fn zap_tree(&mut self, host: &mut Host, id: PageId, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        let mut next = 0;
        while let Some(index) = self.page(id).next_present(next) {
            if let Some(child) = self.child(Slot::new(id, index)) {
                change = change.or(self.zap_tree(host, child, work));
            }
            next = index + 1;
        }
        change.or(self.zap(host, id, work))
    }

    fn release(&mut self, host: &mut Host, id: PageId, work: &mut Work) {
        let Page { frame, gfn, kind, level, older, newer, sibling, .. } = *self.page(id);
        host.free(frame, PageSize::Size4K);
        if kind != Kind::Private {
            self.leave_siblings(gfn, id, sibling);
        }
        if kind == Kind::Table && !self.is_table(gfn) {
            self.count_table(gfn, -1);
        }
        self.leave_order(older, newer);
        self.pages[id.index()].live = false;
        self.free.push(id);
        self.used -= 1;
        self.by_level[level as usize] -= 1;
        self.metadata -= self.footprint.page(kind);
        work.tables_freed += 1;
    }

    /// Puts `id` at the end of the order; returns the page before it.
    fn append(&mut self, id: PageId) -> PageId {
        let older = core::mem::replace(&mut self.newest, id);
        *(if older.is_none() { &mut self.oldest } else { &mut self.pages[older.index()].newer }) = id;
        older
    }

    fn leave_order(&mut self, older: PageId, newer: PageId) {
        *(if older.is_none() { &mut self.oldest } else { &mut self.pages[older.index()].newer }) = newer;
        *(if newer.is_none() { &mut self.newest } else { &mut self.pages[newer.index()].older }) = older;
    }

    /// Makes a page count as the newest, for policies that recycle what was not used for longest.
    pub fn renew(&mut self, id: PageId) {
        let Page { older, newer, .. } = *self.page(id);
        self.leave_order(older, newer);
        let older = self.append(id);
        let page = self.page_mut(id);
        (page.older, page.newer) = (older, PageId::NONE);
    }

    fn leave_siblings(&mut self, gfn: Gfn, id: PageId, sibling: PageId) {
        let before = self.pages_of(gfn).find(|other| self.page(*other).sibling == id);
        match before {
            Some(before) => self.pages[before.index()].sibling = sibling,
            None => self.by_gfn[gfn.as_index()] = sibling.raw(),
        }
    }

    fn count_table(&mut self, gfn: Gfn, by: i32) {
        for (counts, size) in self.tables_in.iter_mut().zip([PageSize::Size2M, PageSize::Size1G]) {
            let count = &mut counts[number(gfn, size)];
            *count = count.saturating_add_signed(by);
        }
    }

    /// Notes that one more vCPU runs on this root: it will not be freed.
    pub fn pin(&mut self, id: PageId) {
        self.pages[id.index()].pins += 1;
    }

    /// Notes that one vCPU less runs on this root.
    pub fn unpin(&mut self, id: PageId) {
        self.pages[id.index()].pins -= 1;
    }

    /// The page that was made first among those that are not pinned.
    #[must_use]
    pub fn oldest_unpinned(&self) -> Option<PageId> {
        let mut at = self.oldest;
        while !at.is_none() && self.page(at).is_pinned() {
            at = self.page(at).newer;
        }
        (!at.is_none()).then_some(at)
    }

    /// Zaps the oldest pages that are not pinned until `room` more would fit under the limit, and says how many it zapped.
    /// Source: KVM, `kvm_mmu_zap_oldest_mmu_pages` (first in, first out).
    pub fn make_room(&mut self, host: &mut Host, room: u64, work: &mut Work) -> (u64, Change) {
        let (mut zapped, mut change) = (0, Change::Kept);
        let mut at = self.oldest;
        while !at.is_none() && self.used + room > self.limit {
            let next = self.page(at).newer;
            if !self.page(at).is_pinned() {
                change = change.or(self.zap(host, at, work));
                zapped += 1;
            }
            at = next;
        }
        (zapped, change)
    }

    /// Zaps every page; pinned ones stay, empty.
    pub fn zap_all(&mut self, host: &mut Host, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        let mut at = self.oldest;
        while !at.is_none() {
            let next = self.page(at).newer;
            change = change.or(self.zap(host, at, work));
            at = next;
        }
        change
    }
}
