//! The guest's page allocator: who uses each guest frame, and how many mappings show it.

use std::collections::BTreeSet;

use memvirt_addr::{Gfn, GuestPhys, Level, PageSize};
use memvirt_ops::arch::GfnRange;
use memvirt_pagetable::{FrameAllocator, FramePool, LeafArena};

use super::TableFrames;

/// The guest's frames. As a [`FrameAllocator`] it hands out frames for page tables.
#[derive(Debug)]
pub(crate) struct Frames {
    pool: FramePool<GuestPhys>,
    /// The first frame after the memory.
    end: u64,
    /// Mappings of each 4 KiB frame; bit 31: the frame was a page table when it was last used.
    uses: Box<[u32]>,
    tables: u64,
    data: u64,
    peak_data: u64,
    /// Blocks for tables alone, where the guest groups its frames.
    blocks: Option<TableBlocks>,
    /// Memory for leaf tables, where these lie in arrays.
    arena: Option<LeafArena<GuestPhys>>,
}

/// 2 MiB blocks that hold page tables alone.
///
/// Linux groups pages by mobility: page tables cannot be moved and come from page blocks of their own, programs' pages can and
/// come from others, so that large pages can be made whole (`mm/page_alloc.c`, `MIGRATE_UNMOVABLE`; a block is 2 MiB on x86-64).
#[derive(Debug, Default)]
struct TableBlocks {
    /// Frames of the blocks that hold no table now; the last one is taken next.
    free: Vec<Gfn>,
    /// The first frames of all blocks. They are never given back, as a kernel seldom can.
    claimed: BTreeSet<u64>,
}

impl TableBlocks {
    const BLOCK: PageSize = PageSize::Size2M;

    /// A frame for a table; `None` where no whole block is left to claim.
    fn allocate(&mut self, pool: &mut FramePool<GuestPhys>) -> Option<Gfn> {
        if self.free.is_empty() {
            let block = pool.allocate(Self::BLOCK)?;
            self.claimed.insert(block.number());
            self.free.extend((0..Self::BLOCK.frames()).rev().map(|i| block.offset(i)));
        }
        self.free.pop()
    }

    /// Takes back a frame of one of the blocks; whether it is.
    fn free(&mut self, frame: Gfn) -> bool {
        let mine = self.claimed.contains(&frame.align_down(Self::BLOCK).number());
        if mine {
            self.free.push(frame);
        }
        mine
    }
}

const WAS_TABLE: u32 = 1 << 31;

impl Frames {
    /// All frames of a memory of `frames` frames from `start` on; `arena` of them for leaf tables, where these lie in arrays.
    pub(crate) fn new(start: Gfn, frames: u64, tables: TableFrames, arena: GfnRange) -> Self {
        let arena = (tables == TableFrames::LeafArrays).then_some(arena);
        let pool_end = arena.map_or(frames, |arena| arena.start.number());
        Self {
            arena: arena.map(|arena| LeafArena::new(arena.start, arena.frames)),
            pool: FramePool::new(start, pool_end - start.number()),
            end: frames,
            uses: vec![0; Gfn::new(frames).as_index()].into_boxed_slice(),
            tables: 0,
            data: 0,
            peak_data: 0,
            blocks: (tables == TableFrames::Grouped).then(TableBlocks::default),
        }
    }

    /// A page for data, with one mapping.
    pub(crate) fn allocate_data(&mut self, size: PageSize) -> Option<Gfn> {
        let frame = self.pool.allocate(size)?;
        for i in 0..size.frames() {
            self.uses[frame.offset(i).as_index()] = (self.uses[frame.offset(i).as_index()] & WAS_TABLE) + 1;
        }
        self.data += size.frames();
        self.peak_data = self.peak_data.max(self.data);
        Some(frame)
    }

    /// Whether the frame still holds what a page table left in it; asking forgets it.
    pub(crate) fn take_was_table(&mut self, frame: Gfn) -> bool {
        let was = self.uses[frame.as_index()] & WAS_TABLE != 0;
        self.uses[frame.as_index()] &= !WAS_TABLE;
        was
    }

    /// How many mappings show the frame.
    pub(crate) fn uses(&self, frame: Gfn) -> u32 {
        self.uses[frame.as_index()] & !WAS_TABLE
    }

    /// One more mapping shows the page.
    pub(crate) fn share(&mut self, frame: Gfn, size: PageSize) {
        for i in 0..size.frames() {
            self.uses[frame.offset(i).as_index()] += 1;
        }
    }

    /// One mapping fewer shows the frame; true where that was the last, and the frame is free now.
    pub(crate) fn release(&mut self, frame: Gfn) -> bool {
        self.uses[frame.as_index()] -= 1;
        let last = self.uses(frame) == 0;
        if last {
            self.pool.free(frame, PageSize::Size4K);
            self.data -= 1;
        }
        last
    }

    /// As [`Frames::release`] for each frame of a page; a large page whose last mapping goes is freed whole.
    pub(crate) fn release_page(&mut self, frame: Gfn, size: PageSize) {
        if size == PageSize::Size4K {
            self.release(frame);
            return;
        }
        let all: Vec<Gfn> = (0..size.frames()).map(|i| frame.offset(i)).collect();
        if all.iter().all(|frame| self.uses(*frame) == 1) {
            for frame in &all {
                self.uses[frame.as_index()] -= 1;
            }
            self.pool.free(frame, size);
            self.data -= size.frames();
        } else {
            for frame in all {
                self.release(frame);
            }
        }
    }

    /// The first frame after all that were ever handed out.
    pub(crate) const fn used_end(&self) -> u64 {
        self.end - self.pool.untouched()
    }

    /// How many frames hold page tables.
    pub(crate) const fn tables(&self) -> u64 {
        self.tables
    }

    /// How many frames hold data.
    #[cfg(test)]
    pub(crate) const fn data(&self) -> u64 {
        self.data
    }

    /// How many frames held data at most.
    pub(crate) const fn peak_data(&self) -> u64 {
        self.peak_data
    }
}

impl FrameAllocator<GuestPhys> for Frames {
    fn allocate(&mut self, size: PageSize) -> Option<Gfn> {
        let grouped = match &mut self.blocks {
            Some(blocks) if size == PageSize::Size4K => blocks.allocate(&mut self.pool),
            _ => None,
        };
        let frame = match grouped {
            Some(frame) => frame,
            None => self.pool.allocate(size)?,
        };
        self.tables += size.frames();
        Some(frame)
    }

    fn allocate_table(&mut self, level: Level, parent: Gfn, index: usize) -> Option<Gfn> {
        let arena = self.arena.as_mut().filter(|_| level == Level::L1);
        match arena.and_then(|arena| arena.leaf_table(parent, index)) {
            Some(frame) => {
                self.tables += 1;
                Some(frame)
            }
            None => self.allocate(PageSize::Size4K),
        }
    }

    fn free(&mut self, frame: Gfn, size: PageSize) {
        self.uses[frame.as_index()] = WAS_TABLE;
        self.tables -= size.frames();
        if self.arena.as_mut().is_some_and(|arena| arena.freed(frame)) {
            return;
        }
        if !self.blocks.as_mut().is_some_and(|blocks| blocks.free(frame)) {
            self.pool.free(frame, size);
        }
    }

    fn allocated(&self) -> u64 {
        self.pool.allocated()
    }
}
