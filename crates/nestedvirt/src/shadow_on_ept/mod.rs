//! [`ShadowOnEpt`]: L1 shadows L2's tables. Under KVM every exit of L2 goes through L0; under PVM a switcher takes it to L1.
//!
//! Hardware walks SPT12, which lies in L1's memory, under EPT01: for 4 and 4 levels 24 references. L1 write-protects every table
//! that it follows by what its own SPT12 permits (see `src/merge`), so each store of L2's kernel to one is an exit of L2. L0
//! knows nothing of SPT12: L1 stores to it as to any page of its own.
//!
//! **PVM** (Huang et al., SOSP 2023; the patch series *KVM: x86: PVM*, specification `Documentation/virt/kvm/x86/pvm-spec.rst`): the
//! same tables, but L2's kernel and processes both run in the CPU's user mode within L1's virtual machine. Exceptions, system
//! calls and hypercalls land in a switcher that L1 maps into both, which hands over to L1's hypervisor or, for system calls and
//! returns to user mode, goes straight from L2's user mode to L2's kernel mode. So L0 is entered for EPT01 violations only.
//! Left out: the second SPT12 for user mode (here one tree carries the guest's own U bits) and the paper's prefault, which turns
//! the return from L2's fault handler into a hypercall and saves the fault after it: the same number of switches.

mod fault;
mod keeper;

use memvirt_addr::{Gva, Hfn, L1fn, Privilege};
use memvirt_ops::arch::{Control, CrWrite, GfnRange, HostEvent, VcpuSet};
use memvirt_platform::{
    Cx, Dimension, ExitReason, Horizon, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Regs, Request, TableBytes,
    WalkRefs, Work,
};

use crate::config::{Arrangement, Config};
use crate::format::{Guest, Nested01, Shadow12};
use crate::hypervisor::{Stacked, clip, exits_of};
use crate::merge::{Change, Merge, PageId};
use crate::stack::Stack;
use crate::walk::{End, Hardware};
use crate::world::{Cause, Who};
use keeper::AtWork;

type Spt<const N: u8> = Merge<Guest<N>, Shadow12<N>>;

/// L1's shadow paging under L0's EPT, for an L2 with tables of `N` levels.
#[derive(Debug)]
pub struct ShadowOnEpt<const N: u8 = 4> {
    pub(crate) stack: Stack,
    pub(crate) spt: Spt<N>,
    /// The root that each vCPU runs on.
    roots: Vec<Option<PageId>>,
}

/// Memory has run out.
struct Exhausted;

impl<const N: u8> ShadowOnEpt<N> {
    /// A machine with the memory of `map` and no tables yet. `None` where the host has no frame for EPT01.
    ///
    /// # Panics
    ///
    /// For [`Arrangement::EptOnEpt`], which is [`crate::EptOnEpt`].
    #[must_use]
    pub fn new(host: &mut Host, map: &MemoryMap, arrangement: Arrangement, config: Config) -> Option<Self> {
        assert!(arrangement != Arrangement::EptOnEpt, "EptOnEpt keeps no shadow");
        let stack = Stack::new(host, map.frames(), arrangement, config)?;
        Some(Self { stack, spt: Merge::new(config), roots: Vec::new() })
    }

    fn at_work<'a, 'c>(stack: &'a mut Stack, cx: &'a mut Cx<'c>, work: &'a mut Work) -> AtWork<'a, 'c> {
        AtWork { stack, cx, work }
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.roots.get(cx.me.index()).copied().flatten()
    }

    /// L1 puts the vCPU on the shadow of its CR3; on none where that is no memory.
    fn load_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Result<Change, Exhausted> {
        let (v, gfn) = (cx.me.index(), cx.regs().cr3.root.frame());
        let (mut root, mut change) = (None, Change::Kept);
        if cx.map.contains(gfn) {
            let (page, made) = self.spt.root(&mut Self::at_work(&mut self.stack, cx, work), gfn).ok_or(Exhausted)?;
            self.spt.pin(page);
            (root, change) = (Some(page), made);
        }
        if self.roots.len() <= v {
            self.roots.resize(v + 1, None);
        }
        if let Some(old) = core::mem::replace(&mut self.roots[v], root) {
            self.spt.unpin(old);
        }
        Ok(change)
    }

    /// L1 flushes where something cached became obsolete.
    fn flush_if(&mut self, cx: &mut Cx<'_>, change: Change, work: &mut Work) -> VcpuSet {
        match change {
            Change::Lost => self.stack.flush(cx, work),
            Change::Kept => VcpuSet::EMPTY,
        }
    }

    /// L1 resumes L2 and the exit is entered in the ledger. The lock is that of L1's MMU, which is not asked about interrupts,
    /// instructions that have nothing to do with paging and devices, nor for what L2's kernel is told at once.
    fn done(&mut self, cx: &mut Cx<'_>, reason: ExitReason, work: Work, kick: VcpuSet, what: &str) {
        use ExitReason::{Cpuid, Halt, Hypercall, Ipi, Mmio, Msr, PortIo, ReflectedFault};
        let tables = work.entries_cleared + work.entries_synced + work.entries_set + work.tables_freed;
        let apart = matches!(reason, Cpuid | Halt | Hypercall | Ipi | Mmio | Msr | PortIo | ReflectedFault);
        let lock = (tables > 0 || !apart).then_some(LockMode::Exclusive);
        self.stack.resume(cx, what);
        cx.exit(reason, work, lock, kick);
    }

