//! [`Graph`]: shadow tables shared by every path that leads to the same guest table.
//!
//! There is one shadow page for each (guest table, level). The entries of upper levels carry the guest's own permissions,
//! which hardware ANDs along the walk; so a table reached through a read-only and a writable path needs no second shadow.
//! (KVM accumulates permissions in the page's role instead.) A guest page that is larger than what the host can map gets
//! *direct* pages below the entry that shadows it: one for each 2 MiB or 1 GiB of guest memory, shared likewise.
//!
//! A guest frame that holds a shadowed table is mapped without write permission everywhere, and no large page covers it,
//! unless a policy has let the table out of step ([`UNSYNC`]). Used by the policies write-protect, xen and vbox.

use memvirt_addr::{Gfn, Gva, Level, PageSize};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{GfnRange, HostEvent, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};
use memvirt_platform::{Backed, Cx, Host, MemoryMap, Work, read_guest};

use crate::guest::GuestPage;
use crate::hardware::levels;
use crate::store::{Change, Footprint, Kind, Leaf, PageId, ShadowStore, Slot, Target, below};

/// The mark of a shadow page whose guest table may be stored to freely.
pub(crate) const UNSYNC: u32 = 1;

/// What the leaves of direct pages permit: the entry above them decides.
const DIRECT: Attrs = Attrs::PERMISSIONS;

/// Shared shadow tables and who runs on them.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) store: ShadowStore,
    roots: Vec<Option<PageId>>,
    /// Stores to data pages are being logged.
    pub(crate) logging: bool,
    /// The largest page that the policy maps.
    largest: PageSize,
    /// How the policy finds the mappings of a page that becomes a table.
    search: Search,
    /// Where a writable mapping of a table was found last.
    last_found: Option<PageId>,
}

/// How a hypervisor finds all mappings of a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// It keeps a reverse map.
    ReverseMap,
    /// It looks through the leaf table where it found one last, and then through all leaf tables. (The mappings are the same;
    /// only the work differs.)
    Scan,
}

impl Graph {
    pub(crate) fn new(frames: u64, footprint: Footprint, largest: PageSize, search: Search) -> Self {
        let store = ShadowStore::new(frames, footprint);
        Self { store, roots: Vec::new(), logging: false, largest, search, last_found: None }
    }

    /// The root that a vCPU runs on.
    pub(crate) fn root(&self, v: VcpuId) -> Option<PageId> {
        self.roots.get(v.index()).copied().flatten()
    }

    /// Puts the vCPU on the shadow of its CR3; on none where that is no memory. `None` where the host has no frame left.
    pub(crate) fn load_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<Change> {
        let (v, gfn) = (cx.me.index(), cx.regs().cr3.root.frame());
        let mut change = self.make_room(cx, work);
        let root = if cx.map.contains(gfn) {
            let (root, protected) = self.table(cx, gfn, Guest4::ROOT, work)?;
            change = change.or(protected);
            self.store.pin(root);
            Some(root)
        } else {
            None
        };
        if self.roots.len() <= v {
            self.roots.resize(v + 1, None);
        }
        if let Some(old) = core::mem::replace(&mut self.roots[v], root) {
            self.store.unpin(old);
        }
        Some(change)
    }

    /// Recycles the oldest pages where fewer than 5 more are allowed, until 25 are. Source: KVM, `make_mmu_pages_available`.
    pub(crate) fn make_room(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        if self.store.used() + 5 <= self.store.limit() {
            return Change::Kept;
        }
        self.store.make_room(cx.host, 25, work).1
    }

    /// Whether stores to `gfn` must trap.
    pub(crate) fn is_protected(&self, gfn: Gfn) -> bool {
        self.store.pages_of(gfn).any(|id| {
            let page = self.store.page(id);
            page.kind == Kind::Table && page.mark & UNSYNC == 0
        })
    }

    /// The shadow page of the guest table in `gfn`. A new one protects the table.
    pub(crate) fn table(
        &mut self,
        cx: &mut Cx<'_>,
        gfn: Gfn,
        level: Level,
        work: &mut Work,
    ) -> Option<(PageId, Change)> {
        if let Some(id) = self.store.find(gfn, level, Kind::Table) {
            return Some((id, Change::Kept));
        }
        let fresh = !self.store.is_table(gfn);
        let id = self.store.create(cx.host, gfn, level, Kind::Table, work)?;
        let change = if fresh { self.protect(cx, gfn, work) } else { Change::Kept };
        Some((id, change))
    }

