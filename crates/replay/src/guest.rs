//! The guest that executes a recording: what it touches for each operation, on any platform.

use memvirt_addr::{Acc, AccessKind, Gpa, Gva};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, Cr3, Event, GuestFault, StoreOp, Trap, Width};
use memvirt_platform::{Horizon, Ledger, Platform, Refusal, Stop};

use crate::golden::{CODE, COMMAND, Loader, PML4A, Sequence};
use crate::op::{GuestOp, OpKind};
use crate::recording::Seen;

/// Where a load's value is stored.
const RESULT: Gva = Gva::new(0x4048);

/// A guest on a platform.
#[derive(Debug)]
pub struct Guest<P> {
    platform: P,
    ledger: Ledger,
}

/// The host ran out of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated host has no frame left; the regime under test allocates without bound, or needs a larger host")]
pub struct HostOutOfMemory;

const fn read(at: u64) -> Acc {
    Acc::supervisor(Gva::new(at), AccessKind::Read)
}

const fn write(at: u64) -> Acc {
    Acc::supervisor(Gva::new(at), AccessKind::Write)
}

const FETCH: Acc = Acc::supervisor(CODE, AccessKind::Fetch);
/// Before each operation: the next instruction, the command.
const BEGIN: &[Acc] = &[FETCH, Acc::supervisor(COMMAND, AccessKind::Read)];
/// Delivery of a page fault: interrupt and segment descriptor, the stack, the handler, what it notes down.
const DELIVERY: &[Acc] = &[read(0x20e0), read(0x1008), write(0x7fc8), FETCH, write(0x4020)];

impl<P: Platform> Guest<P> {
    /// Boots the machine of `sequence` on `platform`, which has run nothing yet, and runs it up to its first marker.
    ///
    /// # Errors
    ///
    /// [`HostOutOfMemory`].
    pub fn boot(mut platform: P, sequence: Sequence) -> Result<Self, HostOutOfMemory> {
        let mut loader = Loader::new(&mut platform);
        loader.populate();
        loader.tables();
        let mut guest = Self { platform, ledger: Ledger::sums() };
        guest.control(Control::Cr3(Cr3::flushing(Gpa::new(PML4A))))?;
        guest.touch(&[FETCH])?;
        guest.marker()?;
        Loader::new(&mut guest.platform).data(sequence);
        Ok(guest)
    }

    /// The platform.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Everything counted so far, booting included.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Executes one operation, from one marker to the next.
    ///
    /// # Errors
    ///
    /// [`HostOutOfMemory`].
    pub fn execute(&mut self, op: &GuestOp) -> Result<Seen, HostOutOfMemory> {
        self.touch(BEGIN)?;
        let mut seen = Seen::default();
        match self.operate(&op.kind)? {
            Ok(value) => seen.value = value,
            Err(fault) => {
                seen.faults = 1;
                seen.code = u64::from(fault.code.bits());
                seen.cr2 = fault.gva.as_u64();
                self.touch(DELIVERY)?;
            }
        }
        self.touch(&[FETCH])?;
        self.marker()?;
        Ok(seen)
    }

    /// The operation proper: what a load returned (0 for others), or the fault that the guest saw.
    fn operate(&mut self, kind: &OpKind) -> Result<Result<u64, GuestFault>, HostOutOfMemory> {
        let outcome = match *kind {
            OpKind::Read(gva) => {
                let value = self.event(&Event::Load { gva })?;
                if let Ok(value) = value {
                    let _ = self.store(RESULT, StoreOp::Mov { width: Width::B8, value })?;
                }
                value
            }
            OpKind::Store(via, op) => self.store(via, op)?,
            OpKind::Control(control) => self.event(&control.into())?,
        };
        Ok(outcome)
    }

    fn store(&mut self, via: Gva, op: StoreOp) -> Result<Result<u64, GuestFault>, HostOutOfMemory> {
        self.event(&Event::Store { via, op, ip: CODE })
    }

    fn event(&mut self, event: &Event) -> Result<Result<u64, GuestFault>, HostOutOfMemory> {
        match self.platform.event(VcpuId::FIRST, event, &mut self.ledger) {
            Ok(value) => Ok(Ok(value.unwrap_or(0))),
            Err(Refusal::GuestFault(fault)) => Ok(Err(fault)),
            Err(Refusal::HostOutOfMemory) => Err(HostOutOfMemory),
        }
    }

    fn control(&mut self, control: Control) -> Result<(), HostOutOfMemory> {
        self.event(&control.into()).map(|_| ())
    }

    fn marker(&mut self) -> Result<(), HostOutOfMemory> {
        self.control(Control::Trap(Trap::PortIo))
    }

    /// Accesses of the kernel to its own pages, which no operation unmaps: a fault here is the platform's, and whoever checks
    /// the platform sees it.
    fn touch(&mut self, run: &[Acc]) -> Result<(), HostOutOfMemory> {
        let mut done = 0;
        while done < run.len() {
            let (n, stop) = self.platform.accesses(VcpuId::FIRST, &run[done..], Horizon::Open, &mut self.ledger);
            done += n + 1;
            if stop == Stop::HostOutOfMemory {
                return Err(HostOutOfMemory);
            }
        }
        Ok(())
    }
}
