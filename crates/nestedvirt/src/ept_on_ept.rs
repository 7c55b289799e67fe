//! [`EptOnEpt`]: L1 keeps nested tables for L2, and L0 merges them with its own.
//!
//! Hardware walks L2's tables under EPT02: for 4 and 4 levels 24 references, as if there were no L1. L2's page faults, CR3 loads
//! and INVLPGs leave nobody's hands but its own. An EPT violation goes to L0, which looks into EPT12 (its root is in VMCS12): where
//! EPT12 permits the access, L0 fills EPT02 and resumes L2; where not, the violation is L1's. L1 then stores to EPT12 as to any
//! page of its own, but L0 follows those tables and has write-protected them in EPT01: each such store exits once more. Sources:
//! Ben-Yehuda et al., *The Turtles Project*, OSDI 2010, section 3.3; KVM's `nested_ept_init_mmu_context`, `ept` in
//! `mmu/paging_tmpl.h`. VMCS12 is a shadow VMCS: L1's VMREADs and VMWRITEs do not exit.

use memvirt_addr::{Gfn, Gpa, GuestPhys, Hfn, HostPhys, Hpa, L1Phys, L1fn, L1pa, Level, PageSize, PfCode};
use memvirt_ops::arch::{Control, GfnRange, GuestFault, HostEvent, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format};
use memvirt_platform::{
    Cx, Dimension, ExitReason, Horizon, Host, LockMode, MemoryMap, Outcome, Refusal, Regime, Request, TableBytes, Tags,
    WalkRefs, Work,
};

use crate::config::{Arrangement, Config};
use crate::format::{Ept12, Guest, Merged02};
use crate::hypervisor::{Nesting, clip, exits_of};
use crate::l0::{Found, L0};
use crate::l1::L1;
use crate::merge::{Change, Fill, Keeper, Merge, PageId};
use crate::stack::Stack;
use crate::walk::{End, Hardware, Path, Violation};
use crate::world::{Cause, Who, World};

const LEAF: Attrs = Attrs::RWX.union(Attrs::WRITE_BACK);

/// L1's nested paging merged by L0, for an L2 with tables of `N` levels and an EPT12 of as many.
#[derive(Debug)]
pub struct EptOnEpt<const N: u8 = 4> {
    pub(crate) stack: Stack,
    /// The root of EPT12.
    pub(crate) root12: L1fn,
    pub(crate) ept02: Merge<Ept12<N>, Merged02<N>>,
    root02: Option<PageId>,
}

/// L0 at work on EPT02: its own memory is the host's.
struct AtWork<'a, 'c> {
    stack: &'a mut Stack,
    cx: &'a mut Cx<'c>,
    work: &'a mut Work,
}

impl Keeper<L1Phys, HostPhys> for AtWork<'_, '_> {
    fn source(&mut self, at: L1pa) -> Option<u64> {
        self.work.guest_entries_read += 1;
        Some(self.stack.l0.address(at).map_or(0, |hpa| self.cx.host.mem.read(hpa)))
    }

    fn load(&mut self, at: Hpa) -> Option<u64> {
        Some(self.cx.host.mem.read(at))
    }

    fn store(&mut self, at: Hpa, value: u64) -> Option<()> {
        self.cx.host.mem.write(at, value);
        Some(())
    }

    fn allocate(&mut self) -> Option<Hfn> {
        self.cx.host.allocate(PageSize::Size4K)
    }

    fn free(&mut self, frame: Hfn) {
        self.cx.host.free(frame, PageSize::Size4K);
    }

    fn guard(&mut self, table: L1fn, on: bool) {
        self.stack.l0.guard(self.cx.host, table, on, self.work);
        self.stack
            .world
            .act(|| format!("{} L1's table in {table:?}", if on { "write-protects" } else { "lets go of" }));
    }

    fn target(&mut self, frame: L1fn) -> Option<Hfn> {
        self.stack.back(self.cx, frame, self.work)
    }

    fn leaf(attrs: Attrs) -> Attrs {
        attrs & (Attrs::RWX | Attrs::WRITE_BACK) | Attrs::WRITE_BACK
    }

    fn may_foresee(_: Attrs) -> bool {
        true
    }

    fn work(&mut self) -> &mut Work {
        self.work
    }
}

/// Memory has run out.
struct Exhausted;

