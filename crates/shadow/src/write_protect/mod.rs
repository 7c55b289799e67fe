//! [`WriteProtect`]: classic shadow paging, always in step with the guest.
//!
//! Every guest table that is shadowed is write-protected through all its aliases, so each store to it traps; the hypervisor
//! carries the store out and brings the shadow up to date, by removing the entry ([`OnStore::Zap`]) or by installing the new
//! one ([`OnStore::Propagate`]). Nothing is ever out of step, so CR3 loads find old roots ready and INVLPG has nothing to do
//! but to flush; both exit all the same. Sources: Adams and Agesen, *A Comparison of Software and Hardware Techniques for x86
//! Virtualization*, ASPLOS 2006 (VMware's memory tracing, always synchronous, with eager updates); KVM before 2.6.32.
//!
//! **When a table stops being one.** A page that the guest freed and uses for data must not trap for ever. Hypervisors guess
//! (KVM: `kvm_mmu_pte_write`, `detect_write_flooding`; Xen: `sh_page_fault`, "early unshadow"), and this policy unshadows a
//! table on which no vCPU runs, and which does not translate the very store that hits it, when
//!
//! - a user-mode store reaches it (Xen: user code never stores to page tables);
//! - an instruction stores to it that kernels do not change page tables with, `rep stos` or a vector store (KVM: such an
//!   instruction is not emulated but started again on the unprotected page: two exits clear a whole page);
//! - a store is not one of an entry: it crosses one or is narrower than 4 bytes (KVM: "misaligned"; the store is still carried
//!   out);
//! - [`UNSHADOW_AFTER`] stores came without any fault passing through the table in between: more than it takes to fill it.
//!   (KVM gives up at the third, which suits tables above the leaf level that may drift otherwise. Here a fork must be able to
//!   write-protect a whole table, 512 stores in a row, without losing it.)

use memvirt_addr::{Acc, PageSize, Privilege};
use memvirt_ops::arch::{Control, HostEvent, VcpuSet};
use memvirt_pagetable::{Guest4, Path};
use memvirt_platform::{
    Attribution, Cx, ExitReason, Foresight, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes,
    Vendor, Work,
};

use crate::exits::leading_exits;
use crate::fault::{self, Policy, Touched};
use crate::graph::{Graph, Search, Use, flush_if};
use crate::guest::GuestPage;
use crate::store::{Change, Footprint, PageId, ShadowStore, Slot};

/// What a trapped store does to the shadow of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnStore {
    /// The entry goes; the next access through it faults.
    Zap,
    /// The entry is made to say what the guest's now says, where the guest has its accessed bit set.
    Propagate,
}

/// How many stores without a use in between make a table data.
pub const UNSHADOW_AFTER: u32 = 512;

/// Shadow paging with every guest table write-protected.
#[derive(Debug)]
pub struct WriteProtect {
    graph: Graph,
    on_store: OnStore,
    vendor: Vendor,
}

impl WriteProtect {
    /// A machine with the memory of `map` and no shadow tables yet.
    #[must_use]
    pub fn new(map: &MemoryMap, on_store: OnStore, vendor: Vendor) -> Self {
        let footprint = Footprint::with_reverse_map(map.frames());
        let graph = Graph::new(map.frames(), footprint, PageSize::Size1G, Search::ReverseMap);
        Self { graph, on_store, vendor }
    }

