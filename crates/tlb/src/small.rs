//! [`SmallPages`]: a filter that tells the fill of a large page whether small entries may lie inside it.

use memvirt_addr::PageSize;

use crate::entry::{Key, Packed};

/// A filter over regions of 2 MiB and 1 GiB: may entries smaller than the region lie in it?
///
/// Without it each fill of a large page would search all arrays for the small entries it overlaps. A clear bit is
/// certain; a set one may be stale or belong to another region, which costs a search.
pub(crate) struct SmallPages {
    in_2m: [u64; 64],
    in_1g: [u64; 16],
    /// Some entries have not been noted yet.
    lags: bool,
}

impl Default for SmallPages {
    fn default() -> Self {
        Self { in_2m: [0; 64], in_1g: [0; 16], lags: false }
    }
}

impl SmallPages {
    const BITS_2M: u64 = 64 * 64;
    const BITS_1G: u64 = 16 * 64;

    #[inline]
    pub(crate) fn note(&mut self, new: &Packed) {
        let page = new.key.page();
        match new.key.size() {
            PageSize::Size4K => {
                set(&mut self.in_2m, page >> 9, true);
                set(&mut self.in_1g, page >> 18, true);
            }
            PageSize::Size2M => set(&mut self.in_1g, page >> 18, true),
            PageSize::Size1G => {}
        }
    }

    /// Says, where `any`, that entries were filled which are not noted: before the filter is asked, all live ones have to be.
    #[inline]
    pub(crate) fn forget_to_note(&mut self, any: bool) {
        self.lags |= any;
    }

    /// Whether all live entries have to be noted; the caller does so now.
    pub(crate) fn must_be_noted(&mut self) -> bool {
        core::mem::take(&mut self.lags)
    }

    pub(crate) fn maybe_in(&self, key: Key) -> bool {
        match key.size() {
            PageSize::Size4K => false,
            PageSize::Size2M => get(&self.in_2m, key.number()),
            PageSize::Size1G => get(&self.in_1g, key.number()),
        }
    }

    pub(crate) fn forget(&mut self, key: Key) {
        match key.size() {
            PageSize::Size4K => {}
            PageSize::Size2M => set(&mut self.in_2m, key.number(), false),
            PageSize::Size1G => set(&mut self.in_1g, key.number(), false),
        }
    }

    /// Whether a smaller entry falls on the same filter bit as the large page.
    pub(crate) fn same_region(small: Key, large: Key) -> bool {
        let number = small.page() >> (large.size().shift() - 12);
        let bits = if large.size() == PageSize::Size2M { Self::BITS_2M } else { Self::BITS_1G };
        number % bits == large.number() % bits
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn at(words: &[u64], number: u64) -> (usize, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of bits")]
    let bit = (number % (words.len() as u64 * 64)) as usize;
    (bit / 64, bit % 64)
}

fn get(words: &[u64], number: u64) -> bool {
    let (word, bit) = at(words, number);
    words[word] >> bit & 1 != 0
}

fn set(words: &mut [u64], number: u64, value: bool) {
    let (word, bit) = at(words, number);
    words[word] = words[word] & !(1 << bit) | u64::from(value) << bit;
}
