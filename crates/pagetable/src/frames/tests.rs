//! What holds for every allocator, over random sequences; and what each promises besides.

use alloc::vec;
use alloc::vec::Vec;

use memvirt_addr::{Gfn, GuestPhys, PageSize};
use proptest::prelude::*;

use super::{BuddyAllocator, FrameAllocator, FramePool, ScatteredAllocator};

/// Whether an allocator may refuse a page although an aligned run of free frames is there.
#[derive(Clone, Copy, PartialEq)]
enum Refusal {
    OnlyWhenNoRunIsFree,
    MayKeepListsApart,
}

type Op = (u8, u8, prop::sample::Index);

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec((0u8..3, 0u8..10, any::<prop::sample::Index>()), 1..200)
}

/// Frames from 1 on; the range holds one whole 1 GiB block.
const FRAMES: usize = (1 << 19) + 700;

/// No frame twice, aligned, inside the range, counted; in the end all of it can be given back.
fn exercise(alloc: &mut impl FrameAllocator<GuestPhys>, refusal: Refusal, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut used = vec![false; FRAMES + 1];
    used[0] = true;
    let mut live: Vec<(Gfn, PageSize)> = Vec::new();
    let run = |frame: Gfn, size: PageSize| frame.as_index()..frame.offset(size.frames()).as_index();
    for (size, free, which) in ops {
        let size = PageSize::ALL[usize::from(*size)];
        if *free < 4 && !live.is_empty() {
            let (frame, size) = live.swap_remove(which.index(live.len()));
            alloc.free(frame, size);
            used[run(frame, size)].fill(false);
        } else if let Some(frame) = alloc.allocate(size) {
            prop_assert!(frame.is_aligned(size));
            let taken = used.get_mut(run(frame, size));
            prop_assert!(taken.is_some_and(|run| run.iter().all(|used| !used)), "{:?} {}", frame, size);
            used[run(frame, size)].fill(true);
            live.push((frame, size));
        } else if refusal == Refusal::OnlyWhenNoRunIsFree {
            let frames = Gfn::new(size.frames()).as_index();
            prop_assert!(!used.chunks_exact(frames).any(|run| run.iter().all(|used| !used)), "a {} run is free", size);
        }
        prop_assert_eq!(alloc.allocated(), live.iter().map(|(_, size)| size.frames()).sum::<u64>());
    }
    live.into_iter().for_each(|(frame, size)| alloc.free(frame, size));
    prop_assert_eq!(alloc.allocated(), 0);
    prop_assert!(alloc.allocate(PageSize::Size4K).is_some());
    Ok(())
}

proptest! {
    #![proptest_config(memvirt_properties::cases(48))]

    #[test]
    fn a_pool_gives_no_frame_twice(ops in ops()) {
        exercise(&mut FramePool::new(Gfn::new(1), FRAMES as u64), Refusal::MayKeepListsApart, &ops)?;
    }

    #[test]
    fn a_buddy_allocator_gives_no_frame_twice_and_merges_everything(ops in ops()) {
        let mut alloc = BuddyAllocator::new(Gfn::new(1), FRAMES as u64);
        let before = alloc.clone();
        exercise(&mut alloc, Refusal::OnlyWhenNoRunIsFree, &ops)?;
        alloc.free(Gfn::new(1), PageSize::Size4K);
        for order in 0..=BuddyAllocator::<GuestPhys>::MAX_ORDER {
            prop_assert_eq!(alloc.free_blocks(order), before.free_blocks(order));
        }
    }

    #[test]
    fn a_scattered_allocator_gives_no_frame_twice(ops in ops(), seed: u64, grain in 0usize..3) {
        let mut alloc = ScatteredAllocator::new(Gfn::new(1), FRAMES as u64, PageSize::ALL[grain], seed);
        prop_assert_eq!(alloc.free_frames(), FRAMES as u64);
        exercise(&mut alloc, Refusal::OnlyWhenNoRunIsFree, &ops)?;
        prop_assert_eq!(alloc.free_frames(), FRAMES as u64 - 1);
    }

    #[test]
    fn small_memories_can_be_used_up(start in 0u64..600, frames in 1u64..1500, seed: u64) {
        let mut buddy = BuddyAllocator::<GuestPhys>::new(Gfn::new(start), frames);
        let mut scattered = ScatteredAllocator::<GuestPhys>::new(Gfn::new(start), frames, PageSize::Size4K, seed);
        let all = |alloc: &mut dyn FnMut() -> Option<Gfn>| {
            let mut found: Vec<u64> = core::iter::from_fn(alloc).map(Gfn::number).collect();
            found.sort_unstable();
            found
        };
        let range: Vec<u64> = (start..start + frames).collect();
        prop_assert_eq!(&all(&mut || buddy.allocate(PageSize::Size4K)), &range);
        prop_assert_eq!(&all(&mut || scattered.allocate(PageSize::Size4K)), &range);
    }
}

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

#[test]
fn a_buddy_allocator_breaks_the_smallest_block_that_fits() {
    let mut alloc = BuddyAllocator::<GuestPhys>::new(Gfn::new(0), 512 + 4);
    assert_eq!(alloc.allocate(PageSize::Size4K), Some(Gfn::new(512)), "the block of four is the smaller one");
    assert_eq!((alloc.free_blocks(0), alloc.free_blocks(1), alloc.free_blocks(9)), (1, 1, 1));
    assert_eq!(alloc.allocate(PageSize::Size2M), Some(Gfn::new(0)));
    assert_eq!(alloc.allocate_order(2), None);
    alloc.free(Gfn::new(512), PageSize::Size4K);
    assert_eq!(alloc.allocate_order(2), Some(Gfn::new(512)));
}

#[test]
#[should_panic(expected = "free already")]
fn a_buddy_allocator_refuses_a_second_free() {
    let mut alloc = BuddyAllocator::<GuestPhys>::new(Gfn::new(0), 512);
    let frame = alloc.allocate(PageSize::Size4K).unwrap();
    alloc.free(frame, PageSize::Size4K);
    alloc.free(frame, PageSize::Size4K);
}
