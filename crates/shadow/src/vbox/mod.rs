//! [`Vbox`]: shadow paging as VirtualBox does it, with a pool of shadow pages and up to sixteen dirty leaf tables.
//!
//! Source: VirtualBox 6.1, `VMM/VMMAll/PGMAllPool.cpp` (`pgmRZPoolAccessPfHandler`, `pgmPoolAddDirtyPage`,
//! `pgmPoolFlushDirtyPage`), `PGMAllBth.h` (`SyncPage`), `VMMR3/PGMPool.cpp`. What sets it apart:
//!
//! - Every shadowed table is monitored. A store is interpreted, the shadow entry dropped, and the table's *modifications*
//!   counted. A leaf table may have [`LEAF_LIMIT`] of them, another [`UPPER_LIMIT`]; a CR3 load sets all counts to 0.
//! - The next store to a leaf table at its limit makes the table *dirty*: the count is compared before the store is counted
//!   (`cModifications >= cMaxModifications`), so a new table takes four interpreted stores and its fifth makes it dirty, and one
//!   that was dirty before, whose count starts at 1, becomes dirty again at its fourth. It is copied aside and made writable, and
//!   nothing leads to its shadow any more, until a fault needs it or the TLB is flushed. Then it is monitored again, the entries that
//!   the guest changed meanwhile are dropped, and its count is lowered. Another table at its limit leaves the pool.
//! - Stores that walk up a table from its first entry, by the same instruction, double the count each time: a table that
//!   reaches its limit so is being filled anew and leaves the pool at once.
//! - A table is taken for *reused* and leaves the pool at a user-mode store, `rep stos` over 64 entries or more, or an
//!   unaligned 8-byte store; and for *forking* at the instruction with which Linux makes an entry read-only (BTR of the
//!   write bit; here: a locked AND that clears this bit and no other). `rep stos` of at most 32 entries of 0 or 0x80 is carried
//!   out whole. Tables on which a vCPU runs stay.
//! - Guest pages are mapped 4 KiB at a time. A fault on an absent entry fills what is absent among the 32 entries around it.
//! - The pool holds about one page for each 512 of memory, at most 16383; when it is used up the least recently used go.
//!
//! Not modelled: raw mode, the ring-3 access handler with its own limits, PAE and 32-bit guests.

mod count;
pub mod dirty;
mod trap;

use memvirt_addr::{Acc, Gfn, Level, PageSize, Privilege};
use memvirt_ops::arch::{Control, CrWrite, HostEvent, StoreOp, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, Path};
use memvirt_platform::{
    Attribution, Cx, ExitReason, Foresight, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes,
    Vendor, Work,
};

use crate::exits::leading_exits;
use crate::fault::{self, Policy};
use crate::graph::{Graph, Search, UNSYNC, Use, flush_if};
use crate::guest::GuestPage;
use crate::store::{Change, Footprint, Kind, PageId, ShadowStore, Slot};
use count::{Run, bytes_of};
use dirty::{DirtyTable, SLOTS, Slots};

/// Modifications that a leaf table may have.
pub const LEAF_LIMIT: u32 = 4;
/// Modifications that any other table may have.
pub const UPPER_LIMIT: u32 = 24;
/// How many entries a fault looks at: half of them before, half from the one asked for on.
pub const SYNC_PAGES: usize = 32;

/// What VirtualBox counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VboxStats {
    /// Tables that became dirty (`StatDirtyPage`).
    pub dirtied: u64,
    /// Dirty tables flushed because all slots were taken (`StatDirtyPageOverFlowFlush`).
    pub overflow_flushes: u64,
    /// Dirty tables monitored again (`StatResetDirtyPages`).
    pub resets: u64,
    /// Tables that left the pool (reused, forking, over their limit).
    pub flushed: u64,
    /// Entries filled that nobody had asked for.
    pub prefetched: u64,
}

/// Shadow paging as VirtualBox does it.
#[derive(Debug)]
pub struct Vbox {
    graph: Graph,
    vendor: Vendor,
    slots: Slots,
    /// Pages whose count of modifications is not 0.
    modified: Vec<PageId>,
    /// Stores trapped so far.
    stores: u64,
    run: Run,
    stats: VboxStats,
}

impl Vbox {
    /// A machine with the memory of `map` and no shadow tables yet.
    #[must_use]
    pub fn new(map: &MemoryMap, vendor: Vendor) -> Self {
        let frames = map.frames();
        let copies = SLOTS as u64 * PageSize::Size4K.bytes();
        let footprint = Footprint { fixed: copies + 2 * frames, reverse_map: 2 * frames, header: 96, table: 0, run: 0 };
        let mut graph = Graph::new(frames, footprint, PageSize::Size4K, Search::ReverseMap);
        let pool = frames / 512 + frames / (512 * 512);
        graph.store.set_limit(pool.clamp(128, 16383));
        Self {
            graph,
            vendor,
            slots: Slots::default(),
            modified: Vec::new(),
            stores: 0,
            run: Run::default(),
            stats: VboxStats::default(),
        }
    }

