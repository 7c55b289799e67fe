//! [`ShadowOnEpt`]: L1 shadows L2's tables. Under KVM every exit of L2 goes through L0; under PVM a switcher takes it to L1.
//!
//! Hardware walks SPT12, which lies in L1's memory, under EPT01: for 4 and 4 levels 24 references. L1 write-protects every table
//! that it follows by what its own SPT12 permits (see `merge.rs`), so each store of L2's kernel to one is an exit of L2. L0
//! knows nothing of SPT12: L1 stores to it as to any page of its own.
//!
//! **PVM** (Huang et al., SOSP 2023; the patch series *KVM: x86: PVM*, specification `Documentation/virt/kvm/x86/pvm-spec.rst`): the
//! same tables, but L2's kernel and processes both run in the CPU's user mode within L1's virtual machine. Exceptions, system
//! calls and hypercalls land in a switcher that L1 maps into both, which hands over to L1's hypervisor or, for system calls and
//! returns to user mode, goes straight from L2's user mode to L2's kernel mode. So L0 is entered for EPT01 violations only.
//! Left out: the second SPT12 for user mode (here one tree carries the guest's own U bits) and the paper's prefault, which turns
//! the return from L2's fault handler into a hypercall and saves the fault after it: the same number of switches.

use memvirt_addr::{Gfn, Gpa, PfCode};
use memvirt_addr::{GuestPhys, Gva, Hfn, L1Phys, L1fn, L1pa, Privilege};
use memvirt_ops::arch::{Control, CrWrite, GfnRange, GuestFault, HostEvent, StoreOp, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format};
use memvirt_platform::{
    Cx, Dimension, ExitReason, Horizon, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Regs, Request, TableBytes,
    Tags, WalkRefs, Work, store_element,
};

use crate::config::{Arrangement, Config};
use crate::format::{Guest, Nested01, Shadow12};
use crate::hypervisor::{Nesting, clip, exits_of};
use crate::l0::{Found, L0};
use crate::l1::L1;
use crate::merge::{Change, Fill, Keeper, Merge, PageId};
use crate::stack::Stack;
use crate::walk::{End, Hardware, Path};
use crate::world::{Cause, Who, World};

type Spt<const N: u8> = Merge<Guest<N>, Shadow12<N>>;

/// L1's shadow paging under L0's EPT, for an L2 with tables of `N` levels.
#[derive(Debug)]
pub struct ShadowOnEpt<const N: u8 = 4> {
    pub(crate) stack: Stack,
    pub(crate) spt: Spt<N>,
    /// The root that each vCPU runs on.
    roots: Vec<Option<PageId>>,
}

/// L1 at work on SPT12: its loads and stores go through EPT01.
struct AtWork<'a, 'c> {
    stack: &'a mut Stack,
    cx: &'a mut Cx<'c>,
    work: &'a mut Work,
}

impl Keeper<GuestPhys, L1Phys> for AtWork<'_, '_> {
    fn source(&mut self, at: Gpa) -> Option<u64> {
        self.stack.guest_load(self.cx, at, self.work)
    }

    fn load(&mut self, at: L1pa) -> Option<u64> {
        self.stack.load(self.cx, at, self.work)
    }

    fn store(&mut self, at: L1pa, value: u64) -> Option<()> {
        match self.stack.reach(self.cx, at, true, self.work)? {
            Found::At(hpa) => {
                self.cx.host.mem.write(hpa, value);
                Some(())
            }
            Found::Absent | Found::Protected => None,
        }
    }

    fn allocate(&mut self) -> Option<L1fn> {
        let frame = self.stack.l1.allocate_table()?;
        match self.stack.reach(self.cx, frame.base(), true, self.work)? {
            Found::At(hpa) => self.cx.host.mem.discard(hpa.frame()),
            Found::Absent | Found::Protected => return None,
        }
        Some(frame)
    }

    fn free(&mut self, frame: L1fn) {
        self.stack.l1.free_table(frame);
    }

    fn guard(&mut self, table: Gfn, on: bool) {
        self.stack
            .world
            .act(|| format!("{} L2's table in {table:?}", if on { "write-protects" } else { "lets go of" }));
    }

    fn target(&mut self, frame: Gfn) -> Option<L1fn> {
        self.stack.guest_frame(self.cx, frame, self.work)
    }

    fn leaf(attrs: Attrs) -> Attrs {
        let perms = attrs & Attrs::PERMISSIONS;
        if attrs.contains(Attrs::DIRTY) { perms } else { perms - Attrs::WRITE }
    }

