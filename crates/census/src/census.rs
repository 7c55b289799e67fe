//! [`Census`]: a platform that passes everything on and counts.

use std::collections::{HashMap, HashSet};

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, PfCode};
use memvirt_ops::arch::{Control, Event, GfnRange, HostEvent, Invpcid, StoreOp};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};

use crate::drift::{Around, Drift, StoreTo};
use crate::events::Events;
use crate::graph::Graph;
use crate::path::{Way, lowest, tables};
use crate::trees::{self, Cost, Pages, Tree};
use crate::vbox::{Store, Vbox};
use crate::xen::Xen;

/// A [`Platform`] around another one, a bare machine of one vCPU, that counts what the guest does.
#[derive(Debug)]
pub struct Census<P> {
    inner: P,
    events: Events,
    root: Option<Gfn>,
    graph: Graph,
    drift: Drift,
    xen: Xen,
    vbox: Vbox,
    epoch: Pages,
    roots: HashMap<Gfn, Tree>,
    /// Every entry that the guest or hardware changed, in order.
    log: Vec<Gpa>,
    frames: HashSet<Gfn>,
}

impl<P: Platform> Census<P> {
    /// Counts what happens on `platform`, which has run nothing yet.
    #[must_use]
    pub fn new(platform: P) -> Self {
        Self {
            inner: platform,
            events: Events::default(),
            root: None,
            graph: Graph::default(),
            drift: Drift::default(),
            xen: Xen::default(),
            vbox: Vbox::default(),
            epoch: Pages::new(),
            roots: HashMap::new(),
            log: Vec::new(),
            frames: HashSet::new(),
        }
    }

    /// The counts so far.
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// The platform.
    pub const fn inner(&self) -> &P {
        &self.inner
    }

    /// Where an access would go now.
    fn way(&self, acc: Acc) -> Option<Way> {
        Way::of(&self.inner, self.root?, acc)
    }

    /// Hardware set bits on the way of an access.
    fn marked(&mut self, acc: Acc) {
        let Some(root) = self.root else { return };
        // Accessed bits above the leaf make nothing disagree that agreed before.
        self.log.extend(lowest(&self.inner, root, acc).map(|(entry, _)| entry));
    }

    fn touches(&mut self, acc: Acc, data: Option<Gfn>) {
        let Some(root) = self.root else { return };
        self.frames.extend(tables(&self.inner, root, acc));
        self.frames.extend(data);
        self.events.frames = self.frames.len() as u64;
    }

    /// Where leaf tables may drift: an access that completed; `clears` where it clears a whole page, as no code does that
    /// changes tables.
    fn in_drift(&mut self, acc: Acc, way: &Way, clears: bool) {
        let Self { inner, frames, drift, events, .. } = self;
        if way.write && drift.store_to(way.frame) == StoreTo::Upper {
            if !clears {
                return drift.upper_stored(way.frame.at(acc.gva().as_u64() & 0xff8), events);
            }
            events.noticed_stores += 1;
            drift.no_table(way.frame);
        }
        let peek = |at: Gpa| inner.peek(VmId::FIRST, at);
        let around = Around { peek: &peek, resident: &|frame| frames.contains(&frame) };
        drift.access(way, &around, events);
    }

    /// Where shadows lag behind: they are brought in step.
    fn step(&mut self, what: Flush) {
        let Self { inner, frames, drift, xen, vbox, root, events, .. } = self;
        let Some(root) = *root else { return };
        let peek = |at: Gpa| inner.peek(VmId::FIRST, at);
        let around = Around { peek: &peek, resident: &|frame| frames.contains(&frame) };
        let lowest = |gva| lowest(inner, root, Acc::supervisor(gva, AccessKind::Read));
        match what {
            Flush::Root => {
                drift.sync(root, &around, events);
                xen.load_root(root, &around);
                vbox.load_root(root, &around);
            }
            Flush::All => {
                drift.sync(root, &around, events);
                xen.flush(&around);
                vbox.flush(&around);
            }
            Flush::Page(gva) => {
                drift.flush_page(lowest(gva), &around);
                xen.flush_page(lowest(gva));
                vbox.flush(&around);
            }
            Flush::Fault { gva, present } => {
                if present {
                    drift.flush_page(lowest(gva), &around);
                }
                xen.fault(lowest(gva));
            }
        }
    }

