//! [`Census`]: a platform that passes everything on and counts.

use std::collections::{HashMap, HashSet};

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, PfCode};
use memvirt_ops::arch::{Control, Cr3, CrWrite, Event, GfnRange, HostEvent, Invpcid, StoreOp};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes, Work};

use crate::around::Around;
use crate::events::Events;
use crate::graph::Graph;
use crate::kvm::Kvm;
use crate::path::{Way, lowest, tables};
use crate::private::{Lazy, Vtlb};
use crate::protect::Protect;
use crate::store::Store;
use crate::trees::{self, Cost, Pages, Tree};
use crate::vbox::Vbox;
use crate::xen::Xen;

/// A [`Platform`] around another one, a bare machine of one vCPU, that counts what the guest does.
#[derive(Debug)]
pub struct Census<P> {
    inner: P,
    events: Events,
    root: Option<Gfn>,
    pcids: bool,
    graph: Graph,
    kvm: Kvm,
    xen: Xen,
    vbox: Vbox,
    protect: Protect,
    vtlb: Vtlb,
    lazy: Lazy,
    epoch: Pages,
    roots: HashMap<Gfn, Tree>,
    /// Every entry that the guest or hardware changed, in order.
    log: Vec<Gpa>,
    frames: HashSet<Gfn>,
    /// Accesses that changed nothing for anybody, each with the moment in which that was so.
    settled: HashMap<(Gfn, Acc), u64>,
    /// Counts whatever may change what accesses do.
    moment: u64,
}

impl<P: Platform> Census<P> {
    /// Counts what happens on `platform`, which has run nothing yet.
    #[must_use]
    pub fn new(platform: P) -> Self {
        Self {
            inner: platform,
            events: Events::default(),
            root: None,
            pcids: false,
            graph: Graph::default(),
            kvm: Kvm::default(),
            xen: Xen::default(),
            vbox: Vbox::default(),
            protect: Protect::default(),
            vtlb: Vtlb::default(),
            lazy: Lazy::default(),
            epoch: Pages::new(),
            roots: HashMap::new(),
            log: Vec::new(),
            frames: HashSet::new(),
            settled: HashMap::new(),
            moment: 0,
        }
    }

    /// The counts so far.
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// What the handlers of a policy would have done so far.
    pub fn work(&self, policy: Policy) -> Work {
        let frames_backed = self.protect.work().frames_backed;
        match policy {
            Policy::Nested => {
                let tables = [9, 18, 27].map(|bits| self.regions(bits)).iter().sum();
                Work { entries_set: self.events.frames, tables_allocated: tables, frames_backed, ..Work::default() }
            }
            Policy::WriteProtect => *self.protect.work(),
            Policy::LazyFill => Work { frames_backed, ..self.lazy.work },
            Policy::Vtlb => Work { frames_backed, ..self.vtlb.work },
            Policy::Kvm => self.kvm.work,
            Policy::Xen => *self.xen.work(),
            Policy::Vbox => *self.vbox.work(),
        }
    }

