//! The guest's page allocator: who uses each guest frame, and how many mappings show it.

use memvirt_addr::{Gfn, GuestPhys, PageSize};
use memvirt_pagetable::{FrameAllocator, FramePool};

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
}

const WAS_TABLE: u32 = 1 << 31;

impl Frames {
    /// All frames of a memory of `frames` frames from `start` on.
    pub(crate) fn new(start: Gfn, frames: u64) -> Self {
        Self {
            pool: FramePool::new(start, frames - start.number()),
            end: frames,
            uses: vec![0; Gfn::new(frames).as_index()].into_boxed_slice(),
            tables: 0,
            data: 0,
            peak_data: 0,
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
        let frame = self.pool.allocate(size)?;
        self.tables += size.frames();
        Some(frame)
    }

    fn free(&mut self, frame: Gfn, size: PageSize) {
        self.uses[frame.as_index()] = WAS_TABLE;
        self.pool.free(frame, size);
        self.tables -= size.frames();
    }

    fn allocated(&self) -> u64 {
        self.pool.allocated()
    }
}
