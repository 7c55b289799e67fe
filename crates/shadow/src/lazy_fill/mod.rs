//! [`LazyFill`]: shadow trees kept for each CR3, filled on first touch, brought in step at flushes only.
//!
//! The optimization that courses on virtualization teach after the naive scheme: the architecture lets a TLB be stale until
//! software flushes, so guest tables need no write protection; it is enough that the shadow agrees with them after INVLPG (for
//! that page) and after a CR3 load (for everything). A store to a table never exits. A translation appears at the first
//! touch; a process that comes back finds its translations, each compared with the guest's entry at the CR3 load. The price is
//! that comparison, proportional to what is cached, changed or not. KVM bounds it by write protection: only tables that were
//! stored to are compared (policy `kvm`). Sources: Intel SDM volume 3, sections 4.10.4.2 and 4.10.4.3 (what must be flushed and
//! what need not); the unsync mechanism of KVM (`mmu_sync_children`, `sync_page`) without its write protection.

use memvirt_addr::Acc;
use memvirt_ops::arch::{Control, CrWrite, HostEvent, Invpcid, VcpuSet};
use memvirt_pagetable::{Guest4, Path};
use memvirt_platform::{
    Attribution, Cx, Foresight, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes, Vendor, Work,
};

use crate::exits::leading_exits;
use crate::fault::{self, Policy};
use crate::graph::flush_if;
use crate::guest::GuestPage;
use crate::rooted::{Kept, Rooted};
use crate::store::{Change, PageId, ShadowStore};
use crate::tree::{Identity, flush_if_freed};

/// Shadow paging with lazily filled trees that follow the guest's flushes.
#[derive(Debug)]
pub struct LazyFill {
    rooted: Rooted,
    vendor: Vendor,
}

impl LazyFill {
    /// A machine with the memory of `map` and no shadow tables yet.
    #[must_use]
    pub fn new(map: &MemoryMap, vendor: Vendor) -> Self {
        Self { rooted: Rooted::new(map.frames(), Identity::Checked), vendor }
    }

    /// The shadow pages.
    #[must_use]
    pub const fn store(&self) -> &ShadowStore {
        &self.rooted.tree.store
    }

    /// What is wrong with the shadow tables and their bookkeeping. Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        self.rooted.tree.store.audit(host, map)
    }

    /// Puts the vCPU on the tree of its CR3, in step with the guest's tables. They are compared even where the guest asks to
    /// keep cached translations (bit 63): the tree may have been made under another PCID.
    fn load(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<Change> {
        Some(match self.rooted.load(cx, work)? {
            Kept::Yes(root) => self.rooted.tree.sync(cx, root, work),
            Kept::No(recycled) => recycled,
        })
    }

    /// What a flush does to the tree in use. Those of other CR3 values are compared when they are loaded.
    fn flushed(&mut self, cx: &mut Cx<'_>, control: &Control, work: &mut Work) -> Option<VcpuSet> {
        let current = cx.regs().pcid();
        let change = match *control {
            Control::Cr3(_) => self.load(cx, work)?,
            Control::Cr(CrWrite::TogglePge | CrWrite::PcidEnable(_))
            | Control::Invpcid(Invpcid::All | Invpcid::AllGlobal) => self.sync_current(cx, work),
            Control::Invpcid(Invpcid::Single(pcid)) if pcid == current => self.sync_current(cx, work),
            Control::Invlpg(gva) => return Some(self.sync_page(cx, gva, work)),
            Control::Invpcid(Invpcid::Address(pcid, gva)) if pcid == current => {
                return Some(self.sync_page(cx, gva, work));
            }
            _ => Change::Kept,
        };
        Some(flush_if(cx, change, work))
    }

    fn sync_current(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        match self.rooted.tree.root(cx) {
            Some(root) => self.rooted.tree.sync(cx, root, work),
            None => Change::Kept,
        }
    }

    fn sync_page(&mut self, cx: &mut Cx<'_>, gva: memvirt_addr::Gva, work: &mut Work) -> VcpuSet {
        let change = self.rooted.tree.sync_path(cx, gva, work);
        flush_if(cx, change, work)
    }
}

impl Policy for LazyFill {
    fn store(&self) -> &ShadowStore {
        &self.rooted.tree.store
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.rooted.tree.root(cx)
    }

    fn make_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<()> {
        let change = self.load(cx, work)?;
        flush_if(cx, change, work);
        Some(())
    }

    fn reflected(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, _: &Path<Guest4>, work: &mut Work) -> VcpuSet {
        let _ = self.rooted.tree.invalidate(cx, request.acc.gva(), work);
        flush_if_freed(cx, work)
    }

    fn repair(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, page: &GuestPage, mut work: Work) -> Outcome {
        let recycled = self.rooted.make_room(cx, &mut work);
        self.rooted.tree.repair(cx, request, page, recycled, work)
    }
}

impl Regime for LazyFill {
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
        self.rooted.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        self.rooted.tree.store.table_bytes()
    }

    fn attribution(&self, _: &Host) -> Option<Attribution> {
        Some(self.rooted.tree.store.attribution())
    }
}