    /// How many aligned regions of so many frames, a power of two, have one that was touched.
    fn regions(&self, bits: u32) -> u64 {
        self.frames.iter().map(|frame| frame.number() >> bits).collect::<HashSet<_>>().len() as u64
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
        self.moment += 1;
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

    /// Where shadows lag behind: they are brought in step.
    fn step(&mut self, what: Flush) {
        let Self { inner, kvm, xen, vbox, protect, vtlb, lazy, root, pcids, log, .. } = self;
        let Some(root) = *root else { return };
        let peek = |at: Gpa| inner.peek(VmId::FIRST, at);
        let around = Around { peek: &peek };
        match what {
            Flush::Root(cr3) => {
                kvm.load(&cr3, *pcids, &around);
                xen.load_root(root, &around);
                vbox.load_root(root, &around);
                protect.load_root(root);
                vtlb.empty();
                lazy.sync(root, &peek, log);
            }
            Flush::All => {
                kvm.flush(&around);
                xen.flush(&around);
                vbox.flush(&around);
                vtlb.empty();
                lazy.sync(root, &peek, log);
            }
            Flush::Page(gva) => {
                kvm.flush_page(gva, &around);
                xen.flush_page(gva);
                vbox.flush(&around);
                vtlb.invalidate(gva, 0);
                lazy.sync_page(gva, root, &peek);
            }
            Flush::Fault { gva, present } => {
                let read: Vec<Gfn> = tables(inner, root, Acc::supervisor(gva, AccessKind::Read)).collect();
                let refs = read.len() as u64;
                kvm.reflect(gva, present, refs, &around);
                xen.reflect(gva, refs);
                vbox.reflect(refs);
                protect.reflect(&read);
                vtlb.invalidate(gva, refs);
                lazy.reflect(gva, refs, root);
            }
        }
    }

    /// Where stores are followed one by one: an access that completed.
    fn in_shadows(&mut self, acc: Acc, way: &Way, store: Option<(&StoreOp, Gva)>) {
        let Self { inner, kvm, xen, vbox, protect, vtlb, lazy, events, root, .. } = self;
        let peek = |at: Gpa| inner.peek(VmId::FIRST, at);
        let around = Around { peek: &peek };
        let at = way.frame.at(acc.gva().as_u64() & 0xff8);
        xen.access(way, store.map(|(op, _)| (at, op)), &around, events);
        let ip = store.map_or(Gva::ZERO, |(_, ip)| ip);
        let instruction = Store { op: store.map(|(op, _)| op), gva: acc.gva(), ip };
        vbox.access(way, &instruction, &around, events);
        kvm.access(way, &instruction, &around, events);
        protect.access(way, store.map(|(op, _)| (at, op)), &around);
        if let Some(root) = *root {
            vtlb.access(way, root);
            lazy.access(way, root);
        }
    }

    /// The page and kind of an access, under the current root.
    fn kind_of(&self, acc: Acc) -> Option<(Gfn, Acc)> {
        let page = Gva::new_truncate(acc.gva().as_u64() >> 12 << 12);
        Some((self.root?, Acc::new(page, acc.kind(), acc.privilege())))
    }

    /// Whether an access like this one changed nothing, and nothing has changed since.
    fn is_settled(&self, acc: Acc) -> bool {
        self.kind_of(acc).is_some_and(|kind| self.settled.get(&kind) == Some(&self.moment))
    }

    /// An access that completed, which may be settled from now on.
    fn settle(&mut self, acc: Acc, way: Option<Way>) {
        let before = self.events;
        self.done(acc, way);
        if self.events != before {
            self.moment += 1;
        } else if let Some(kind) = self.kind_of(acc) {
            self.settled.insert(kind, self.moment);
        }
    }

    /// An access that completed; `way` is as it was before.
    fn done(&mut self, acc: Acc, way: Option<Way>) {
        let Some(way) = way else { return };
        self.touches(acc, Some(way.frame));
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
        self.moment += 1;
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

    /// A frame that the host has before the guest touches it.
    fn host_has(&mut self, frame: Gfn) {
        self.xen.back(frame);
        self.vbox.back(frame);
        self.protect.back(frame);
        self.kvm.back(frame);
    }

    /// The guest starts on its first root: no hypervisor is asked for what it finds there.
    fn start(&mut self) {
        self.xen.start();
        self.vbox.start();
        self.protect.start();
        self.kvm.work = Work::default();
        self.lazy.work = Work::default();
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
                let first = self.root.is_none();
                self.events.cr3_loads += u64::from(!first);
                self.root = Some(cr3.root.frame());
                self.epoch.clear();
                self.sync(None);
                self.step(Flush::Root(*cr3));
                if first {
                    self.start();
                }
            }
            Control::Cr(CrWrite::PcidEnable(on)) => {
                self.pcids = *on;
                self.epoch.clear();
                self.sync(None);
                self.step(Flush::All);
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
                tree.sync(&self.log, now);
            }
        }
        self.roots.insert(root, tree);
    }
}

/// Whose handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nested paging.
    Nested,
    /// Write-protection that zaps.
    WriteProtect,
    /// Trees kept for each root and compared at flushes.
    LazyFill,
    /// A tree emptied at each flush.
    Vtlb,
    /// KVM's shadow MMU.
    Kvm,
    /// Xen's.
    Xen,
    /// VirtualBox's.
    Vbox,
}

/// What brings shadows in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// A load of CR3.
    Root(Cr3),
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
            let settled = self.is_settled(*acc);
            let way = if settled { None } else { self.way(*acc) };
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
            if !settled {
                self.settle(*acc, way);
            }
        }
        (run.len(), Stop::Done)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        self.moment += u64::from(!matches!(event, Event::Load { .. }));
        match event {
            Event::Load { gva } => {
                let acc = Acc::supervisor(*gva, AccessKind::Read);
                let (way, marked) = (self.way(acc), out.counters.ad_updates);
                let result = self.inner.event(v, event, out);
                if out.counters.ad_updates != marked {
                    self.marked(acc);
                }
                if result.is_ok() {
                    self.settle(acc, way);
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
        self.host_has(at.frame());
        self.inner.poke(vm, at, value);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        (0..range.frames).for_each(|i| self.host_has(range.start.offset(i)));
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