    /// The shadow pages.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.graph.store
    }

    /// What is wrong with the shadow tables and their bookkeeping. Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let mut found = self.graph.store.audit(host, map);
        let writable = self.graph.store.writable_tables(host);
        found.extend(self.graph.out_of_step(host, map));
        found.extend(writable.into_iter().map(|gfn| format!("a table in {gfn:?} can be stored to")));
        found
    }

    /// The tables on the way were used: stores to them count from nought again.
    fn note_use(&mut self, path: &Path<Guest4>) {
        for step in path.steps() {
            self.graph.each_shadow(step.entry_at.frame(), |graph, id| graph.store.page_mut(id).writes = 0);
        }
    }

    /// A store to a protected table.
    fn table_store(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let gfn = page.gfn;
        let data = !fault::writes_tables(request) || request.acc.privilege() == Privilege::User;
        if data && !self.graph.is_root(gfn) && !page.leads_through(gfn) {
            let change = self.graph.unshadow(cx, gfn, &mut work);
            let kick = flush_if(cx, change, &mut work);
            cx.exit(ExitReason::TableWrite, work, Some(LockMode::Exclusive), kick);
            return Outcome::Retry;
        }
        let Some(changed) = fault::emulate(cx, request, gfn, &mut work) else { return Outcome::OutOfMemory };
        let mut change = Change::Kept;
        for (index, raw) in changed {
            change = change.or(self.entry_stored(cx, page, index, raw, &mut work));
        }
        if self.no_table_any_more(request, page) {
            change = change.or(self.graph.unshadow(cx, gfn, &mut work));
        }
        let kick = flush_if(cx, change, &mut work);
        fault::emulated(cx, ExitReason::TableWrite, work, kick)
    }

    fn entry_stored(&mut self, cx: &mut Cx<'_>, page: &GuestPage, index: usize, raw: u64, work: &mut Work) -> Change {
        let (on_store, mut change) = (self.on_store, Change::Kept);
        self.graph.each_shadow(page.gfn, |graph, id| {
            let slot = Slot::new(id, index);
            change = change.or(match on_store {
                OnStore::Zap => graph.store.clear(cx.host, slot, work),
                OnStore::Propagate => graph.propagate(cx, slot, raw, work),
            });
        });
        change
    }

    /// Counts an emulated store, and says whether it shows that the page holds data by now.
    fn no_table_any_more(&mut self, request: &Request<'_>, page: &GuestPage) -> bool {
        let mut flooded = false;
        self.graph.each_shadow(page.gfn, |graph, id| {
            let page = graph.store.page_mut(id);
            page.writes += 1;
            flooded |= page.writes > UNSHADOW_AFTER;
        });
        let misaligned = Touched::by(request).is_some_and(|touched| touched.misaligned);
        (flooded || misaligned) && !self.graph.is_root(page.gfn)
    }
}

impl Policy for WriteProtect {
    fn store(&self) -> &ShadowStore {
        &self.graph.store
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.graph.root(cx.me)
    }

    fn make_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<()> {
        let change = self.graph.load_root(cx, work)?;
        flush_if(cx, change, work);
        Some(())
    }

    fn reflected(&mut self, _: &mut Cx<'_>, _: &Request<'_>, path: &Path<Guest4>, _: &mut Work) -> VcpuSet {
        self.note_use(path);
        VcpuSet::EMPTY
    }

    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let write = request.acc.is_write();
        if write && self.graph.is_protected(page.gfn) {
            return self.table_store(cx, request, page, work);
        }
        if fault::beats_write_protection(request, page) {
            return fault::store_despite_protection(cx, request, page, work);
        }
        let recycled = self.graph.make_room(cx, &mut work);
        let use_ = if write { Use::Write } else { Use::Read };
        let Some(root) = self.graph.root(cx.me) else { return Outcome::OutOfMemory };
        let Some(filled) = self.graph.fill(cx, root, request.acc.gva(), page, use_, &mut work) else {
            return Outcome::OutOfMemory;
        };
        self.note_use(&page.path);
        let kick = flush_if(cx, filled.change.or(recycled), &mut work);
        cx.exit(ExitReason::HiddenFault, work, Some(LockMode::Exclusive), kick);
        Outcome::Retry
    }
}

impl Regime for WriteProtect {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        fault::serve(self, cx, request)
    }

    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        fault::foresee(self, cx, ahead, found);
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let reason = leading_exits(cx, control, self.vendor);
        cx.execute(control);
        let (mut work, mut kick, mut lock) = (Work::default(), VcpuSet::EMPTY, None);
        if let Control::Cr3(_) = control {
            let change = self.graph.load_root(cx, &mut work).ok_or(Refusal::HostOutOfMemory)?;
            kick = flush_if(cx, change, &mut work);
            lock = Some(LockMode::Exclusive);
        }
        cx.exit(reason, work, lock, kick);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.graph.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        self.graph.store.table_bytes()
    }

    fn attribution(&self, _: &Host) -> Option<Attribution> {
        Some(self.graph.store.attribution())
    }
}
