//! [`Xen`]: shadow paging as Xen does it, with a few leaf tables out of sync.
//!
//! Source: Xen, `arch/x86/mm/shadow/{multi.c,common.c,oos.c,hvm.c,private.h}`. What sets it apart:
//!
//! - Guest pages are always mapped 4 KiB at a time; a large one gets an `fl1` page of its own (a *direct* page here).
//! - A hidden fault also fills up to 31 entries that follow in the same table ([`PREFETCH`]); an entry that the guest has not
//!   accessed, or may write and has not dirtied, ends that; entries not present are passed over.
//! - A supervisor's store to a leaf table lets the table *out of sync* where it is shadowed once: one exit, and stores are free
//!   from then on. A vCPU has room for three such tables, and a table for two writable mappings ([`oos`]). They come back
//!   into sync at every CR3 load and full flush: each entry that is shadowed and differs from a snapshot is looked at again.
//!   INVLPG removes the one shadow entry.
//! - Every other store to a table is emulated, and the new entry is *propagated* as far as nothing new has to be made for it.
//! - Two emulated stores of zero in a row to the same table make it data ("early unshadow"), as does a user-mode store.
//! - Shadows are counted by reference: a table without a parent is no table any more. Top-level shadows stay until the pool
//!   runs out of pages; then the least recently used go, and at last the mappings of live ones.
//! - There is no reverse map: the writable mappings of a new table are looked for in all leaf tables.
//! - Starting a log of stores, and each reading of it, drops all shadows.
//!
//! A reflected fault drops the stale entry of a table out of sync, as hardware would; Xen leaves it. Not modelled: writes that
//! span two pages, `pagetable_dying` hypercalls, the cache of gva-to-gfn translations for emulation.

mod host;
pub mod oos;
mod sync;

use memvirt_addr::{Acc, Gfn, Gva, Level, PageSize, Privilege};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, CrWrite, HostEvent, Invpcid, StoreOp, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, Path, Shadow4};
use memvirt_platform::{
    Attribution, Cx, ExitReason, Foresight, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes,
    Vendor, Work,
};

use crate::exits::leading_exits;
use crate::fault::{self, Policy};
use crate::graph::{Graph, Search, UNSYNC, Use, flush_if};
use crate::guest::GuestPage;
use crate::store::{Change, Footprint, Kind, PageId, ShadowStore, Slot, Target};
use oos::{PLACES, Places};

/// How many entries a hidden fault fills at most, the one asked for included.
pub const PREFETCH: usize = 32;

/// What Xen counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenStats {
    /// Tables let out of sync (`shadow_unsync`).
    pub unsync: u64,
    /// Tables that came back because another needed the place (`shadow_unsync_evict`).
    pub unsync_evict: u64,
    /// Tables that came back into sync (`shadow_resync`).
    pub resync: u64,
    /// Writable mappings remembered (`shadow_oos_fixup_add`).
    pub fixup_add: u64,
    /// Writable mappings made read-only for another (`shadow_oos_fixup_evict`).
    pub fixup_evict: u64,
    /// Tables unshadowed for two zeros in a row (`shadow_early_unshadow`).
    pub early_unshadow: u64,
    /// Entries filled that nobody had asked for.
    pub prefetched: u64,
}

/// Shadow paging as Xen does it.
#[derive(Debug)]
pub struct Xen {
    graph: Graph,
    vendor: Vendor,
    /// How many vCPUs the machine has.
    vcpus: u16,
    /// By vCPU, as the host numbers them over all its machines.
    places: Vec<Places>,
    /// By vCPU, likewise: the table that it last stored a zero to, if nothing else came since.
    last_zero: Vec<Option<Gfn>>,
    /// Top-level shadows, least recently loaded first.
    pinned: Vec<PageId>,
    stats: XenStats,
}

