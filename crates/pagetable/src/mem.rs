//! Sparse simulated physical memory.
//!
//! [`PhysMem`] holds 64-bit words of a physical space. A frame materializes when a value other than zero is stored in it, so
//! memory follows the page tables, not the size of the machine. An index of 4 bytes per frame (zero pages of which the
//! operating system commits only what is touched) leads to frames kept in one dense array: a read is two loads, no hashing.
//! Beyond [`PhysMem::WHOLE`] frames a new one begins as a list of the words that are in use ([`FewWords`]), which its number in the
//! index tells from the others: numbers from `FEW` on lie outside the array.

mod few;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;

use memvirt_addr::{Addr, Frame, Space};

pub use few::FewWords;

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
    /// Slot in `store` of each frame; 0, the zero frame, while nothing is stored there; from [`FEW`] on one in `few`.
    index: Box<[u32]>,
    store: Vec<FrameWords>,
    free: Vec<u32>,
    few: Vec<FewWords>,
    free_few: Vec<u32>,
    space: PhantomData<S>,
}

/// Slots from here on are those of frames with few words.
const FEW: u32 = 1 << 31;

/// The words of a frame: a reference to them, or a copy where they are kept as a list.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "short-lived, on the stack")]
pub enum Words<'a> {
    /// Kept whole.
    Whole(&'a [u64; WORDS]),
    /// Made from a list.
    Copied([u64; WORDS]),
}

impl Deref for Words<'_> {
    type Target = [u64; WORDS];

    fn deref(&self) -> &[u64; WORDS] {
        match self {
            Self::Whole(words) => words,
            Self::Copied(words) => words,
        }
    }
}

impl<S: Space> PhysMem<S> {
    /// The largest memory: 4 TiB. Its index alone reserves 4 GiB of address space.
    pub const MAX_FRAMES: u64 = 1 << 30;

    /// So many frames (64 MiB of them) are kept whole from their first word on, however few words they hold.
    pub const WHOLE: usize = 1 << 14;

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
            few: Vec::new(),
            free_few: Vec::new(),
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
        self.store.len() - 1 - self.free.len() + self.few.len() - self.free_few.len()
    }

    /// The 512 words of `frame`; zeros where nothing is stored or outside the memory.
    #[must_use]
    #[inline]
    pub fn words(&self, frame: Frame<S>) -> Words<'_> {
        let slot = self.slot(frame);
        match self.store.get(slot as usize) {
            Some(words) => Words::Whole(words),
            None => Words::Copied(self.few[few(slot)].all()),
        }
    }

    /// The aligned word that holds `at`; 0 outside the memory.
    #[must_use]
    #[inline]
    pub fn read(&self, at: Addr<S>) -> u64 {
        let slot = self.slot(at.frame());
        match self.store.get(slot as usize) {
            Some(words) => words[word_of(at)],
            None => self.read_few(slot, word_of(at)),
        }
    }

    /// Where word `index` (modulo 512) of `frame` lies: for reading it later with one load ([`PhysMem::read_place`]). Holds until
    /// the frame is first stored to, or discarded, or its list outgrown.
    #[must_use]
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo the words of a frame")]
    pub fn place(&self, frame: Frame<S>, index: u64) -> usize {
        self.slot(frame) as usize * WORDS + index as usize % WORDS
    }

    /// The word at a place of this memory.
    #[must_use]
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "what `place` made of a slot and a word")]
    pub fn read_place(&self, place: usize) -> u64 {
        match self.stored().get(place) {
            Some(word) => *word,
            None => self.read_few((place / WORDS) as u32, place % WORDS),
        }
    }

    /// The words of all frames that are kept whole, by place. Of use to prefetch them.
    #[must_use]
    #[inline]
    pub fn stored(&self) -> &[u64] {
        self.store.as_flattened()
    }

    #[cold]
    #[inline(never)]
    fn read_few(&self, slot: u32, word: usize) -> u64 {
        self.few[few(slot)].get(word)
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
        match self.store.get_mut(slot as usize) {
            Some(words) => words[word_of(at)] = value,
            None => self.write_few(at, slot, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_few(&mut self, at: Addr<S>, slot: u32, value: u64) {
        if self.few[few(slot)].set(word_of(at), value) {
            return;
        }
        let words = self.few[few(slot)].all();
        self.free_few.push(slot);
        let slot = self.whole_slot();
        self.index[at.frame().as_index()] = slot;
        self.store[slot as usize] = words;
        self.store[slot as usize][word_of(at)] = value;
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
        if slot == 0 {
            return;
        }
        match self.store.get_mut(slot as usize) {
            Some(words) => {
                *words = [0; WORDS];
                self.free.push(slot);
            }
            None => self.free_few.push(slot),
        }
        self.index[frame.as_index()] = 0;
    }

    #[inline]
    fn slot(&self, frame: Frame<S>) -> u32 {
        self.index.get(frame.as_index()).copied().unwrap_or(0)
    }

    /// Gives `frame` a slot: a whole one while there are not many, one for few words after that.
    fn materialize(&mut self, frame: Frame<S>) -> u32 {
        let slot =
            if self.store.len() <= Self::WHOLE || !self.free.is_empty() { self.whole_slot() } else { self.few_slot() };
        self.index[frame.as_index()] = slot;
        slot
    }

    /// A slot of zeros in `store`.
    fn whole_slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.store.push([0; WORDS]);
            u32::try_from(self.store.len() - 1).unwrap_or(FEW - 1)
        })
    }

    fn few_slot(&mut self) -> u32 {
        let slot = self.free_few.pop().unwrap_or_else(|| {
            self.few.push(FewWords::EMPTY);
            u32::try_from(self.few.len() - 1).unwrap_or(0) | FEW
        });
        self.few[few(slot)] = FewWords::EMPTY;
        slot
    }
}

