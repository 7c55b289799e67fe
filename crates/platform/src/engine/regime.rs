//! [`Regime`]: how addresses are translated, as one unit: hardware walk, exit handlers, privileged operations and host events
//! together.

use memvirt_addr::{Acc, Gva};
use memvirt_ops::arch::{Control, GfnRange, GuestFault, HostEvent, StoreOp};
use memvirt_tlb::Entry;

use crate::cx::Cx;
use crate::foresee::Foresight;
use crate::host::Host;
use crate::seam::{Attribution, Refusal, TableBytes};

/// An access that missed the TLB.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The access.
    pub acc: Acc,
    /// What it stores, where the value matters. `None` for a plain access: a hypervisor that has to carry out such a store
    /// leaves the bytes as they are.
    pub store: Option<&'a StoreOp>,
    /// The address of the instruction, 0 where nobody said.
    pub ip: Gva,
    /// Which element of a repeated store (`rep stos`) the access is; 0 for everything else.
    pub element: u16,
}

/// What came of one hardware walk.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// The translation was found: the access is performed through it.
    Filled(Entry),
    /// The walk exited and the hypervisor changed something: the instruction starts again.
    Retry,
    /// The walk exited and the hypervisor carried out the access itself.
    Emulated,
    /// The walk exited and the hypervisor carried out the whole instruction: this access and all later elements of its
    /// repeated store.
    EmulatedAll,
    /// The guest must handle a page fault.
    Fault(GuestFault),
    /// The walk would exit, and the horizon forbids that. Nothing was changed.
    Horizon,
    /// The host has no frame left.
    OutOfMemory,
}

/// How addresses are translated, and what a hypervisor does to keep it so.
pub trait Regime {
    /// One hardware walk for an access that missed the TLB, and where it exits, its handling.
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome;

    /// Tells of the accesses `ahead`, the next ones, which of their walks would do nothing but read, and what those would give.
    /// Neither counts nor changes anything. Never called where walk caches or a listener take part in walks.
    ///
    /// For speed alone: see [`foresee`](crate::foresee). To do nothing is always right.
    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        let _ = (cx, ahead, found);
    }

    /// A privileged operation.
    ///
    /// # Errors
    ///
    /// [`Refusal`], where the operation cannot be carried out.
    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal>;

    /// Something the host does by itself to the virtual machine of `cx`. What a world switch flushes for want of tags has been
    /// flushed by then ([`Cx::cross`]); a regime adds what only it knows of.
    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent);

    /// Maps the memory behind a range, all of which is there, where that is possible before the guest touches it: nested tables
    /// map guest-physical addresses. To do nothing is always right.
    fn populate(&mut self, cx: &mut Cx<'_>, range: GfnRange) {
        let _ = (cx, range);
    }

    /// The bytes of all tables that this regime keeps.
    fn table_bytes(&self) -> TableBytes;

    /// Whom its shadow pages serve; `None` where it has none, or they cannot be told.
    fn attribution(&self, host: &Host) -> Option<Attribution> {
        let _ = host;
        None
    }
}
