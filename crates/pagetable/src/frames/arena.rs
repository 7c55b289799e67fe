//! [`LeafArena`]: leaf tables side by side, where the table above selects them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use memvirt_addr::{Frame, PageSize, Space};

/// Frames for leaf tables alone, in blocks of 512: one block for each table of level 2 that leads to leaf tables, the leaf table
/// of its entry i at index i.
///
/// So a leaf entry is found from the address alone once the block is known: what translation by registers asks of a kernel
/// (Zhang et al., *Direct Memory Translation for Virtualized Clouds*, ASPLOS 2024). The frames must be zero at first, and so must
/// a leaf table be when it is freed, as kernels leave it that clear each entry: what is not in use then reads as absent.
#[derive(Clone, Debug)]
pub struct LeafArena<S: Space> {
    first: Frame<S>,
    frames: u64,
    free: Vec<Frame<S>>,
    /// The block of each table of level 2.
    blocks: BTreeMap<Frame<S>, Frame<S>>,
}

impl<S: Space> LeafArena<S> {
    /// Frames of a block: those of a page of 2 MiB.
    pub const BLOCK: u64 = PageSize::Size2M.frames();

    /// The arena of `frames` frames from `first` on; what is no whole block is left over.
    #[must_use]
    pub fn new(first: Frame<S>, frames: u64) -> Self {
        let blocks = frames / Self::BLOCK;
        let free = (0..blocks).rev().map(|block| first.offset(block * Self::BLOCK)).collect();
        Self { first, frames: blocks * Self::BLOCK, free, blocks: BTreeMap::new() }
    }

    /// Whether `frame` is one of the arena's.
    #[must_use]
    pub const fn contains(&self, frame: Frame<S>) -> bool {
        frame.number() >= self.first.number() && frame.number() - self.first.number() < self.frames
    }

    /// The frame for the leaf table to which entry `index` of the table of level 2 in `parent` leads. `None` where no block is
    /// left for that table.
    pub fn leaf_table(&mut self, parent: Frame<S>, index: usize) -> Option<Frame<S>> {
        let block = match self.blocks.get(&parent) {
            Some(block) => *block,
            None => *self.blocks.entry(parent).or_insert(self.free.pop()?),
        };
        Some(block.offset(index as u64 % Self::BLOCK))
    }

    /// A table was freed: one of the arena's own stays where it is; with one of level 2 its block is free again. Says whether
    /// it was one of the arena's own.
    pub fn freed(&mut self, frame: Frame<S>) -> bool {
        if let Some(block) = self.blocks.remove(&frame) {
            self.free.push(block);
        }
        self.contains(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_addr::Gfn;

    #[test]
    fn leaf_tables_lie_where_their_entries_are_and_blocks_go_with_the_table_above() {
        let mut arena = LeafArena::new(Gfn::new(1024), 1024 + 100);
        assert_eq!(arena.leaf_table(Gfn::new(7), 3), Some(Gfn::new(1027)));
        assert_eq!(arena.leaf_table(Gfn::new(8), 0), Some(Gfn::new(1536)));
        assert_eq!(arena.leaf_table(Gfn::new(7), 511), Some(Gfn::new(1535)));
        assert_eq!(arena.leaf_table(Gfn::new(9), 0), None, "two blocks, two tables above");
        assert!(arena.freed(Gfn::new(1027)) && !arena.freed(Gfn::new(7)));
        assert_eq!(arena.leaf_table(Gfn::new(9), 1), Some(Gfn::new(1025)));
        assert!(!arena.contains(Gfn::new(2048)) && !arena.contains(Gfn::new(1023)));
    }
}
