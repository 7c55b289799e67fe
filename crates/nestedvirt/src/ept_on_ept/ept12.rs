//! L1 at work on EPT12: ordinary stores to its own memory, which exit where L0 follows the table.

use memvirt_addr::{Gfn, Gpa, L1fn, L1pa, Level, PageSize};
use memvirt_ops::arch::{GfnRange, VcpuSet};
use memvirt_pagetable::{Attrs, Entry, Format};
use memvirt_platform::{Cx, Work};

use super::keeper::AtWork;
use super::{EptOnEpt, Exhausted};
use crate::format::Ept12;
use crate::hypervisor::clip;
use crate::l0::Found;
use crate::merge::Change;
use crate::walk::Path;
use crate::world::{Cause, Who};

/// Who is interrupted where two flushes ask for it: all that run, and that does not change in between.
const fn either(one: VcpuSet, other: VcpuSet) -> VcpuSet {
    if one.is_empty() { other } else { one }
}

const LEAF: Attrs = Attrs::RWX.union(Attrs::WRITE_BACK);

impl<const N: u8> EptOnEpt<N> {
    /// L1 maps a page of L2 in EPT12, with ordinary stores from the root down. Returns the vCPUs that had to be interrupted for them.
    pub(super) fn map12(&mut self, cx: &mut Cx<'_>, at: Gpa, work: &mut Work) -> Result<VcpuSet, Exhausted> {
        let mut kick = VcpuSet::EMPTY;
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
                kick = either(kick, self.store12(cx, entry_at, (level, Ept12::<N>::encode(entry, level)), work)?);
            }
            level = below;
        }
        let leaf = Entry::Leaf { frame, size: PageSize::Size4K, attrs: LEAF };
        let entry_at = table.entry(Ept12::<N>::index(at, level));
        kick = either(kick, self.store12(cx, entry_at, (level, Ept12::<N>::encode(leaf, level)), work)?);
        work.entries_set += 1;
        Ok(kick)
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

    /// L1 stores an entry of EPT12. Where L0 follows the table, the store exits and L0 carries it out. Returns the vCPUs that had to be
    /// interrupted because translations were lost.
    fn store12(
        &mut self,
        cx: &mut Cx<'_>,
        at: L1pa,
        (level, raw): (Level, u64),
        work: &mut Work,
    ) -> Result<VcpuSet, Exhausted> {
        if let Found::At(hpa) = self.stack.reach(cx, at, true, work).ok_or(Exhausted)? {
            self.stack
                .world
                .act(|| format!("stores to its EPT12 table of level {}: nobody follows it", level.number()));
            cx.host.mem.write(hpa, raw);
            return Ok(VcpuSet::EMPTY);
        }
        let what = format!("store to EPT12, level {}: EPT01 forbids it", level.number());
        self.stack.world.switch(Who::L0, Cause::ProtectedStore, &what);
        let hpa = self.stack.l0.address(at).ok_or(Exhausted)?;
        cx.host.mem.write(hpa, raw);
        work.instructions_emulated += 1;
        self.stack.world.act(|| "emulates the store".to_owned());
        let index = u16::try_from((at.as_u64() & 0xfff) >> 3).unwrap_or(0);
        let mut keeper = AtWork { stack: &mut self.stack, cx, work };
        let lost = self.ept02.stored(&mut keeper, at.frame(), index, raw).ok_or(Exhausted)? == Change::Lost;
        let kick = if lost { cx.flush_vm(work) } else { VcpuSet::EMPTY };
        self.stack.world.switch(Who::L1, Cause::ProtectedStore, "entry: L1 goes on behind the store");
        Ok(kick)
    }

    /// L1 takes L2's frames away: their leaves of EPT12 go, and one INVEPT ends it.
    pub(super) fn take_from_l2(&mut self, cx: &mut Cx<'_>, range: GfnRange, work: &mut Work) -> Result<(), Exhausted> {
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
    pub(super) fn clear12(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Result<(), Exhausted> {
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