    fn may_foresee(attrs: Attrs) -> bool {
        attrs.contains(Attrs::ACCESSED)
    }

    fn work(&mut self) -> &mut Work {
        self.work
    }
}

/// A page of L2 as L2's own tables give it.
struct Page<const N: u8> {
    path: Path<Guest<N>>,
    gfn: Gfn,
}

/// Memory has run out.
struct Exhausted;

impl<const N: u8> ShadowOnEpt<N> {
    /// A machine with the memory of `map` and no tables yet. `None` where the host has no frame for EPT01.
    ///
    /// # Panics
    ///
    /// For [`Arrangement::EptOnEpt`], which is [`crate::EptOnEpt`].
    #[must_use]
    pub fn new(host: &mut Host, map: &MemoryMap, arrangement: Arrangement, config: Config) -> Option<Self> {
        assert!(arrangement != Arrangement::EptOnEpt, "EptOnEpt keeps no shadow");
        let stack = Stack::new(host, map.frames(), arrangement, config)?;
        Some(Self { stack, spt: Merge::new(config), roots: Vec::new() })
    }

    fn at_work<'a, 'c>(stack: &'a mut Stack, cx: &'a mut Cx<'c>, work: &'a mut Work) -> AtWork<'a, 'c> {
        AtWork { stack, cx, work }
    }

    fn root(&self, cx: &Cx<'_>) -> Option<PageId> {
        self.roots.get(cx.me.index()).copied().flatten()
    }

