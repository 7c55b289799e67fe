//! Sparse simulated physical memory.
//!
//! [`PhysMem`] holds 64-bit words of a physical space. A frame materializes when a value other than zero is stored in it, so
//! memory follows the page tables, not the size of the machine. An index of 4 bytes per frame (zero pages of which the
//! operating system commits only what is touched) leads to frames kept in one dense array: a read is two loads, no hashing.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use memvirt_addr::{Addr, Frame, Space};

/// Memory that holds tables: what a walk reads and an update writes.
pub trait TableMem<S: Space> {
    /// The 8-byte entry at `at` (rounded down to 8 bytes).
    fn read_entry(&self, at: Addr<S>) -> u64;

    /// Stores the 8-byte entry at `at` (rounded down to 8 bytes).
    fn write_entry(&mut self, at: Addr<S>, value: u64);

    /// Fills `frame` with zeros, as is done to a frame that becomes a table.
    fn clear(&mut self, frame: Frame<S>) {
        for index in 0..WORDS {
            self.write_entry(frame.entry(index), 0);
        }
    }
}

const WORDS: usize = 512;
type FrameWords = [u64; WORDS];

/// Sparse physical memory of space `S`; all of it reads as zero until something is stored.
pub struct PhysMem<S: Space> {
    /// Slot in `store` of each frame; 0, the zero frame, while nothing is stored there.
    index: Box<[u32]>,
    store: Vec<FrameWords>,
    free: Vec<u32>,
    space: PhantomData<S>,
}

impl<S: Space> PhysMem<S> {
    /// The largest memory: 4 TiB. Its index alone reserves 4 GiB of address space.
    pub const MAX_FRAMES: u64 = 1 << 30;

    /// Memory of `frames` 4 KiB frames, all zero.
    ///
    /// # Panics
    ///
    /// For more than [`PhysMem::MAX_FRAMES`] frames.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        assert!(frames <= Self::MAX_FRAMES, "physical memory larger than 4 TiB");
        let frames = Frame::<S>::new(frames).as_index();
        Self {
            index: vec![0; frames].into_boxed_slice(),
            store: vec![[0; WORDS]],
            free: Vec::new(),
            space: PhantomData,
        }
    }

    /// The size in frames.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.index.len() as u64
    }

    /// Whether `frame` lies in this memory.
    #[must_use]
    pub const fn contains(&self, frame: Frame<S>) -> bool {
        frame.number() < self.frames()
    }

    /// How many frames hold a value now.
    #[must_use]
    pub const fn materialized(&self) -> usize {
        self.store.len() - 1 - self.free.len()
    }

    /// The 512 words of `frame`; zeros where nothing is stored or outside the memory.
    #[must_use]
    #[inline]
    pub fn words(&self, frame: Frame<S>) -> &[u64; WORDS] {
        &self.store[self.slot(frame)]
    }

    /// The aligned word that holds `at`; 0 outside the memory.
    #[must_use]
    #[inline]
    pub fn read(&self, at: Addr<S>) -> u64 {
        self.store[self.slot(at.frame())][word_of(at)]
    }

    /// Stores the aligned word that holds `at`.
    ///
    /// # Panics
    ///
    /// Outside the memory: whoever hands out frames must know its size.
    pub fn write(&mut self, at: Addr<S>, value: u64) {
        let slot = match self.slot(at.frame()) {
            0 if value == 0 => {
                assert!(self.contains(at.frame()), "store outside physical memory");
                return;
            }
            0 => self.materialize(at.frame()),
            slot => slot,
        };
        self.store[slot][word_of(at)] = value;
    }

    /// Stores the `bytes` low bytes of `value` at `at`, which may lie anywhere within a word; bytes beyond the word's end are
    /// stored in the next word of the same frame.
    ///
    /// # Panics
    ///
    /// Outside the memory, or for more than 8 bytes.
    pub fn write_bytes(&mut self, at: Addr<S>, bytes: u64, value: u64) {
        assert!(bytes <= 8, "at most one word at a time");
        for i in 0..bytes {
            let at = at.frame().at(at.as_u64().wrapping_add(i));
            let shift = (at.as_u64() & 7) * 8;
            let byte = (value >> (8 * i)) & 0xff;
            self.write(at, (self.read(at) & !(0xff << shift)) | (byte << shift));
        }
    }

    /// Forgets what `frame` holds: it reads as zero again and its storage is reused.
    pub fn discard(&mut self, frame: Frame<S>) {
        let slot = self.slot(frame);
        if slot != 0 {
            self.store[slot] = [0; WORDS];
            self.free.push(self.index[frame.as_index()]);
            self.index[frame.as_index()] = 0;
        }
    }

    #[inline]
    fn slot(&self, frame: Frame<S>) -> usize {
        self.index.get(frame.as_index()).map_or(0, |slot| *slot as usize)
    }

    fn materialize(&mut self, frame: Frame<S>) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.store.push([0; WORDS]);
            u32::try_from(self.store.len() - 1).unwrap_or(u32::MAX)
        });
        self.index[frame.as_index()] = slot;
        slot as usize
    }
}

