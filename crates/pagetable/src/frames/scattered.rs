//! Frames in pseudo-random order: the memory of a machine that has been up for long, without contiguity to profit from.
//!
//! The order is a permutation of the range fixed by a seed: a balanced Feistel network of four rounds (Luby and Rackoff,
//! 1988) with cycle walking for ranges that are no power of four (Black and Rogaway, 2002). Frames are handed out along the
//! permutation, again and again around it; one that is in use is passed over. Memory: one bit per frame of the range.

use alloc::vec;
use alloc::vec::Vec;
use core::marker::PhantomData;

use memvirt_addr::{Frame, PageSize, Space};

use super::FrameAllocator;

/// Hands out frames scattered over a range, in an order that the seed fixes.
///
/// The grain sets how much contiguity is left: frames within one block of the grain's size come in a row, the blocks are
/// scattered. With [`PageSize::Size4K`] larger pages soon cannot be had any more, as on a fragmented machine.
#[derive(Clone, Debug)]
pub struct ScatteredAllocator<S: Space> {
    /// The first frame of the 1 GiB block that the range begins in; all indices count from here.
    base: u64,
    /// One bit per frame: in use, or outside the range.
    used: Vec<u64>,
    /// How many bits of each 2 MiB and of each 1 GiB block are set.
    used_in: [Vec<u32>; 2],
    /// How many 2 MiB and 1 GiB blocks have no bit set.
    free_blocks: [u64; 2],
    free: u64,
    allocated: u64,
    grain: PageSize,
    seed: u64,
    /// How far along its permutation each size is.
    next: [u64; 3],
    space: PhantomData<S>,
}

/// The sizes that `used_in` and `free_blocks` count.
const LARGE: [PageSize; 2] = [PageSize::Size2M, PageSize::Size1G];

impl<S: Space> ScatteredAllocator<S> {
    /// An allocator over `frames` frames from `start` on, all free.
    #[must_use]
    pub fn new(start: Frame<S>, frames: u64, grain: PageSize, seed: u64) -> Self {
        let base = start.align_down(PageSize::Size1G).number();
        let (first, end) = (start.number() - base, start.number() - base + frames);
        let span = end.next_multiple_of(PageSize::Size1G.frames());
        let blocks = LARGE.map(|size| span / size.frames());
        let mut this = Self {
            base,
            used: vec![0; as_index(span / 64)],
            used_in: blocks.map(|count| vec![0; as_index(count)]),
            free_blocks: blocks,
            free: span,
            allocated: 0,
            grain,
            seed,
            next: [0; 3],
            space: PhantomData,
        };
        (0..first).chain(end..span).for_each(|index| this.mark(index));
        this
    }

    /// How many frames are free.
    #[must_use]
    pub const fn free_frames(&self) -> u64 {
        self.free
    }

    fn is_used(&self, index: u64) -> bool {
        self.used[as_index(index / 64)] >> (index % 64) & 1 == 1
    }

    fn mark(&mut self, index: u64) {
        self.used[as_index(index / 64)] |= 1 << (index % 64);
        self.free -= 1;
        for (large, size) in LARGE.iter().enumerate() {
            let count = &mut self.used_in[large][as_index(index / size.frames())];
            self.free_blocks[large] -= u64::from(*count == 0);
            *count += 1;
        }
    }

    fn unmark(&mut self, index: u64) {
        self.used[as_index(index / 64)] &= !(1 << (index % 64));
        self.free += 1;
        for (large, size) in LARGE.iter().enumerate() {
            let count = &mut self.used_in[large][as_index(index / size.frames())];
            *count -= 1;
            self.free_blocks[large] += u64::from(*count == 0);
        }
    }

    /// Whether a block of `size` is free, and how many are.
    fn is_free(&self, index: u64, size: PageSize) -> bool {
        match size {
            PageSize::Size4K => !self.is_used(index),
            PageSize::Size2M => self.used_in[0][as_index(index / size.frames())] == 0,
            PageSize::Size1G => self.used_in[1][as_index(index / size.frames())] == 0,
        }
    }

