//! Letting leaf tables out of sync and bringing them back.
//!
//! Source: Xen, `sh_unsync`, `sh_resync`, `sh_resync_all`, `sh_resync_l1`, `sh_safe_not_to_sync`.

use memvirt_addr::{Gfn, Gva, Level};
use memvirt_ops::VcpuId;
use memvirt_pagetable::{Entry, Format, Guest4, Shadow4};
use memvirt_platform::{Cx, Work};

use super::Xen;
use super::oos::{OutOfSync, Places};
use crate::fault::Policy;
use crate::graph::UNSYNC;
use crate::guest::GuestPage;
use crate::store::{Change, Kind, Slot, below};

impl Xen {
    pub(super) fn places(&mut self, v: VcpuId) -> &mut Places {
        if self.places.len() <= v.index() {
            self.places.resize_with(v.index() + 1, Places::default);
        }
        &mut self.places[v.index()]
    }

    /// The table that the vCPU last stored a zero to, if nothing else came since.
    pub(super) fn last_zero(&mut self, v: VcpuId) -> &mut Option<Gfn> {
        if self.last_zero.len() <= v.index() {
            self.last_zero.resize(v.index() + 1, None);
        }
        &mut self.last_zero[v.index()]
    }

    pub(super) fn record(&mut self, gfn: Gfn) -> Option<&mut OutOfSync> {
        self.places.iter_mut().find_map(|places| places.find(gfn))
    }

    /// Lets the leaf table in `gfn` out of sync, where that may be.
    pub(super) fn unsync(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Option<Change> {
        let mut shadows = self.graph.store.pages_of(gfn).filter(|id| self.graph.store.page(*id).kind == Kind::Table);
        let shadow = shadows.next().filter(|id| self.graph.store.page(*id).level == Level::L1)?;
        if shadows.next().is_some() {
            return None;
        }
        drop(shadows);
        let backed = cx.back(gfn, work)?;
        let table = OutOfSync::new(gfn, backed.frame, Box::new(*cx.host.mem.words(backed.frame)));
        self.graph.store.page_mut(shadow).mark = UNSYNC;
        self.stats.unsync += 1;
        let Some(evicted) = self.places(cx.me).add(table) else { return Some(Change::Kept) };
        self.stats.unsync_evict += 1;
        Some(self.back_in_sync(cx, evicted, work))
    }

    /// Brings the table in `gfn` back into sync, if it is out of it.
    pub(super) fn resync(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Change {
        match self.places.iter_mut().find_map(|places| places.remove(gfn)) {
            Some(table) => self.back_in_sync(cx, table, work),
            None => Change::Kept,
        }
    }

    /// Write-protects the table again and looks at its shadow.
    pub(super) fn back_in_sync(&mut self, cx: &mut Cx<'_>, mut table: OutOfSync, work: &mut Work) -> Change {
        self.stats.resync += 1;
        self.graph.each_shadow(table.gfn, |graph, id| graph.store.page_mut(id).mark = 0);
        let protected = self.graph.protect(cx, table.gfn, work);
        protected.or(self.compare(cx, &mut table, work))
    }

    /// Looks again at the shadowed entries that differ from the snapshot.
    pub(super) fn compare(&mut self, cx: &mut Cx<'_>, table: &mut OutOfSync, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        self.graph.each_shadow(table.gfn, |graph, id| {
            let mut next = 0;
            while let Some(index) = graph.store.page(id).next_present(next) {
                next = index + 1;
                work.entries_synced += 1;
                let raw = cx.guest().read(table.gfn.entry(index));
                if raw != table.snapshot[index] {
                    change = change.or(graph.propagate(cx, Slot::new(id, index), raw, work));
                }
                table.snapshot[index] = raw;
            }
        });
        change
    }

    /// Brings this vCPU's tables back into sync, and looks at those of the others that may be in our tree.
    pub(super) fn resync_all(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for gfn in self.out_of_sync(cx.me).collect::<Vec<_>>() {
            change = change.or(self.resync(cx, gfn, work));
        }
        change.or(self.compare_others(cx, work))
    }

    pub(super) fn compare_others(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for v in 0..self.places.len() {
            for gfn in self.places[v].tables().collect::<Vec<_>>() {
                if v == cx.me.index() || self.is_elsewhere(cx, gfn) {
                    continue;
                }
                if let Some(mut table) = self.places[v].remove(gfn) {
                    change = change.or(self.compare(cx, &mut table, work));
                    let _ = self.places[v].add(table);
                }
            }
        }
        change
    }

    /// Whether the table provably is in another tree than the vCPU's: its only path upwards ends at another root. Source:
    /// `sh_safe_not_to_sync`.
    pub(super) fn is_elsewhere(&self, cx: &Cx<'_>, gfn: Gfn) -> bool {
        let Some(mut at) = self.graph.store.find(gfn, Level::L1, Kind::Table) else { return false };
        while let Some(parent) = self.graph.store.only_parent(at) {
            at = parent;
        }
        self.graph.store.page(at).level == Shadow4::ROOT
            && self.graph.store.page(at).parents() == 0
            && self.root(cx) != Some(at)
    }

    /// Tables about to be used in a new place must be in sync: one that is not a leaf table here, and, where a path to shadowed
    /// tables is new, whatever may lie below it.
    pub(super) fn sync_path(&mut self, cx: &mut Cx<'_>, gva: Gva, page: &GuestPage, work: &mut Work) -> Change {
        let (mut change, mut table) = (Change::Kept, self.root(cx));
        for step in page.path.steps() {
            let Entry::Table { next, .. } = step.entry else { break };
            let child =
                table.and_then(|table| self.graph.store.child(Slot::new(table, Guest4::index(gva, step.level))));
            let shadow = self.graph.store.find(next, below(step.level), Kind::Table);
            if shadow.is_some() && shadow != child {
                change = change.or(self.resync_everybody(cx, work));
            } else if step.level > Level::L2 || shadow.is_none() {
                change = change.or(self.resync(cx, next, work));
            }
            table = shadow;
        }
        change
    }

    /// Brings the tables of all vCPUs back into sync.
    pub(super) fn resync_everybody(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for gfn in self.places.iter().flat_map(Places::tables).collect::<Vec<_>>() {
            change = change.or(self.resync(cx, gfn, work));
        }
        change
    }
}