impl Xen {
    /// A machine with the memory of `map`, `vcpus` vCPUs and no shadow tables yet. The pool holds 128 pages for each vCPU and
    /// one for each MiB of memory.
    #[must_use]
    pub fn new(map: &MemoryMap, vcpus: u16, vendor: Vendor) -> Self {
        let snapshots = u64::from(vcpus) * PLACES as u64 * PageSize::Size4K.bytes();
        let footprint = Footprint { fixed: 251 * 8 + snapshots, reverse_map: 0, header: 32, table: 0, run: 0 };
        let mut graph = Graph::new(map.frames(), footprint, PageSize::Size4K, Search::Scan);
        graph.store.set_limit(host::LEAST * u64::from(vcpus) + map.frames() / 256);
        graph.store.count_references();
        let places = (0..vcpus).map(|_| Places::default()).collect();
        let last_zero = vec![None; usize::from(vcpus)];
        Self { graph, vendor, vcpus, places, last_zero, pinned: Vec::new(), stats: XenStats::default() }
    }

    /// The shadow pages.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.graph.store
    }

    /// What was counted.
    #[must_use]
    pub const fn stats(&self) -> &XenStats {
        &self.stats
    }

    /// The tables out of sync on a vCPU.
    pub fn out_of_sync(&self, v: VcpuId) -> impl Iterator<Item = Gfn> {
        self.places.get(v.index()).into_iter().flat_map(Places::tables)
    }

    /// What is wrong with the shadow tables and their bookkeeping. Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let mut found = self.graph.store.audit(host, map);
        found.extend(self.graph.out_of_step(host, map));
        for gfn in self.graph.store.writable_tables(host) {
            if self.graph.is_protected(gfn) {
                found.push(format!("a table in {gfn:?} can be stored to"));
            }
        }
        for gfn in self.places.iter().flat_map(Places::tables) {
            let shadows = self.graph.store.pages_of(gfn).map(|id| self.graph.store.page(id));
            let tables = shadows.filter(|page| page.kind == Kind::Table).collect::<Vec<_>>();
            if !matches!(tables.as_slice(), [page] if page.level == Level::L1 && page.mark == UNSYNC) {
                found.push(format!("{gfn:?} is out of sync with shadows {tables:?}"));
            }
        }
        let marked = self.graph.store.pages().filter(|(_, page)| page.mark & UNSYNC != 0).count();
        let placed = self.places.iter().flat_map(Places::tables).count();
        if marked != placed {
            found.push(format!("{marked} shadows marked, {placed} tables out of sync"));
        }
        found
    }

    /// After a fill: what follows in the same table.
    fn prefetch(&mut self, cx: &mut Cx<'_>, slot: Slot, work: &mut Work) {
        let page = self.graph.store.page(slot.page);
        let (kind, gfn) = (page.kind, page.gfn);
        for index in slot.at()..(slot.at() + PREFETCH).min(512) {
            let at = Slot::new(slot.page, index);
            if index > slot.at() {
                if self.graph.store.target(at).is_some() {
                    break;
                }
                let (frame, attrs) = match kind {
                    Kind::Direct => (gfn.offset(index as u64), Attrs::PERMISSIONS | Attrs::ACCESSED | Attrs::DIRTY),
                    _ => {
                        work.guest_entries_read += 1;
                        match Guest4::decode(cx.guest().read(gfn.entry(index)), Level::L1) {
                            Entry::Leaf { frame, attrs, .. } => (frame, attrs),
                            _ => continue,
                        }
                    }
                };
                let clean = attrs.contains(Attrs::WRITE) && !attrs.contains(Attrs::DIRTY);
                if clean || !attrs.contains(Attrs::ACCESSED) {
                    break;
                }
                self.graph.prefetch(cx, at, frame, attrs, work);
                self.stats.prefetched += u64::from(self.graph.store.target(at).is_some());
            }
            if kind == Kind::Table {
                self.note_shadowed(cx, gfn, index);
            }
        }
    }

    /// The shadow entry was made from what the guest's entry is now.
    fn note_shadowed(&mut self, cx: &mut Cx<'_>, gfn: Gfn, index: usize) {
        if let Some(table) = self.record(gfn) {
            table.snapshot[index] = cx.guest().read(gfn.entry(index));
        }
    }

    /// A store through a writable mapping of a table out of sync: two are remembered.
    fn add_fixup(&mut self, cx: &mut Cx<'_>, gfn: Gfn, slot: Slot, work: &mut Work) {
        let Some(table) = self.record(gfn) else { return };
        let old = table.add_fixup(slot);
        self.stats.fixup_add += 1;
        if let Some(old) = old {
            self.stats.fixup_evict += 1;
            if self.graph.store.target(old) == Some(Target::Leaf(gfn, PageSize::Size4K)) {
                // No flush: the table is out of sync already, and coming back into sync flushes.
                let _ = self.graph.store.restrict(cx.host, old, Attrs::WRITE | Attrs::DIRTY, work);
            }
        }
    }

    /// Whether stores to the table are to be emulated; lets it out of sync where that can be avoided.
    fn must_emulate(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, gfn: Gfn, work: &mut Work) -> (bool, Change) {
        if !request.acc.is_write() || !self.graph.is_protected(gfn) {
            return (false, Change::Kept);
        }
        if request.acc.privilege() == Privilege::User {
            return (true, Change::Kept);
        }
        self.unsync(cx, gfn, work).map_or((true, Change::Kept), |change| (false, change))
    }

    /// A store to a table that stays in sync.
    fn table_store(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let gfn = page.gfn;
        let user = request.acc.privilege() == Privilege::User;
        if user && !self.graph.is_root(gfn) && !page.leads_through(gfn) {
            let change = self.unshadow(cx, gfn, &mut work);
            let kick = flush_if(cx, change, &mut work);
            cx.exit(ExitReason::TableWrite, work, Some(LockMode::Exclusive), kick);
            return Outcome::Retry;
        }
        let Some(changed) = fault::emulate(cx, request, gfn, &mut work) else { return Outcome::OutOfMemory };
        let mut change = Change::Kept;
        for (index, raw) in changed {
            change = change.or(self.validate(cx, gfn, index, raw, &mut work));
        }
        change = change.or(self.look_for_zeros(cx, request, gfn, &mut work));
        change = change.or(self.reap(cx, &mut work));
        let kick = flush_if(cx, change, &mut work);
        fault::emulated(cx, ExitReason::TableWrite, work, kick)
    }

    /// An entry was stored: its shadows follow. A link to a shadowed table makes all tables come into sync, because the new
    /// path needs no flush to be used.
    fn validate(&mut self, cx: &mut Cx<'_>, gfn: Gfn, index: usize, raw: u64, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        let mut linked = false;
        self.graph.each_shadow(gfn, |graph, id| {
            let slot = Slot::new(id, index);
            change = change.or(graph.propagate(cx, slot, raw, work));
            linked |= graph.store.child(slot).is_some();
        });
        if linked { change.or(self.resync_everybody(cx, work)) } else { change }
    }

    fn look_for_zeros(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, gfn: Gfn, work: &mut Work) -> Change {
        let zero = match request.store {
            Some(StoreOp::Mov { width, value }) => width.bytes() >= 4 && *value & 0xffff_ffff == 0,
            Some(StoreOp::RepStos { value, .. }) => *value & 0xffff_ffff == 0,
            Some(StoreOp::Vector) => true,
            Some(StoreOp::And { .. } | StoreOp::Or { .. }) | None => false,
        };
        if !zero {
            return Change::Kept;
        }
        let again = self.last_zero(cx.me).replace(gfn) == Some(gfn);
        if !again || self.graph.is_root(gfn) {
            return Change::Kept;
        }
        self.stats.early_unshadow += 1;
        self.unshadow(cx, gfn, work)
    }

    fn unshadow(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Change {
        let change = self.graph.unshadow(cx, gfn, work);
        change.or(self.reap(cx, work))
    }

    /// Frees tables without a parent, and forgets those out of sync that are no tables any more.
    fn reap(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let change = self.graph.store.reap(cx.host, work);
        self.forget_freed();
        change
    }

    fn forget_freed(&mut self) {
        let store = &self.graph.store;
        for places in &mut self.places {
            for gfn in places.tables().filter(|gfn| !store.is_table(*gfn)).collect::<Vec<_>>() {
                drop(places.remove(gfn));
            }
        }
        self.pinned.retain(|root| store.is_root_page(*root));
    }

    fn load_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<Change> {
        let mut change = self.make_room(cx, work);
        change = change.or(self.resync(cx, cx.regs().cr3.root.frame(), work));
        change = change.or(self.graph.load_root(cx, work)?);
        if let Some(root) = self.root(cx) {
            self.pinned.retain(|other| *other != root);
            self.pinned.push(root);
        }
        change = change.or(self.resync_all(cx, work));
        Some(change.or(self.reap(cx, work)))
    }

    fn invlpg(&mut self, cx: &mut Cx<'_>, gva: Gva, work: &mut Work) -> VcpuSet {
        let Some(mut table) = self.root(cx) else { return VcpuSet::EMPTY };
        loop {
            let page = self.graph.store.page(table);
            let slot = Slot::new(table, Shadow4::index(gva, page.level));
            let (kind, out_of_sync) = (page.kind, page.mark & UNSYNC != 0);
            match self.graph.store.child(slot) {
                Some(child) => table = child,
                None if kind == Kind::Direct => {
                    // A large page in pieces: the whole TLB of this CPU goes.
                    let vpid = cx.tag().vpid();
                    cx.cpu().flush_vpid(vpid, memvirt_tlb::KeepGlobal::No);
                    cx.out.counters.tlb_flushes += 1;
                    return VcpuSet::EMPTY;
                }
                None => {
                    if out_of_sync {
                        let _ = self.graph.store.clear(cx.host, slot, work);
                    }
                    return VcpuSet::EMPTY;
                }
            }
        }
    }

    fn flushed(&mut self, cx: &mut Cx<'_>, control: &Control, work: &mut Work) -> Option<VcpuSet> {
        let change = match *control {
            Control::Cr3(_) => self.load_root(cx, work)?,
            Control::Cr(CrWrite::TogglePge | CrWrite::PcidEnable(_))
            | Control::Invpcid(Invpcid::Single(_) | Invpcid::All | Invpcid::AllGlobal) => {
                let change = self.resync_all(cx, work);
                change.or(self.reap(cx, work))
            }
            Control::Invlpg(gva) | Control::Invpcid(Invpcid::Address(_, gva)) => {
                return Some(self.invlpg(cx, gva, work));
            }
            _ => Change::Kept,
        };
        Some(flush_if(cx, change, work))
    }
}

