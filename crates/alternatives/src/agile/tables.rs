//! Both sets of tables that agile paging needs, and who runs on them: one shadow page for each guest table and level, as in
//! `memvirt_shadow`'s write-protecting policies, entries with the switching bit, and the nested tree.
//!
//! A guest table that is shadowed is write-protected in both: in every shadow leaf that maps it, and in the nested tree.

use memvirt_addr::{Gfn, Gva, Level, PageSize};
use memvirt_ops::VcpuId;
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, Path};
use memvirt_platform::{Backed, Cx, MemoryMap, Work};
use memvirt_shadow::Footprint;
use memvirt_shadow::store::{Change, Kind, Leaf, PageId, ShadowStore, Slot};

use super::guest::Page;
use super::walk::{Root, Top};
use crate::radix::Radix;

/// How a leaf is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Making {
    /// For a store.
    pub(super) write: bool,
    /// Single stores are logged.
    pub(super) logging: bool,
    /// Leaves that may be stored to are dirty from the start.
    pub(super) dirty: bool,
}

/// Shadow tables, nested tables, roots.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) store: ShadowStore,
    pub(super) nested: Radix,
    roots: Vec<Option<Root>>,
}

impl Tables {
    pub(super) fn new(map: &MemoryMap, nested: Radix) -> Self {
        let store = ShadowStore::new(map.frames(), Footprint::with_reverse_map(map.frames()));
        Self { store, nested, roots: Vec::new() }
    }

    pub(super) fn root(&self, v: VcpuId) -> Option<Root> {
        self.roots.get(v.index()).copied().flatten()
    }

    /// Where hardware starts for a vCPU.
    pub(super) fn top(&self, v: VcpuId) -> Top {
        match self.root(v) {
            Some(Root::Shadow(id)) => Top::Shadow(self.store.page(id).frame),
            Some(Root::Guest(_, frame)) => Top::Guest(frame),
            None => Top::Nowhere,
        }
    }

    /// Puts a vCPU on another root.
    pub(super) fn set_root(&mut self, v: VcpuId, root: Option<Root>) {
        if self.roots.len() <= v.index() {
            self.roots.resize(v.index() + 1, None);
        }
        if let Some(Root::Shadow(id)) = root {
            self.store.pin(id);
        }
        if let Some(Root::Shadow(old)) = core::mem::replace(&mut self.roots[v.index()], root) {
            self.store.unpin(old);
        }
    }

    /// Gives the vCPUs whose root `which` names another one.
    pub(super) fn replace_roots(&mut self, which: impl Fn(&Root) -> bool, new: Option<Root>) {
        for v in (0..self.roots.len()).filter_map(|v| u16::try_from(v).ok()).map(VcpuId) {
            if self.root(v).is_some_and(|root| which(&root)) {
                self.set_root(v, new);
            }
        }
    }

    /// Whether stores to `gfn` must trap.
    pub(super) fn is_protected(&self, gfn: Gfn) -> bool {
        self.store.is_table(gfn)
    }

    /// Whether some vCPU runs on the shadow of the table in `gfn`.
    pub(super) fn is_root(&self, gfn: Gfn) -> bool {
        self.store.pages_of(gfn).any(|id| self.store.page(id).is_pinned())
    }

    /// The guest tables that hardware stores accessed bits to without a host walk.
    pub(super) fn entered(&self) -> Vec<Gfn> {
        let roots = self.roots.iter().flatten().filter_map(|root| match root {
            Root::Guest(gfn, _) => Some(*gfn),
            Root::Shadow(_) => None,
        });
        self.store.switched().chain(roots).collect()
    }

    /// The shadow pages of the guest table in `gfn`, of all levels.
    pub(super) fn shadows_of(&self, gfn: Gfn) -> Vec<PageId> {
        self.store.pages_of(gfn).filter(|id| self.store.page(*id).kind == Kind::Table).collect()
    }

    /// Recycles the oldest pages where fewer than 5 more are allowed. Source: KVM, `make_mmu_pages_available`.
    pub(super) fn make_room(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        if self.store.used() + 5 <= self.store.limit() {
            return Change::Kept;
        }
        self.store.make_room(cx.host, 25, work).1
    }

    /// The shadow page of the guest table in `gfn`. The first one protects the table.
    pub(super) fn table(
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
        if !fresh {
            return Some((id, Change::Kept));
        }
        let change = self.store.protect(cx.host, gfn, work);
        Some((id, change.or(self.nested.protect(cx.host, gfn, work))))
    }

