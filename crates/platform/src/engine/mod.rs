//! The engine: CPUs, virtual machines and one regime, made into a [`Platform`](crate::Platform).
//!
//! All regimes share one path for accesses: the TLB serves runs of hits without calling anybody, and each miss goes to
//! the [`Regime`], which performs exactly one hardware walk and, where that walk exits, whatever the hypervisor does about
//! it. Here is what the engine is made of and how it serves one miss; runs of accesses are in `counted`, operations whose value
//! matters in `events`, its face as a platform in `face`.

mod counted;
mod events;
mod face;
mod regime;

use memvirt_addr::Gpa;
use memvirt_ops::arch::Control;
use memvirt_ops::{VcpuId, VmId};
use memvirt_tlb::{Entry, Geometry};

use crate::cpu::{Cpu, Regs, Vcpu};
use crate::cx::{Cx, Interrupts, Tags};
use crate::foresee::Lookout;
use crate::host::{Host, MemoryMap};
use crate::ledger::Ledger;
use crate::mmu::{Mmu, MmuGeometry};
use crate::seam::{Horizon, Stop};
use crate::timed::{Overlap, Timing};

pub use events::store_element;
pub use regime::{Outcome, Regime, Request};

/// One virtual machine to be made.
#[derive(Debug)]
pub struct VmSpec {
    /// Its memory.
    pub map: MemoryMap,
    /// How many vCPUs it has; each runs on a physical CPU of its own where there are enough.
    pub vcpus: u16,
}

#[derive(Debug)]
struct Vm<R> {
    map: MemoryMap,
    regime: R,
}

/// CPUs and virtual machines under one kind of regime.
#[derive(Debug)]
pub struct Engine<R> {
    host: Host,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) vcpus: Vec<Vcpu>,
    vms: Vec<Vm<R>>,
    tags: Tags,
    interrupts: Interrupts,
    /// The mode `counts`: what looks ahead, while no run uses it.
    lookout: Option<Box<Lookout>>,
    /// The mode `cycles`: what follows accesses to their cache lines. Boxed: without it an engine is what it counts with.
    pub(crate) timing: Option<Box<Timing>>,
}

/// How an access was performed.
#[derive(Clone, Copy)]
pub(crate) enum Done<T> {
    /// By the CPU, through a translation.
    Through(T),
    /// By the hypervisor.
    Emulated,
    /// By the hypervisor, with the rest of the instruction.
    EmulatedAll,
}

/// An access served, or why not.
pub(crate) type Served = Result<Done<Entry>, Stop>;

/// How often one access may start again. A walk exits for each level it meets at most a few times; beyond that a regime has
/// stopped making progress, which is a bug of the regime, not of its input.
const MAX_RETRIES: u32 = 1000;

impl<R: Regime> Engine<R> {
    /// A machine with `cpus` physical CPUs and these virtual machines.
    ///
    /// vCPUs are numbered over all machines in the order given and placed on the CPUs in turn. Each vCPU gets a VPID of its own,
    /// as KVM gives it one (`allocate_vpid`): several of one machine may share a CPU.
    #[must_use]
    pub fn new(host: Host, cpus: usize, geometry: &Geometry, tags: Tags, vms: Vec<(VmSpec, R)>) -> Self {
        let cpus = (0..cpus.max(1)).map(|_| Cpu::new(geometry)).collect::<Vec<_>>();
        let regs = Regs::kernel(memvirt_ops::arch::Cr3::flushing(Gpa::ZERO));
        let mut vcpus = Vec::new();
        for (vm, (spec, _)) in (0u16..).zip(&vms) {
            for _ in 0..spec.vcpus {
                let (cpu, vpid) = (vcpus.len() % cpus.len(), u16::try_from(vcpus.len() + 1).unwrap_or(u16::MAX));
                vcpus.push(Vcpu { vm: VmId(vm), cpu, regs, vpid });
            }
        }
        let vms = vms.into_iter().map(|(spec, regime)| Vm { map: spec.map, regime }).collect();
        Self { host, cpus, vcpus, vms, tags, interrupts: Interrupts::default(), lookout: None, timing: None }
    }

    /// The same with walk caches in every CPU.
    #[must_use]
    pub fn with_walk_caches(mut self, geometry: &MmuGeometry) -> Self {
        self.cpus.iter_mut().for_each(|cpu| cpu.mmu = Some(Box::new(Mmu::new(geometry))));
        self
    }

    /// The same with other hardware for inter-processor interrupts; by default sending and receiving one exit.
    #[must_use]
    pub const fn with_interrupts(mut self, interrupts: Interrupts) -> Self {
        self.interrupts = interrupts;
        self
    }

