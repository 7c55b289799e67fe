//! [`InvlpgOnly`]: the naive policy, which believes that INVLPG is all a guest ever does to flush. It is wrong on purpose.
//!
//! One shadow tree for each CR3, filled on faults; an entry goes when the guest executes INVLPG on it, and for no other
//! reason. That suffices where an absent entry becomes present, or permissions grow, without any INVLPG: nothing is cached, or
//! what is cached faults and is walked again. It fails wherever the guest relies on anything else, in seven ways: a CR3
//! load as a flush; tables edited while another CR3 is loaded; one table (or page) in several address spaces; INVLPG of one
//! address for what an upper entry or a large page covers; a table's frame used anew; accessed and dirty bits cleared and
//! flushed; stores by another vCPU's flush. The tests of this crate show each with the oracle beside it. It is here to be
//! compared with, and to show that the oracle has teeth.

use memvirt_addr::Acc;
use memvirt_ops::arch::{Control, HostEvent, VcpuSet};
use memvirt_pagetable::{Guest4, Path};
use memvirt_platform::{
    Attribution, Cx, Foresight, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes, Vendor, Work,
};

use crate::exits::leading_exits;
use crate::fault::{self, Policy};
use crate::graph::flush_if;
use crate::guest::GuestPage;
use crate::rooted::{Kept, Rooted};
use crate::store::{PageId, ShadowStore};
use crate::tree::Identity;

/// Shadow paging that reacts to INVLPG only.
#[derive(Debug)]
pub struct InvlpgOnly {
    rooted: Rooted,
    vendor: Vendor,
}

impl InvlpgOnly {
    /// A machine with the memory of `map` and no shadow tables yet.
    #[must_use]
    pub fn new(map: &MemoryMap, vendor: Vendor) -> Self {
        Self { rooted: Rooted::new(map.frames(), Identity::Ignored), vendor }
    }

    /// The shadow pages.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.rooted.tree.store
    }

    /// What is wrong with the bookkeeping of the shadow tables (not with what they say). Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        self.rooted.tree.store.audit(host, map)
    }

    fn load(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<VcpuSet> {
        match self.rooted.load(cx, work)? {
            Kept::Yes(_) => Some(VcpuSet::EMPTY),
            Kept::No(recycled) => Some(flush_if(cx, recycled, work)),
        }
    }
}

impl Policy for InvlpgOnly {
    fn store(&self) -> &ShadowStore {
        &self.rooted.tree.store
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.rooted.tree.root(cx)
    }

    fn make_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<()> {
        self.load(cx, work).map(|_| ())
    }

    fn reflected(&mut self, _: &mut Cx<'_>, _: &Request<'_>, _: &Path<Guest4>, _: &mut Work) -> VcpuSet {
        VcpuSet::EMPTY
    }

    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let recycled = self.rooted.make_room(cx, &mut work);
        self.rooted.tree.repair(cx, request, page, recycled, work)
    }
}

impl Regime for InvlpgOnly {
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
        match control {
            Control::Cr3(_) => {
                kick = self.load(cx, &mut work).ok_or(Refusal::HostOutOfMemory)?;
                lock = (work != Work::default()).then_some(LockMode::Exclusive);
            }
            Control::Invlpg(gva) => {
                let _ = self.rooted.tree.forget(cx, *gva, &mut work);
                lock = Some(LockMode::Exclusive);
            }
            _ => {}
        }
        cx.exit(reason, work, lock, kick);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.rooted.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        self.rooted.tree.store.table_bytes()
    }

    fn attribution(&self, _: &Host) -> Option<Attribution> {
        Some(self.rooted.tree.store.attribution())
    }
}