    /// L1 puts the vCPU on the shadow of its CR3; on none where that is no memory.
    fn load_root(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Result<Change, Exhausted> {
        let (v, gfn) = (cx.me.index(), cx.regs().cr3.root.frame());
        let (mut root, mut change) = (None, Change::Kept);
        if cx.map.contains(gfn) {
            let (page, made) = self.spt.root(&mut Self::at_work(&mut self.stack, cx, work), gfn).ok_or(Exhausted)?;
            self.spt.pin(page);
            (root, change) = (Some(page), made);
        }
        if self.roots.len() <= v {
            self.roots.resize(v + 1, None);
        }
        if let Some(old) = core::mem::replace(&mut self.roots[v], root) {
            self.spt.unpin(old);
        }
        Ok(change)
    }

    /// L1 flushes where something cached became obsolete.
    fn flush_if(&mut self, cx: &mut Cx<'_>, change: Change, work: &mut Work) -> VcpuSet {
        match change {
            Change::Lost => self.stack.flush(cx, work),
            Change::Kept => VcpuSet::EMPTY,
        }
    }

    /// L1 resumes L2 and the exit is entered in the ledger.
    fn done(&mut self, cx: &mut Cx<'_>, reason: ExitReason, work: Work, kick: VcpuSet, what: &str) {
        self.stack.resume(cx, what);
        cx.exit(reason, work, Some(LockMode::Exclusive), kick);
    }

    /// L1 has the CPU, after a page fault of L2.
    fn fault(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Result<Outcome, Exhausted> {
        let (mut work, acc) = (Work::default(), request.acc);
        let mut change = Change::Kept;
        if self.root(cx).is_none() {
            change = self.load_root(cx, &mut work)?;
        }
        let table = cx.regs().cr3.root.frame();
        let stack = &mut self.stack;
        let path =
            Path::<Guest<N>>::read(table, acc.gva(), |at| stack.guest_load(cx, at, &mut work)).ok_or(Exhausted)?;
        match translate(cx.regs(), &path, request) {
            Err(code) => {
                stack.world.act(|| format!("walks L2's tables: they forbid {:?}; injects a page fault", acc.gva()));
                let kick = self.flush_if(cx, change, &mut work);
                self.done(cx, ExitReason::ReflectedFault, work, kick, "L2's kernel takes the page fault");
                Ok(Outcome::Fault(GuestFault { gva: acc.gva(), code }))
            }
            Ok(gfn) => {
                self.mark_used(cx, &path, request, &mut work)?;
                self.repair(cx, request, &Page { path, gfn }, (change, work))
            }
        }
    }

    /// L1 sets A on all levels of L2's tables, and D in the leaf for a store.
    fn mark_used(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path<Guest<N>>,
        request: &Request<'_>,
        work: &mut Work,
    ) -> Result<(), Exhausted> {
        for step in &path.steps {
            let leaf = matches!(step.entry, Entry::Leaf { .. });
            let dirty = if leaf && request.acc.is_write() { Guest::<N>::RAW_DIRTY } else { 0 };
            let bits = Guest::<N>::RAW_ACCESSED | dirty;
            if step.raw & bits != bits {
                let hpa = self.stack.guest_address(cx, step.entry_at, work).ok_or(Exhausted)?;
                cx.host.mem.write(hpa, step.raw | bits);
            }
        }
        Ok(())
    }

    /// L2's tables allow the access.
    fn repair(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &Page<N>,
        (change, mut work): (Change, Work),
    ) -> Result<Outcome, Exhausted> {
        let write = request.acc.is_write();
        if !cx.map.contains(page.gfn) {
            work.instructions_emulated += 1;
            self.stack.world.act(|| "emulates an access to a device".to_owned());
            let kick = self.flush_if(cx, change, &mut work);
            self.done(cx, ExitReason::Mmio, work, kick, "L2 goes on behind the access");
            return Ok(Outcome::Emulated);
        }
        if write && self.spt.is_followed(page.gfn) {
            return self.table_store(cx, request, page, (change, work));
        }
        if write && !page.path.perms.contains(Attrs::WRITE) {
            // CR0.WP is clear for L2, and set while it runs on shadow tables.
            self.emulate(cx, request, page.gfn, &mut work)?;
            let kick = self.flush_if(cx, change, &mut work);
            self.done(cx, ExitReason::HiddenFault, work, kick, "L2 goes on behind the store");
            return Ok(Outcome::Emulated);
        }
        let filled = self.fill(cx, request, page, &mut work)?;
        let kick = self.flush_if(cx, change.or(filled), &mut work);
        self.done(cx, ExitReason::HiddenFault, work, kick, "the access starts again");
        Ok(Outcome::Retry)
    }

    fn fill(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &Page<N>,
        work: &mut Work,
    ) -> Result<Change, Exhausted> {
        let mut path = page.path.clone();
        if let Some(Entry::Leaf { attrs, .. }) = path.steps.last_mut().map(|step| &mut step.entry)
            && request.acc.is_write()
        {
            *attrs |= Attrs::DIRTY;
        }
        let frame = self.stack.guest_frame(cx, page.gfn, work).ok_or(Exhausted)?;
        let root = self.root(cx).ok_or(Exhausted)?;
        let fill = Fill { at: request.acc.gva(), path: &path, frames: (page.gfn, frame) };
        let mut keeper = Self::at_work(&mut self.stack, cx, work);
        let change = self.spt.fill(&mut keeper, root, &fill).ok_or(Exhausted)?;
        self.stack.world.act(|| format!("fills SPT12: {:?} lies in {frame:?}", request.acc.gva()));
        Ok(change)
    }

    /// A store to a table that L1 follows.
    fn table_store(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &Page<N>,
        (mut change, mut work): (Change, Work),
    ) -> Result<Outcome, Exhausted> {
        let gfn = page.gfn;
        let data = request.acc.privilege() == Privilege::User
            || matches!(request.store, Some(StoreOp::RepStos { .. } | StoreOp::Vector));
        if data && !self.spt.is_root(gfn) && !page.path.leads_through(gfn) {
            // Kernels do not change tables like that: the page holds data by now.
            let mut keeper = Self::at_work(&mut self.stack, cx, &mut work);
            change = change.or(self.spt.unfollow(&mut keeper, gfn).ok_or(Exhausted)?);
            let kick = self.flush_if(cx, change, &mut work);
            self.done(cx, ExitReason::TableWrite, work, kick, "the store starts again");
            return Ok(Outcome::Retry);
        }
        let level = self.spt.level_of(gfn);
        self.stack
            .world
            .act(|| format!("emulates the store to L2's table of level {}", level.map_or(0, |l| l.number())));
        for (index, raw) in self.emulate(cx, request, gfn, &mut work)? {
            let mut keeper = Self::at_work(&mut self.stack, cx, &mut work);
            change = change.or(self.spt.stored(&mut keeper, gfn, index, raw).ok_or(Exhausted)?);
        }
        let kick = self.flush_if(cx, change, &mut work);
        self.done(cx, ExitReason::TableWrite, work, kick, "L2's kernel goes on behind the store");
        Ok(Outcome::Emulated)
    }

    /// L1 carries out one element of a store in L2's memory; the words that changed.
    fn emulate(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        gfn: Gfn,
        work: &mut Work,
    ) -> Result<Vec<(u16, u64)>, Exhausted> {
        work.instructions_emulated += 1;
        let offset = request.acc.gva().as_u64() & 0xfff;
        let at = self.stack.guest_address(cx, gfn.at(offset), work).ok_or(Exhausted)?;
        let Some(op) = request.store else { return Ok(Vec::new()) };
        let bytes = match op {
            StoreOp::Mov { width, .. } => width.bytes(),
            StoreOp::And { .. } | StoreOp::Or { .. } | StoreOp::RepStos { .. } => 8,
            StoreOp::Vector => 16,
        };
        let words = offset >> 3..=((offset + bytes - 1) >> 3).min(511);
        let word = |cx: &Cx<'_>, index: u64| cx.host.mem.read(at.frame().at(index * 8));
        let before: Vec<_> = words.map(|index| (index, word(cx, index))).collect();
        store_element(&mut cx.host.mem, at, op);
        let changed = before.into_iter().filter(|(index, old)| word(cx, *index) != *old);
        Ok(changed.map(|(index, _)| (u16::try_from(index).unwrap_or(0), word(cx, index))).collect())
    }

    /// L1 takes L2's frames away: the leaves of SPT12 over them go, and L2's translations with them.
    fn take_from_l2(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Result<(), Exhausted> {
        let (start, end) = clip(cx, range);
        cx.map.unmap(range);
        let mut change = Change::Kept;
        for gfn in self.stack.l1.resident_in(start, end) {
            change = change.or(self.spt.forget(&mut Self::at_work(&mut self.stack, cx, work), gfn).ok_or(Exhausted)?);
            self.stack.l1.take(gfn);
        }
        self.flush_if(cx, change, work);
        Ok(())
    }

    /// What L1 does about a privileged operation of L2 that it sees.
    fn privileged(&mut self, cx: &mut Cx<'_>, control: &Control, work: &mut Work) -> Result<VcpuSet, Exhausted> {
        cx.execute(control);
        match control {
            Control::Cr3(cr3) => {
                let change = self.load_root(cx, work)?;
                if change == Change::Lost {
                    return Ok(self.stack.flush(cx, work));
                }
                if !(cr3.keep && cx.regs().pcid_enable) {
                    self.stack.flush_for_l2();
                }
            }
            Control::Invlpg(_) | Control::Invpcid(_) | Control::Cr(CrWrite::TogglePge) => self.stack.flush_for_l2(),
            _ => {}
        }
        Ok(VcpuSet::EMPTY)
    }
}

/// What L2's tables say about an access: a frame, or the page fault that L2 must see.
fn translate<const N: u8>(regs: &Regs, path: &Path<Guest<N>>, request: &Request<'_>) -> Result<Gfn, PfCode> {
    match (path.leaf(request.acc.gva()), path.last().map(|step| step.entry)) {
        (Some((gfn, ..)), _) if regs.permits(path.perms, request.acc) => Ok(gfn),
        (None, Some(Entry::Reserved)) => Err(PfCode::of(request.acc, true).with_reserved()),
        (None, _) => Err(PfCode::of(request.acc, false)),
        (Some(_), _) => Err(PfCode::of(request.acc, true)),
    }
}

impl<const N: u8> ShadowOnEpt<N> {
    /// One hardware walk and what comes of it.
    fn walked(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let regs = Regs { write_protect: true, ..*cx.regs() };
        let nested = self.stack.l0.ept01();
        let walk = self.root(cx).and_then(|root| self.spt.frame(root)).map(|root| {
            Hardware::walk::<Shadow12<N>, Nested01>(cx, Dimension::Shadow, (root, nested), &regs, request.acc)
        });
        let mapped = matches!(walk.as_ref().map(|walk| &walk.end), Some(End::Mapped(_)));
        if !mapped && cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        if let Some(walk) = &walk {
            let refs = WalkRefs { shadow: walk.first, host: walk.second, ..WalkRefs::default() };
            cx.out.counters.add_walk(refs, walk.ad_updates, 0);
        }
        match walk.map(|walk| walk.end) {
            Some(End::Mapped(entry)) => return Outcome::Filled(entry),
            Some(End::Violation(violation)) => {
                let mut work = Work::default();
                if self.stack.serve_violation(cx, violation.at, &mut work).is_none() {
                    return Outcome::OutOfMemory;
                }
                self.stack.world.switch(Who::L2, Cause::EptViolation, "entry: the access starts again");
                cx.exit(ExitReason::EptViolation, work, Some(LockMode::Shared), VcpuSet::EMPTY);
                return Outcome::Retry;
            }
            Some(End::Fault(_)) | None => {}
        }
        let gva: Gva = request.acc.gva();
        let who = if request.acc.privilege() == Privilege::User { "process" } else { "kernel" };
        self.stack.leave(Cause::PageFault, &format!("page fault of L2's {who} at {gva:?}: SPT12 does not permit it"));
        self.fault(cx, request).unwrap_or(Outcome::OutOfMemory)
    }
}

impl<const N: u8> Regime for ShadowOnEpt<N> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let outcome = self.walked(cx, request);
        self.stack.world.publish(&mut cx.out.counters);
        outcome
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let (reason, mut exits) = exits_of(control, true);
        if self.stack.arrangement == Arrangement::Pvm {
            // PVM's kernel keeps its CR3 where it can read it, and flushes with one hypercall.
            exits = if matches!(control, Control::ReadCr3) { 0 } else { exits.min(1) };
        }
        for exit in 1..=exits {
            let mut work = Work::default();
            self.stack.leave(Cause::Privileged, "a privileged operation of L2");
            let mut kick = VcpuSet::EMPTY;
            if exit == exits {
                kick = self.privileged(cx, control, &mut work).map_err(|Exhausted| Refusal::HostOutOfMemory)?;
            }
            self.done(cx, reason, work, kick, "L2 goes on behind the instruction");
        }
        if exits == 0 {
            cx.execute(control);
        }
        self.stack.world.publish(&mut cx.out.counters);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        match *event {
            HostEvent::Unmap(_, range) | HostEvent::Discard(_, range) => {
                self.stack.interrupt_l1();
                let _ = self.take_from_l2(cx, range, &mut work);
                self.stack.resume(cx, "L2 goes on");
            }
            HostEvent::SlotChange(_) => {
                self.stack.interrupt_l1();
                let change = self.spt.clear(&mut Self::at_work(&mut self.stack, cx, &mut work));
                self.flush_if(cx, change.unwrap_or(Change::Lost), &mut work);
                self.stack.resume(cx, "L2 goes on");
            }
            HostEvent::WorldSwitch(_) if cx.tags == Tags::Off => {
                cx.cpu().flush_untagged();
                cx.out.counters.tlb_flushes += 1;
            }
            HostEvent::WorldSwitch(_)
            | HostEvent::DirtyLog(..)
            | HostEvent::DirtyRound(_)
            | HostEvent::ShadowPageLimit(..) => {}
        }
        cx.out.counters.work += work;
        self.stack.world.publish(&mut cx.out.counters);
    }

    fn table_bytes(&self) -> TableBytes {
        TableBytes { shadow: self.spt.tables() * 4096, nested: self.stack.l0.tables() * 4096, metadata: 0 }
    }
}

impl<const N: u8> Nesting for ShadowOnEpt<N> {
    fn l0(&self) -> &L0 {
        &self.stack.l0
    }