    /// Whether hardware delivers an interrupt without the hypervisor.
    fn is_delivered(&self, control: &Control) -> bool {
        match control {
            Control::Interrupt => self.interrupts != Interrupts::Exiting,
            Control::Ipi(_) => self.interrupts == Interrupts::Virtualized,
            _ => false,
        }
    }

    /// Enters what the walk caches of all CPUs counted: an operation of one vCPU may flush on all.
    fn take_cache_counts(&mut self, out: &mut Ledger) {
        for mmu in self.cpus.iter_mut().filter_map(|cpu| cpu.mmu.as_deref_mut()) {
            out.counters.caches += mmu.take_counts();
        }
    }

    /// The regime of a virtual machine, for what only it can tell.
    ///
    /// # Panics
    ///
    /// For a machine that does not exist.
    #[must_use]
    pub fn regime(&self, vm: VmId) -> &R {
        &self.vms[vm.index()].regime
    }

    /// Lets something happen to a regime on vCPU `v` that no [`HostEvent`](memvirt_ops::arch::HostEvent) names and only this regime knows: one of several
    /// hypervisors acting by itself, say.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    pub fn intervene<T>(&mut self, v: VcpuId, out: &mut Ledger, act: impl FnOnce(&mut R, &mut Cx<'_>) -> T) -> T {
        self.with(v, 0, Horizon::Open, out, act)
    }

    /// The registers of a vCPU.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    #[must_use]
    pub fn regs(&self, v: VcpuId) -> &Regs {
        &self.vcpus[v.index()].regs
    }

    /// The memory map of a virtual machine.
    ///
    /// # Panics
    ///
    /// For a machine that does not exist.
    #[must_use]
    pub fn map(&self, vm: VmId) -> &MemoryMap {
        &self.vms[vm.index()].map
    }

    /// The host.
    #[must_use]
    pub const fn machine(&self) -> &Host {
        &self.host
    }

    #[inline]
    pub(crate) fn with<T>(
        &mut self,
        v: VcpuId,
        at: usize,
        horizon: Horizon,
        out: &mut Ledger,
        act: impl FnOnce(&mut R, &mut Cx<'_>) -> T,
    ) -> T {
        let vm = self.vcpus[v.index()].vm;
        let Vm { map, regime } = &mut self.vms[vm.index()];
        let mut cx = Cx {
            me: v,
            vm,
            vcpus: &mut self.vcpus,
            cpus: &mut self.cpus,
            host: &mut self.host,
            map,
            out,
            horizon,
            tags: self.tags,
            at,
        };
        act(regime, &mut cx)
    }

    /// Serves one access that missed, until it is performed.
    pub(crate) fn serve(
        &mut self,
        v: VcpuId,
        request: &Request<'_>,
        at: usize,
        horizon: Horizon,
        out: &mut Ledger,
    ) -> Served {
        for _ in 0..MAX_RETRIES {
            let outcome = self.with(v, at, horizon, out, |regime, cx| regime.miss(cx, request));
            let (number, tag) = (self.vcpus[v.index()].cpu, self.vcpus[v.index()].tag());
            let overlap = if matches!(outcome, Outcome::Filled(_)) { Overlap::May } else { Overlap::No };
            self.walked(number, at, overlap, out);
            let cpu = &mut self.cpus[number];
            match outcome {
                Outcome::Filled(entry) => {
                    cpu.tlb.fill(tag, entry);
                    return Ok(Done::Through(entry));
                }
                Outcome::Emulated | Outcome::EmulatedAll => {
                    // The walk ended in a page fault or a violation, which drops what is cached for the address (SDM 4.10.4.1,
                    // 28.3.3.1); here no fill follows that would replace it.
                    cpu.drop_denied(tag, request.acc.gva());
                    let all = matches!(outcome, Outcome::EmulatedAll);
                    return Ok(if all { Done::EmulatedAll } else { Done::Emulated });
                }
                Outcome::Retry => {
                    if let Some(entry) = cpu.tlb.lookup(tag, request.acc) {
                        return Ok(Done::Through(entry));
                    }
                }
                Outcome::Fault(fault) => {
                    cpu.page_fault(tag, fault.gva);
                    out.counters.guest_page_faults += 1;
                    return Err(Stop::GuestFault(fault));
                }
                Outcome::Horizon => return Err(Stop::Horizon),
                Outcome::OutOfMemory => return Err(Stop::HostOutOfMemory),
            }
        }
        unreachable!("{:?} never completes under this regime", request.acc)
    }
}
