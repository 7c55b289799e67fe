//! What both kinds of nesting have in common: what can be asked of them, and what can be done to them from outside.

use memvirt_addr::{Gfn, L1fn};
use memvirt_ops::arch::{Control, CrWrite, GfnRange};
use memvirt_platform::{Cx, ExitReason, Work};

use crate::l0::L0;
use crate::l1::L1;
use crate::stack::Stack;
use crate::world::{Cause, Who, World};

/// Nested virtualization, whatever the arrangement.
pub trait Nesting {
    /// L0's tables and map.
    fn l0(&self) -> &L0;

    /// L1's map.
    fn l1(&self) -> &L1;

    /// The CPU and what was counted.
    fn world(&self) -> &World;

    /// The CPU, to have it record steps.
    fn world_mut(&mut self) -> &mut World;

    /// L0 takes frames of L1 away (swap, ballooning): all translations to them go, contents are kept and come back on the next
    /// touch. To be called with [`memvirt_platform::Engine::intervene`].
    fn take_from_l1(&mut self, cx: &mut Cx<'_>, frames: &[L1fn]);

    /// L1 gives L2's frames of `range` frames of its own, and L0 those its frames, before anybody touches them. Returns false
    /// where the host has not enough.
    #[must_use]
    fn prefault_guest(&mut self, cx: &mut Cx<'_>, range: GfnRange) -> bool;

    /// L0 backs and maps the first `frames` frames of L1's heap before L1 makes tables of them. Returns false where the host has
    /// not enough.
    #[must_use]
    fn prefault_heap(&mut self, cx: &mut Cx<'_>, frames: u64) -> bool;
}

/// What has two hypervisors and a CPU: all that [`Nesting`] asks is found there.
pub(crate) trait Stacked {
    fn stack(&self) -> &Stack;

    fn stack_mut(&mut self) -> &mut Stack;

    /// L0 was asked for this frame of L1: what it keeps beside its own tables lets go of it.
    fn taken(&mut self, cx: &mut Cx<'_>, frame: L1fn, work: &mut Work) {
        let _ = (cx, frame, work);
    }
}

impl<T: Stacked> Nesting for T {
    fn l0(&self) -> &L0 {
        &self.stack().l0
    }

    fn l1(&self) -> &L1 {
        &self.stack().l1
    }

    fn world(&self) -> &World {
        &self.stack().world
    }

    fn world_mut(&mut self) -> &mut World {
        &mut self.stack_mut().world
    }

    fn take_from_l1(&mut self, cx: &mut Cx<'_>, frames: &[L1fn]) {
        let mut work = Work::default();
        self.stack_mut().world.switch(Who::L0, Cause::Interrupt, "an interrupt exits");
        let mut taken = false;
        for frame in frames {
            taken |= self.stack_mut().take_from_l1(cx, *frame, &mut work);
            self.taken(cx, *frame, &mut work);
        }
        if taken {
            cx.flush_vm(&mut work);
        }
        let world = &mut self.stack_mut().world;
        world.switch(Who::L2, Cause::Interrupt, "entry");
        cx.out.counters.work += work;
        world.publish(&mut cx.out.counters);
    }

    fn prefault_guest(&mut self, cx: &mut Cx<'_>, range: GfnRange) -> bool {
        self.stack_mut().prefault_guest(cx, range)
    }

    fn prefault_heap(&mut self, cx: &mut Cx<'_>, frames: u64) -> bool {
        self.stack_mut().prefault_heap(cx, frames)
    }
}

/// How often a privileged operation of L2 leaves it for L1, and how that is entered in the ledger. `shadow`: L1 must see whatever
/// changes the address space. Source: KVM's intercepts under VMX, with and without EPT.
pub(crate) fn exits_of(control: &Control, shadow: bool) -> (ExitReason, u32) {
    let paging = u32::from(shadow);
    match control {
        Control::Invlpg(_) => (ExitReason::Invlpg, paging),
        Control::Cr3(_) => (ExitReason::Cr3Load, paging),
        Control::ReadCr3 => (ExitReason::CrAccess, paging),
        Control::Cr(CrWrite::TogglePge) => (ExitReason::CrAccess, 2 * paging),
        Control::Cr(_) => (ExitReason::CrAccess, paging),
        Control::Invpcid(_) => (ExitReason::Invpcid, paging),
        Control::Ipi(_) | Control::Interrupt => (ExitReason::Ipi, 1),
        Control::Trap(trap) => ((*trap).into(), 1),
    }
}

/// Frames of L2 that a range holds, clipped to its memory.
pub(crate) fn clip(cx: &Cx<'_>, range: GfnRange) -> (Gfn, Gfn) {
    let size = cx.map.page_size();
    let start = range.start.align_down(size);
    let end = range.start.number().saturating_add(range.frames).min(cx.map.frames());
    (start, Gfn::new(end.next_multiple_of(size.frames()).max(start.number())))
}

impl Stack {
    pub(crate) fn prefault_guest(&mut self, cx: &mut Cx<'_>, range: GfnRange) -> bool {
        let mut work = Work::default();
        let (start, end) = (range.start.number(), range.start.number().saturating_add(range.frames));
        let done = (start..end.min(cx.map.frames())).all(|gfn| {
            let (frame, _) = self.l1.give(Gfn::new(gfn));
            self.back(cx, frame, &mut work).is_some() && self.l0.map(cx.host, frame, &mut work).is_some()
        });
        cx.out.counters.work += work;
        done
    }

    pub(crate) fn prefault_heap(&mut self, cx: &mut Cx<'_>, frames: u64) -> bool {
        let mut work = Work::default();
        let done = (1..=frames).map(L1fn::new).all(|frame| {
            !self.l1.is_heap(frame)
                || self.l0.is_resident(frame)
                || (self.back(cx, frame, &mut work).is_some() && self.l0.map(cx.host, frame, &mut work).is_some())
        });
        cx.out.counters.work += work;
        done
    }

    /// An interrupt brings the CPU to L1, which does something of its own and resumes L2.
    pub(crate) fn interrupt_l1(&mut self) {
        self.world.switch(Who::L0, Cause::Interrupt, "an interrupt exits");
        self.world.switch(Who::L1, Cause::Interrupt, "entry: L1 takes the interrupt");
    }
}