    /// The shadow pages.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.graph.store
    }

    /// What was counted.
    #[must_use]
    pub const fn stats(&self) -> &VboxStats {
        &self.stats
    }

    /// The dirty tables.
    pub fn dirty(&self) -> impl Iterator<Item = Gfn> {
        self.slots.tables()
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
        let marked = self.graph.store.pages().filter(|(_, page)| page.mark & UNSYNC != 0);
        for (id, page) in marked {
            if page.parents() > 0 || page.level != Level::L1 || !self.slots.tables().any(|gfn| gfn == page.gfn) {
                found.push(format!("{id:?} is dirty: {page:?}"));
            }
        }
        found
    }

    /// Monitors a dirty table again, and drops what the guest changed.
    fn reset(&mut self, cx: &mut Cx<'_>, table: &DirtyTable, work: &mut Work) -> Change {
        self.stats.resets += 1;
        let (gfn, mut changes, mut bogus) = (table.gfn, 0, false);
        self.graph.each_shadow(gfn, |graph, id| graph.store.page_mut(id).mark = 0);
        let mut change = self.graph.protect(cx, gfn, work);
        self.graph.each_shadow(gfn, |graph, id| {
            let mut next = 0;
            while let Some(index) = graph.store.page(id).next_present(next) {
                next = index + 1;
                work.entries_synced += 1;
                let slot = Slot::new(id, index);
                let entry = Guest4::decode(cx.guest().read(gfn.entry(index)), Level::L1);
                let held = graph.store.entry(cx.host, slot).attrs();
                if let Entry::Leaf { frame, .. } = entry {
                    bogus |= !cx.map.contains(frame);
                }
                if !same_page(entry, Guest4::decode(table.copy[index], Level::L1), held) {
                    changes += 1;
                    change = change.or(graph.store.clear(cx.host, slot, work));
                }
            }
            let page = graph.store.page_mut(id);
            page.writes = if changes < 4 { 1 } else { (page.writes / 2).max(1) };
        });
        if bogus { change.or(self.leave_pool(cx, gfn, work)) } else { change }
    }

    /// Monitors all dirty tables again.
    fn reset_all(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for table in self.slots.take_all() {
            change = change.or(self.reset(cx, &table, work));
        }
        change
    }

    /// Monitors the dirty tables again that a path leads through.
    fn reset_path(&mut self, cx: &mut Cx<'_>, page: &GuestPage, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        for step in page.path.steps() {
            if let Some(table) = self.slots.remove(step.entry_at.frame()) {
                change = change.or(self.reset(cx, &table, work));
            }
        }
        change
    }

    /// The table's shadows go.
    fn leave_pool(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Change {
        self.stats.flushed += 1;
        drop(self.slots.remove(gfn));
        self.graph.unshadow(cx, gfn, work)
    }

    /// Makes the leaf table in `gfn` dirty; says no where it is shadowed as something else as well and that cannot go.
    fn make_dirty(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Option<Change> {
        let id = self.graph.store.find(gfn, Level::L1, Kind::Table)?;
        let backed = cx.back(gfn, work)?;
        let mut change = Change::Kept;
        let duplicates: Vec<PageId> = self.graph.store.pages_of(gfn).filter(|other| *other != id).collect();
        for other in duplicates {
            if self.graph.store.page(other).kind == Kind::Table {
                change = change.or(self.graph.store.zap(cx.host, other, work));
            }
        }
        change = change.or(self.graph.store.unlink(cx.host, id, work));
        self.graph.store.page_mut(id).mark = UNSYNC;
        self.stats.dirtied += 1;
        let copy = Box::new(*cx.host.mem.words(backed.frame));
        if let Some(flushed) = self.slots.add(DirtyTable { gfn, copy }) {
            self.stats.overflow_flushes += 1;
            change = change.or(self.reset(cx, &flushed, work));
        }
        Some(change)
    }

    fn make_room(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let change = self.graph.store.make_room(cx.host, 8, work).1;
        self.forget_freed();
        change
    }

    /// Forgets what was noted of tables that left the pool.
    fn forget_freed(&mut self) {
        let store = &self.graph.store;
        for gfn in self.slots.tables().filter(|gfn| !store.is_table(*gfn)).collect::<Vec<_>>() {
            drop(self.slots.remove(gfn));
        }
    }

    fn fill(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        before: Change,
        mut work: Work,
    ) -> Outcome {
        let mut change = before.or(self.make_room(cx, &mut work)).or(self.reset_path(cx, page, &mut work));
        let use_ = if request.acc.is_write() { Use::Write } else { Use::Read };
        let Some(root) = self.root(cx) else { return Outcome::OutOfMemory };
        let absent = self.graph.is_absent(root, request.acc.gva());
        let Some(filled) = self.graph.fill(cx, root, request.acc.gva(), page, use_, &mut work) else {
            return Outcome::OutOfMemory;
        };
        change = change.or(filled.change);
        for step in page.path.steps() {
            self.graph.each_shadow(step.entry_at.frame(), |graph, id| graph.store.renew(id));
        }
        if absent {
            self.sync_around(cx, filled.slot, &mut work);
        }
        let kick = flush_if(cx, change, &mut work);
        cx.exit(ExitReason::HiddenFault, work, Some(LockMode::Exclusive), kick);
        Outcome::Retry
    }

    /// Fills what is absent around an entry, as far as the guest has accessed it and the host has it.
    fn sync_around(&mut self, cx: &mut Cx<'_>, slot: Slot, work: &mut Work) {
        let page = self.graph.store.page(slot.page);
        let (kind, gfn) = (page.kind, page.gfn);
        let range = slot.at().saturating_sub(SYNC_PAGES / 2)..(slot.at() + SYNC_PAGES / 2).min(512);
        for index in range {
            let at = Slot::new(slot.page, index);
            if self.graph.store.target(at).is_some() {
                continue;
            }
            let (frame, attrs) = if kind == Kind::Direct {
                (gfn.offset(index as u64), Attrs::PERMISSIONS | Attrs::ACCESSED | Attrs::DIRTY)
            } else {
                work.guest_entries_read += 1;
                match Guest4::decode(cx.guest().read(gfn.entry(index)), Level::L1) {
                    Entry::Leaf { frame, attrs, .. } if attrs.contains(Attrs::ACCESSED) => (frame, attrs),
                    _ => continue,
                }
            };
            self.graph.prefetch(cx, at, frame, attrs, work);
            self.stats.prefetched += u64::from(self.graph.store.target(at).is_some());
        }
    }

    fn load_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<Change> {
        self.forget_modifications();
        let change = self.reset_all(cx, work).or(self.make_room(cx, work));
        Some(change.or(self.graph.load_root(cx, work)?))
    }
}

/// Whether the shadow of a leaf is still right: the same page as in the copy, accessed, and no other permissions than held.
fn same_page(now: Entry<memvirt_addr::GuestPhys>, copy: Entry<memvirt_addr::GuestPhys>, held: Attrs) -> bool {
    match (now, copy) {
        (Entry::Leaf { frame, attrs, .. }, Entry::Leaf { frame: old, .. }) => {
            let perms = Graph::guest_leaf(attrs);
            frame == old
                && attrs.contains(Attrs::ACCESSED)
                && perms.contains(held & Attrs::PERMISSIONS)
                && (held | Attrs::WRITE).contains(perms)
        }
        _ => false,
    }
}

/// Whether the store shows that the frame is no table any more. Source: `pgmRZPoolMonitorIsReused`.
fn is_reused(request: &Request<'_>) -> bool {
    let unaligned = bytes_of(request) >= 8 && request.acc.gva().as_u64() & 7 != 0;
    let long = matches!(request.store, Some(StoreOp::RepStos { count, .. }) if count - request.element >= 64);
    request.acc.privilege() == Privilege::User || unaligned || long
}

/// Whether the store is one of a fork that makes pages copy-on-write. Source: `pgmRZPoolMonitorIsForking`.
fn is_forking(request: &Request<'_>) -> bool {
    matches!(request.store, Some(StoreOp::And { mask }) if *mask == !Guest4::RAW_WRITE)
}

impl Policy for Vbox {
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

    fn reflected(&mut self, _: &mut Cx<'_>, _: &Request<'_>, _: &Path<Guest4>, _: &mut Work) -> VcpuSet {
        VcpuSet::EMPTY
    }

    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, work: Work) -> Outcome {
        if request.acc.is_write() && self.graph.is_protected(page.gfn) {
            return self.table_store(cx, request, page, work);
        }
        if fault::beats_write_protection(request, page) {
            return fault::store_despite_protection(cx, request, page, work);
        }
        self.fill(cx, request, page, Change::Kept, work)
    }
}

impl Regime for Vbox {
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
        let change = match control {
            Control::Cr3(_) => self.load_root(cx, &mut work).ok_or(Refusal::HostOutOfMemory)?,
            Control::Cr(CrWrite::TogglePge | CrWrite::PcidEnable(_)) | Control::Invlpg(_) | Control::Invpcid(_) => {
                self.reset_all(cx, &mut work)
            }
            _ => Change::Kept,
        };
        let kick = flush_if(cx, change, &mut work);
        let lock = (work != Work::default()).then_some(LockMode::Exclusive);
        cx.exit(reason, work, lock, kick);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.graph.host(cx, event);
        self.forget_freed();
    }

    fn table_bytes(&self) -> TableBytes {
        self.graph.store.table_bytes()
    }

    fn attribution(&self, _: &Host) -> Option<Attribution> {
        Some(self.graph.store.attribution())
    }
}
