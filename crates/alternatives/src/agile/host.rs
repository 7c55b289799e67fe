//! What the host does by itself under agile paging, and the audit of both sets of tables.

use memvirt_addr::PageSize;
use memvirt_ops::arch::{GfnRange, HostEvent};
use memvirt_pagetable::{Attrs, Tree};
use memvirt_platform::{Cx, Host, MemoryMap, Work};
use memvirt_shadow::store::{Change, Kind};

use super::Agile;
use super::walk::Root;
use crate::hypervisor::{flush_if, whole_pages};
use crate::stage::HostTables;

impl Agile {
    pub(super) fn host_event(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        let change = match *event {
            HostEvent::Unmap(_, range) => self.take_away(cx, range, &mut work),
            HostEvent::Discard(_, range) => {
                let forgotten = self.forget_tables(cx, range, &mut work);
                self.take_away(cx, range, &mut work).or(forgotten)
            }
            HostEvent::DirtyLog(_, on) => self.set_logging(cx, on, &mut work),
            HostEvent::DirtyRound(_) if self.log.is_on() => {
                // Hardware sets accessed bits in tables that it enters directly, whatever the nested tables say of them.
                self.tables.entered().into_iter().for_each(|gfn| self.log.mark(gfn));
                self.log.fetch();
                self.protect_all(cx, &mut work)
            }
            HostEvent::SlotChange(_) => {
                let nested = self.tables.nested.clear(cx.host, &mut work);
                nested.or(self.tables.store.zap_all(cx.host, &mut work)).or(Change::Lost)
            }
            HostEvent::ShadowPageLimit(_, limit) => {
                self.tables.store.set_limit(u64::from(limit));
                self.tables.store.make_room(cx.host, 0, &mut work).1
            }
            HostEvent::DirtyRound(_) | HostEvent::WorldSwitch(_) => Change::Kept,
        };
        flush_if(cx, change, &mut work);
        cx.out.counters.work += work;
    }

    fn take_away(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Change {
        let (first, frames) = whole_pages(cx, range);
        cx.map.unmap(range);
        let gone = GfnRange { start: first, frames };
        self.tables.replace_roots(|root| matches!(root, Root::Guest(gfn, _) if gone.contains(*gfn)), None);
        let mut change = self.tables.nested.unmap(cx.host, first, frames, work);
        for gfn in (0..frames).map(|i| first.offset(i)) {
            change = change.or(self.tables.store.drop_mappings(cx.host, gfn, work));
        }
        // Hardware that starts in a guest's root table has cached what it found there.
        change.or(if frames > 0 && self.activity.may_nest() { Change::Lost } else { Change::Kept })
    }

    /// Tables whose contents the host discards are all zero from now on.
    fn forget_tables(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for gfn in (0..range.frames.min(cx.map.frames())).map(|i| range.start.offset(i)) {
            for id in self.tables.shadows_of(gfn) {
                change = change.or(self.tables.store.empty(cx.host, id, work));
            }
        }
        change
    }

    fn set_logging(&mut self, cx: &mut Cx<'_>, on: bool, work: &mut Work) -> Change {
        if on == self.log.is_on() {
            return Change::Kept;
        }
        self.log.set(on, cx.map.frames());
        if on {
            return self.protect_all(cx, work);
        }
        let mut change = Change::Kept;
        if cx.map.page_size() > PageSize::Size4K {
            // Large host pages can be mapped whole again.
            let pages = self.tables.store.pages().filter(|(_, page)| page.kind == Kind::Direct);
            for id in pages.map(|(id, _)| id).collect::<Vec<_>>() {
                change = change.or(self.tables.store.zap(cx.host, id, work));
            }
            change = change.or(self.tables.nested.clear(cx.host, work));
        }
        change
    }

    fn protect_all(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = self.tables.nested.protect_all(cx.host, work);
        self.tables.store.each_leaf(|store, slot| {
            change = change.or(store.restrict(cx.host, slot, Attrs::WRITE | Attrs::DIRTY, work));
        });
        change
    }

    /// What is wrong with the tables and their bookkeeping. Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let store = &self.tables.store;
        let mut found = store.audit(host, map);
        let writable = store.writable_tables(host).into_iter();
        found.extend(writable.map(|gfn| format!("a table in {gfn:?} can be stored to")));
        for leaf in self.tables.nested.leaves(host) {
            let gfn = leaf.at.frame();
            let backed = map.lookup(gfn);
            if !backed.is_some_and(|backed| backed.frame == leaf.frame && leaf.size <= backed.size) {
                found.push(format!("{leaf:?} maps what the host has as {backed:?}"));
            }
            if leaf.attrs.contains(Attrs::WRITE) && store.tables_within(gfn, leaf.size) > 0 {
                found.push(format!("{leaf:?} lets the guest store to a shadowed table"));
            }
        }
        for gfn in self.tables.entered() {
            if self.activity.adapts() && !self.activity.nested().any(|nested| nested == gfn) {
                found.push(format!("{gfn:?} is entered and not nested"));
            }
        }
        found
    }
}

impl crate::radix::Radix {
    /// Every leaf.
    fn leaves<'m>(
        &self,
        host: &'m Host,
    ) -> impl Iterator<Item = memvirt_pagetable::Mapping<memvirt_pagetable::Ept4>> + use<'m> {
        Tree::<memvirt_pagetable::Ept4, _>::new(&host.mem, self.root()).iter()
    }
}
