//! The engine: CPUs, virtual machines and one regime, made into a [`Platform`].
//!
//! All regimes share this one path for accesses: the TLB serves runs of hits without calling anybody, and each miss goes to
//! the [`Regime`], which performs exactly one hardware walk and, where that walk exits, whatever the hypervisor does about
//! it. A regime is one unit: hardware walk, exit handlers, privileged operations and host events together.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, HostPhys, Hpa};
use memvirt_ops::arch::{Control, Event, GfnRange, GuestFault, HostEvent, StoreOp};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::PhysMem;
use memvirt_tlb::{Entry, Geometry, Through};

use crate::cpu::{Cpu, Regs, Vcpu};
use crate::cx::{Cx, Interrupts, Tags};
use crate::exit::Work;
use crate::foresee::{Foresight, Lookout};
use crate::host::{GuestMem, Host, MemoryMap, read_guest};
use crate::ledger::Ledger;
use crate::mmu::{Mmu, MmuGeometry};
use crate::seam::{Attribution, Horizon, Platform, Reached, Refusal, Stop, TableBytes};
use crate::timed::{Overlap, Timing};

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

    /// Lets something happen to a regime on vCPU `v` that no [`HostEvent`] names and only this regime knows: one of several
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

    /// [`Platform::accesses`] in the mode `counts`: hits in a run, misses one by one.
    #[inline]
    fn counted_accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        let mut lookout = self.lookout.take().unwrap_or_default();
        lookout.begin();
        let end = self.look_out_for(v, run, horizon, &mut lookout, out);
        self.lookout = Some(lookout);
        end
    }

    #[inline]
    fn look_out_for(
        &mut self,
        v: VcpuId,
        run: &[Acc],
        horizon: Horizon,
        lookout: &mut Lookout,
        out: &mut Ledger,
    ) -> (usize, Stop) {
        let vcpu = &self.vcpus[v.index()];
        let (cpu, tag, mut done) = (vcpu.cpu, vcpu.tag(), 0);
        let stop = loop {
            done += self.cpus[cpu].tlb.hits(tag, &run[done..]);
            let Some(acc) = run.get(done) else { break Stop::Done };
            let known = lookout.at_miss(run, done, |ahead, found| self.foresee(v, done, horizon, out, ahead, found));
            if known.is_some() {
                lookout.count(done, Through { done: 1, filled: 1 }, &mut out.counters);
                self.cpus[cpu].tlb.fill_ready(tag, known);
                done = self.go_through(v, run, done + 1, horizon, lookout, out);
                continue;
            }
            let request = Request { acc: *acc, store: None, ip: Gva::ZERO, element: 0 };
            let effects = |out: &Ledger| (out.counters.ad_updates, out.counters.total_exits());
            let (walks, before) = (out.counters.walks, effects(out));
            match self.serve(v, &request, done, horizon, out) {
                Ok(_) => done += 1,
                Err(stop) => break stop,
            }
            // One walk that set no bit and did not exit has only read; anything else may have changed tables.
            if out.counters.walks != walks + 1 || effects(out) != before {
                lookout.forget();
            }
        };
        (done, stop)
    }

    /// Goes on from the access at `done` while what happens is known ahead, and looks at more as long as many miss; returns
    /// where it stops.
    #[inline]
    fn go_through(
        &mut self,
        v: VcpuId,
        run: &[Acc],
        mut done: usize,
        horizon: Horizon,
        lookout: &mut Lookout,
        out: &mut Ledger,
    ) -> usize {
        let (cpu, tag) = (self.vcpus[v.index()].cpu, self.vcpus[v.index()].tag());
        let mut many = false;
        loop {
            if done == lookout.seen() && many && done < run.len() {
                lookout.look(run, done, |ahead, found| self.foresee(v, done, horizon, out, ahead, found));
            }
            let ready = lookout.from(done);
            if ready.is_empty() {
                return done;
            }
            let through = self.cpus[cpu].tlb.through(tag, &run[done..], ready);
            if through.done == 0 {
                return done;
            }
            many = lookout.count(done, through, &mut out.counters);
            done += through.done;
        }
    }

    /// Asks the regime about the next accesses, where walks concern nobody else.
    pub(crate) fn foresee(
        &mut self,
        v: VcpuId,
        at: usize,
        horizon: Horizon,
        out: &mut Ledger,
        ahead: &[Acc],
        found: &mut Foresight,
    ) {
        if self.cpus[self.vcpus[v.index()].cpu].mmu.is_none() {
            self.with(v, at, horizon, out, |regime, cx| regime.foresee(cx, ahead, found));
        }
    }

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

    fn carry_out(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
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
}

impl<R: Regime> Engine<R> {
    /// The host acts, on the CPU of vCPU `v`.
    fn by_itself(&mut self, v: VcpuId, event: &HostEvent, out: &mut Ledger) {
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
