//! The two hypervisors and the CPU they share: how each gets at memory, and how the CPU goes from one to the other.

use memvirt_addr::{Gfn, Gpa, Hfn, Hpa, L1fn, L1pa, PageSize};
use memvirt_ops::arch::VcpuSet;
use memvirt_platform::{Cx, Host, Work};
use memvirt_tlb::KeepGlobal;

use crate::config::{Arrangement, Config, Flushes};
use crate::l0::{Found, L0};
use crate::l1::L1;
use crate::world::{Cause, Who, World};

/// L0, L1 and the CPU.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) arrangement: Arrangement,
    pub(crate) config: Config,
    pub(crate) l0: L0,
    pub(crate) l1: L1,
    pub(crate) world: World,
}

impl Stack {
    /// For an L2 of `frames` frames. `None` where the host has no frame for EPT01.
    pub(crate) fn new(host: &mut Host, frames: u64, arrangement: Arrangement, config: Config) -> Option<Self> {
        let (l0, l1) = (L0::new(host)?, L1::new(frames));
        Some(Self { arrangement, config, l0, l1, world: World::default() })
    }

    /// L0 gives L1's frame a host frame, the one it had where it had one. `None` where the host has none left.
    ///
    /// The engine's memory map is what L1's map and L0's come to together: frames of L2 come from there.
    pub(crate) fn back(&mut self, cx: &mut Cx<'_>, frame: L1fn, work: &mut Work) -> Option<Hfn> {
        if self.l0.is_resident(frame) {
            return self.l0.frame_of(frame);
        }
        let target = match (self.l1.guest_of(frame), self.l0.frame_of(frame)) {
            (Some(gfn), _) if self.l1.is_resident(gfn) => cx.back(gfn, work)?.frame,
            (_, Some(had)) => had,
            (_, None) => {
                work.frames_backed += 1;
                cx.host.allocate(PageSize::Size4K)?
            }
        };
        self.l0.give(frame, target);
        Some(target)
    }

    /// Where an access of L1 to its own memory leads. EPT01 violations on the way are exits, and served. `None` where the host
    /// has no frame left.
    pub(crate) fn reach(&mut self, cx: &mut Cx<'_>, at: L1pa, store: bool, work: &mut Work) -> Option<Found> {
        let found = self.l0.look(cx.host, at, store);
        if found != Found::Absent {
            return Some(found);
        }
        self.serve_violation(cx, at, work)?;
        self.world.switch(Who::L1, Cause::EptViolation, "entry: the access starts again");
        Some(self.l0.look(cx.host, at, store))
    }

    /// An access, of L1 or of L2, hit an address that EPT01 does not map: L0 is entered and maps it. The caller resumes.
    pub(crate) fn serve_violation(&mut self, cx: &mut Cx<'_>, at: L1pa, work: &mut Work) -> Option<()> {
        self.world.switch(Who::L0, Cause::EptViolation, "EPT violation: EPT01 does not map the address");
        self.back(cx, at.frame(), work)?;
        self.l0.map(cx.host, at.frame(), work)?;
        self.world.act(|| format!("maps {:?} in EPT01", at.frame()));
        Some(())
    }

    /// L1 loads a word of its own memory.
    pub(crate) fn load(&mut self, cx: &mut Cx<'_>, at: L1pa, work: &mut Work) -> Option<u64> {
        match self.reach(cx, at, false, work)? {
            Found::At(hpa) => Some(cx.host.mem.read(hpa)),
            Found::Absent | Found::Protected => None,
        }
    }

    /// L1's frame behind a frame of L2, given now where there was none: L1's kernel clears a page that it gives out, and that
    /// store is where EPT01 is found wanting. `None` where the host has no frame left or L2 has no such memory.
    pub(crate) fn guest_frame(&mut self, cx: &mut Cx<'_>, gfn: Gfn, work: &mut Work) -> Option<L1fn> {
        if !cx.map.contains(gfn) {
            return None;
        }
        if let Some(frame) = self.l1.frame_of(gfn).filter(|_| self.l1.is_resident(gfn)) {
            return Some(frame);
        }
        let (frame, _) = self.l1.give(gfn);
        self.reach(cx, frame.base(), true, work)?;
        cx.back(gfn, work)?;
        self.world.act(|| format!("gives L2's {gfn:?} its {frame:?}"));
        Some(frame)
    }