    /// Builds the shadow of the first `depth` tables of a path; returns the last one.
    pub(super) fn build(
        &mut self,
        cx: &mut Cx<'_>,
        gva: Gva,
        path: &Path<Guest4>,
        depth: usize,
        work: &mut Work,
    ) -> Option<(PageId, Change)> {
        let Some(Root::Shadow(mut table)) = self.root(cx.me) else { return None };
        let mut change = Change::Kept;
        for step in path.steps().take(depth.saturating_sub(1)) {
            let (Entry::Table { next, attrs }, Some(below)) = (step.entry, step.level.below()) else { break };
            let (child, protected) = self.table(cx, next, below, work)?;
            let slot = Slot::new(table, Guest4::index(gva, step.level));
            let linked = self.store.link(cx.host, slot, child, attrs & Attrs::PERMISSIONS, work);
            change = change.or(protected).or(linked);
            table = child;
        }
        Some((table, change))
    }

    /// Makes the entry for `gva` in shadow page `table` lead into the guest's table below.
    pub(super) fn switch(
        &mut self,
        cx: &mut Cx<'_>,
        table: PageId,
        gva: Gva,
        (gfn, attrs): (Gfn, Attrs),
        work: &mut Work,
    ) -> Option<Change> {
        let frame = cx.back(gfn, work)?.frame;
        let slot = Slot::new(table, Guest4::index(gva, self.store.page(table).level));
        Some(self.store.switch(cx.host, slot, (gfn, frame), attrs & Attrs::PERMISSIONS, work))
    }

    /// Builds the leaf for `gva` under shadow page `table`: at the smaller of both page sizes, with direct pages where the
    /// guest's is larger.
    pub(super) fn leaf(
        &mut self,
        cx: &mut Cx<'_>,
        mut table: PageId,
        gva: Gva,
        page: &Page,
        making: Making,
        work: &mut Work,
    ) -> Option<Change> {
        let backed = cx.back(page.gfn, work)?;
        let size = match making.logging {
            true => PageSize::Size4K,
            false => self.store.clear_of_tables(page.gfn, page.size.min(backed.size)),
        };
        let clean = !page.attrs.contains(Attrs::DIRTY);
        let mut perms = page.attrs & Attrs::PERMISSIONS;
        perms.set(Attrs::WRITE, perms.contains(Attrs::WRITE) && !clean);
        let mut change = Change::Kept;
        for number in (size.level().number()..=page.size.level().number()).rev() {
            let Some(level) = Level::from_number(number) else { break };
            let slot = Slot::new(table, Guest4::index(gva, level));
            let (Some(below), Some(covered)) = (level.below().filter(|_| level > size.level()), level.page_size())
            else {
                let attrs = self.leaf_attrs(page.gfn, perms, making);
                let leaf = Leaf { gfn: page.gfn, backed: Backed { size, ..backed }, attrs };
                return Some(change.or(self.store.set_leaf(cx.host, slot, leaf, work)));
            };
            let first = page.gfn.align_down(covered);
            let found = self.store.find(first, below, Kind::Direct);
            let child = found.or_else(|| self.store.create(cx.host, first, below, Kind::Direct, work))?;
            change = change.or(self.store.link(cx.host, slot, child, perms, work));
            // The entry above decides.
            (table, perms) = (child, Attrs::PERMISSIONS);
        }
        None
    }

    fn leaf_attrs(&self, gfn: Gfn, perms: Attrs, making: Making) -> Attrs {
        let refused = self.is_protected(gfn) || (making.logging && !making.write);
        let mut attrs = perms | Attrs::ACCESSED;
        attrs.set(Attrs::WRITE, perms.contains(Attrs::WRITE) && !refused);
        attrs.set(Attrs::DIRTY, attrs.contains(Attrs::WRITE) && (making.write || making.dirty));
        attrs
    }

    /// Zaps the shadows of a guest table: its frame can be stored to again.
    pub(super) fn unshadow(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for id in self.shadows_of(gfn) {
            change = change.or(self.store.zap(cx.host, id, work));
        }
        change
    }

    /// Clears the dirty bits of everything that maps the page `gfn`, and says whether one was set.
    pub(super) fn take_dirty(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> bool {
        let mut dirty = self.nested.take_dirty(cx.host, gfn);
        for size in PageSize::ALL {
            for slot in self.store.mappings(gfn, size).collect::<Vec<_>>() {
                work.rmap_visited += 1;
                dirty |= self.store.entry(cx.host, slot).attrs().contains(Attrs::DIRTY);
                let _ = self.store.restrict(cx.host, slot, Attrs::DIRTY, work);
            }
        }
        dirty
    }
}