    fn l1(&self) -> &L1 {
        &self.stack.l1
    }

    fn world(&self) -> &World {
        &self.stack.world
    }

    fn world_mut(&mut self) -> &mut World {
        &mut self.stack.world
    }

    fn take_from_l1(&mut self, cx: &mut Cx<'_>, frames: &[L1fn]) {
        let mut work = Work::default();
        self.stack.world.switch(Who::L0, Cause::Interrupt, "an interrupt exits");
        let taken = frames.iter().filter(|frame| self.stack.take_from_l1(cx, **frame, &mut work)).count();
        if taken > 0 {
            cx.flush_vm(&mut work);
        }
        self.stack.world.switch(Who::L2, Cause::Interrupt, "entry");
        cx.out.counters.work += work;
        self.stack.world.publish(&mut cx.out.counters);
    }

    fn prefault_guest(&mut self, cx: &mut Cx<'_>, range: GfnRange) -> bool {
        self.stack.prefault_guest(cx, range)
    }

    fn prefault_heap(&mut self, cx: &mut Cx<'_>, frames: u64) -> bool {
        self.stack.prefault_heap(cx, frames)
    }
}

impl<const N: u8> ShadowOnEpt<N> {
    /// The roots of SPT12 that vCPUs run on.
    #[must_use]
    pub fn shadow_root(&self, vcpu: usize) -> Option<L1fn> {
        self.roots.get(vcpu).copied().flatten().and_then(|root| self.spt.frame(root))
    }

    /// The root of EPT01.
    #[must_use]
    pub const fn nested_root(&self) -> Hfn {
        self.stack.l0.ept01()
    }
}