    /// Where stores are followed one by one: an access that completed.
    fn in_shadows(&mut self, acc: Acc, way: &Way, store: Option<(&StoreOp, Gva)>) {
        let Self { inner, frames, xen, vbox, events, .. } = self;
        let peek = |at: Gpa| inner.peek(VmId::FIRST, at);
        let around = Around { peek: &peek, resident: &|frame| frames.contains(&frame) };
        let at = way.frame.at(acc.gva().as_u64() & 0xff8);
        xen.access(way, store.map(|(op, _)| (at, op)), &around, events);
        let ip = store.map_or(Gva::ZERO, |(_, ip)| ip);
        vbox.access(way, &Store { op: store.map(|(op, _)| op), gva: acc.gva(), ip }, &around, events);
    }

    /// An access that completed; `way` is as it was before.
    fn done(&mut self, acc: Acc, way: Option<Way>) {
        let Some(way) = way else { return };
        self.touches(acc, Some(way.frame));
        self.in_drift(acc, &way, false);
        self.in_shadows(acc, &way, None);
        self.done_elsewhere(way);
    }

    fn done_elsewhere(&mut self, way: Way) {
        if way.write && self.graph.level(way.frame).is_some() {
            self.events.stray_stores += 1;
            if !way.user {
                return self.in_trees(&way);
            }
            self.graph.no_table(way.frame);
        }
        self.graph.access(&way, &mut self.events);
        self.in_trees(&way);
    }

    fn in_trees(&mut self, way: &Way) {
        match trees::access(&mut self.epoch, way) {
            Cost::Nothing => {}
            Cost::Fill => self.events.epoch_fills += 1,
            Cost::Upgrade => self.events.epoch_upgrades += 1,
        }
        let Some(root) = self.root else { return };
        match self.roots.entry(root).or_default().access(way) {
            Cost::Nothing => {}
            Cost::Fill => self.events.root_fills += 1,
            Cost::Upgrade => self.events.root_upgrades += 1,
        }
    }

    /// A page fault that the guest sees. It ends what was cached for the page.
    fn fault(&mut self, acc: Acc, present: bool) {
        self.events.faults += 1;
        self.touches(acc, None);
        self.forget(acc.gva().as_u64() >> 12);
        self.step(Flush::Fault { gva: acc.gva(), present });
    }

    fn forget(&mut self, page: u64) {
        self.epoch.remove(&page);
        if let Some(tree) = self.root.and_then(|root| self.roots.get_mut(&root)) {
            tree.pages.remove(&page);
        }
    }

    /// A store by the kernel, to a table or not.
    fn store(
        &mut self,
        v: VcpuId,
        (via, op, ip): (Gva, &StoreOp, Gva),
        event: &Event,
        out: &mut Ledger,
    ) -> Result<Option<u64>, Refusal> {
        let acc = Acc::supervisor(via, AccessKind::Write);
        let way = self.way(acc);
        let at = way.map(|way| way.frame.at(via.as_u64() & 0xff8));
        let before = at.map(|at| self.inner.peek(VmId::FIRST, at));
        let marked = out.counters.ad_updates;
        let result = self.inner.event(v, event, out);
        if out.counters.ad_updates != marked {
            self.marked(acc);
        }
        let (Ok(_), Some(way), Some(at)) = (&result, way, at) else { return result };
        let elements = if let StoreOp::RepStos { count, .. } = op { u64::from(*count) } else { 1 };
        self.log.extend((0..elements).map(|i| at.wrapping_add(8 * i)));
        let clears = matches!(op, StoreOp::RepStos { .. } | StoreOp::Vector);
        self.touches(acc, Some(way.frame));
        self.in_drift(acc, &way, clears);
        self.in_shadows(acc, &way, Some((op, ip)));
        let Some(level) = self.graph.level(way.frame) else {
            self.done_elsewhere(way);
            return result;
        };
        if clears {
            // The frame holds data again: the page is cleared for another use.
            self.events.stray_stores += 1;
            self.graph.no_table(way.frame);
            self.done_elsewhere(way);
            return result;
        }
        self.events.stores += 1;
        if level == 1 {
            self.events.leaf_stores += 1;
        } else {
            self.events.upper_stores += 1;
        }
        self.in_trees(&way);
        if before != Some(self.inner.peek(VmId::FIRST, at)) {
            self.graph.stored(at);
        }
        result
    }

