//! [`EptOnEpt`]: L1 keeps nested tables for L2, and L0 merges them with its own.
//!
//! Hardware walks L2's tables under EPT02: for 4 and 4 levels 24 references, as if there were no L1. L2's page faults, CR3 loads
//! and INVLPGs leave nobody's hands but its own. An EPT violation goes to L0, which looks into EPT12 (its root is in VMCS12): where
//! EPT12 permits the access, L0 fills EPT02 and resumes L2; where not, the violation is L1's. L1 then stores to EPT12 as to any
//! page of its own, but L0 follows those tables and has write-protected them in EPT01: each such store exits once more. Sources:
//! Ben-Yehuda et al., *The Turtles Project*, OSDI 2010, section 3.3; KVM's `nested_ept_init_mmu_context`, `ept` in
//! `mmu/paging_tmpl.h`. VMCS12 is a shadow VMCS: L1's VMREADs and VMWRITEs do not exit.

mod ept12;
mod keeper;

use memvirt_addr::{Gpa, GuestPhys, Hfn, L1fn, PageSize, PfCode};
use memvirt_ops::arch::{Control, GuestFault, HostEvent, VcpuSet};
use memvirt_pagetable::Attrs;
use memvirt_platform::{
    Cx, Dimension, ExitReason, Horizon, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes,
    WalkRefs, Work,
};

use crate::config::{Arrangement, Config};
use crate::format::{Ept12, Guest, Merged02};
use crate::hypervisor::{Stacked, exits_of};
use crate::merge::{Change, Fill, Merge, PageId};
use crate::stack::Stack;
use crate::walk::{End, Hardware, Path, Violation};
use crate::world::{Cause, Who};
use keeper::AtWork;

/// L1's nested paging merged by L0, for an L2 with tables of `N` levels and an EPT12 of as many.
#[derive(Debug)]
pub struct EptOnEpt<const N: u8 = 4> {
    pub(crate) stack: Stack,
    /// The root of EPT12.
    pub(crate) root12: L1fn,
    pub(crate) ept02: Merge<Ept12<N>, Merged02<N>>,
    root02: Option<PageId>,
}

/// Memory has run out.
struct Exhausted;

impl<const N: u8> EptOnEpt<N> {
    /// A machine with the memory of `map`; L1 has made the root of EPT12. `None` where the host has no frame left.
    #[must_use]
    pub fn new(host: &mut Host, map: &MemoryMap, config: Config) -> Option<Self> {
        let mut stack = Stack::new(host, map.frames(), Arrangement::EptOnEpt, config)?;
        let root12 = stack.l1.allocate_table()?;
        stack.l0.give(root12, host.allocate(PageSize::Size4K)?);
        stack.l0.map(host, root12, &mut Work::default())?;
        Some(Self { stack, root12, ept02: Merge::new(config), root02: None })
    }

    /// The root of EPT12.
    #[must_use]
    pub const fn root12(&self) -> L1fn {
        self.root12
    }

    /// The root of EPT02; none before L2 first ran.
    #[must_use]
    pub fn root02(&self) -> Option<Hfn> {
        self.root02.and_then(|root| self.ept02.frame(root))
    }

    /// L0 follows the root of EPT12 since L1 first entered L2.
    fn entered(&mut self, cx: &mut Cx<'_>) -> Option<Hfn> {
        if self.root02.is_none() {
            let mut work = Work::default();
            let mut keeper = AtWork { stack: &mut self.stack, cx, work: &mut work };
            let (root, _) = self.ept02.root(&mut keeper, self.root12)?;
            self.ept02.pin(root);
            self.root02 = Some(root);
            cx.out.counters.work += work;
        }
        self.root02()
    }

    /// L0's walk of EPT12.
    fn look12(&self, cx: &Cx<'_>, at: Gpa) -> Option<Path<Ept12<N>>> {
        let l0 = &self.stack.l0;
        Path::read(self.root12, at, |entry| Some(l0.address(entry).map_or(0, |hpa| cx.host.mem.read(hpa))))
    }

    /// L2 met an EPT violation, and L0 has the CPU.
    fn violated(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        found: &Violation<GuestPhys>,
    ) -> Result<Outcome, Exhausted> {
        let mut work = Work::default();
        let wants = if found.write { Attrs::WRITE } else { Attrs::READ };
        let path = self.look12(cx, found.at).ok_or(Exhausted)?;
        if let Some((frame, ..)) = path.leaf(found.at).filter(|_| path.perms.contains(wants)) {
            self.stack.world.act(|| "walks EPT12: it permits the access".to_owned());
            let kick = self.merge(cx, found.at, &path, frame, &mut work)?;
            self.stack.world.switch(Who::L2, Cause::EptViolation, "entry: the access starts again");
            // EPT02 is no tree of L0's own making but a shadow of EPT12, kept by KVM's shadow MMU.
            cx.exit(ExitReason::EptViolation, work, Some(LockMode::Exclusive), kick);
            return Ok(Outcome::Retry);
        }
        self.stack.world.act(|| "walks EPT12: it does not permit the access".to_owned());
        self.stack.reflect(Cause::EptViolation);
        if !cx.map.contains(found.at.frame()) {
            return Ok(self.device(cx, request, found, work));
        }
        let kick = self.map12(cx, found.at, &mut work)?;
        self.stack.resume(cx, "the access starts again");
        cx.exit(ExitReason::EptViolation, work, Some(LockMode::Exclusive), kick);
        Ok(Outcome::Retry)
    }

