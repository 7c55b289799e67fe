//! Entries in use, where every table is protected and a store drops the entry: the work of write-protection that zaps. (Its exits
//! are counted by the neighbour [`graph`](crate::graph), which also says what a policy that propagates is spared.)
//!
//! Each rule is that of the crate `memvirt-shadow`, module `write_protect`. The limit on shadow pages is left out.

use memvirt_addr::{Gfn, Gpa};
use memvirt_ops::arch::StoreOp;
use memvirt_platform::Work;

use crate::around::Around;
use crate::path::Way;
use crate::shadows::{Orphans, Search, Shadows};

/// Stores without a use in between that make a table data.
const UNSHADOW_AFTER: u32 = 512;

/// The view of write-protection.
#[derive(Debug)]
pub(crate) struct Protect {
    shadows: Shadows,
}

impl Default for Protect {
    fn default() -> Self {
        Self { shadows: Shadows::new(Orphans::Stay, Search::ReverseMap) }
    }
}

impl Protect {
    pub(crate) const fn work(&self) -> &Work {
        self.shadows.work()
    }

    /// Counts from nought: what was done so far is part of the start.
    pub(crate) fn start(&mut self) {
        *self.shadows.work_mut() = Work::default();
    }

    /// The host has the frame from now on.
    pub(crate) fn back(&mut self, frame: Gfn) {
        self.shadows.back(frame);
    }

    /// An access or store that completed.
    pub(crate) fn access(&mut self, way: &Way, store: Option<(Gpa, &StoreOp)>, around: &Around<'_>) {
        if self.shadows.serves(way) {
            return;
        }
        self.shadows.work_mut().guest_entries_read += way.refs();
        if way.write && self.shadows.is_protected(way.frame) && self.trapped(way, store) {
            return;
        }
        self.shadows.fill(way, around);
        self.used(way.entries().map(|(entry, _)| entry.frame()));
        self.shadows.flush();
    }

    /// A store to a protected table; whether that was all.
    fn trapped(&mut self, way: &Way, store: Option<(Gpa, &StoreOp)>) -> bool {
        let frame = way.frame;
        let data = way.user || matches!(store, Some((_, StoreOp::RepStos { .. } | StoreOp::Vector)));
        let needed = self.shadows.root() == Some(frame) || way.leads_through(frame);
        if data && !needed {
            self.shadows.zap(frame);
            self.shadows.flush();
            self.shadows.work_mut().guest_entries_read += way.refs();
            return false;
        }
        self.shadows.work_mut().instructions_emulated += 1;
        if let Some((at, _)) = store {
            self.shadows.clear(at);
        }
        let flooded = self.shadows.table_mut(frame).is_some_and(|table| {
            table.writes += 1;
            table.writes > UNSHADOW_AFTER
        });
        if flooded && self.shadows.root() != Some(frame) {
            self.shadows.zap(frame);
        }
        self.shadows.flush();
        true
    }

    /// Tables were used: stores to them count from nought again.
    fn used(&mut self, tables: impl Iterator<Item = Gfn>) {
        for table in tables {
            if let Some(table) = self.shadows.table_mut(table) {
                table.writes = 0;
            }
        }
    }

    /// The guest got a page fault, after a walk of these tables.
    pub(crate) fn reflect(&mut self, tables: &[Gfn]) {
        self.shadows.work_mut().guest_entries_read += tables.len() as u64;
        self.used(tables.iter().copied());
    }

    /// A load of CR3.
    pub(crate) fn load_root(&mut self, root: Gfn) {
        self.shadows.enter(root);
        self.shadows.flush();
    }
}