    /// Takes the write permission from every mapping of `gfn`.
    pub(crate) fn protect(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Change {
        let visited = work.rmap_visited;
        let writable = |slot: &Slot| self.store.entry(cx.host, *slot).attrs().contains(Attrs::WRITE);
        let found = self.store.mappings(gfn, PageSize::Size4K).find(writable).map(|slot| slot.page);
        let change = self.store.protect(cx.host, gfn, work);
        if self.search == Search::Scan {
            let scanned = match found {
                None => 0,
                page if page == self.last_found => 1,
                _ => self.store.used_at(Level::L1),
            };
            self.last_found = found.or(self.last_found);
            work.rmap_visited = visited + 512 * scanned;
        }
        change
    }

    fn direct(&mut self, cx: &mut Cx<'_>, first: Gfn, level: Level, work: &mut Work) -> Option<PageId> {
        let found = self.store.find(first, level, Kind::Direct);
        found.or_else(|| self.store.create(cx.host, first, level, Kind::Direct, work))
    }

    /// The size at which a guest page is mapped: never larger than the guest's or the host's page, never over a table,
    /// 4 KiB while stores are logged.
    pub(crate) fn size_for(&self, gfn: Gfn, guest: PageSize, host: PageSize) -> PageSize {
        if self.logging {
            return PageSize::Size4K;
        }
        self.store.clear_of_tables(gfn, guest.min(host).min(self.largest))
    }

    /// The permissions of the entry that shadows a guest leaf: none to store while the guest's page is clean.
    pub(crate) fn guest_leaf(attrs: Attrs) -> Attrs {
        let perms = attrs & Attrs::PERMISSIONS;
        if attrs.contains(Attrs::DIRTY) { perms } else { perms - Attrs::WRITE }
    }

    /// The attributes of a leaf over `gfn`. KVM sets its accessed bit where the page was asked for, and its dirty bit wherever
    /// it may be stored to (`make_spte`).
    fn leaf_attrs(&self, gfn: Gfn, perms: Attrs, use_: Use) -> Attrs {
        let refused = match use_ {
            Use::Write => self.is_protected(gfn),
            Use::Read | Use::Guess => self.logging || self.store.is_table(gfn),
        };
        let mut attrs = if refused { perms - Attrs::WRITE } else { perms };
        if use_ != Use::Guess {
            attrs |= Attrs::ACCESSED;
        }
        if attrs.contains(Attrs::WRITE) {
            attrs |= Attrs::DIRTY;
        }
        attrs
    }

    /// Builds the path from the vCPU's root to the page, all of it. `None` where the host has no frame left.
    pub(crate) fn fill(
        &mut self,
        cx: &mut Cx<'_>,
        root: PageId,
        gva: Gva,
        page: &GuestPage,
        use_: Use,
        work: &mut Work,
    ) -> Option<Filled> {
        let backed = cx.back(page.gfn, work)?;
        let mut change = Change::Kept;
        let mut table = root;
        for step in page.path.steps() {
            let Entry::Table { next, attrs } = step.entry else { break };
            let (child, protected) = self.table(cx, next, below(step.level), work)?;
            let slot = Slot::new(table, Guest4::index(gva, step.level));
            let linked = self.store.link(cx.host, slot, child, attrs & Attrs::PERMISSIONS, work);
            change = change.or(protected).or(linked);
            table = child;
        }
        let (slot, filled) = self.fill_leaf(cx, table, gva, page, Mapping { backed, use_ }, work)?;
        Some(Filled { slot, change: change.or(filled) })
    }

    /// Builds the last part of a path: the leaf, or direct pages and the leaf below them.
    fn fill_leaf(
        &mut self,
        cx: &mut Cx<'_>,
        table: PageId,
        gva: Gva,
        page: &GuestPage,
        mapping: Mapping,
        work: &mut Work,
    ) -> Option<(Slot, Change)> {
        let size = self.size_for(page.gfn, page.size, mapping.backed.size);
        let (mut table, mut perms, mut change) = (table, Self::guest_leaf(page.attrs), Change::Kept);
        for level in levels(page.size.level(), size.level()) {
            let slot = Slot::new(table, Guest4::index(gva, level));
            if level == size.level() {
                let leaf = self.leaf(page.gfn, size, perms, mapping);
                let set = self.store.set_leaf(cx.host, slot, leaf, work);
                return Some((slot, change.or(set)));
            }
            let covered = level.page_size().unwrap_or(PageSize::Size4K);
            let child = self.direct(cx, page.gfn.align_down(covered), below(level), work)?;
            change = change.or(self.store.link(cx.host, slot, child, perms, work));
            (table, perms) = (child, DIRECT);
        }
        None
    }

    /// Fills entry `slot` of a leaf table, which nobody asked for yet, with a page that the host has; `attrs` are the guest's.
    pub(crate) fn prefetch(&mut self, cx: &mut Cx<'_>, slot: Slot, gfn: Gfn, attrs: Attrs, work: &mut Work) {
        if let Some(backed) = cx.map.lookup(gfn) {
            let leaf = self.leaf(gfn, PageSize::Size4K, Self::guest_leaf(attrs), Mapping { backed, use_: Use::Guess });
            let _ = self.store.set_leaf(cx.host, slot, leaf, work);
        }
    }

    fn leaf(&self, gfn: Gfn, size: PageSize, perms: Attrs, mapping: Mapping) -> Leaf {
        let backed = Backed { size, ..mapping.backed };
        Leaf { gfn, backed, attrs: self.leaf_attrs(gfn, perms, mapping.use_) }
    }

    /// Makes the shadow entry say what the guest's entry now says, where that needs nothing new: a table is linked if it is
    /// shadowed, a page is mapped if the host has it; entries that hardware would have to mark as accessed stay absent.
    pub(crate) fn propagate(&mut self, cx: &mut Cx<'_>, slot: Slot, raw: u64, work: &mut Work) -> Change {
        let level = self.store.page(slot.page).level;
        match Guest4::decode(raw, level) {
            Entry::Table { next, attrs } if attrs.contains(Attrs::ACCESSED) => {
                match self.store.find(next, below(level), Kind::Table) {
                    Some(child) => self.store.link(cx.host, slot, child, attrs & Attrs::PERMISSIONS, work),
                    None => self.store.clear(cx.host, slot, work),
                }
            }
            Entry::Leaf { frame, size, attrs } if attrs.contains(Attrs::ACCESSED) => {
                self.propagate_leaf(cx, slot, frame, size, attrs, work)
            }
            _ => self.store.clear(cx.host, slot, work),
        }
    }

    fn propagate_leaf(
        &mut self,
        cx: &mut Cx<'_>,
        slot: Slot,
        gfn: Gfn,
        size: PageSize,
        attrs: Attrs,
        work: &mut Work,
    ) -> Change {
        let perms = Self::guest_leaf(attrs);
        let backed = cx.map.lookup(gfn).filter(|backed| self.size_for(gfn, size, backed.size) == size);
        if let Some(backed) = backed {
            let leaf = self.leaf(gfn, size, perms, Mapping { backed, use_: Use::Guess });
            return self.store.set_leaf(cx.host, slot, leaf, work);
        }
        match self.store.find(gfn, below(size.level()), Kind::Direct) {
            Some(child) if size > PageSize::Size4K => self.store.link(cx.host, slot, child, perms, work),
            _ => self.store.clear(cx.host, slot, work),
        }
    }

    /// Where a present entry of a shadow that is in step says what the guest's entry does not: leads elsewhere, permits more, or
    /// stands for an entry that is not marked as accessed. Slow: for tests.
    pub(crate) fn out_of_step(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let tables = self.store.pages().filter(|(_, page)| page.kind == Kind::Table && page.mark & UNSYNC == 0);
        let slots = tables.flat_map(|(id, page)| page.present().map(move |index| (Slot::new(id, index), page)));
        let wrong = slots.filter_map(|(slot, page)| {
            let raw = read_guest(host, map, page.gfn.entry(slot.at()));
            let guest = Guest4::decode(raw, page.level);
            let agrees = match (guest, self.store.target(slot)) {
                (Entry::Table { next, .. }, Some(Target::Link(child))) => {
                    let child = self.store.page(child);
                    child.kind == Kind::Table && child.gfn == next
                }
                (Entry::Leaf { frame, size, .. }, Some(Target::Link(child))) => {
                    let child = self.store.page(child);
                    size > PageSize::Size4K && child.kind == Kind::Direct && child.gfn == frame.align_down(size)
                }
                (Entry::Leaf { frame, size, .. }, Some(Target::Leaf(gfn, mapped))) => (gfn, mapped) == (frame, size),
                _ => false,
            };
            let guest_attrs =
                if let Entry::Leaf { attrs, .. } = guest { Self::guest_leaf(attrs) } else { guest.attrs() };
            let shadow = self.store.entry(host, slot).attrs() & Attrs::PERMISSIONS;
            let sound = agrees && guest_attrs.contains(shadow) && guest.attrs().contains(Attrs::ACCESSED);
            (!sound).then(|| {
                let (gfn, level, index) = (page.gfn, page.level, slot.at());
                format!(
                    "{gfn:?} at {level:?}, entry {index}: {guest:?} is shadowed by {:?}",
                    self.store.entry(host, slot)
                )
            })
        });
        wrong.collect()
    }

    /// Zaps all shadows of a guest table, so that its frame can be stored to again.
    pub(crate) fn unshadow(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        let pages: Vec<PageId> = self.store.pages_of(gfn).collect();
        for id in pages {
            if self.store.page(id).kind == Kind::Table {
                change = change.or(self.store.zap(cx.host, id, work));
            }
        }
        change
    }

    /// Whether the shadow holds nothing for `gva`.
    pub(crate) fn is_absent(&self, root: PageId, gva: Gva) -> bool {
        let mut table = root;
        loop {
            let slot = Slot::new(table, Guest4::index(gva, self.store.page(table).level));
            match self.store.target(slot) {
                Some(Target::Link(child)) => table = child,
                target => return target.is_none(),
            }
        }
    }

    /// Whether some vCPU runs on the table in `gfn`.
    pub(crate) fn is_root(&self, gfn: Gfn) -> bool {
        self.store.pages_of(gfn).any(|id| self.store.page(id).is_pinned())
    }

    /// Calls `change` for each shadow of the guest table in `gfn`.
    pub(crate) fn each_shadow(&mut self, gfn: Gfn, mut change: impl FnMut(&mut Self, PageId)) {
        let mut at = self.store.pages_of(gfn).next();
        while let Some(id) = at {
            at = self.store.next_of(id);
            if self.store.page(id).kind == Kind::Table {
                change(self, id);
            }
        }
    }

    /// What the host does by itself, and the flush that it needs.
    pub(crate) fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        let change = match *event {
            HostEvent::Unmap(_, range) => self.unmap(cx, range, &mut work),
            HostEvent::Discard(_, range) => {
                let forgotten = self.forget_tables(cx, range, &mut work);
                self.unmap(cx, range, &mut work).or(forgotten)
            }
            HostEvent::DirtyLog(_, on) => {
                self.logging = on;
                if on { self.protect_all(cx, &mut work) } else { self.merge(cx, &mut work) }
            }
            HostEvent::DirtyRound(_) => self.protect_all(cx, &mut work),
            HostEvent::SlotChange(_) => self.store.zap_all(cx.host, &mut work),
            HostEvent::ShadowPageLimit(_, limit) => {
                self.store.set_limit(u64::from(limit));
                self.store.make_room(cx.host, 0, &mut work).1
            }
            HostEvent::WorldSwitch(_) => Change::Kept,
        };
        flush_if(cx, change, &mut work);
        cx.out.counters.work += work;
    }

