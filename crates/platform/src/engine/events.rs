//! Operations one at a time: loads and stores whose value matters, privileged operations, what the host does by itself.

use memvirt_addr::{Acc, AccessKind, Gva, HostPhys, Hpa};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Event, HostEvent, StoreOp};
use memvirt_pagetable::PhysMem;

use super::{Done, Engine, Regime, Request};
use crate::ledger::Ledger;
use crate::seam::{Horizon, Platform, Refusal, Stop};

impl<R: Regime> Engine<R> {
    /// Performs one access whose value matters; returns the host address reached, if the CPU performed it.
    fn access_one(&mut self, v: VcpuId, request: &Request<'_>, out: &mut Ledger) -> Result<Done<Hpa>, Refusal> {
        let vcpu = &self.vcpus[v.index()];
        let (cpu, tag) = (vcpu.cpu, vcpu.tag());
        let before = self.cpus[cpu].tlb.stats();
        let served = match self.cpus[cpu].tlb.lookup(tag, request.acc) {
            Some(entry) => Ok(Done::Through(entry)),
            None => self.serve(v, request, 0, Horizon::Open, out),
        };
        out.counters.add_tlb(&before, &self.cpus[cpu].tlb.stats());
        let gva = request.acc.gva();
        match served {
            Ok(done) => {
                out.counters.accesses += 1;
                Ok(match done {
                    Done::Through(entry) => {
                        let at = entry.frame_of(gva).at(gva.as_u64());
                        self.touch(cpu, at, out);
                        Done::Through(at)
                    }
                    Done::Emulated => Done::Emulated,
                    Done::EmulatedAll => Done::EmulatedAll,
                })
            }
            Err(Stop::GuestFault(fault)) => Err(Refusal::GuestFault(fault)),
            Err(_) => Err(Refusal::HostOutOfMemory),
        }
    }

    pub(super) fn carry_out(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        match event {
            Event::Load { gva } => {
                let acc = Acc::supervisor(*gva, AccessKind::Read);
                let done = self.access_one(v, &Request { acc, store: None, ip: Gva::ZERO, element: 0 }, out)?;
                Ok(Some(if let Done::Through(at) = done { self.host.mem.read(at) } else { 0 }))
            }
            Event::Store { via, op, ip } => self.store(v, *via, op, *ip, out).map(|()| None),
            Event::Control(control) if self.is_delivered(control) => Ok(None),
            Event::Control(control) => {
                self.with(v, 0, Horizon::Open, out, |regime, cx| regime.control(cx, control)).map(|()| None)
            }
        }
    }

    fn store(&mut self, v: VcpuId, via: Gva, op: &StoreOp, ip: Gva, out: &mut Ledger) -> Result<(), Refusal> {
        let elements = if let StoreOp::RepStos { count, .. } = op { *count } else { 1 };
        for element in 0..elements {
            let acc = Acc::supervisor(via.wrapping_add(8 * u64::from(element)), AccessKind::Write);
            match self.access_one(v, &Request { acc, store: Some(op), ip, element }, out)? {
                Done::Through(at) => {
                    store_element(&mut self.host.mem, at, op);
                    let left = u64::from(elements - element - 1);
                    if left > 0 && self.reached(v, acc.gva()).is_some_and(|reached| reached.writable) {
                        self.store_rest(v, at, op, left, out);
                        break;
                    }
                }
                Done::Emulated => {}
                Done::EmulatedAll => {
                    out.counters.accesses += u64::from(elements - element - 1);
                    break;
                }
            }
        }
        Ok(())
    }

    /// What is left of a `rep stos` whose page has just become the most recently used entry of the TLB: all hits.
    fn store_rest(&mut self, v: VcpuId, at: Hpa, op: &StoreOp, left: u64, out: &mut Ledger) {
        let cpu = self.vcpus[v.index()].cpu;
        for k in 1..=left {
            store_element(&mut self.host.mem, at.wrapping_add(8 * k), op);
            self.touch(cpu, at.wrapping_add(8 * k), out);
        }
        out.counters.accesses += left;
        out.counters.l1_hits += left;
    }

    /// The host acts, on the CPU of vCPU `v`.
    pub(super) fn by_itself(&mut self, v: VcpuId, event: &HostEvent, out: &mut Ledger) {
        self.with(v, 0, Horizon::Open, out, |regime, cx| {
            // The hardware's part, the same under every hypervisor. A bare machine has no other machine to switch to.
            if matches!(event, HostEvent::WorldSwitch(_)) && !cx.map.is_bare() {
                cx.cross();
            }
            regime.host(cx, event);
            if let HostEvent::Discard(_, range) = event {
                cx.guest().forget(*range);
            }
        });
        self.take_cache_counts(out);
    }
}

/// Stores one element of `op` in host memory.
pub fn store_element(mem: &mut PhysMem<HostPhys>, at: Hpa, op: &StoreOp) {
    match *op {
        StoreOp::Mov { width, value } => mem.write_bytes(at, width.bytes(), value),
        StoreOp::And { mask } => {
            let old = mem.read(at);
            mem.write(at, old & mask);
        }
        StoreOp::Or { bits } => {
            let old = mem.read(at);
            mem.write(at, old | bits);
        }
        StoreOp::RepStos { value, .. } => mem.write(at, value),
        StoreOp::Vector => {
            mem.write_bytes(at, 8, 0);
            mem.write_bytes(at.wrapping_add(8), 8, 0);
        }
    }
}
