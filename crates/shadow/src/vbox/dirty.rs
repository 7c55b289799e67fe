//! The leaf tables that may be written freely for a while, VirtualBox's `aDirtyPages`.
//!
//! Sixteen slots for a virtual machine, each with a copy of the table from when it was entered. A full array flushes the slot
//! that is next in turn. Source: VirtualBox 6.1, `PGMAllPool.cpp`, `pgmPoolAddDirtyPage`, `pgmPoolFlushDirtyPage`.

use memvirt_addr::Gfn;

/// How many tables may be dirty at a time.
pub const SLOTS: usize = 16;

/// A dirty table and what it held.
#[derive(Debug)]
pub(crate) struct DirtyTable {
    pub(crate) gfn: Gfn,
    pub(crate) copy: Box<[u64; 512]>,
}

/// The slots.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    held: [Option<DirtyTable>; SLOTS],
    next: usize,
}

impl Slots {
    /// Enters a table; returns the one that has to be flushed for it.
    pub(crate) fn add(&mut self, table: DirtyTable) -> Option<DirtyTable> {
        let flushed = self.held[self.next].replace(table);
        let after = (1..=SLOTS).map(|i| (self.next + i) % SLOTS);
        self.next = after.clone().find(|slot| self.held[*slot].is_none()).unwrap_or((self.next + 1) % SLOTS);
        flushed
    }

    /// Takes a table out.
    pub(crate) fn remove(&mut self, gfn: Gfn) -> Option<DirtyTable> {
        let slot = self.held.iter().position(|held| held.as_ref().is_some_and(|table| table.gfn == gfn))?;
        if self.held.iter().all(Option::is_some) {
            self.next = slot;
        }
        self.held[slot].take()
    }

    /// Takes all tables out; the turn starts again.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = DirtyTable> + use<> {
        core::mem::take(self).held.into_iter().flatten()
    }

    /// The tables here.
    pub(crate) fn tables(&self) -> impl Iterator<Item = Gfn> + use<'_> {
        self.held.iter().flatten().map(|table| table.gfn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(number: u64) -> DirtyTable {
        DirtyTable { gfn: Gfn::new(number), copy: Box::new([0; 512]) }
    }

    #[test]
    fn the_seventeenth_flushes_the_first_and_the_next_the_second() {
        let mut slots = Slots::default();
        for number in 0..16 {
            assert!(slots.add(table(number)).is_none());
        }
        assert_eq!(slots.add(table(16)).map(|t| t.gfn), Some(Gfn::new(0)));
        assert_eq!(slots.add(table(17)).map(|t| t.gfn), Some(Gfn::new(1)));
        assert!(slots.remove(Gfn::new(9)).is_some());
        assert!(slots.add(table(18)).is_none(), "the free slot is used first");
        assert_eq!(slots.take_all().count(), 16);
        assert_eq!(slots.tables().count(), 0);
    }
}