impl<const N: u8> EptOnEpt<N> {
    /// A machine with the memory of `map`; L1 has made the root of EPT12. `None` where the host has no frame left.
    #[must_use]
    pub fn new(host: &mut Host, map: &MemoryMap, config: Config) -> Option<Self> {
        let mut stack = Stack::new(host, map.frames(), Arrangement::EptOnEpt, config)?;
        let root12 = stack.l1.allocate_table()?;
        stack.l0.give(root12, host.allocate(PageSize::Size4K)?);
        stack.l0.map(host, root12, &mut Work::default())?;
        Some(Self { stack, root12, ept02: Merge::new(config), root02: None })
    }

    /// The root of EPT12.
    #[must_use]
    pub const fn root12(&self) -> L1fn {
        self.root12
    }

    /// The root of EPT02; none before L2 first ran.
    #[must_use]
    pub fn root02(&self) -> Option<Hfn> {
        self.root02.and_then(|root| self.ept02.frame(root))
    }

    /// L0 follows the root of EPT12 since L1 first entered L2.
    fn entered(&mut self, cx: &mut Cx<'_>) -> Option<Hfn> {
        if self.root02.is_none() {
            let mut work = Work::default();
            let mut keeper = AtWork { stack: &mut self.stack, cx, work: &mut work };
            let (root, _) = self.ept02.root(&mut keeper, self.root12)?;
            self.ept02.pin(root);
            self.root02 = Some(root);
            cx.out.counters.work += work;
        }
        self.root02()
    }

    /// L0's walk of EPT12.
    fn look12(&self, cx: &Cx<'_>, at: Gpa) -> Option<Path<Ept12<N>>> {
        let l0 = &self.stack.l0;
        Path::read(self.root12, at, |entry| Some(l0.address(entry).map_or(0, |hpa| cx.host.mem.read(hpa))))
    }

    /// L2 met an EPT violation, and L0 has the CPU.
    fn violated(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        found: &Violation<GuestPhys>,
    ) -> Result<Outcome, Exhausted> {
        let mut work = Work::default();
        let wants = if found.write { Attrs::WRITE } else { Attrs::READ };
        let path = self.look12(cx, found.at).ok_or(Exhausted)?;
        if let Some((frame, ..)) = path.leaf(found.at).filter(|_| path.perms.contains(wants)) {
            self.stack.world.act(|| "walks EPT12: it permits the access".to_owned());
            self.merge(cx, found.at, &path, frame, &mut work)?;
            self.stack.world.switch(Who::L2, Cause::EptViolation, "entry: the access starts again");
            cx.exit(ExitReason::EptViolation, work, Some(LockMode::Shared), VcpuSet::EMPTY);
            return Ok(Outcome::Retry);
        }
        self.stack.world.act(|| "walks EPT12: it does not permit the access".to_owned());
        self.stack.reflect(Cause::EptViolation);
        if !cx.map.contains(found.at.frame()) {
            return Ok(self.device(cx, request, found, work));
        }
        self.map12(cx, found.at, &mut work)?;
        self.stack.resume(cx, "the access starts again");
        cx.exit(ExitReason::EptViolation, work, Some(LockMode::Exclusive), VcpuSet::EMPTY);
        Ok(Outcome::Retry)
    }

    /// L1 emulates an access to a device. A table of L2 that lies in one reads as absent.
    fn device(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        found: &Violation<GuestPhys>,
        mut work: Work,
    ) -> Outcome {
        work.instructions_emulated += 1;
        self.stack.world.act(|| "emulates an access to a device".to_owned());
        self.stack.resume(cx, "L2 goes on behind the access");
        cx.exit(ExitReason::Mmio, work, None, VcpuSet::EMPTY);
        if found.on_data {
            Outcome::Emulated
        } else {
            Outcome::Fault(GuestFault { gva: request.acc.gva(), code: PfCode::of(request.acc, false) })
        }
    }

    /// L0 fills EPT02 with what EPT12 and its own map come to.
    fn merge(
        &mut self,
        cx: &mut Cx<'_>,
        at: Gpa,
        path: &Path<Ept12<N>>,
        frame: L1fn,
        work: &mut Work,
    ) -> Result<(), Exhausted> {
        let target = self.stack.back(cx, frame, work).ok_or(Exhausted)?;
        let root = self.root02.ok_or(Exhausted)?;
        let mut keeper = AtWork { stack: &mut self.stack, cx, work };
        let fill = Fill { at, path, frames: (frame, target) };
        let change = self.ept02.fill(&mut keeper, root, &fill).ok_or(Exhausted)?;
        self.stack.world.act(|| format!("fills EPT02: {at:?} lies in {target:?}"));
        if change == Change::Lost {
            cx.flush_vm(work);
        }
        Ok(())
    }