impl Policy for Xen {
    fn store(&self) -> &ShadowStore {
        &self.graph.store
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.graph.root(cx.me)
    }

    fn make_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<()> {
        let change = self.load_root(cx, work)?;
        flush_if(cx, change, work);
        Some(())
    }

    fn reflected(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, _: &Path<Guest4>, work: &mut Work) -> VcpuSet {
        *self.last_zero(cx.me) = None;
        self.invlpg(cx, request.acc.gva(), work)
    }

    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let gva = request.acc.gva();
        let (emulate, evicted) = self.must_emulate(cx, request, page.gfn, &mut work);
        if emulate {
            return self.table_store(cx, request, page, work);
        }
        *self.last_zero(cx.me) = None;
        if fault::beats_write_protection(request, page) {
            return fault::store_despite_protection(cx, request, page, work);
        }
        let mut change = evicted.or(self.make_room(cx, &mut work)).or(self.sync_path(cx, gva, page, &mut work));
        let use_ = if request.acc.is_write() { Use::Write } else { Use::Read };
        let Some(root) = self.root(cx) else { return Outcome::OutOfMemory };
        let Some(filled) = self.graph.fill(cx, root, gva, page, use_, &mut work) else { return Outcome::OutOfMemory };
        if use_ == Use::Write {
            self.add_fixup(cx, page.gfn, filled.slot, &mut work);
        }
        self.prefetch(cx, filled.slot, &mut work);
        change = change.or(filled.change).or(self.reap(cx, &mut work));
        let kick = flush_if(cx, change, &mut work);
        cx.exit(ExitReason::HiddenFault, work, Some(LockMode::Exclusive), kick);
        Outcome::Retry
    }
}

impl Regime for Xen {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        fault::serve(self, cx, request)
    }

    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        fault::foresee(self, cx, ahead, found);
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let reason = leading_exits(cx, control, self.vendor);
        cx.execute(control);
        let mut work = Work::default();
        let kick = self.flushed(cx, control, &mut work).ok_or(Refusal::HostOutOfMemory)?;
        let lock = (work != Work::default()).then_some(LockMode::Exclusive);
        cx.exit(reason, work, lock, kick);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.host_event(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        self.graph.store.table_bytes()
    }

    fn attribution(&self, _: &Host) -> Option<Attribution> {
        Some(self.graph.store.attribution())
    }
}