    /// L1 emulates an access to a device. A table of L2 that lies in one reads as absent.
    fn device(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        found: &Violation<GuestPhys>,
        mut work: Work,
    ) -> Outcome {
        work.instructions_emulated += 1;
        self.stack.world.act(|| "emulates an access to a device".to_owned());
        self.stack.resume(cx, "L2 goes on behind the access");
        cx.exit(ExitReason::Mmio, work, None, VcpuSet::EMPTY);
        if found.on_data {
            Outcome::Emulated
        } else {
            Outcome::Fault(GuestFault { gva: request.acc.gva(), code: PfCode::of(request.acc, false) })
        }
    }

    /// L0 fills EPT02 with what EPT12 and its own map come to. Returns the vCPUs that had to be interrupted for it.
    fn merge(
        &mut self,
        cx: &mut Cx<'_>,
        at: Gpa,
        path: &Path<Ept12<N>>,
        frame: L1fn,
        work: &mut Work,
    ) -> Result<VcpuSet, Exhausted> {
        let target = self.stack.back(cx, frame, work).ok_or(Exhausted)?;
        let root = self.root02.ok_or(Exhausted)?;
        let mut keeper = AtWork { stack: &mut self.stack, cx, work };
        let fill = Fill { at, path, frames: (frame, target) };
        let change = self.ept02.fill(&mut keeper, root, &fill).ok_or(Exhausted)?;
        self.stack.world.act(|| format!("fills EPT02: {at:?} lies in {target:?}"));
        Ok(if change == Change::Lost { cx.flush_vm(work) } else { VcpuSet::EMPTY })
    }
}

impl<const N: u8> EptOnEpt<N> {
    /// One hardware walk and what comes of it.
    fn walked(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let Some(root02) = self.entered(cx) else { return Outcome::OutOfMemory };
        let (regs, acc) = (*cx.regs(), request.acc);
        let root = regs.cr3.root.frame();
        let walk = Hardware::walk::<Guest<N>, Merged02<N>>(cx, Dimension::Guest, (root, root02), &regs, acc);
        if matches!(walk.end, End::Violation(_)) && cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        let refs = WalkRefs { guest: walk.first, host: walk.second, ..WalkRefs::default() };
        cx.out.counters.add_walk(refs, walk.ad_updates, 0);
        match walk.end {
            End::Mapped(entry) => Outcome::Filled(entry),
            End::Fault(code) => {
                self.stack
                    .world
                    .act(|| format!("page fault at {:?}: its own tables forbid it; nobody else sees it", acc.gva()));
                Outcome::Fault(GuestFault { gva: acc.gva(), code })
            }
            End::Violation(found) => {
                let whose = if found.on_data { "data" } else { "a table" };
                let what = format!("EPT violation on {whose} at {:?}: EPT02 does not permit it", found.at);
                self.stack.world.switch(Who::L0, Cause::EptViolation, &what);
                self.violated(cx, request, &found).unwrap_or(Outcome::OutOfMemory)
            }
        }
    }
}

impl<const N: u8> Regime for EptOnEpt<N> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let outcome = self.walked(cx, request);
        self.stack.world.publish(&mut cx.out.counters);
        outcome
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let (reason, exits) = exits_of(control, false);
        for _ in 0..exits {
            self.stack.leave(Cause::Privileged, "a privileged operation of L2");
            self.stack.resume(cx, "L2 goes on behind the instruction");
            cx.exit(reason, Work::default(), None, VcpuSet::EMPTY);
        }
        cx.execute(control);
        self.stack.world.publish(&mut cx.out.counters);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        match *event {
            HostEvent::Unmap(_, range) | HostEvent::Discard(_, range) => {
                self.stack.interrupt_l1();
                let _ = self.take_from_l2(cx, range, &mut work);
                self.stack.resume(cx, "L2 goes on");
            }
            HostEvent::SlotChange(_) => {
                self.stack.interrupt_l1();
                let _ = self.clear12(cx, &mut work);
                self.stack.resume(cx, "L2 goes on");
            }
            HostEvent::DirtyLog(..)
            | HostEvent::DirtyRound(_)
            | HostEvent::WorldSwitch(_)
            | HostEvent::ShadowPageLimit(..) => {}
        }
        cx.out.counters.work += work;
        self.stack.world.publish(&mut cx.out.counters);
    }

    fn table_bytes(&self) -> TableBytes {
        let nested = self.stack.l1.tables() + self.ept02.tables() + self.stack.l0.tables();
        TableBytes { nested: nested * PageSize::Size4K.bytes(), ..TableBytes::default() }
    }
}

impl<const N: u8> Stacked for EptOnEpt<N> {
    fn stack(&self) -> &Stack {
        &self.stack
    }

    fn stack_mut(&mut self) -> &mut Stack {
        &mut self.stack
    }

    fn taken(&mut self, cx: &mut Cx<'_>, frame: L1fn, work: &mut Work) {
        let mut keeper = AtWork { stack: &mut self.stack, cx, work };
        let _ = self.ept02.forget(&mut keeper, frame);
    }
}
