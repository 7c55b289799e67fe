//! What KVM keeps for each frame of guest memory: who maps it, whether it is a table, whether large pages may cover it.
//!
//! One memory slot covers all guest memory. Source: spec A3, A6, A12, A17; `struct kvm_arch_memory_slot` (`rmap`,
//! `lpage_info`, `gfn_track`).

use memvirt_addr::{Gfn, PageSize};
use memvirt_ops::arch::GfnRange;

use super::lists::Head;

/// The memory slot.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    frames: u64,
    /// Leaves by level, 4 KiB first.
    rmap: [Box<[Head]>; 3],
    /// Shadowed tables in each 2 MiB and each 1 GiB region.
    tables_in: [Box<[u32]>; 2],
    /// Shadow pages above level 1 of each frame: stores to it must be emulated.
    write_track: Box<[u16]>,
    /// Frames that the host backs with its shared page of zeros, once they are touched: readable, not writable.
    zero: Box<[u64]>,
    /// While dirty logging is on: the frames stored to since the last round.
    dirty: Option<Box<[u64]>>,
}

impl Slot {
    pub(crate) fn new(frames: u64) -> Self {
        let count = |size: PageSize| Gfn::new(frames.div_ceil(size.frames())).as_index();
        Self {
            frames,
            rmap: PageSize::ALL.map(|size| vec![Head::default(); count(size)].into_boxed_slice()),
            tables_in: [PageSize::Size2M, PageSize::Size1G].map(|size| vec![0; count(size)].into_boxed_slice()),
            write_track: vec![0; count(PageSize::Size4K)].into_boxed_slice(),
            zero: vec![0; count(PageSize::Size4K).div_ceil(64)].into_boxed_slice(),
            dirty: None,
        }
    }

    /// Whether the slot has been sized.
    pub(crate) const fn is_ready(&self) -> bool {
        self.frames != 0
    }

    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    pub(crate) const fn contains(&self, gfn: u64) -> bool {
        gfn < self.frames
    }

    /// The part of `range` inside the slot, as first frame and end.
    pub(crate) fn clip(&self, range: GfnRange) -> (u64, u64) {
        let start = range.start.number().min(self.frames);
        (start, start.saturating_add(range.frames).min(self.frames))
    }

    fn index(gfn: u64, level: u8) -> usize {
        Gfn::new(gfn >> (9 * (level - 1))).as_index()
    }

    /// The list of leaves of `level` that map `gfn`.
    pub(crate) fn rmap(&self, gfn: u64, level: u8) -> Head {
        self.rmap[usize::from(level - 1)][Self::index(gfn, level)]
    }

    pub(crate) fn rmap_mut(&mut self, gfn: u64, level: u8) -> &mut Head {
        &mut self.rmap[usize::from(level - 1)][Self::index(gfn, level)]
    }

    /// All lists of `level`.
    pub(crate) fn rmaps(&self, level: u8) -> &[Head] {
        &self.rmap[usize::from(level - 1)]
    }

    /// Notes that `gfn` is a shadowed table, above level 1 or not: large pages may no longer cover it.
    pub(crate) fn add_table(&mut self, gfn: u64, level: u8) {
        self.write_track[Self::index(gfn, 1)] += u16::from(level > 1);
        for (tables, level) in self.tables_in.iter_mut().zip([2, 3]) {
            tables[Self::index(gfn, level)] += 1;
        }
    }

    pub(crate) fn remove_table(&mut self, gfn: u64, level: u8) {
        self.write_track[Self::index(gfn, 1)] -= u16::from(level > 1);
        for (tables, level) in self.tables_in.iter_mut().zip([2, 3]) {
            tables[Self::index(gfn, level)] -= 1;
        }
    }

    /// Shadow pages above level 1 of `gfn`.
    pub(crate) fn tracked(&self, gfn: u64) -> u16 {
        self.write_track.get(Self::index(gfn, 1)).copied().unwrap_or(0)
    }

    /// The highest level, up to `most`, at which a leaf may cover `gfn` without covering a shadowed table.
    pub(crate) fn level_without_tables(&self, gfn: u64, most: u8) -> u8 {
        (2..=most.min(3))
            .rev()
            .find(|level| self.tables_in[usize::from(level - 2)][Self::index(gfn, *level)] == 0)
            .unwrap_or(1)
    }

    pub(crate) fn is_zero_page(&self, gfn: u64) -> bool {
        self.zero[Self::index(gfn, 1) / 64] >> (gfn % 64) & 1 != 0
    }

    pub(crate) fn set_zero_page(&mut self, gfn: u64, zero: bool) {
        set(&mut self.zero, gfn, zero);
    }

    pub(crate) const fn is_logging(&self) -> bool {
        self.dirty.is_some()
    }

    /// Starts or ends the log of dirty frames.
    pub(crate) fn set_logging(&mut self, on: bool) {
        self.dirty = on.then(|| vec![0; self.zero.len()].into_boxed_slice());
    }

    /// Notes a store to `gfn`.
    pub(crate) fn mark_dirty(&mut self, gfn: u64) {
        if let Some(log) = &mut self.dirty
            && gfn < self.frames
        {
            set(log, gfn, true);
        }
    }

    /// The dirty frames, in order; the log is empty afterwards.
    pub(crate) fn take_dirty(&mut self) -> Vec<u64> {
        let mut found = Vec::new();
        for (word, bits) in (0u64..).zip(self.dirty.iter_mut().flatten()) {
            let mut left = core::mem::take(bits);
            while left != 0 {
                found.push(word * 64 + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
        found
    }
}

fn set(bits: &mut [u64], number: u64, value: bool) {
    let word = &mut bits[Gfn::new(number / 64).as_index()];
    *word = *word & !(1 << (number % 64)) | u64::from(value) << (number % 64);
}