    /// Where L1 finds a byte of L2's memory. `None` where the host has no frame left or L2 has no such memory.
    pub(crate) fn guest_address(&mut self, cx: &mut Cx<'_>, at: Gpa, work: &mut Work) -> Option<Hpa> {
        let frame = self.guest_frame(cx, at.frame(), work)?;
        match self.reach(cx, frame.at(at.as_u64()), true, work)? {
            Found::At(hpa) => Some(hpa),
            Found::Absent | Found::Protected => None,
        }
    }

    /// L1 loads a word of L2's memory; what is no memory reads as zero. `None` where the host has no frame left.
    pub(crate) fn guest_load(&mut self, cx: &mut Cx<'_>, at: Gpa, work: &mut Work) -> Option<u64> {
        if !cx.map.contains(at.frame()) {
            return Some(0);
        }
        work.guest_entries_read += 1;
        let hpa = self.guest_address(cx, at, work)?;
        Some(cx.host.mem.read(hpa))
    }

    /// L2 stops, and L1 runs: through L0 where hardware separates them, by the switcher under PVM.
    pub(crate) fn leave(&mut self, cause: Cause, what: &str) {
        if self.arrangement == Arrangement::Pvm {
            self.world.switch(Who::L1, cause, what);
            return;
        }
        self.world.switch(Who::L0, cause, what);
        self.reflect(cause);
    }

    /// L0 hands an exit of L2 on to L1.
    pub(crate) fn reflect(&mut self, cause: Cause) {
        self.world.act(|| "the exit is L1's: writes it into VMCS12".to_owned());
        self.world.switch(Who::L1, cause, "entry: L1 sees an exit of its guest");
    }

    /// L1 is done, and L2 runs.
    pub(crate) fn resume(&mut self, cx: &mut Cx<'_>, what: &str) {
        if self.arrangement == Arrangement::Pvm {
            self.world.switch(Who::L2, Cause::VmEntry, what);
            return;
        }
        self.world.switch(Who::L0, Cause::VmEntry, "VMRESUME exits");
        self.world.act(|| "makes VMCS02 of VMCS12".to_owned());
        if self.config.flushes == Flushes::EachEntry {
            let vpid = cx.tag().vpid();
            cx.cpu().flush_vpid(vpid, KeepGlobal::No);
            cx.out.counters.tlb_flushes += 1;
        }
        self.world.switch(Who::L2, Cause::VmEntry, what);
    }

    /// L1 gets obsolete translations of L2 out of the TLBs. Returns the vCPUs that had to be interrupted for it.
    pub(crate) fn flush(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> VcpuSet {
        if self.arrangement == Arrangement::Pvm || self.config.flushes == Flushes::EachEntry {
            return cx.flush_vm(work);
        }
        self.invalidate(cx, "INVVPID exits", work)
    }

    /// L1 flushes because L2 asked for it. The CPU's own effect on the TLB has been taken care of; what counts here is who has to
    /// execute the instruction, and where. (PVM's L1 executes it, and EPT lets it.)
    pub(crate) fn flush_for_l2(&mut self) {
        if self.arrangement != Arrangement::Pvm && self.config.flushes == Flushes::Instruction {
            self.world.switch(Who::L0, Cause::Invalidate, "INVVPID exits");
            self.world.switch(Who::L1, Cause::Invalidate, "entry");
        }
    }

    /// L1 executes an instruction that invalidates, and that exits.
    pub(crate) fn invalidate(&mut self, cx: &mut Cx<'_>, what: &str, work: &mut Work) -> VcpuSet {
        self.world.switch(Who::L0, Cause::Invalidate, what);
        let kick = cx.flush_vm(work);
        self.world.switch(Who::L1, Cause::Invalidate, "entry");
        kick
    }

    /// L0 takes a frame of L1 away; what it holds is kept. Tells whether it was there. (The CPU is L0's.)
    pub(crate) fn take_from_l1(&mut self, cx: &mut Cx<'_>, frame: L1fn, work: &mut Work) -> bool {
        let was = self.l0.take(cx.host, frame, work);
        if let (true, Some(gfn)) = (was, self.l1.guest_of(frame)) {
            cx.map.unmap(memvirt_ops::arch::GfnRange { start: gfn, frames: 1 });
        }
        was
    }
}