    fn control(&mut self, control: &Control) {
        match control {
            Control::Cr3(cr3) => {
                // The first one turns paging on: no hypervisor is asked for what a machine starts with.
                self.events.cr3_loads += u64::from(self.root.is_some());
                self.root = Some(cr3.root.frame());
                self.epoch.clear();
                self.sync(None);
                self.step(Flush::Root);
            }
            Control::Cr(_) | Control::Invpcid(Invpcid::All | Invpcid::AllGlobal | Invpcid::Single(_)) => {
                self.epoch.clear();
                self.sync(None);
                self.step(Flush::All);
            }
            Control::Invlpg(gva) => {
                self.events.invlpgs += 1;
                self.flush_page(*gva);
            }
            Control::Invpcid(Invpcid::Address(_, gva)) => self.flush_page(*gva),
            _ => {}
        }
    }

    fn flush_page(&mut self, gva: Gva) {
        let page = gva.as_u64() >> 12;
        self.epoch.remove(&page);
        self.sync(Some(page));
        self.step(Flush::Page(gva));
    }

    /// Brings a page of the current root in step, or all of them.
    fn sync(&mut self, page: Option<u64>) {
        let Some(root) = self.root else { return };
        let Some(mut tree) = self.roots.remove(&root) else { return };
        let now = |page: u64| Way::of(&self.inner, root, Acc::supervisor(address(page), AccessKind::Read));
        match page {
            Some(page) => trees::sync_page(&mut tree.pages, page, now(page)),
            None => {
                self.events.root_compared += tree.pages.len() as u64;
                tree.sync(&self.log, now);
            }
        }
        self.roots.insert(root, tree);
    }
}

/// What brings shadows in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// A load of CR3.
    Root,
    /// All pages.
    All,
    /// One page.
    Page(Gva),
    /// A page fault that the guest sees.
    Fault { gva: Gva, present: bool },
}

/// The first address of a page; the upper bits repeat bit 47.
fn address(page: u64) -> Gva {
    Gva::new_truncate(page << 12)
}

impl<P: Platform> Platform for Census<P> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        for (done, acc) in run.iter().enumerate() {
            let way = self.way(*acc);
            let marked = out.counters.ad_updates;
            let (one, stop) = self.inner.accesses(v, core::slice::from_ref(acc), horizon, out);
            if out.counters.ad_updates != marked {
                self.marked(*acc);
            }
            if let Stop::GuestFault(fault) = stop {
                self.fault(*acc, fault.code.bits() & PfCode::PRESENT != 0);
            }
            if one == 0 {
                return (done, stop);
            }
            self.done(*acc, way);
        }
        (run.len(), Stop::Done)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        match event {
            Event::Load { gva } => {
                let acc = Acc::supervisor(*gva, AccessKind::Read);
                let (way, marked) = (self.way(acc), out.counters.ad_updates);
                let result = self.inner.event(v, event, out);
                if out.counters.ad_updates != marked {
                    self.marked(acc);
                }
                if result.is_ok() {
                    self.done(acc, way);
                }
                result
            }
            Event::Store { via, op, ip } => self.store(v, (*via, op, *ip), event, out),
            Event::Control(control) => {
                let result = self.inner.event(v, event, out);
                if result.is_ok() {
                    self.control(control);
                }
                result
            }
        }
    }

    fn host(&mut self, event: &HostEvent, out: &mut Ledger) {
        self.inner.host(event, out);
    }

    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger) {
        self.inner.world_switch(v, out);
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        self.inner.peek(vm, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        self.inner.poke(vm, at, value);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        self.inner.populate(vm, range, out);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        self.inner.backing(vm, gfn)
    }

    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached> {
        self.inner.reached(v, gva)
    }

    fn table_bytes(&self) -> TableBytes {
        self.inner.table_bytes()
    }

    fn attribution(&self, vm: VmId) -> Option<memvirt_platform::Attribution> {
        self.inner.attribution(vm)
    }
}