    const fn free_of(&self, size: PageSize) -> u64 {
        match size {
            PageSize::Size4K => self.free,
            PageSize::Size2M => self.free_blocks[0],
            PageSize::Size1G => self.free_blocks[1],
        }
    }

    /// The next block of `size` along its permutation.
    fn candidate(&mut self, size: PageSize) -> u64 {
        let grain = if self.grain > size { self.grain } else { size };
        let in_grain = grain.frames() / size.frames();
        let span = self.used.len() as u64 * 64;
        let turn = &mut self.next[size as usize - 1];
        let (block, within) = (*turn / in_grain, *turn % in_grain);
        *turn = (*turn + 1) % (span / size.frames());
        permute(block, span / grain.frames(), self.seed ^ size as u64) * grain.frames() + within * size.frames()
    }
}

impl<S: Space> FrameAllocator<S> for ScatteredAllocator<S> {
    fn allocate(&mut self, size: PageSize) -> Option<Frame<S>> {
        if self.free_of(size) == 0 {
            return None;
        }
        loop {
            let index = self.candidate(size);
            if self.is_free(index, size) {
                (index..index + size.frames()).for_each(|index| self.mark(index));
                self.allocated += size.frames();
                return Some(Frame::new(self.base + index));
            }
        }
    }

    /// # Panics
    ///
    /// Where a frame of the page is free already.
    fn free(&mut self, frame: Frame<S>, size: PageSize) {
        let index = frame.number() - self.base;
        for index in index..index + size.frames() {
            assert!(self.is_used(index), "{frame:?} ({size}) is free already");
            self.unmark(index);
        }
        self.allocated -= size.frames();
    }

    fn allocated(&self) -> u64 {
        self.allocated
    }
}

#[expect(clippy::cast_possible_truncation, reason = "indices of frames that have a bit in memory")]
const fn as_index(number: u64) -> usize {
    number as usize
}

/// A permutation of `0..count`, one for each seed.
fn permute(index: u64, count: u64, seed: u64) -> u64 {
    let half = (u64::BITS - count.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1 << half) - 1;
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(seed.wrapping_add(round << 56) ^ right) & mask));
        }
        at = left << half | right;
        if at < count {
            return at;
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_addr::{Gfn, GuestPhys};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn the_order_is_a_permutation(count in 1u64..3000, seed: u64) {
            let mut seen: Vec<u64> = (0..count).map(|index| permute(index, count, seed)).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..count));
        }
    }

    #[test]
    fn neighbours_are_rare_and_the_seed_fixes_the_order() {
        let take = |seed, grain| {
            let mut alloc = ScatteredAllocator::<GuestPhys>::new(Gfn::new(5), 1 << 16, grain, seed);
            let frames: Vec<u64> = (0..4096).map(|_| alloc.allocate(PageSize::Size4K).unwrap().number()).collect();
            let neighbours = frames.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            (frames, neighbours)
        };
        let (frames, neighbours) = take(1, PageSize::Size4K);
        // A random order has 4095 / 65536 expected neighbours; ten are out of question.
        assert!(neighbours < 10, "{neighbours}");
        assert_eq!(take(1, PageSize::Size4K).0, frames);
        assert_ne!(take(2, PageSize::Size4K).0, frames);
        let (_, neighbours) = take(1, PageSize::Size2M);
        assert!((4095 - 10..4095).contains(&neighbours), "eight or nine blocks of 512 frames in a row: {neighbours}");
        // Each value of the top three bits of the frame is about as frequent as the others.
        let mut counts = [0u32; 8];
        frames.iter().for_each(|frame| counts[as_index((frame - 5) >> 13)] += 1);
        assert!(counts.iter().all(|count| (400..=624).contains(count)), "{counts:?}");
    }
}
