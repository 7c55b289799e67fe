//! [`Flat`]: guest tables over one linear table of the host.
//!
//! A cold walk of `g` guest levels makes g references to guest entries and g + 1 to the host's: 9 with four levels and 4 KiB
//! pages. Exits are those of nested paging. Source: Ahn, Jin and Huh, ISCA 2012; what the array costs and how large pages go
//! into it, [`FlatTable`].

use core::marker::PhantomData;

use memvirt_addr::{Acc, GuestPhys, GuestVirt, HostPhys};
use memvirt_ops::arch::{Control, GfnRange, HostEvent};
use memvirt_pagetable::{Format, Guest4, PhysMem};
use memvirt_platform::{Caches, Cx, Host, MemoryMap, Outcome, Probe, Refusal, Regime, Regs, Request, TableBytes};

use crate::dirty::DirtyLog;
use crate::flat_table::FlatTable;
use crate::hypervisor::{self, Hypervisor};
use crate::meter::{DataReference, Job, Meter, on_cpu, shown};
use crate::stage::{HostTables, Stage};
use crate::walk::{End, walk_cached};

/// A flat nested table under guest tables of format `G`.
#[derive(Debug)]
pub struct Flat<G = Guest4> {
    hypervisor: Hypervisor<FlatTable>,
    data: DataReference,
    guest: PhantomData<G>,
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>> Flat<G> {
    /// A machine with the memory of `map`, whose table is reserved and empty. `None` where the host has no contiguous memory
    /// for it.
    pub fn new(host: &mut Host, map: &MemoryMap) -> Option<Self> {
        let stage = FlatTable::new(host, map.frames())?;
        Some(Self { hypervisor: Hypervisor::new(stage), data: DataReference::Counted, guest: PhantomData })
    }

    /// The same, with the data's own translation in the count or not.
    #[must_use]
    pub const fn with_data_reference(mut self, data: DataReference) -> Self {
        self.data = data;
        self
    }

    /// The table.
    #[must_use]
    pub const fn table(&self) -> &FlatTable {
        &self.hypervisor.stage
    }

    /// The log of dirtied pages.
    #[must_use]
    pub const fn log(&self) -> &DirtyLog {
        &self.hypervisor.log
    }

    /// One hardware walk without walk caches, shown to `probe` and counted nowhere.
    pub fn show<P: Probe>(&self, cx: &mut Cx<'_>, request: &Request<'_>, probe: &mut P) -> End {
        shown(cx, request.acc, self.job(), probe)
    }

    const fn job(&self) -> Two<'_, FlatTable, G> {
        Two { stage: &self.hypervisor.stage, data: self.data, guest: PhantomData }
    }
}

/// A walk from CR3 in two dimensions.
pub(crate) struct Two<'a, S, G> {
    pub(crate) stage: &'a S,
    pub(crate) data: DataReference,
    pub(crate) guest: PhantomData<G>,
}

impl<S: Stage, G: Format<In = GuestVirt, Out = GuestPhys>> Job for Two<'_, S, G> {
    type End = End;

    fn data(&self) -> DataReference {
        self.data
    }

    #[inline]
    fn run<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> End {
        walk_cached::<G, _, _, _>(mem, self.stage, regs, acc, meter)
    }
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>> Regime for Flat<G> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let end = on_cpu(cx, request.acc, self.job());
        self.hypervisor.ended(cx, request, end)
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        hypervisor::control(cx, control);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.hypervisor.host(cx, event);
    }

    fn populate(&mut self, cx: &mut Cx<'_>, range: GfnRange) {
        self.hypervisor.map_ahead(cx, range);
    }

    fn table_bytes(&self) -> TableBytes {
        TableBytes { nested: self.hypervisor.stage.bytes(), ..TableBytes::default() }
    }
}
