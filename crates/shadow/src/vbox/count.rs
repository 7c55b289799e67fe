//! Counting the modifications of tables, and runs of stores up a table.
//!
//! A table at its limit becomes dirty or leaves the pool ([`trap`](super::trap) decides). Source: VirtualBox 6.1,
//! `pgmRZPoolAccessPfHandler` (`cModifications`, `GCPtrLastAccessHandlerFault`).

use memvirt_addr::{Gfn, Level};
use memvirt_ops::arch::StoreOp;
use memvirt_platform::Request;

use super::{LEAF_LIMIT, UPPER_LIMIT, Vbox};
use crate::store::Kind;

/// The last store of a run up a table, as far as it may be one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    /// The table's frame; 0 for none.
    gfn: u64,
    /// Where it was stored to.
    fault: u64,
    /// The instruction.
    ip: u64,
    /// How many stores had been trapped by then.
    stores: u64,
}

impl Vbox {
    /// The count of modifications of the table in `gfn`, and its limit.
    pub(super) fn modifications(&self, gfn: Gfn) -> (u32, u32) {
        let tables = self.graph.store.pages_of(gfn).map(|id| self.graph.store.page(id));
        let mut tables = tables.filter(|page| page.kind == Kind::Table);
        let head = tables.next();
        let limit = head.map_or(UPPER_LIMIT, |page| if page.level == Level::L1 { LEAF_LIMIT } else { UPPER_LIMIT });
        (head.map_or(0, |page| page.writes), limit)
    }

    pub(super) fn set_modifications(&mut self, gfn: Gfn, count: u32) {
        let modified = &mut self.modified;
        self.graph.each_shadow(gfn, |graph, id| {
            if graph.store.page(id).writes == 0 {
                modified.push(id);
            }
            graph.store.page_mut(id).writes = count;
        });
    }

    /// A CR3 load starts all counts anew.
    pub(super) fn forget_modifications(&mut self) {
        for id in core::mem::take(&mut self.modified) {
            self.graph.store.page_mut(id).writes = 0;
        }
    }

    /// Whether the store goes on up the table where the last one was. Doubles the count.
    pub(super) fn runs_up(&mut self, request: &Request<'_>, gfn: Gfn) -> bool {
        self.stores += 1;
        let (at, ip) = (request.acc.gva().as_u64(), request.ip.as_u64());
        let goes_on = self.run.gfn == gfn.number()
            && ip.abs_diff(self.run.ip) < 0x40
            && at == self.run.fault + bytes_of(request)
            && self.stores == self.run.stores + 1;
        if goes_on {
            let (count, _) = self.modifications(gfn);
            self.set_modifications(gfn, 2 * count);
            (self.run.fault, self.run.stores) = (at, self.stores);
        }
        goes_on
    }

    /// Remembers a store of the first entry, from which a run may start.
    pub(super) fn note_run(&mut self, request: &Request<'_>, gfn: Gfn) {
        let (at, ip) = (request.acc.gva().as_u64(), request.ip.as_u64());
        if matches!(request.store, Some(StoreOp::Mov { .. })) && at & 0xfff == 0 && !self.graph.is_root(gfn) {
            self.run = Run { gfn: gfn.number(), fault: at, ip, stores: self.stores };
            if self.modifications(gfn).0 > 8 {
                self.set_modifications(gfn, 2);
            }
        } else if self.run.fault == at {
            self.run.stores = self.stores;
        } else {
            self.run = Run::default();
        }
    }
}

/// How many bytes a store stores.
pub(super) const fn bytes_of(request: &Request<'_>) -> u64 {
    match request.store {
        Some(StoreOp::Mov { width, .. }) => width.bytes(),
        Some(StoreOp::Vector) => 16,
        _ => 8,
    }
}