#[inline]
const fn word_of<S: Space>(at: Addr<S>) -> usize {
    (at.as_u64() >> 3) as usize & (WORDS - 1)
}

impl<S: Space> TableMem<S> for PhysMem<S> {
    #[inline]
    fn read_entry(&self, at: Addr<S>) -> u64 {
        self.read(at)
    }

    fn write_entry(&mut self, at: Addr<S>, value: u64) {
        self.write(at, value);
    }

    fn clear(&mut self, frame: Frame<S>) {
        self.discard(frame);
    }
}

impl<S: Space> fmt::Debug for PhysMem<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysMem<{}>({} frames, {} materialized)", S::NAME, self.frames(), self.materialized())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_addr::{GuestPhys, Hpa};

    #[test]
    fn only_stored_frames_take_memory() {
        let mut mem = PhysMem::<memvirt_addr::HostPhys>::new(1 << 28);
        assert_eq!(mem.read(Hpa::new(0xff_ffff_fff8)), 0);
        mem.write(Hpa::new(0x5000), 0);
        assert_eq!(mem.materialized(), 0);
        mem.write(Hpa::new(0x5008), 7);
        assert_eq!((mem.materialized(), mem.read(Hpa::new(0x5008)), mem.read(Hpa::new(0x500f))), (1, 7, 7));
        mem.discard(Hpa::new(0x5000).frame());
        assert_eq!((mem.materialized(), mem.read(Hpa::new(0x5008))), (0, 0));
    }

    #[test]
    fn a_reused_slot_is_empty() {
        let mut mem = PhysMem::<GuestPhys>::new(4);
        mem.write(Addr::new(8), 1);
        mem.discard(Frame::new(0));
        mem.write(Addr::new(0x1000), 2);
        assert_eq!((mem.read(Addr::new(0x1008)), mem.read(Addr::new(8))), (0, 0));
    }

    #[test]
    fn partial_stores_keep_their_neighbours() {
        let mut mem = PhysMem::<GuestPhys>::new(1);
        mem.write(Addr::new(0), 0x1111_1111_1111_1111);
        mem.write_bytes(Addr::new(3), 2, 0xabcd);
        assert_eq!(mem.read(Addr::new(0)), 0x1111_11ab_cd11_1111);
        mem.write_bytes(Addr::new(6), 4, 0x1122_3344);
        assert_eq!((mem.read(Addr::new(0)) >> 48, mem.read(Addr::new(8))), (0x3344, 0x1122));
    }

    #[test]
    #[should_panic(expected = "outside physical memory")]
    fn a_store_outside_is_refused() {
        PhysMem::<GuestPhys>::new(1).write(Addr::new(0x1000), 0);
    }
}
