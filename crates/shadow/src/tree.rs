//! [`Tree`]: shadow tables that belong to one address space each and are never write-protected.
//!
//! Such a tree is a large software-filled TLB. A leaf holds what one walk of the guest's tables gave, permissions of all
//! levels accumulated; the entries above it are mere structure and permit everything. So dropping a leaf forgets a translation
//! completely, and no guest store to an upper table can change what a leaf says. A guest page larger than the host's is filled
//! piece by piece; the shadow pages that hold such pieces are marked ([`PIECES`]), because INVLPG of any address in the guest's
//! page has to invalidate all of them.
//!
//! Entries that a guest flush drops may live on in the hardware TLBs of other vCPUs, which the architecture allows; host
//! events therefore always flush. Used by the policies invlpg-only, lazy-fill and vtlb.

use memvirt_addr::{Gfn, Gva, Level, PageSize};
use memvirt_ops::arch::{HostEvent, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, Shadow4};
use memvirt_platform::{Backed, Cx, ExitReason, LockMode, Outcome, Request, Work};
use memvirt_tlb::KeepGlobal;

use crate::fault;
use crate::graph::{drop_range, flush_if};
use crate::guest::GuestPage;
use crate::hardware::levels;
use crate::store::{Change, Footprint, Kind, Leaf, PageId, ShadowStore, Slot, below};

/// The mark of a shadow page that holds pieces of one guest page; its frame is the first of the region that it covers.
pub(crate) const PIECES: u32 = 1;

/// Whether a fill looks at which guest table a shadow page was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A shadow page of another table goes, with all below it.
    Checked,
    /// Whatever is there is filled further.
    Ignored,
}

/// Whose hardware walks a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkedBy {
    /// That of every vCPU in the address space.
    Several,
    /// That of one vCPU: what is freed there concerns nobody else.
    One,
}

/// The trees of one virtual machine.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) store: ShadowStore,
    /// The root that each vCPU runs on.
    current: Vec<Option<PageId>>,
    identity: Identity,
    walked_by: WalkedBy,
    logging: bool,
}

impl Tree {
    pub(crate) fn new(frames: u64, identity: Identity, walked_by: WalkedBy) -> Self {
        let footprint = Footprint::with_reverse_map(frames);
        Self { store: ShadowStore::new(frames, footprint), current: Vec::new(), identity, walked_by, logging: false }
    }