    /// L1 takes L2's frames away: the leaves of SPT12 over them go, and L2's translations with them.
    fn take_from_l2(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Result<(), Exhausted> {
        let (start, end) = clip(cx, range);
        cx.map.unmap(range);
        let mut change = Change::Kept;
        for gfn in self.stack.l1.resident_in(start, end) {
            change = change.or(self.spt.forget(&mut Self::at_work(&mut self.stack, cx, work), gfn).ok_or(Exhausted)?);
            self.stack.l1.take(gfn);
        }
        self.flush_if(cx, change, work);
        Ok(())
    }

    /// What L1 does about a privileged operation of L2 that it sees.
    fn privileged(&mut self, cx: &mut Cx<'_>, control: &Control, work: &mut Work) -> Result<VcpuSet, Exhausted> {
        cx.execute(control);
        match control {
            Control::Cr3(cr3) => {
                let change = self.load_root(cx, work)?;
                if change == Change::Lost {
                    return Ok(self.stack.flush(cx, work));
                }
                if !(cr3.keep && cx.regs().pcid_enable) {
                    self.stack.flush_for_l2();
                }
            }
            Control::Invlpg(_) | Control::Invpcid(_) | Control::Cr(CrWrite::TogglePge) => self.stack.flush_for_l2(),
            _ => {}
        }
        Ok(VcpuSet::EMPTY)
    }
}

impl<const N: u8> ShadowOnEpt<N> {
    /// One hardware walk and what comes of it.
    fn walked(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let regs = Regs { write_protect: true, ..*cx.regs() };
        let nested = self.stack.l0.ept01();
        let walk = self.root(cx).and_then(|root| self.spt.frame(root)).map(|root| {
            Hardware::walk::<Shadow12<N>, Nested01>(cx, Dimension::Shadow, (root, nested), &regs, request.acc)
        });
        let mapped = matches!(walk.as_ref().map(|walk| &walk.end), Some(End::Mapped(_)));
        if !mapped && cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        if let Some(walk) = &walk {
            let refs = WalkRefs { shadow: walk.first, host: walk.second, ..WalkRefs::default() };
            cx.out.counters.add_walk(refs, walk.ad_updates, 0);
        }
        match walk.map(|walk| walk.end) {
            Some(End::Mapped(entry)) => return Outcome::Filled(entry),
            Some(End::Violation(violation)) => {
                let mut work = Work::default();
                if self.stack.serve_violation(cx, violation.at, &mut work).is_none() {
                    return Outcome::OutOfMemory;
                }
                self.stack.world.switch(Who::L2, Cause::EptViolation, "entry: the access starts again");
                cx.exit(ExitReason::EptViolation, work, Some(LockMode::Shared), VcpuSet::EMPTY);
                return Outcome::Retry;
            }
            Some(End::Fault(_)) | None => {}
        }
        let gva: Gva = request.acc.gva();
        let who = if request.acc.privilege() == Privilege::User { "process" } else { "kernel" };
        self.stack.leave(Cause::PageFault, &format!("page fault of L2's {who} at {gva:?}: SPT12 does not permit it"));
        self.fault(cx, request).unwrap_or(Outcome::OutOfMemory)
    }
}

impl<const N: u8> Regime for ShadowOnEpt<N> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let outcome = self.walked(cx, request);
        self.stack.world.publish(&mut cx.out.counters);
        outcome
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let (reason, mut exits) = exits_of(control, true);
        if self.stack.arrangement == Arrangement::Pvm {
            // PVM's kernel keeps its CR3 where it can read it, and flushes with one hypercall.
            exits = if matches!(control, Control::ReadCr3) { 0 } else { exits.min(1) };
        }
        for exit in 1..=exits {
            let mut work = Work::default();
            self.stack.leave(Cause::Privileged, "a privileged operation of L2");
            let mut kick = VcpuSet::EMPTY;
            if exit == exits {
                kick = self.privileged(cx, control, &mut work).map_err(|Exhausted| Refusal::HostOutOfMemory)?;
            }
            self.done(cx, reason, work, kick, "L2 goes on behind the instruction");
        }
        if exits == 0 {
            cx.execute(control);
        }
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
                let change = self.spt.clear(&mut Self::at_work(&mut self.stack, cx, &mut work));
                self.flush_if(cx, change.unwrap_or(Change::Lost), &mut work);
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
        TableBytes { shadow: self.spt.tables() * 4096, nested: self.stack.l0.tables() * 4096, ..TableBytes::default() }
    }
}

impl<const N: u8> Stacked for ShadowOnEpt<N> {
    fn stack(&self) -> &Stack {
        &self.stack
    }

    fn stack_mut(&mut self) -> &mut Stack {
        &mut self.stack
    }
}

impl<const N: u8> ShadowOnEpt<N> {
    /// The roots of SPT12 that vCPUs run on.
    #[must_use]
    pub fn shadow_root(&self, vcpu: usize) -> Option<L1fn> {
        self.roots.get(vcpu).copied().flatten().and_then(|root| self.spt.frame(root))
    }

    /// The root of EPT01.
    #[must_use]
    pub const fn nested_root(&self) -> Hfn {
        self.stack.l0.ept01()
    }
}
