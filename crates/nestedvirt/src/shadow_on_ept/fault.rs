//! What L1 does about a page fault of L2: pass it on, repair the shadow, or carry out a store to a table that it follows.

use memvirt_addr::{Gfn, PfCode, Privilege};
use memvirt_ops::arch::{GuestFault, StoreOp};
use memvirt_pagetable::{Attrs, Entry, Format};
use memvirt_platform::{Cx, ExitReason, Outcome, Regs, Request, Work, store_element};

use super::{Exhausted, ShadowOnEpt};
use crate::format::Guest;
use crate::merge::{Change, Fill};
use crate::walk::Path;

/// A page of L2 as L2's own tables give it.
struct Page<const N: u8> {
    path: Path<Guest<N>>,
    gfn: Gfn,
}

impl<const N: u8> ShadowOnEpt<N> {
    /// L1 has the CPU, after a page fault of L2.
    pub(super) fn fault(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Result<Outcome, Exhausted> {
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
