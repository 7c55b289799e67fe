//! The hypervisor above a second stage that no guest operation but a first touch leaves the guest for.
//!
//! As under nested paging: each frame that is touched for the first time costs one violation, and the hypervisor maps the
//! host page behind it, without prefetching; CR3 loads, INVLPG and stores to guest tables do not exit; accesses to addresses
//! that are no memory exit each time and are carried out. What the host does by itself is here too. Dirty logging is by
//! write protection of single frames; a frame that is only read stays protected.

use memvirt_addr::{Gfn, PageSize, PfCode};
use memvirt_ops::arch::{Control, GfnRange, GuestFault, HostEvent, VcpuSet};
use memvirt_pagetable::Attrs;
use memvirt_platform::{Backed, Cx, ExitReason, Horizon, LockMode, Outcome, Request, Work, tlb_entry};
use memvirt_shadow::store::Change;

use crate::dirty::DirtyLog;
use crate::stage::{HostTables, Violation};
use crate::walk::End;

/// The hypervisor's state for one virtual machine.
#[derive(Debug)]
pub(crate) struct Hypervisor<S> {
    pub(crate) stage: S,
    pub(crate) log: DirtyLog,
}

impl<S: HostTables> Hypervisor<S> {
    pub(crate) fn new(stage: S) -> Self {
        Self { stage, log: DirtyLog::default() }
    }

    /// Makes an outcome of a walk's end, handling its exit.
    #[inline]
    pub(crate) fn ended(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, end: End) -> Outcome {
        match end {
            End::Mapped(found) => {
                let backed = Backed { frame: found.frame, size: found.host_size };
                Outcome::Filled(tlb_entry(request.acc, backed, found.guest_size, found.perms, found.dirty))
            }
            End::GuestFault(code) => Outcome::Fault(GuestFault { gva: request.acc.gva(), code }),
            End::Violation(violation) => self.violated(cx, request, &violation),
        }
    }

    fn violated(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, violation: &Violation) -> Outcome {
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        stopped(cx, request, violation);
        let gfn = violation.gpa.frame();
        if !cx.map.contains(gfn) {
            return device(cx, request, violation.on_data);
        }
        let (mut work, write) = (Work::default(), violation.want.perms.contains(Attrs::WRITE));
        let Some(change) = self.map(cx, gfn, write, &mut work) else { return Outcome::OutOfMemory };
        let kick = flush_if(cx, change, &mut work);
        cx.exit(ExitReason::EptViolation, work, Some(LockMode::Shared), kick);
        Outcome::Retry
    }

    /// Maps the host page behind `gfn` for an access. `None` where the host has no frame left.
    pub(crate) fn map(&mut self, cx: &mut Cx<'_>, gfn: Gfn, write: bool, work: &mut Work) -> Option<Change> {
        let backed = cx.back(gfn, work)?;
        if write {
            self.log.mark(gfn);
        }
        let size = if self.log.is_on() { PageSize::Size4K } else { backed.size };
        self.stage.map(cx.host, gfn, Backed { size, ..backed }, write || !self.log.is_on(), work)
    }

    /// Maps what is there behind a range, as violations by stores would one page after the other.
    pub(crate) fn map_ahead(&mut self, cx: &mut Cx<'_>, range: GfnRange) {
        let mut work = Work::default();
        let (first, frames) = whole_pages(cx, range);
        let step = if self.log.is_on() { PageSize::Size4K } else { cx.map.page_size() };
        let mut change = Change::Kept;
        let mut gfn = first;
        while gfn.number() < first.number() + frames {
            if cx.map.lookup(gfn).is_some() {
                let Some(one) = self.map(cx, gfn, true, &mut work) else { break };
                change = change.or(one);
            }
            gfn = gfn.offset(step.frames());
        }
        flush_if(cx, change, &mut work);
        cx.out.counters.work += work;
    }

    /// What the host does by itself.
    pub(crate) fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        let change = match *event {
            HostEvent::Unmap(_, range) | HostEvent::Discard(_, range) => {
                let (first, frames) = whole_pages(cx, range);
                cx.map.unmap(range);
                self.stage.unmap(cx.host, first, frames, &mut work)
            }
            HostEvent::DirtyLog(_, on) => self.set_logging(cx, on, &mut work),
            HostEvent::DirtyRound(_) if self.log.is_on() => {
                self.log.fetch();
                self.stage.protect_all(cx.host, &mut work)
            }
            HostEvent::SlotChange(_) => self.stage.clear(cx.host, &mut work).or(Change::Lost),
            HostEvent::DirtyRound(_) | HostEvent::WorldSwitch(_) | HostEvent::ShadowPageLimit(..) => Change::Kept,
        };
        flush_if(cx, change, &mut work);
        cx.out.counters.work += work;
    }

    fn set_logging(&mut self, cx: &mut Cx<'_>, on: bool, work: &mut Work) -> Change {
        if on == self.log.is_on() {
            return Change::Kept;
        }
        self.log.set(on, cx.map.frames());
        let stage = self.stage.set_logging(on);
        if on {
            return stage.or(self.stage.protect_all(cx.host, work));
        }
        // What was broken for the log is mapped whole again when it is next touched.
        let large = cx.map.page_size() > PageSize::Size4K;
        if large { stage.or(self.stage.clear(cx.host, work)) } else { stage }
    }
}

/// What hardware forgets at a violation.
pub(crate) fn stopped(cx: &mut Cx<'_>, request: &Request<'_>, violation: &Violation) {
    let root = cx.nested_root();
    let linear = violation.on_data.then_some((cx.tag(), request.acc.gva()));
    cx.cpu().violation(root, violation.gpa, linear);
}

/// The whole host pages that meet a range of guest frames: the first frame and how many.
pub(crate) fn whole_pages(cx: &Cx<'_>, range: GfnRange) -> (Gfn, u64) {
    let size = cx.map.page_size();
    let first = range.start.align_down(size).number();
    let end = range.start.number().saturating_add(range.frames).next_multiple_of(size.frames()).min(cx.map.frames());
    (Gfn::new(first), if range.frames == 0 { 0 } else { end.saturating_sub(first) })
}

/// An access to an address that is no memory. A guest table there reads as absent.
pub(crate) fn device(cx: &mut Cx<'_>, request: &Request<'_>, on_data: bool) -> Outcome {
    let work = Work { instructions_emulated: 1, ..Work::default() };
    cx.exit(ExitReason::Mmio, work, None, VcpuSet::EMPTY);
    if on_data {
        Outcome::Emulated
    } else {
        Outcome::Fault(GuestFault { gva: request.acc.gva(), code: PfCode::of(request.acc, false) })
    }
}

/// Flushes all vCPUs where translations were lost; returns those that had to be interrupted.
pub(crate) fn flush_if(cx: &mut Cx<'_>, change: Change, work: &mut Work) -> VcpuSet {
    if change.is_lost() { cx.flush_vm(work) } else { VcpuSet::EMPTY }
}

/// A privileged operation where none but interrupts and traps exit.
pub(crate) fn control(cx: &mut Cx<'_>, control: &Control) {
    let reason = match control {
        Control::Ipi(_) | Control::Interrupt => Some(ExitReason::Ipi),
        Control::Trap(trap) => Some((*trap).into()),
        _ => None,
    };
    if let Some(reason) = reason {
        cx.exit(reason, Work::default(), None, VcpuSet::EMPTY);
    }
    cx.execute(control);
}