    /// L1 maps a page of L2 in EPT12, with ordinary stores from the root down.
    fn map12(&mut self, cx: &mut Cx<'_>, at: Gpa, work: &mut Work) -> Result<(), Exhausted> {
        let frame = self.stack.guest_frame(cx, at.frame(), work).ok_or(Exhausted)?;
        let (mut table, mut level) = (self.root12, Ept12::<N>::ROOT);
        while let Some(below) = level.below() {
            let entry_at = table.entry(Ept12::<N>::index(at, level));
            let raw = self.stack.load(cx, entry_at, work).ok_or(Exhausted)?;
            if let Entry::Table { next, .. } = Ept12::<N>::decode(raw, level) {
                table = next;
            } else {
                table = self.new_table(cx, work)?;
                let entry = Entry::Table { next: table, attrs: Attrs::RWX };
                self.store12(cx, entry_at, (level, Ept12::<N>::encode(entry, level)), work)?;
            }
            level = below;
        }
        let leaf = Entry::Leaf { frame, size: PageSize::Size4K, attrs: LEAF };
        let entry_at = table.entry(Ept12::<N>::index(at, level));
        self.store12(cx, entry_at, (level, Ept12::<N>::encode(leaf, level)), work)?;
        work.entries_set += 1;
        Ok(())
    }

