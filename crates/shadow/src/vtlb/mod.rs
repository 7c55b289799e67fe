//! [`Vtlb`]: Intel's virtual TLB. The shadow tables are a TLB in software: empty after every flush, filled fault by fault.
//!
//! Source: Intel SDM volume 3, section 32.3.5 ("Virtual TLB"; 27.3.5 in older printings). The *active* tables of a vCPU start
//! empty at every CR3 load, whatever the value, and at every other flush of the whole TLB; the guest's tables may be written
//! freely. A page fault is given to the guest where the guest's own tables call for it; otherwise the guest's accessed bit
//! is set, its dirty bit too where the access is a store, and the translation is copied (read-only while the guest's page is
//! clean). INVLPG removes the translation of its page. Each vCPU has its own tables, as it has its own TLB, so nothing is
//! compared with the guest's tables and nothing is shared: the exits are the flushes and one fault for each page touched in
//! between; the footprint is one working set.

use memvirt_addr::Acc;
use memvirt_ops::arch::{Control, HostEvent, Invpcid, VcpuSet};
use memvirt_pagetable::{Guest4, Path};
use memvirt_platform::{
    Attribution, Cx, Foresight, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes, Vendor, Work,
};

use crate::exits::leading_exits;
use crate::fault::{self, Policy};
use crate::guest::GuestPage;
use crate::store::{PageId, ShadowStore};
use crate::tree::{Identity, Tree, WalkedBy, flush_own};

/// Shadow paging as a virtual TLB.
#[derive(Debug)]
pub struct Vtlb {
    tree: Tree,
    vendor: Vendor,
}

impl Vtlb {
    /// A machine with the memory of `map` and nothing cached.
    #[must_use]
    pub fn new(map: &MemoryMap, vendor: Vendor) -> Self {
        Self { tree: Tree::new(map.frames(), Identity::Checked, WalkedBy::One), vendor }
    }

    /// The shadow pages.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.tree.store
    }

    /// What is wrong with the shadow tables and their bookkeeping. Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        self.tree.store.audit(host, map)
    }

    /// After tables of the vCPU's own were freed, its CPU forgets what leads to them. Nobody else has ever seen them.
    fn let_go(cx: &mut Cx<'_>, work: &Work) {
        if work.tables_freed > 0 {
            flush_own(cx);
        }
    }

    /// Whether the operation flushes everything that the vCPU may use from now on, or changes how tables are read.
    fn empties(cx: &Cx<'_>, control: &Control) -> bool {
        match control {
            Control::Cr3(_) | Control::Cr(_) | Control::Invpcid(Invpcid::All | Invpcid::AllGlobal) => true,
            Control::Invpcid(Invpcid::Single(pcid)) => *pcid == cx.regs().pcid(),
            _ => false,
        }
    }
}

impl Policy for Vtlb {
    fn store(&self) -> &ShadowStore {
        &self.tree.store
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.tree.root(cx)
    }

    fn make_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<()> {
        let gfn = cx.regs().cr3.root.frame();
        let root = self.tree.plant(cx, gfn, work)?;
        self.tree.enter(cx, Some(root));
        Some(())
    }

    fn reflected(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, _: &Path<Guest4>, work: &mut Work) -> VcpuSet {
        let _ = self.tree.invalidate(cx, request.acc.gva(), work);
        Self::let_go(cx, work);
        VcpuSet::EMPTY
    }

    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let recycled = self.tree.make_room(cx, &mut work, |_| {});
        self.tree.repair(cx, request, page, recycled, work)
    }
}

impl Regime for Vtlb {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        fault::serve(self, cx, request)
    }

    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        fault::foresee(self, cx, ahead, found);
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let reason = leading_exits(cx, control, self.vendor);
        cx.execute(control);
        let (mut work, mut lock) = (Work::default(), None);
        if let Some(root) = self.tree.root(cx) {
            if Self::empties(cx, control) {
                let _ = self.tree.empty(cx, root, &mut work);
                lock = Some(LockMode::Exclusive);
            } else if let Control::Invlpg(gva) | Control::Invpcid(Invpcid::Address(_, gva)) = control {
                let _ = self.tree.invalidate(cx, *gva, &mut work);
                lock = Some(LockMode::Exclusive);
            }
        }
        Self::let_go(cx, &work);
        cx.exit(reason, work, lock, VcpuSet::EMPTY);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.tree.host(cx, event, |_| {});
    }

    fn table_bytes(&self) -> TableBytes {
        self.tree.store.table_bytes()
    }

    fn attribution(&self, _: &Host) -> Option<Attribution> {
        Some(self.tree.store.attribution())
    }
}