    fn unmap(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Change {
        cx.map.unmap(range);
        drop_range(&mut self.store, cx, range, work)
    }

    /// Tables whose contents the host discards are all zero from now on.
    fn forget_tables(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for gfn in (0..range.frames.min(cx.map.frames())).map(|i| range.start.offset(i)) {
            self.each_shadow(gfn, |graph, id| change = change.or(graph.store.empty(cx.host, id, work)));
        }
        change
    }

    fn protect_all(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        self.store.each_leaf(|store, slot| {
            change = change.or(store.restrict(cx.host, slot, Attrs::WRITE | Attrs::DIRTY, work));
        });
        change
    }

    /// Once stores are no longer logged, large host pages can be mapped whole again.
    fn merge(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        if cx.map.page_size() > PageSize::Size4K {
            let direct = self.store.pages().filter(|(_, page)| page.kind == Kind::Direct);
            for id in direct.map(|(id, _)| id).collect::<Vec<_>>() {
                change = change.or(self.store.zap(cx.host, id, work));
            }
        }
        change
    }
}

/// Why a leaf is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A load or fetch faulted.
    Read,
    /// A store faulted.
    Write,
    /// Nobody asked for it yet.
    Guess,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    backed: Backed,
    use_: Use,
}

/// A path that was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    /// The leaf.
    pub(crate) slot: Slot,
    /// Whether translations were lost on the way.
    pub(crate) change: Change,
}

/// Removes all mappings of the host pages that meet `range`.
pub(crate) fn drop_range(store: &mut ShadowStore, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Change {
    let mut change = Change::Kept;
    let size = cx.map.page_size();
    let end = range.start.number().saturating_add(range.frames).next_multiple_of(size.frames()).min(cx.map.frames());
    for gfn in (range.start.align_down(size).number()..end).map(Gfn::new) {
        change = change.or(store.drop_mappings(cx.host, gfn, work));
    }
    change
}

/// Flushes all vCPUs where translations were lost; returns those that had to be interrupted.
pub(crate) fn flush_if(cx: &mut Cx<'_>, change: Change, work: &mut Work) -> VcpuSet {
    if change.is_lost() { cx.flush_vm(work) } else { VcpuSet::EMPTY }
}
