//! What a store to a monitored table leads to.
//!
//! Source: VirtualBox 6.1, `PGMAllPool.cpp`, `pgmRZPoolAccessPfHandler` and what it calls.

use memvirt_addr::{Acc, Gfn, Level};
use memvirt_ops::arch::StoreOp;
use memvirt_platform::{Cx, ExitReason, LockMode, Outcome, Request, Work};

use super::{LEAF_LIMIT, Vbox, is_forking, is_reused};
use crate::fault;
use crate::graph::flush_if;
use crate::guest::GuestPage;
use crate::store::{Change, Kind, Slot};

impl Vbox {
    /// A store to a monitored table. Source: `pgmRZPoolAccessPfHandler`.
    pub(super) fn table_store(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        work: Work,
    ) -> Outcome {
        let gfn = page.gfn;
        let locked = self.graph.is_root(gfn) || page.leads_through(gfn);
        let run = self.runs_up(request, gfn);
        let (count, limit) = self.modifications(gfn);
        let guessed = !locked && (is_reused(request) || is_forking(request));
        let worthwhile = (count < limit || locked) && !guessed;
        match request.store {
            Some(StoreOp::RepStos { value, count: elements }) if worthwhile && !locked => {
                let left = elements - request.element;
                if left <= 32 && matches!(value, 0 | 0x80) {
                    return self.interpret_all(cx, request, page, left, work);
                }
            }
            _ if worthwhile => return self.interpret(cx, request, page, work),
            _ => {}
        }
        if locked {
            return self.interpret(cx, request, page, work);
        }
        let leaf = self.graph.store.find(gfn, Level::L1, Kind::Table).is_some() && limit == LEAF_LIMIT;
        if leaf && count >= limit && !run && !guessed {
            return self.dirty_store(cx, request, page, work);
        }
        self.flush_store(cx, request, page, work)
    }

    /// The store is carried out, the shadow entries go.
    pub(super) fn interpret(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        mut work: Work,
    ) -> Outcome {
        let Some(change) = self.interpret_one(cx, request, page.gfn, &mut work) else { return Outcome::OutOfMemory };
        let (count, _) = self.modifications(page.gfn);
        self.set_modifications(page.gfn, count + 1);
        self.note_run(request, page.gfn);
        let kick = flush_if(cx, change, &mut work);
        fault::emulated(cx, ExitReason::TableWrite, work, kick)
    }

    pub(super) fn interpret_one(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        gfn: Gfn,
        work: &mut Work,
    ) -> Option<Change> {
        let mut change = Change::Kept;
        for (index, _) in fault::emulate(cx, request, gfn, work)? {
            self.graph.each_shadow(gfn, |graph, id| {
                change = change.or(graph.store.clear(cx.host, Slot::new(id, index), work));
            });
        }
        Some(change)
    }

    /// A short `rep stos` is carried out whole.
    pub(super) fn interpret_all(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        left: u16,
        mut work: Work,
    ) -> Outcome {
        let mut change = Change::Kept;
        for i in 0..u64::from(left) {
            let at = request.acc.gva().wrapping_add(8 * i);
            let acc = Acc::new(at, request.acc.kind(), request.acc.privilege());
            let one = Request { acc, ..*request };
            let Some(done) = self.interpret_one(cx, &one, page.gfn, &mut work) else { return Outcome::OutOfMemory };
            change = change.or(done);
        }
        let (count, _) = self.modifications(page.gfn);
        self.set_modifications(page.gfn, count + 1);
        let kick = flush_if(cx, change, &mut work);
        cx.exit(ExitReason::TableWrite, work, Some(LockMode::Exclusive), kick);
        Outcome::EmulatedAll
    }

    /// The table becomes dirty and the store starts again.
    pub(super) fn dirty_store(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        mut work: Work,
    ) -> Outcome {
        match self.make_dirty(cx, page.gfn, &mut work) {
            Some(change) => self.fill(cx, request, page, change, work),
            None => Outcome::OutOfMemory,
        }
    }

    /// The table leaves the pool; the store is carried out at once, or starts again where it is a repeated one.
    pub(super) fn flush_store(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        page: &GuestPage,
        mut work: Work,
    ) -> Outcome {
        let change = self.leave_pool(cx, page.gfn, &mut work);
        let repeated = matches!(request.store, Some(StoreOp::RepStos { .. }));
        if !repeated && fault::emulate(cx, request, page.gfn, &mut work).is_none() {
            return Outcome::OutOfMemory;
        }
        let kick = flush_if(cx, change, &mut work);
        cx.exit(ExitReason::TableWrite, work, Some(LockMode::Exclusive), kick);
        if repeated { Outcome::Retry } else { Outcome::Emulated }
    }
}
