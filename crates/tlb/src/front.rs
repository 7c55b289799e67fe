//! [`Front`]: from the low bits of a page number straight to a slot of a first-level array.
//!
//! It is a direct-mapped copy of part of the array, kept exact: what leaves the array leaves the front, and only entries
//! that one process sees are in it (`Tlb` clears it when another process runs). So what matches here is a hit, without a
//! look at the array itself; what does not match may still hit, and is searched for.

use alloc::boxed::Box;

use crate::entry::{Data, Key, Packed};

/// Lines of a front.
pub(crate) const LINES: usize = 512;

pub(crate) struct Front {
    pub(crate) keys: Box<[u64; LINES]>,
    /// The denied bits of [`Data`], and the slot in the low bits.
    pub(crate) slots: Box<[u64; LINES]>,
}

impl Default for Front {
    fn default() -> Self {
        Self { keys: Box::new([0; LINES]), slots: Box::new([0; LINES]) }
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of lines")]
fn line(key: Key) -> usize {
    key.number() as usize % LINES
}

impl Front {
    #[inline]
    pub(crate) fn put(&mut self, packed: &Packed, slot: usize) {
        let line = line(packed.key);
        self.keys[line] = packed.key.0;
        self.slots[line] = packed.data.0 & Data::DENIED | slot as u64;
    }

    #[inline]
    pub(crate) fn remove(&mut self, key: Key) {
        let line = line(key);
        if self.keys[line] == key.0 {
            self.keys[line] = 0;
        }
    }
}
