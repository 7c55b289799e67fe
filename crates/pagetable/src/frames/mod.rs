//! Frame allocators: who hands out the frames that tables and pages lie in.
//!
//! A guest allocates from its pool of guest frames, the hypervisor from the host's. The type parameter keeps them apart.
//! [`FramePool`] is the plain one; [`BuddyAllocator`] keeps memory contiguous as a kernel does, [`ScatteredAllocator`] gives
//! none.

mod arena;
mod buddy;
mod scattered;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt::Debug;

use memvirt_addr::{Frame, Level, PageSize, Space};

pub use arena::LeafArena;
pub use buddy::BuddyAllocator;
pub use scattered::ScatteredAllocator;

/// Hands out frames of space `S`.
pub trait FrameAllocator<S: Space>: Debug {
    /// A run of frames that holds one page of `size`, aligned to it; `None` when there is none left.
    fn allocate(&mut self, size: PageSize) -> Option<Frame<S>>;

    /// A frame for a table of `level`, to which entry `index` of the table in frame `parent` will lead. Freed like any frame of
    /// 4 KiB. For allocators that care where tables lie; others give out the next frame.
    fn allocate_table(&mut self, level: Level, parent: Frame<S>, index: usize) -> Option<Frame<S>> {
        let _ = (level, parent, index);
        self.allocate(PageSize::Size4K)
    }

    /// Takes back what [`FrameAllocator::allocate`] gave out with the same `size`.
    fn free(&mut self, frame: Frame<S>, size: PageSize);

    /// How many 4 KiB frames are given out now.
    fn allocated(&self) -> u64;
}

/// A pool over a range of frames: first fit upwards, then what was freed last.
///
/// 4 KiB frames that were freed are used again first, last in first out, as a kernel's per-CPU lists do; larger pages come
/// from the untouched end of the range, and alignment gaps serve 4 KiB requests.
#[derive(Clone, Debug)]
pub struct FramePool<S: Space> {
    next: u64,
    end: u64,
    free_small: Vec<Frame<S>>,
    free_large: [BTreeSet<u64>; 2],
    allocated: u64,
}

impl<S: Space> FramePool<S> {
    /// A pool over `frames` frames from `start` on.
    #[must_use]
    pub const fn new(start: Frame<S>, frames: u64) -> Self {
        Self {
            next: start.number(),
            end: start.number() + frames,
            free_small: Vec::new(),
            free_large: [BTreeSet::new(), BTreeSet::new()],
            allocated: 0,
        }
    }

    /// How many frames were never given out.
    #[must_use]
    pub const fn untouched(&self) -> u64 {
        self.end - self.next
    }

    fn bump(&mut self, size: PageSize) -> Option<Frame<S>> {
        let aligned = self.next.checked_next_multiple_of(size.frames())?;
        if aligned.checked_add(size.frames())? > self.end {
            return None;
        }
        self.free_small.extend((self.next..aligned).rev().map(Frame::new));
        self.next = aligned + size.frames();
        Some(Frame::new(aligned))
    }

    fn reuse(&mut self, size: PageSize) -> Option<Frame<S>> {
        match size {
            PageSize::Size4K => self.free_small.pop(),
            PageSize::Size2M => self.free_large[0].pop_first().map(Frame::new),
            PageSize::Size1G => self.free_large[1].pop_first().map(Frame::new),
        }
    }

    /// Breaks a freed 2 MiB page into frames, for when the range is used up.
    fn break_large(&mut self) -> Option<Frame<S>> {
        let large = self.free_large[0].pop_first()?;
        self.free_small.extend((large + 1..large + PageSize::Size2M.frames()).rev().map(Frame::new));
        Some(Frame::new(large))
    }
}

impl<S: Space> FrameAllocator<S> for FramePool<S> {
    fn allocate(&mut self, size: PageSize) -> Option<Frame<S>> {
        let mut found = self.reuse(size).or_else(|| self.bump(size));
        if found.is_none() && size == PageSize::Size4K {
            found = self.break_large();
        }
        self.allocated += if found.is_some() { size.frames() } else { 0 };
        found
    }

    fn free(&mut self, frame: Frame<S>, size: PageSize) {
        self.allocated -= size.frames();
        match size {
            PageSize::Size4K => self.free_small.push(frame),
            PageSize::Size2M => {
                self.free_large[0].insert(frame.number());
            }
            PageSize::Size1G => {
                self.free_large[1].insert(frame.number());
            }
        }
    }

    fn allocated(&self) -> u64 {
        self.allocated
    }
}

#[cfg(test)]
mod tests;
