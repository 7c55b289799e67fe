//! An [`Engine`] as a [`Platform`].

use memvirt_addr::{Acc, Gfn, Gpa, Gva, Hfn};
use memvirt_ops::arch::{Event, GfnRange, HostEvent};
use memvirt_ops::{VcpuId, VmId};

use super::{Engine, Regime, Vm};
use crate::exit::Work;
use crate::host::{GuestMem, read_guest};
use crate::ledger::Ledger;
use crate::seam::{Attribution, Horizon, Platform, Reached, Refusal, Stop, TableBytes};

impl<R: Regime> Platform for Engine<R> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        let cpu = self.vcpus[v.index()].cpu;
        let before = self.cpus[cpu].tlb.stats();
        let (done, stop) = if self.timing.is_none() {
            self.counted_accesses(v, run, horizon, out)
        } else {
            core::hint::cold_path();
            self.timed_accesses(v, run, horizon, out)
        };
        out.counters.accesses += done as u64;
        out.counters.add_tlb(&before, &self.cpus[cpu].tlb.stats());
        self.take_cache_counts(out);
        (done, stop)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        let done = self.carry_out(v, event, out);
        self.settle(self.vcpus[v.index()].cpu, out);
        self.take_cache_counts(out);
        done
    }

    fn host(&mut self, event: &HostEvent, out: &mut Ledger) {
        let (HostEvent::Unmap(vm, _)
        | HostEvent::Discard(vm, _)
        | HostEvent::DirtyLog(vm, _)
        | HostEvent::DirtyRound(vm)
        | HostEvent::SlotChange(vm)
        | HostEvent::WorldSwitch(vm)
        | HostEvent::ShadowPageLimit(vm, _)) = *event;
        let Some(first) = self.vcpus.iter().position(|vcpu| vcpu.vm == vm) else { return };
        self.by_itself(VcpuId(u16::try_from(first).unwrap_or(u16::MAX)), event, out);
    }

    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger) {
        self.by_itself(v, &HostEvent::WorldSwitch(self.vcpus[v.index()].vm), out);
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        read_guest(&self.host, &self.vms[vm.index()].map, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        let Vm { map, .. } = &mut self.vms[vm.index()];
        GuestMem { host: &mut self.host, map }.write_bytes(at, 8, value);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        let Some(first) = self.vcpus.iter().position(|vcpu| vcpu.vm == vm) else { return };
        let first = VcpuId(u16::try_from(first).unwrap_or(u16::MAX));
        self.with(first, 0, Horizon::Open, out, |regime, cx| {
            let mut work = Work::default();
            let end = range.start.number().saturating_add(range.frames).min(cx.map.frames());
            let mut gfn = range.start;
            while gfn.number() < end && cx.back(gfn, &mut work).is_some() {
                gfn = gfn.align_down(cx.map.page_size()).offset(cx.map.page_size().frames());
            }
            cx.out.counters.work += work;
            let frames = gfn.number().min(end).saturating_sub(range.start.number());
            regime.populate(cx, GfnRange { frames, ..range });
        });
        self.take_cache_counts(out);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        self.vms[vm.index()].map.lookup(gfn).map(|backed| backed.frame)
    }

    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached> {
        let vcpu = &self.vcpus[v.index()];
        let entry = self.cpus[vcpu.cpu].tlb.probe(vcpu.tag(), gva)?;
        Some(Reached { frame: entry.frame_of(gva), writable: entry.perms.contains(memvirt_tlb::Perms::WRITE) })
    }

    fn table_bytes(&self) -> TableBytes {
        let mut sum = TableBytes::default();
        for vm in &self.vms {
            let bytes = vm.regime.table_bytes();
            sum.shadow += bytes.shadow;
            sum.nested += bytes.nested;
            sum.metadata += bytes.metadata;
            sum.reverse_map += bytes.reverse_map;
        }
        sum
    }

    fn attribution(&self, vm: VmId) -> Option<Attribution> {
        self.vms[vm.index()].regime.attribution(&self.host)
    }
}
