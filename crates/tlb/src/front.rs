//! [`Front`]: from the low bits of a page number straight to a slot of a first-level array.
//!
//! A hint: what it leads to is compared with the key that is looked for, so entries may leave the array without its knowledge.
//! What it must not do is lead to an entry that the process it runs for does not see, as keys do not tell processes apart
//! (`Tlb` clears it when another process runs). So what matches through it is a hit, without a search of the set; what does not
//! match may still hit, and is searched for.

use memvirt_addr::PageSize;

use crate::entry::Key;

/// Lines of a front.
pub(crate) const LINES: usize = 512;

/// Leads beyond every array.
const NOWHERE: u16 = u16::MAX;

pub(crate) struct Front {
    pub(crate) slots: [u16; LINES],
}

impl Default for Front {
    fn default() -> Self {
        Self { slots: [NOWHERE; LINES] }
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of lines")]
fn line(key: Key) -> usize {
    match key.size() {
        PageSize::Size4K => key.number_of::<12>() as usize % LINES,
        _ => key.number() as usize % LINES,
    }
}

impl Front {
    /// Leads to the slot from now on.
    #[inline]
    pub(crate) fn put(&mut self, key: Key, slot: usize) {
        self.slots[line(key)] = u16::try_from(slot).unwrap_or(NOWHERE);
    }

    /// The slot holds this key now, for a process that the hot path does not run for.
    #[inline]
    pub(crate) fn forget(&mut self, key: Key, slot: usize) {
        let line = &mut self.slots[line(key)];
        if usize::from(*line) == slot {
            *line = NOWHERE;
        }
    }
}
