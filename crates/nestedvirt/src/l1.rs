//! L1: the hypervisor in L0's virtual machine. It owns the frames that L0 gave its machine, and the map from L2's frames to them.
//!
//! Its tables lie in frames of its own heap, L2's memory in others; no frame is ever both. What L1 loads and stores goes through
//! EPT01 ([`crate::stack`]). Its own virtual addresses are left out: a kernel's direct map of large pages, warm in the TLB.

use std::collections::BTreeMap;

use memvirt_addr::{Gfn, L1Phys, L1fn, PageSize};
use memvirt_pagetable::{FrameAllocator, FramePool};

/// The heap never gets larger: 4 GiB of tables.
const MOST_HEAP: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Slot {
    frame: L1fn,
    resident: bool,
}

/// The memory map of L1 and its frames.
#[derive(Debug)]
pub struct L1 {
    heap: FramePool<L1Phys>,
    /// The first frame that serves as L2's memory.
    memory: u64,
    /// L2's frames that L1 has given a frame.
    map: BTreeMap<Gfn, Slot>,
    /// The frame of L2 in each frame of L1 given out, from `memory` on.
    back: Vec<Gfn>,
}

impl L1 {
    /// A machine of L1 large enough for an L2 of `frames` frames. Frame 0 is never handed out.
    pub(crate) fn new(frames: u64) -> Self {
        let heap = ((1 << 16) + frames / 64).min(MOST_HEAP);
        Self { heap: FramePool::new(L1fn::new(1), heap - 1), memory: heap, map: BTreeMap::new(), back: Vec::new() }
    }

    /// A frame for a table. Its contents are whatever was left in it.
    pub(crate) fn allocate_table(&mut self) -> Option<L1fn> {
        self.heap.allocate(PageSize::Size4K)
    }

    /// Takes a table's frame back.
    pub(crate) fn free_table(&mut self, frame: L1fn) {
        self.heap.free(frame, PageSize::Size4K);
    }

    /// How many frames hold tables.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.heap.allocated()
    }

    /// Whether the frame is one of the heap.
    #[must_use]
    pub const fn is_heap(&self, frame: L1fn) -> bool {
        frame.number() < self.memory
    }

    /// L1's frame behind a frame of L2, taken away or not.
    #[must_use]
    pub fn frame_of(&self, gfn: Gfn) -> Option<L1fn> {
        self.map.get(&gfn).map(|slot| slot.frame)
    }

    /// Whether L2's frame has one of L1's now.
    #[must_use]
    pub fn is_resident(&self, gfn: Gfn) -> bool {
        self.map.get(&gfn).is_some_and(|slot| slot.resident)
    }

    /// The frame of L2 that lies in a frame of L1.
    #[must_use]
    pub fn guest_of(&self, frame: L1fn) -> Option<Gfn> {
        let index = frame.number().checked_sub(self.memory)?;
        self.back.get(L1fn::new(index).as_index()).copied()
    }

    /// Gives L2's frame one of L1's: the one it had, or the next. The flag tells whether it is a new one.
    pub(crate) fn give(&mut self, gfn: Gfn) -> (L1fn, bool) {
        if let Some(slot) = self.map.get_mut(&gfn) {
            slot.resident = true;
            return (slot.frame, false);
        }
        let frame = L1fn::new(self.memory + self.back.len() as u64);
        self.back.push(gfn);
        self.map.insert(gfn, Slot { frame, resident: true });
        (frame, true)
    }

    /// The frames of L2 in a range that have a frame now.
    pub(crate) fn resident_in(&self, start: Gfn, end: Gfn) -> Vec<Gfn> {
        self.map.range(start..end).filter(|(_, slot)| slot.resident).map(|(gfn, _)| *gfn).collect()
    }

    /// Takes L2's frame away; what it holds is kept.
    pub(crate) fn take(&mut self, gfn: Gfn) {
        if let Some(slot) = self.map.get_mut(&gfn) {
            slot.resident = false;
        }
    }
}
