//! [`Flat`]: guest tables over one linear table of the host.
//!
//! A cold walk of `g` guest levels makes g references to guest entries and g + 1 to the host's: 9 with four levels and 4 KiB
//! pages. Exits are those of nested paging. Source: Ahn, Jin and Huh, ISCA 2012; what the array costs and how large pages go
//! into it, [`FlatTable`].

use core::marker::PhantomData;

use memvirt_addr::{GuestPhys, GuestVirt};
use memvirt_ops::arch::{Control, HostEvent};
use memvirt_pagetable::{Format, Guest4};
use memvirt_platform::{Cx, Host, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes};

use crate::dirty::DirtyLog;
use crate::flat_table::FlatTable;
use crate::hypervisor::{self, Hypervisor};
use crate::meter::Meter;
use crate::stage::HostTables;
use crate::walk::{End, Start, walk};
use memvirt_platform::Probe;

/// A flat nested table under guest tables of format `G`.
#[derive(Debug)]
pub struct Flat<G = Guest4> {
    hypervisor: Hypervisor<FlatTable>,
    guest: PhantomData<G>,
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>> Flat<G> {
    /// A machine with the memory of `map`, whose table is reserved and empty. `None` where the host has no contiguous memory
    /// for it.
    pub fn new(host: &mut Host, map: &MemoryMap) -> Option<Self> {
        let stage = FlatTable::new(host, map.frames())?;
        Some(Self { hypervisor: Hypervisor::new(stage), guest: PhantomData })
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

    /// One hardware walk, shown to `probe`.
    pub fn walk<P: Probe>(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, probe: &mut P) -> End {
        let (regs, mut meter) = (*cx.regs(), Meter::new(probe));
        let start = Start::cr3::<G>(&regs);
        let end = walk::<G, _, _>(&mut cx.host.mem, &self.hypervisor.stage, &regs, request.acc, start, &mut meter);
        meter.enter(&mut cx.out.counters);
        end
    }
}

impl<G: Format<In = GuestVirt, Out = GuestPhys>> Regime for Flat<G> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let end = self.walk(cx, request, &mut ());
        self.hypervisor.ended(cx, request, end)
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        hypervisor::control(cx, control);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.hypervisor.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        TableBytes { nested: self.hypervisor.stage.bytes(), ..TableBytes::default() }
    }
}
