//! Frame allocators: who hands out the frames that tables and pages lie in.
//!
//! A guest allocates from its pool of guest frames, the hypervisor from the host's. The type parameter keeps them apart.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt::Debug;

use memvirt_addr::{Frame, PageSize, Space};

/// Hands out frames of space `S`.
pub trait FrameAllocator<S: Space>: Debug {
    /// A run of frames that holds one page of `size`, aligned to it; `None` when there is none left.
    fn allocate(&mut self, size: PageSize) -> Option<Frame<S>>;

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
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use memvirt_addr::{Gfn, GuestPhys};
    use proptest::prelude::*;

    #[test]
    fn freed_frames_come_back_first() {
        let mut pool = FramePool::<GuestPhys>::new(Gfn::new(3), 4096);
        let first = pool.allocate(PageSize::Size4K);
        assert_eq!(first, Some(Gfn::new(3)));
        let large = pool.allocate(PageSize::Size2M);
        assert_eq!(large, Some(Gfn::new(512)));
        assert_eq!(pool.allocate(PageSize::Size4K), Some(Gfn::new(4)), "alignment gaps are used");
        pool.free(Gfn::new(3), PageSize::Size4K);
        assert_eq!(pool.allocate(PageSize::Size4K), Some(Gfn::new(3)));
        assert_eq!(pool.allocated(), 514);
    }

    proptest! {
        #[test]
        fn no_frame_is_given_out_twice(ops in prop::collection::vec((0u8..3, any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut pool = FramePool::<GuestPhys>::new(Gfn::new(1), 3000);
            let mut live: Vec<(Gfn, PageSize)> = Vec::new();
            for (size, free, which) in ops {
                if free && !live.is_empty() {
                    let (frame, size) = live.swap_remove(which.index(live.len()));
                    pool.free(frame, size);
                } else if let Some(frame) = pool.allocate(PageSize::ALL[usize::from(size)]) {
                    prop_assert!(frame.is_aligned(PageSize::ALL[usize::from(size)]));
                    live.push((frame, PageSize::ALL[usize::from(size)]));
                }
                let frames: Vec<u64> = live.iter().flat_map(|(f, s)| f.number()..f.number() + s.frames()).collect();
                prop_assert_eq!(frames.len() as u64, pool.allocated());
                prop_assert!(frames.iter().all(|f| (1..3001).contains(f)));
                prop_assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), frames.len());
            }
        }
    }
}