/// Where in `few` a slot lies.
#[inline]
const fn few(slot: u32) -> usize {
    (slot & !FEW) as usize
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

    /// A stream of stores that fills, empties and discards frames on both sides of the limit, against a map.
    #[test]
    fn frames_of_few_words_read_as_whole_ones_do() {
        const FRAMES: u64 = PhysMem::<GuestPhys>::WHOLE as u64 + 300;
        let mut mem = PhysMem::<GuestPhys>::new(FRAMES);
        let mut model = alloc::collections::BTreeMap::new();
        let mut state = 1u64;
        for step in 0..60_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let random = state >> 33;
            // First every frame once; then the last 400, each of a few words of which some come and go.
            let filling = step < FRAMES;
            let frame = if filling { step } else { FRAMES - 1 - random % 400 };
            if !filling && random.is_multiple_of(512) {
                mem.discard(Frame::new(frame));
                model.retain(|at, _| at >> 12 != frame);
                continue;
            }
            let at = Frame::<GuestPhys>::new(frame).base().as_u64() + random / 512 % 40 * 8;
            let value = if filling { 1 } else { random % 3 };
            mem.write(Addr::new(at), value);
            model.insert(at, value);
        }
        assert!(mem.store.len() > PhysMem::<GuestPhys>::WHOLE + 10 && mem.few.len() > 10, "both kinds");
        for frame in FRAMES - 500..FRAMES {
            let expected: [u64; WORDS] = core::array::from_fn(|i| {
                model.get(&Frame::<GuestPhys>::new(frame).entry(i).as_u64()).copied().unwrap_or(0)
            });
            assert_eq!(*mem.words(Frame::new(frame)), expected, "{frame}");
            assert_eq!(core::array::from_fn(|i| mem.read(Frame::new(frame).entry(i))), expected, "{frame}");
        }
    }

    #[test]
    #[should_panic(expected = "outside physical memory")]
    fn a_store_outside_is_refused() {
        PhysMem::<GuestPhys>::new(1).write(Addr::new(0x1000), 0);
    }
}
