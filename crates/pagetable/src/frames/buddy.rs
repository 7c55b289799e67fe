//! A binary buddy allocator: blocks of 2^order frames that split in halves and merge with their buddies again.
//!
//! What Linux hands out physical memory with (Knuth, The Art of Computer Programming 1, section 2.5; Linux `mm/page_alloc.c`),
//! with orders up to a 1 GiB page and without its migration types and per-CPU lists. Deterministic: the smallest block that
//! fits, the lowest of those first.

use alloc::collections::BTreeSet;
use core::marker::PhantomData;

use memvirt_addr::{Frame, PageSize, Space};

use super::FrameAllocator;

const ORDERS: usize = order_of(PageSize::Size1G) as usize + 1;

/// Blocks of 2^order frames.
#[derive(Clone, Debug)]
pub struct BuddyAllocator<S: Space> {
    /// The first frames of the free blocks of each order.
    free: [BTreeSet<u64>; ORDERS],
    allocated: u64,
    space: PhantomData<S>,
}

impl<S: Space> BuddyAllocator<S> {
    /// The order of a 1 GiB block, the largest there is.
    pub const MAX_ORDER: u32 = order_of(PageSize::Size1G);

    /// An allocator over `frames` frames from `start` on, all free.
    #[must_use]
    pub fn new(start: Frame<S>, frames: u64) -> Self {
        let mut free = [const { BTreeSet::new() }; ORDERS];
        let (mut next, end) = (start.number(), start.number() + frames);
        while next < end {
            let fits = (end - next).ilog2();
            let order = next.trailing_zeros().min(fits).min(Self::MAX_ORDER);
            free[order as usize].insert(next);
            next += 1 << order;
        }
        Self { free, allocated: 0, space: PhantomData }
    }

    /// A block of 2^`order` frames, aligned to its size; `None` where no free block is that large.
    ///
    /// # Panics
    ///
    /// For an order above [`BuddyAllocator::MAX_ORDER`].
    pub fn allocate_order(&mut self, order: u32) -> Option<Frame<S>> {
        assert!(order <= Self::MAX_ORDER, "no block is larger than 1 GiB");
        let from = (order..=Self::MAX_ORDER).find(|order| !self.free[*order as usize].is_empty())?;
        let block = self.free[from as usize].pop_first()?;
        for upper in order..from {
            self.free[upper as usize].insert(block + (1 << upper));
        }
        self.allocated += 1 << order;
        Some(Frame::new(block))
    }

    /// Takes a block back and merges it with its free buddies.
    ///
    /// # Panics
    ///
    /// For an order above [`BuddyAllocator::MAX_ORDER`]; where the block, or part of it, is free already.
    pub fn free_order(&mut self, frame: Frame<S>, order: u32) {
        let mut block = frame.number();
        assert!(!self.meets_free(block, order), "{frame:?} of order {order} is free already");
        self.allocated -= 1 << order;
        let mut order = order;
        while order < Self::MAX_ORDER && self.free[order as usize].remove(&(block ^ (1 << order))) {
            block &= !(1 << order);
            order += 1;
        }
        self.free[order as usize].insert(block);
    }

    /// How many blocks of exactly 2^`order` frames are free: what Linux prints in `/proc/buddyinfo`.
    #[must_use]
    pub fn free_blocks(&self, order: u32) -> usize {
        self.free.get(order as usize).map_or(0, BTreeSet::len)
    }

    /// Whether some free block meets the block of this order.
    fn meets_free(&self, block: u64, order: u32) -> bool {
        (0..=Self::MAX_ORDER).any(|other| {
            let first = block & !((1 << other) - 1);
            let last = block + (1 << order) - 1;
            self.free[other as usize].range(first..=last).next().is_some()
        })
    }
}

const fn order_of(size: PageSize) -> u32 {
    size.shift() - PageSize::Size4K.shift()
}

impl<S: Space> FrameAllocator<S> for BuddyAllocator<S> {
    fn allocate(&mut self, size: PageSize) -> Option<Frame<S>> {
        self.allocate_order(order_of(size))
    }

    fn free(&mut self, frame: Frame<S>, size: PageSize) {
        self.free_order(frame, order_of(size));
    }

    fn allocated(&self) -> u64 {
        self.allocated
    }
}