    /// The root that the vCPU runs on.
    pub(crate) fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.current.get(cx.me.index()).copied().flatten()
    }

    /// Puts the vCPU on `root`.
    pub(crate) fn enter(&mut self, cx: &Cx<'_>, root: Option<PageId>) {
        let v = cx.me.index();
        if self.current.len() <= v {
            self.current.resize(v + 1, None);
        }
        if let Some(root) = root {
            self.store.pin(root);
        }
        if let Some(old) = core::mem::replace(&mut self.current[v], root) {
            self.store.unpin(old);
        }
    }

    /// A new, empty tree for the guest root in `gfn`.
    pub(crate) fn plant(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Option<PageId> {
        self.store.create(cx.host, gfn, Shadow4::ROOT, Kind::Private, work)
    }

    /// Frees the trees (or parts of trees) that were made first, where fewer than 5 more pages are allowed, until 25 are. Calls
    /// `felled` for each root that goes.
    pub(crate) fn make_room(&mut self, cx: &mut Cx<'_>, work: &mut Work, mut felled: impl FnMut(Gfn)) -> Change {
        let mut change = Change::Kept;
        if self.store.used() + 5 <= self.store.limit() {
            return change;
        }
        while self.store.used() + 25 > self.store.limit() {
            let Some(oldest) = self.store.oldest_unpinned() else { break };
            let page = self.store.page(oldest);
            if page.level == Shadow4::ROOT {
                felled(page.gfn);
            }
            change = change.or(self.store.zap_tree(cx.host, oldest, work));
        }
        change
    }

    /// Removes all entries of the tree under `root`.
    pub(crate) fn empty(&mut self, cx: &mut Cx<'_>, root: PageId, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        while let Some(index) = self.store.page(root).next_present(0) {
            change = change.or(self.remove(cx, Slot::new(root, index), work));
        }
        change
    }

    /// Removes an entry and whatever it points to.
    fn remove(&mut self, cx: &mut Cx<'_>, slot: Slot, work: &mut Work) -> Change {
        match self.store.child(slot) {
            Some(child) => self.store.zap_tree(cx.host, child, work),
            None => self.store.clear(cx.host, slot, work),
        }
    }

    /// The shadow page below an entry, made or made anew where it has to be.
    fn child(&mut self, cx: &mut Cx<'_>, slot: Slot, gfn: Gfn, mark: u32, work: &mut Work) -> Option<PageId> {
        if let Some(child) = self.store.child(slot) {
            let page = self.store.page(child);
            if self.identity == Identity::Ignored || (page.gfn, page.mark) == (gfn, mark) {
                return Some(child);
            }
            let _ = self.store.zap_tree(cx.host, child, work);
        }
        let level = below(self.store.page(slot.page).level);
        let child = self.store.create(cx.host, gfn, level, Kind::Private, work)?;
        self.store.page_mut(child).mark = mark;
        let _ = self.store.link(cx.host, slot, child, Attrs::PERMISSIONS, work);
        Some(child)
    }

    /// Fills the translation in. `None` where the host has no frame left.
    fn fill(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, work: &mut Work) -> Option<()> {
        let gva = request.acc.gva();
        let backed = cx.back(page.gfn, work)?;
        let mut table = self.root(cx)?;
        for step in page.path.steps() {
            let Entry::Table { next, .. } = step.entry else { break };
            table = self.child(cx, Slot::new(table, Guest4::index(gva, step.level)), next, 0, work)?;
        }
        let size = if self.logging { PageSize::Size4K } else { page.size.min(backed.size) };
        for level in levels(page.size.level(), size.level()) {
            let slot = Slot::new(table, Guest4::index(gva, level));
            if level > size.level() {
                let first = page.gfn.align_down(level.page_size().unwrap_or(PageSize::Size4K));
                table = self.child(cx, slot, first, PIECES, work)?;
            } else {
                let attrs = self.leaf_attrs(page, request.acc.is_write());
                let leaf = Leaf { gfn: page.gfn, backed: Backed { size, ..backed }, attrs };
                if self.store.child(slot).is_some() {
                    let _ = self.remove(cx, slot, work);
                }
                let _ = self.store.set_leaf(cx.host, slot, leaf, work);
            }
        }
        Some(())
    }

    fn leaf_attrs(&self, page: &GuestPage, write: bool) -> Attrs {
        let clean = !page.attrs.contains(Attrs::DIRTY) || (self.logging && !write);
        ready(if clean { page.perms() - Attrs::WRITE } else { page.perms() })
    }

    /// What all tree policies do at a hidden fault. Where shadow pages were freed, every vCPU must let go of them.
    pub(crate) fn repair(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        recycled: Change,
        mut work: Work,
    ) -> Outcome {
        if fault::beats_write_protection(request, page) {
            return fault::store_despite_protection(cx, request, page, work);
        }
        let freed = work.tables_freed;
        if self.fill(cx, request, page, &mut work).is_none() {
            return Outcome::OutOfMemory;
        }
        let replaced = work.tables_freed > freed;
        let lost = if replaced && self.walked_by == WalkedBy::Several { Change::Lost } else { recycled };
        if replaced && self.walked_by == WalkedBy::One {
            flush_own(cx);
        }
        let kick = flush_if(cx, lost, &mut work);
        cx.exit(ExitReason::HiddenFault, work, Some(LockMode::Exclusive), kick);
        Outcome::Retry
    }

    /// Drops the translation of `gva`, and only it, whatever the guest's tables say.
    pub(crate) fn forget(&mut self, cx: &mut Cx<'_>, gva: Gva, work: &mut Work) -> Change {
        let Some(mut table) = self.root(cx) else { return Change::Kept };
        loop {
            let slot = Slot::new(table, Shadow4::index(gva, self.store.page(table).level));
            match self.store.child(slot) {
                Some(child) => table = child,
                None => return self.store.clear(cx.host, slot, work),
            }
        }
    }

    /// Drops the translation of `gva` with all pieces of the guest page that it is part of.
    pub(crate) fn invalidate(&mut self, cx: &mut Cx<'_>, gva: Gva, work: &mut Work) -> Change {
        let Some(mut table) = self.root(cx) else { return Change::Kept };
        loop {
            let slot = Slot::new(table, Shadow4::index(gva, self.store.page(table).level));
            match self.store.child(slot) {
                Some(child) if self.store.page(child).mark & PIECES == 0 => table = child,
                _ => return self.remove(cx, slot, work),
            }
        }
    }

    /// Brings the path to `gva` in step with the guest's tables. Reports what was lost beyond that one page, which the
    /// hardware's own INVLPG does not reach.
    pub(crate) fn sync_path(&mut self, cx: &mut Cx<'_>, gva: Gva, work: &mut Work) -> Change {
        let Some(mut table) = self.root(cx) else { return Change::Kept };
        let mut perms = Attrs::PERMISSIONS;
        let mut guest = cx.regs().cr3.root.frame();
        loop {
            let level = self.store.page(table).level;
            let slot = Slot::new(table, Shadow4::index(gva, level));
            let single = self.store.child(slot).is_none();
            match self.sync_entry(cx, slot, guest, perms, work) {
                Synced::Below { child, guest: next, perms: both } => (table, guest, perms) = (child, next, both),
                Synced::Done(_) if single => return Change::Kept,
                Synced::Done(change) => return change,
            }
        }
    }

    /// Brings everything under `root` in step with the guest's tables, entry by entry: what the guest has changed goes or
    /// gets its new permissions. Entries that are absent stay so.
    pub(crate) fn sync(&mut self, cx: &mut Cx<'_>, root: PageId, work: &mut Work) -> Change {
        let guest = self.store.page(root).gfn;
        self.sync_table(cx, root, guest, Attrs::PERMISSIONS, work)
    }

    fn sync_table(&mut self, cx: &mut Cx<'_>, table: PageId, guest: Gfn, perms: Attrs, work: &mut Work) -> Change {
        let (mut change, mut next) = (Change::Kept, 0);
        while let Some(index) = self.store.page(table).next_present(next) {
            change = change.or(match self.sync_entry(cx, Slot::new(table, index), guest, perms, work) {
                Synced::Below { child, guest, perms } => self.sync_table(cx, child, guest, perms, work),
                Synced::Done(change) => change,
            });
            next = index + 1;
        }
        change
    }

    /// Compares one shadow entry with the entry of the guest table `guest`, reached with `perms`.
    fn sync_entry(&mut self, cx: &mut Cx<'_>, slot: Slot, guest: Gfn, perms: Attrs, work: &mut Work) -> Synced {
        work.entries_synced += 1;
        let level = self.store.page(slot.page).level;
        let entry = Guest4::decode(cx.guest().read(guest.entry(slot.at())), level);
        let child = self.store.child(slot);
        if self.store.target(slot).is_none() {
            return Synced::Done(Change::Kept);
        }
        if entry.attrs().contains(Attrs::ACCESSED) {
            let perms = perms & entry.attrs();
            match (entry, child) {
                (Entry::Table { next, .. }, Some(child)) if self.is_for(child, next, 0) => {
                    return Synced::Below { child, guest: next, perms };
                }
                (Entry::Leaf { frame, size, attrs }, _) => {
                    let perms = if attrs.contains(Attrs::DIRTY) { perms } else { perms - Attrs::WRITE };
                    return Synced::Done(self.sync_page(cx, slot, (frame, size), perms, work));
                }
                _ => {}
            }
        }
        Synced::Done(self.remove(cx, slot, work))
    }

    fn is_for(&self, child: PageId, gfn: Gfn, mark: u32) -> bool {
        let page = self.store.page(child);
        (page.gfn, page.mark) == (gfn, mark)
    }

    /// Compares the shadow of a guest page, in one entry or in pieces.
    fn sync_page(
        &mut self,
        cx: &mut Cx<'_>,
        slot: Slot,
        page: (Gfn, PageSize),
        perms: Attrs,
        work: &mut Work,
    ) -> Change {
        use crate::store::Target;
        match self.store.target(slot) {
            Some(Target::Leaf(gfn, _)) if gfn == page.0 => self.sync_leaf(cx, slot, perms, work),
            Some(Target::Link(child)) if self.is_for(child, page.0, PIECES) => self.sync_pieces(cx, child, perms, work),
            _ => self.remove(cx, slot, work),
        }
    }

    fn sync_pieces(&mut self, cx: &mut Cx<'_>, table: PageId, perms: Attrs, work: &mut Work) -> Change {
        let (mut change, mut next) = (Change::Kept, 0);
        while let Some(index) = self.store.page(table).next_present(next) {
            let slot = Slot::new(table, index);
            work.entries_synced += 1;
            change = change.or(match self.store.child(slot) {
                Some(child) => self.sync_pieces(cx, child, perms, work),
                None => self.sync_leaf(cx, slot, perms, work),
            });
            next = index + 1;
        }
        change
    }

    /// Gives a leaf the permissions that the guest's tables give now; stores stay logged.
    fn sync_leaf(&mut self, cx: &mut Cx<'_>, slot: Slot, perms: Attrs, work: &mut Work) -> Change {
        let held = self.store.entry(cx.host, slot).attrs();
        let logged = self.logging && !held.contains(Attrs::WRITE);
        let perms = if logged { perms - Attrs::WRITE } else { perms };
        self.store.set_attrs(cx.host, slot, ready(perms), work)
    }

    /// What the host does by itself, and the flush that it needs.
    pub(crate) fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent, felled: impl FnMut(Gfn)) {
        let mut work = Work::default();
        match *event {
            HostEvent::Unmap(_, range) | HostEvent::Discard(_, range) => {
                cx.map.unmap(range);
                let _ = drop_range(&mut self.store, cx, range, &mut work);
            }
            HostEvent::DirtyLog(_, on) => {
                self.logging = on;
                if on || cx.map.page_size() == PageSize::Size4K {
                    self.protect_all(cx, &mut work);
                } else {
                    self.fell(cx, felled, &mut work);
                }
            }
            HostEvent::DirtyRound(_) => self.protect_all(cx, &mut work),
            HostEvent::SlotChange(_) => self.fell(cx, felled, &mut work),
            HostEvent::ShadowPageLimit(_, limit) => {
                self.store.set_limit(u64::from(limit));
                let _ = self.make_room(cx, &mut work, felled);
            }
            HostEvent::WorldSwitch(_) => return,
        }
        cx.flush_vm(&mut work);
        cx.out.counters.work += work;
    }

    /// Makes every leaf read-only while stores are logged; does nothing otherwise.
    fn protect_all(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        if self.logging {
            self.store.each_leaf(|store, slot| {
                let _ = store.restrict(cx.host, slot, Attrs::WRITE | Attrs::DIRTY, work);
            });
        }
    }

    /// Frees every tree; those that vCPUs run on stay, empty.
    fn fell(&mut self, cx: &mut Cx<'_>, mut felled: impl FnMut(Gfn), work: &mut Work) {
        let roots = self.store.pages().filter(|(_, page)| page.level == Shadow4::ROOT).map(|(id, _)| id);
        for root in roots.collect::<Vec<_>>() {
            let _ = self.empty(cx, root, work);
            if !self.store.page(root).is_pinned() {
                felled(self.store.page(root).gfn);
                let _ = self.store.zap_tree(cx.host, root, work);
            }
        }
    }
}

/// What came of comparing one entry.
enum Synced {
    /// It is the link to the shadow of the right table: go on there.
    Below { child: PageId, guest: Gfn, perms: Attrs },
    /// It is right now.
    Done(Change),
}

/// A leaf's attributes with A, and D where it may be stored to.
fn ready(perms: Attrs) -> Attrs {
    let attrs = (perms & Attrs::PERMISSIONS) | Attrs::ACCESSED;
    if attrs.contains(Attrs::WRITE) { attrs | Attrs::DIRTY } else { attrs }
}

/// The vCPU's own CPU forgets all that it knows of the vCPU.
pub(crate) fn flush_own(cx: &mut Cx<'_>) {
    let vpid = cx.tag().vpid();
    cx.cpu().flush_vpid(vpid, KeepGlobal::No);
    cx.out.counters.tlb_flushes += 1;
}

/// The kick set of a flush that only freed shadow pages make necessary.
pub(crate) fn flush_if_freed(cx: &mut Cx<'_>, work: &mut Work) -> VcpuSet {
    flush_if(cx, if work.tables_freed > 0 { Change::Lost } else { Change::Kept }, work)
}

const _: () = assert!(Level::L4 as u8 == Shadow4::ROOT as u8, "trees have four levels");