    /// A cleared frame of L1's heap.
    fn new_table(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Result<L1fn, Exhausted> {
        let frame = self.stack.l1.allocate_table().ok_or(Exhausted)?;
        match self.stack.reach(cx, frame.base(), true, work).ok_or(Exhausted)? {
            Found::At(hpa) => cx.host.mem.discard(hpa.frame()),
            Found::Absent | Found::Protected => return Err(Exhausted),
        }
        work.tables_allocated += 1;
        Ok(frame)
    }

    /// L1 stores an entry of EPT12. Where L0 follows the table, the store exits and L0 carries it out.
    fn store12(
        &mut self,
        cx: &mut Cx<'_>,
        at: L1pa,
        (level, raw): (Level, u64),
        work: &mut Work,
    ) -> Result<(), Exhausted> {
        if let Found::At(hpa) = self.stack.reach(cx, at, true, work).ok_or(Exhausted)? {
            self.stack
                .world
                .act(|| format!("stores to its EPT12 table of level {}: nobody follows it", level.number()));
            cx.host.mem.write(hpa, raw);
            return Ok(());
        }
        let what = format!("store to EPT12, level {}: EPT01 forbids it", level.number());
        self.stack.world.switch(Who::L0, Cause::ProtectedStore, &what);
        let hpa = self.stack.l0.address(at).ok_or(Exhausted)?;
        cx.host.mem.write(hpa, raw);
        work.instructions_emulated += 1;
        self.stack.world.act(|| "emulates the store".to_owned());
        let index = u16::try_from((at.as_u64() & 0xfff) >> 3).unwrap_or(0);
        let mut keeper = AtWork { stack: &mut self.stack, cx, work };
        if self.ept02.stored(&mut keeper, at.frame(), index, raw).ok_or(Exhausted)? == Change::Lost {
            cx.flush_vm(work);
        }
        self.stack.world.switch(Who::L1, Cause::ProtectedStore, "entry: L1 goes on behind the store");
        Ok(())
    }

    /// L1 takes L2's frames away: their leaves of EPT12 go, and one INVEPT ends it.
    fn take_from_l2(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Result<(), Exhausted> {
        let (start, end) = clip(cx, range);
        cx.map.unmap(range);
        let mut cleared = false;
        for gfn in self.stack.l1.resident_in(start, end) {
            self.stack.l1.take(gfn);
            cleared |= self.unmap12(cx, gfn, work)?;
        }
        if cleared {
            self.stack.invalidate(cx, "INVEPT exits", work);
        }
        Ok(())
    }

    /// L1 clears the leaf of a page of L2; false where there is none.
    fn unmap12(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Result<bool, Exhausted> {
        let stack = &mut self.stack;
        let path = Path::<Ept12<N>>::read(self.root12, gfn.base(), |at| stack.load(cx, at, work)).ok_or(Exhausted)?;
        let Some(step) = path.last().filter(|step| matches!(step.entry, Entry::Leaf { .. })) else { return Ok(false) };
        self.store12(cx, step.entry_at, (step.level, 0), work)?;
        work.entries_cleared += 1;
        Ok(true)
    }

    /// L1 empties EPT12 and frees its tables.
    fn clear12(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Result<(), Exhausted> {
        for index in 0..512 {
            let at = self.root12.entry(index);
            let raw = self.stack.load(cx, at, work).ok_or(Exhausted)?;
            if let Entry::Table { next, .. } = Ept12::<N>::decode(raw, Ept12::<N>::ROOT) {
                self.store12(cx, at, (Ept12::<N>::ROOT, 0), work)?;
                self.free12(cx, next, Ept12::<N>::ROOT.below(), work)?;
            }
        }
        self.stack.invalidate(cx, "INVEPT exits", work);
        Ok(())
    }

    /// Frees a table of EPT12 that nothing points to, and all below it.
    fn free12(&mut self, cx: &mut Cx<'_>, table: L1fn, level: Option<Level>, work: &mut Work) -> Result<(), Exhausted> {
        let Some(level) = level else { return Ok(()) };
        for index in 0..512 {
            let raw = self.stack.load(cx, table.entry(index), work).ok_or(Exhausted)?;
            if let Entry::Table { next, .. } = Ept12::<N>::decode(raw, level) {
                self.free12(cx, next, level.below(), work)?;
            }
        }
        self.stack.l1.free_table(table);
        work.tables_freed += 1;
        Ok(())
    }
}

impl<const N: u8> EptOnEpt<N> {
    /// One hardware walk and what comes of it.
    fn walked(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let Some(root02) = self.entered(cx) else { return Outcome::OutOfMemory };
        let (regs, acc) = (*cx.regs(), request.acc);
        let root = regs.cr3.root.frame();
        let walk = Hardware::walk::<Guest<N>, Merged02<N>>(cx, Dimension::Guest, (root, root02), &regs, acc);
        if matches!(walk.end, End::Violation(_)) && cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        let refs = WalkRefs { guest: walk.first, host: walk.second, ..WalkRefs::default() };
        cx.out.counters.add_walk(refs, walk.ad_updates, 0);
        match walk.end {
            End::Mapped(entry) => Outcome::Filled(entry),
            End::Fault(code) => {
                self.stack
                    .world
                    .act(|| format!("page fault at {:?}: its own tables forbid it; nobody else sees it", acc.gva()));
                Outcome::Fault(GuestFault { gva: acc.gva(), code })
            }
            End::Violation(found) => {
                let whose = if found.on_data { "data" } else { "a table" };
                let what = format!("EPT violation on {whose} at {:?}: EPT02 does not permit it", found.at);
                self.stack.world.switch(Who::L0, Cause::EptViolation, &what);
                self.violated(cx, request, &found).unwrap_or(Outcome::OutOfMemory)
            }
        }
    }
}

impl<const N: u8> Regime for EptOnEpt<N> {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let outcome = self.walked(cx, request);
        self.stack.world.publish(&mut cx.out.counters);
        outcome
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let (reason, exits) = exits_of(control, false);
        for _ in 0..exits {
            self.stack.leave(Cause::Privileged, "a privileged operation of L2");
            self.stack.resume(cx, "L2 goes on behind the instruction");
            cx.exit(reason, Work::default(), None, VcpuSet::EMPTY);
        }
        cx.execute(control);
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
                let _ = self.clear12(cx, &mut work);
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
        let nested = self.stack.l1.tables() + self.ept02.tables() + self.stack.l0.tables();
        TableBytes { nested: nested * PageSize::Size4K.bytes(), ..TableBytes::default() }
    }
}

impl<const N: u8> Nesting for EptOnEpt<N> {
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
        let mut taken = false;
        for frame in frames {
            taken |= self.stack.take_from_l1(cx, *frame, &mut work);
            let mut keeper = AtWork { stack: &mut self.stack, cx, work: &mut work };
            let _ = self.ept02.forget(&mut keeper, *frame);
        }
        if taken {
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
