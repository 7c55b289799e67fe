//! The leaf tables that a vCPU has let out of sync, Xen's `oos` arrays.
//!
//! Each vCPU has [`PLACES`] of them, found by the host frame of the table: at its number modulo 3, or one further. A newcomer
//! to a place held by one that belongs there moves it on, and whoever is in the next place has to go. For each table the
//! hypervisor keeps a snapshot of its contents at the time, and up to [`FIXUPS`] writable mappings, which are the ones to be
//! revoked when it comes back into sync. Source: Xen, `arch/x86/mm/shadow/oos.c` (`oos_hash_add`, `oos_fixup_add`),
//! `SHADOW_OOS_PAGES`, `SHADOW_OOS_FIXUPS`.

use memvirt_addr::{Gfn, Hfn};

use crate::store::Slot;

/// How many tables a vCPU may have out of sync.
pub const PLACES: usize = 3;
/// How many writable mappings of each are remembered.
pub const FIXUPS: usize = 2;

/// One table that is out of sync.
#[derive(Debug)]
pub(crate) struct OutOfSync {
    /// The guest table.
    pub(crate) gfn: Gfn,
    mfn: Hfn,
    /// What its entries were when its shadow last agreed with them.
    pub(crate) snapshot: Box<[u64; 512]>,
    fixups: [Option<Slot>; FIXUPS],
    next: usize,
}

impl OutOfSync {
    pub(crate) fn new(gfn: Gfn, mfn: Hfn, snapshot: Box<[u64; 512]>) -> Self {
        Self { gfn, mfn, snapshot, fixups: [None; FIXUPS], next: 0 }
    }

    /// Remembers a writable mapping. Returns the one that is forgotten for it, which must not stay writable.
    pub(crate) fn add_fixup(&mut self, slot: Slot) -> Option<Slot> {
        if self.fixups.contains(&Some(slot)) {
            return None;
        }
        let old = self.fixups[self.next].replace(slot);
        self.next = (self.next + 1) % FIXUPS;
        old
    }

    fn home(&self) -> usize {
        home(self.mfn)
    }
}

/// The places of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Places([Option<OutOfSync>; PLACES]);

impl Places {
    /// The table in `gfn`, if it is here.
    pub(crate) fn find(&mut self, gfn: Gfn) -> Option<&mut OutOfSync> {
        self.0.iter_mut().flatten().find(|table| table.gfn == gfn)
    }

    /// Enters a table; returns the one that must come back into sync for it.
    pub(crate) fn add(&mut self, table: OutOfSync) -> Option<OutOfSync> {
        let at = table.home();
        if self.0[at].as_ref().is_none_or(|held| held.home() != at) {
            return self.0[at].replace(table);
        }
        let moved = self.0[at].replace(table)?;
        self.0[(at + 1) % PLACES].replace(moved)
    }

    /// Takes a table out.
    pub(crate) fn remove(&mut self, gfn: Gfn) -> Option<OutOfSync> {
        self.0.iter_mut().find(|place| place.as_ref().is_some_and(|table| table.gfn == gfn))?.take()
    }

    /// The tables here.
    pub(crate) fn tables(&self) -> impl Iterator<Item = Gfn> + use<'_> {
        self.0.iter().flatten().map(|table| table.gfn)
    }
}

fn home(mfn: Hfn) -> usize {
    mfn.as_index() % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(number: u64) -> OutOfSync {
        OutOfSync::new(Gfn::new(number), Hfn::new(number), Box::new([0; 512]))
    }

    #[test]
    fn a_newcomer_moves_the_one_at_home_and_crushes_the_next() {
        let mut places = Places::default();
        assert!(places.add(table(3)).is_none());
        assert!(places.add(table(6)).is_none(), "3 moves on to place 1");
        assert!(places.add(table(5)).is_none());
        assert_eq!(places.add(table(4)).map(|t| t.gfn), Some(Gfn::new(3)), "3 is a guest in place 1");
        assert_eq!(places.add(table(9)).map(|t| t.gfn), Some(Gfn::new(4)), "6 moves on to place 1, where 4 is");
        assert_eq!(places.tables().map(Gfn::number).collect::<Vec<_>>(), [9, 6, 5]);
    }

    #[test]
    fn the_third_alias_evicts_the_first() {
        use crate::store::PageId;
        let mut table = table(1);
        let slot = |i| Slot::new(PageId::default(), i);
        assert_eq!(table.add_fixup(slot(0)), None);
        assert_eq!(table.add_fixup(slot(0)), None);
        assert_eq!(table.add_fixup(slot(1)), None);
        assert_eq!(table.add_fixup(slot(2)), Some(slot(0)));
        assert_eq!(table.add_fixup(slot(0)), Some(slot(1)));
    }
}
