//! [`EscapeFilter`]: pages within a segment that are translated by tables after all.
//!
//! A segment maps everything or nothing; one page that the host has taken away would break it. So hardware has a Bloom filter
//! of 256 bits and four hash functions beside the segment's registers: a page that it may hold escapes to the tables. False
//! positives are harmless, for the tables map what the segment does. Source: Gandhi, Basu, Hill and Swift, *Efficient Memory
//! Virtualization*, MICRO 2014, section V (the size and the H3 hashes are remembered from the paper; the constants are ours).

use std::collections::BTreeSet;

use memvirt_addr::Gfn;

const BITS: u64 = 256;
const HASHES: usize = 4;

/// The filter, and the hypervisor's own list of what is in it.
#[derive(Clone, Debug, Default)]
pub struct EscapeFilter {
    bits: [u64; (BITS / 64) as usize],
    escaped: BTreeSet<u64>,
}

/// The bits of the filter that stand for a page. Each hash is of the H3 family: the exclusive or of one constant for each bit
/// set in the frame number.
fn places(gfn: Gfn) -> [u64; HASHES] {
    let mut places = [0; HASHES];
    for (hash, place) in (1u64..).zip(&mut places) {
        let set = (0..48u64).filter(|bit| gfn.number() >> bit & 1 == 1);
        *place = set.fold(0, |sum, bit| sum ^ constant(64 * hash + bit)) % BITS;
    }
    places
}

/// Bits without a pattern (the finalizer of SplitMix64).
const fn constant(i: u64) -> u64 {
    let x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl EscapeFilter {
    /// Whether no page escapes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.escaped.is_empty()
    }

    /// What hardware sees: whether the page may be one that escapes.
    #[must_use]
    pub fn may_hold(&self, gfn: Gfn) -> bool {
        !self.is_empty()
            && places(gfn).into_iter().all(|place| self.bits[(place / 64) as usize] >> (place % 64) & 1 == 1)
    }

    /// What the hypervisor knows: whether the page escapes.
    #[must_use]
    pub fn holds(&self, gfn: Gfn) -> bool {
        self.escaped.contains(&gfn.number())
    }

    /// The page escapes from now on.
    pub fn insert(&mut self, gfn: Gfn) {
        if self.escaped.insert(gfn.number()) {
            self.set(gfn);
        }
    }

    /// The page is the segment's again. The filter is made anew: its bits cannot be taken out one by one.
    pub fn remove(&mut self, gfn: Gfn) {
        if self.escaped.remove(&gfn.number()) {
            self.bits = Default::default();
            for number in self.escaped.clone() {
                self.set(Gfn::new(number));
            }
        }
    }

    fn set(&mut self, gfn: Gfn) {
        for place in places(gfn) {
            self.bits[(place / 64) as usize] |= 1 << (place % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_escapes_is_always_found_and_little_else() {
        let mut filter = EscapeFilter::default();
        assert!((0..1000).all(|gfn| !filter.may_hold(Gfn::new(gfn))));
        for i in 0..16 {
            filter.insert(Gfn::new(1000 + 977 * i));
        }
        assert!((0..16).all(|i| filter.may_hold(Gfn::new(1000 + 977 * i))));
        // 16 pages set at most 64 of 256 bits: (64 / 256)^4 = 0.4 % of all others, and more where hashes agree.
        let others = (100_000..200_000).filter(|gfn| filter.may_hold(Gfn::new(*gfn))).count();
        assert!((1..2000).contains(&others), "{others} false positives in 100,000");
        (0..16).for_each(|i| filter.remove(Gfn::new(1000 + 977 * i)));
        assert!(filter.is_empty() && filter.bits == [0; 4]);
    }
}
