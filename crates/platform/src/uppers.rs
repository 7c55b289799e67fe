//! [`Upper`]: the upper part of a walk of four-level tables that is made ahead, in one word.

use memvirt_addr::{Acc, Frame, Space};
use memvirt_pagetable::{Format, Guest4};
use memvirt_tlb::Perms;

use crate::foresee::{ADDRESS, LARGE, NX, PRESENT, Tables, leaf_permissions};
use crate::notes::Notes;

/// The way to a last table, in one word.
///
/// The place of its first entry, a multiple of 512; below that the permissions of the entries above it, ANDed, and whether a
/// walk only reads them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Upper(u64);

impl Upper {
    const WORDS: u64 = 512;
    /// All entries are present, accessed and point to tables.
    const PLAIN: u64 = 1 << 3;

    /// Reads the entries of the three upper levels on the way to the last table.
    #[inline]
    fn read<S: Space>(root: Frame<S>, mem: &impl Tables<S>, acc: Acc) -> Self {
        const { assert!(Perms::ALL.bits() < 1 << 3, "permissions lie below the mark") };
        let words = mem.memory();
        let (mut table, mut all, mut any) = (root, u64::MAX, 0);
        for shift in [39, 30, 21] {
            let raw = words.read_place(mem.place(table, acc.page_bits(shift)));
            all &= raw;
            any |= raw;
            table = Frame::new((raw & ADDRESS) >> 12);
        }
        let needed = PRESENT | Guest4::RAW_ACCESSED;
        let plain = all & needed == needed && any & LARGE == 0;
        // A bit in all entries; writing needs no dirty bit up here.
        let perms = leaf_permissions(all & !NX | any & NX | Guest4::RAW_DIRTY);
        Self(mem.place(table, 0) as u64 | if plain { Self::PLAIN } else { 0 } | u64::from(perms.bits()))
    }

    /// Where the last entry for `acc` lies.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "what `PhysMem::place` made")]
    pub(crate) const fn leaf(self, acc: Acc) -> usize {
        (self.0 & !(Self::WORDS - 1) | acc.page_bits(12) & (Self::WORDS - 1)) as usize
    }

    /// What the entries permit.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    pub(crate) const fn perms(self) -> Perms {
        Perms::from_bits(self.0 as u8)
    }

    /// Whether a walk would only read the entries, and come to a last table.
    #[inline(always)]
    pub(crate) const fn is_plain(self) -> bool {
        self.0 & Self::PLAIN != 0
    }
}

/// The way to the last table for `acc` from the table `root`, which is the same for all that `notes` hold.
#[inline(always)]
pub(crate) fn upper<S: Space>(notes: &mut Notes<'_, 1>, root: Frame<S>, mem: &impl Tables<S>, acc: Acc) -> Upper {
    let region = acc.page_bits(21);
    if let Some([word]) = notes.get(region) {
        return Upper(word);
    }
    let upper = Upper::read(root, mem, acc);
    notes.put(region, [upper.0]);
    upper
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notes::Notebook;
    use memvirt_addr::{AccessKind, Gva, Hfn, HostPhys};
    use memvirt_pagetable::PhysMem;

    fn tables(flags: u64) -> PhysMem<HostPhys> {
        let mut mem = PhysMem::new(8);
        for (table, next) in [(1, 2), (2, 3), (3, 4)] {
            mem.write(Hfn::new(table).entry(0), next << 12 | flags);
        }
        mem.write(Hfn::new(4).entry(5), 7 << 12 | flags);
        mem
    }

    fn seen(book: &mut Notebook<1>, mem: &PhysMem<HostPhys>) -> Upper {
        upper(&mut book.open(), Hfn::new(1), mem, Acc::user(Gva::new(5 << 12), AccessKind::Read))
    }

    #[test]
    fn what_was_read_holds_until_it_is_forgotten() {
        let (mut mem, mut book) = (tables(0x27), Notebook::default());
        let first = seen(&mut book, &mem);
        assert!(first.is_plain() && first.perms() == Perms::ALL);
        assert_eq!(first.leaf(Acc::user(Gva::new(6 << 12), AccessKind::Read)), mem.place(Hfn::new(4), 6));
        mem.write(Hfn::new(2).entry(0), 3 << 12 | 0x21 | 1 << 63);
        assert!(seen(&mut book, &mem).perms() == Perms::ALL, "nobody said that a table changed");
        book.forget();
        let second = seen(&mut book, &mem);
        assert!(second.is_plain() && second.perms() == Perms::NONE);
    }

    #[test]
    fn entries_that_a_walk_would_change_or_end_at_are_not_plain() {
        for flags in [0, 0x20, 0x07, 0xa7] {
            assert!(!seen(&mut Notebook::default(), &tables(flags)).is_plain(), "{flags:#x}");
        }
    }
}
