//! The seam: everything that a guest can ask of what lies below it.
//!
//! The bare machine, every shadow MMU, nested paging and a real hypervisor are [`Platform`]s. They execute the same stream of
//! accesses and [`Event`]s and report the same counters. A platform counts and never prices: clocks, prices and the queue at
//! the MMU lock belong to whoever drives it.
//!
//! **Order.** An access or event is executed completely, exits included, before the call returns, and what it stored is
//! visible to all vCPUs from then on. A driver of several vCPUs keeps them in order with [`Horizon::NextExit`]: the platform
//! then stops *before* an access that would exit, having changed nothing that another vCPU can see, and the driver repeats
//! that access, alone, when its turn comes. Events are always executed in turn. So no exit handler runs out of order, and
//! between exits vCPUs share only accessed and dirty bits.

use memvirt_addr::{Acc, Gfn, Gpa, Gva, Hfn};
use memvirt_ops::arch::{Event, GfnRange, GuestFault, HostEvent};
use memvirt_ops::{VcpuId, VmId};

use crate::ledger::Ledger;

/// How far a run of accesses may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Horizon {
    /// To its end; exits are handled as they come.
    Open,
    /// Up to the first access that would exit.
    NextExit,
}

/// Why a run of accesses stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All accesses are done.
    Done,
    /// The next access raised a page fault that the guest must handle; it had no other effect.
    GuestFault(GuestFault),
    /// The next access would exit, and the [`Horizon`] forbids that.
    Horizon,
    /// The host has no frame left to go on with.
    HostOutOfMemory,
}

/// Why an event was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It raised a page fault that the guest must handle; it had no other effect. A `rep stos` keeps the elements it has
    /// already stored, as the instruction does.
    GuestFault(GuestFault),
    /// The host has no frame left to go on with.
    HostOutOfMemory,
}

/// What the hardware holds for a page right now. For checking, never for running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The host frame that holds the address.
    pub frame: Hfn,
    /// Whether a store would go through without a walk.
    pub writable: bool,
}

/// Bytes of tables that exist because of virtualization, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableBytes {
    /// Shadow tables.
    pub shadow: u64,
    /// Nested tables.
    pub nested: u64,
    /// What the hypervisor keeps beside them: headers, reverse maps, saved indices.
    pub metadata: u64,
    /// The part of it that is the reverse map: a word for each guest frame, and the descriptors of frames and tables that are mapped
    /// or pointed to several times.
    pub reverse_map: u64,
}

/// The shadow pages that hang below one guest root, and below no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootTables {
    /// The guest frame of the root.
    pub root: Gfn,
    /// What they come to.
    pub sum: ShadowSum,
}

/// Shadow pages, and their bytes: tables, and what the hypervisor keeps for each of them alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowSum {
    /// Shadow pages.
    pub pages: u64,
    /// Bytes of entries, headers and, under KVM, shadowed translations.
    pub bytes: u64,
}

impl ShadowSum {
    const fn add(&mut self, bytes: u64) {
        self.pages += 1;
        self.bytes += bytes;
    }
}

/// Whom shadow pages serve, found by going down from every shadowed root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    /// By root, in the order of the roots' frames.
    pub roots: Vec<RootTables>,
    /// Pages that serve several roots: the kernel's.
    pub shared: ShadowSum,
    /// Pages that no root leads to: kept to be found again.
    pub detached: ShadowSum,
}

impl Attribution {
    /// All pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.roots.iter().map(|root| root.sum.pages).sum::<u64>() + self.shared.pages + self.detached.pages
    }

    /// Enters one page and its bytes.
    ///
    /// # Panics
    ///
    /// Where `served` names a root that is not there.
    pub fn enter(&mut self, served: Served, bytes: u64) {
        match served {
            Served::Nobody => self.detached.add(bytes),
            Served::One(root) => self.roots[root].sum.add(bytes),
            Served::Several => self.shared.add(bytes),
        }
    }
}

/// Whom one shadow page serves, while roots are gone through one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Served {
    /// No root so far.
    #[default]
    Nobody,
    /// The root with this number.
    One(usize),
    /// Two or more.
    Several,
}

impl Served {
    /// The same with `root`.
    #[must_use]
    pub fn and(self, root: usize) -> Self {
        match self {
            Self::Nobody => Self::One(root),
            Self::One(other) if other == root => self,
            _ => Self::Several,
        }
    }
}

/// What executes a guest.
///
/// No method has a body of its own: a platform around another one that did not pass a call on would swallow it without a word.
pub trait Platform {
    /// Performs the accesses of `run` in order on vCPU `v`. Returns how many were completed, and why it stopped there.
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop);

    /// Carries out one event on vCPU `v`. [`Event::Load`] returns the value read.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: architectural outcomes, not mistakes.
    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal>;

    /// Carries out what the host does by itself.
    fn host(&mut self, event: &HostEvent, out: &mut Ledger);

    /// The physical CPU of vCPU `v` goes over to it from another one: [`HostEvent::WorldSwitch`] of its virtual machine, on this
    /// CPU.
    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger);

    /// The aligned word at a guest-physical address, as the guest kernel knows it. Uncounted: a kernel keeps what it needs
    /// of its own tables in registers and caches.
    fn peek(&self, vm: VmId, at: Gpa) -> u64;

    /// Stores an aligned word in guest memory behind everybody's back, as a boot loader does before the guest runs.
    fn poke(&mut self, vm: VmId, at: Gpa, value: u64);

    /// Brings in the host's memory behind a range, and maps it in nested tables, so that no access has to
    /// (`KVM_PRE_FAULT_MEMORY`, Linux 6.11). Shadow tables follow the guest's and cannot be made ahead. Ends early where the
    /// host has no frame left.
    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger);

    /// The host frame behind a guest frame, `None` while there is none.
    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn>;

    /// What the hardware of vCPU `v` holds for the page of `gva`.
    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached>;

    /// The bytes of all tables below the guest.
    fn table_bytes(&self) -> TableBytes;

    /// Whom the shadow pages of `vm` serve; `None` where it has none, or they cannot be told. Slow: it goes through all of them.
    fn attribution(&self, vm: VmId) -> Option<Attribution>;
}

impl<P: Platform + ?Sized> Platform for Box<P> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        (**self).accesses(v, run, horizon, out)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        (**self).event(v, event, out)
    }

    fn host(&mut self, event: &HostEvent, out: &mut Ledger) {
        (**self).host(event, out);
    }

    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger) {
        (**self).world_switch(v, out);
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        (**self).peek(vm, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        (**self).poke(vm, at, value);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        (**self).populate(vm, range, out);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        (**self).backing(vm, gfn)
    }

    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached> {
        (**self).reached(v, gva)
    }

    fn table_bytes(&self) -> TableBytes {
        (**self).table_bytes()
    }

    fn attribution(&self, vm: VmId) -> Option<Attribution> {
        (**self).attribution(vm)
    }
}
