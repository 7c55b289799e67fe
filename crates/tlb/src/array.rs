//! [`Array`]: one set-associative array of packed entries.
//!
//! A slot (`set * stride + way`) is empty where its key is 0. What goes next is [`Order`]'s business.
//!
//! Three short cuts save searches and change no result. A *signature* of 8 bits a way lets a set of more than four ways be
//! searched sixteen ways at once; what matches is verified. The *front* of a first-level array ([`Front`]) maps the low bits of
//! a page number straight to a slot. A bit for each *occupied* set lets a flush visit what
//! is live and nothing else.

use alloc::boxed::Box;
use alloc::vec;

use memvirt_addr::PageSize;
use wide::u8x16;

use crate::entry::{Data, Key, Packed};
use crate::front::Front;
use crate::geometry::{ArrayGeometry, CacheLevel, Replacement, Sizes};
use crate::order::Order;

/// Words of order that every first-level array has in storage, used or not: a constant, so that a masked index needs no
/// check.
pub(crate) const L1_SLOTS: usize = 1024;

/// Sets of more ways than this have signatures.
const PLAIN_WAYS: usize = 4;

/// Ways whose signatures are compared at once, and the stride of second-level sets that have up to so many: a constant, so that
/// the path of misses finds them by a shift.
pub(crate) const WIDE: usize = 16;

pub(crate) struct Array {
    pub(crate) sizes: Sizes,
    pub(crate) ways: usize,
    /// Slots from one set to the next: the ways, or [`WIDE`].
    stride: usize,
    pub(crate) set_mask: u64,
    /// Signatures from one set to the next, a whole number of [`WIDE`]: 0 where a search compares the keys themselves.
    pub(crate) signed: usize,
    pub(crate) signatures: Box<[u8]>,
    /// Sets that may hold live entries, a bit each; a clear bit is certain.
    occupied: Box<[u64]>,
    pub(crate) slots: Box<[Packed]>,
    pub(crate) order: Order,
    /// Only in the first level.
    pub(crate) front: Option<Front>,
    /// Live entries by size; index 0 is not used.
    live: [u32; 4],
    fractured: u32,
}

/// The signature of a key. That of an empty way is 0, as that of some keys.
#[inline(always)]
pub(crate) fn signature(key: Key) -> u8 {
    key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]
}

/// A bit for each way that has this signature.
#[inline(always)]
pub(crate) fn ways_signed(signatures: &[u8; WIDE], wanted: u8) -> u32 {
    u8x16::new(*signatures).simd_eq(u8x16::splat(wanted)).to_bitmask()
}

impl Array {
    pub(crate) fn new(geometry: &ArrayGeometry, level: CacheLevel, replacement: Replacement, index: u64) -> Self {
        let (entries, ways) = (geometry.entries as usize, geometry.ways as usize);
        let (order_words, front) = match level {
            CacheLevel::L1 => (L1_SLOTS, Some(Front::default())),
            CacheLevel::L2 => (entries, None),
        };
        let (sets, signed) = (entries / ways, if ways > PLAIN_WAYS { ways.next_multiple_of(WIDE) } else { 0 });
        let wide = level == CacheLevel::L2 && signed == WIDE;
        let stride = if wide { WIDE } else { ways };
        Self {
            sizes: geometry.sizes,
            ways,
            stride,
            set_mask: u64::from(geometry.entries / geometry.ways) - 1,
            signed,
            signatures: vec![0; sets * signed].into(),
            occupied: vec![0; sets.div_ceil(64)].into(),
            slots: vec![Packed::default(); sets * stride].into(),
            order: Order::new(replacement, order_words, ways, level, index),
            front,
            live: [0; 4],
            fractured: 0,
        }
    }

    #[inline]
    pub(crate) fn live(&self, size: PageSize) -> u32 {
        self.live[size as usize]
    }

    pub(crate) fn live_below(&self, size: PageSize) -> u32 {
        self.live[..size as usize].iter().sum()
    }

    pub(crate) fn fractured(&self) -> u32 {
        self.fractured
    }

    /// Whether every slot holds an entry of a 4 KiB page of both dimensions.
    #[inline]
    pub(crate) fn is_full_of_small(&self) -> bool {
        let slots = (self.set_mask + 1) * self.ways as u64;
        u64::from(self.live(PageSize::Size4K)) == slots && self.fractured == 0
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked below the number of sets")]
    fn set_of(&self, key: Key) -> usize {
        (key.number() & self.set_mask) as usize
    }

    #[inline]
    fn slots_of(&self, set: usize) -> core::ops::Range<usize> {
        set * self.stride..set * self.stride + self.ways
    }

    /// The first way of a set whose entry has this key and data that `wanted` accepts.
    #[inline]
    fn way_of(&self, set: usize, key: Key, wanted: impl Fn(Data) -> bool) -> Option<usize> {
        let slots = &self.slots[self.slots_of(set)];
        if let Ok(slots) = <&[Packed; PLAIN_WAYS]>::try_from(slots) {
            return slots.iter().position(|slot| slot.key == key && wanted(slot.data));
        }
        if self.signed == 0 {
            return slots.iter().position(|slot| slot.key == key && wanted(slot.data));
        }
        let signature = signature(key);
        let signatures = self.signatures[set * self.signed..(set + 1) * self.signed].as_chunks().0;
        for (chunk, signatures) in signatures.iter().enumerate() {
            let mut candidates = ways_signed(signatures, signature);
            while candidates != 0 {
                let way = WIDE * chunk + candidates.trailing_zeros() as usize;
                if slots.get(way).is_some_and(|slot| slot.key == key && wanted(slot.data)) {
                    return Some(way);
                }
                candidates &= candidates - 1;
            }
        }
        None
    }

    /// The slot of the entry with this key that `pcid` sees. There is at most one.
    #[inline]
    pub(crate) fn find(&self, key: Key, pcid: u16) -> Option<usize> {
        let set = self.set_of(key);
        Some(set * self.stride + self.way_of(set, key, |data| data.visible_to(pcid))?)
    }

    #[inline]
    pub(crate) fn packed(&self, slot: usize) -> Packed {
        self.slots[slot]
    }

    /// Notes a hit at `now`.
    #[inline]
    pub(crate) fn hit(&mut self, slot: usize, now: u64) {
        let packed = self.slots[slot];
        let set = self.set_of(packed.key);
        self.order.hit(set, slot - set * self.stride, now);
        // The hot path may find it now: the process that it runs for has just hit.
        if let Some(front) = &mut self.front {
            front.put(packed.key, slot);
        }
    }

    /// Stores `new` and returns the live entry that had to go for it, if any. `seen` tells whether the process that the hot
    /// path runs for sees it.
    #[inline]
    pub(crate) fn insert(&mut self, new: &Packed, now: u64, seen: bool) -> Option<Packed> {
        let set = self.set_of(new.key);
        let way = self.order.replace_full(set, now).unwrap_or_else(|| self.make_room(set, now));
        let slot = set * self.stride + way;
        let old = core::mem::replace(&mut self.slots[slot], *new);
        if self.signed > 0 {
            self.signatures[set * self.signed + way] = signature(new.key);
        }
        let evicts = old.key.0 != 0;
        if !(evicts && old.kin(new)) {
            self.account(set, new, &old);
        }
        match &mut self.front {
            Some(front) if seen => front.put(new.key, slot),
            Some(front) => front.forget(new.key, slot),
            None => {}
        }
        evicts.then_some(old)
    }

    /// Enters a new entry in the accounts, for which `old`, an entry of another kind or nothing, was given up.
    #[cold]
    fn account(&mut self, set: usize, new: &Packed, old: &Packed) {
        self.occupied[set / 64] |= 1 << (set % 64);
        self.live[new.key.size_index() as usize] += 1;
        self.fractured += u32::from(new.fractured());
        if old.key.0 != 0 {
            self.forget(old);
        }
    }

    /// Chooses the way for a new entry: the first empty one, if the policy does not find an empty one by itself.
    #[cold]
    fn make_room(&mut self, set: usize, now: u64) -> usize {
        if !self.order.knows_empty() {
            let mut slots = self.slots[self.slots_of(set)].iter();
            if let Some(way) = slots.position(|slot| slot.key.0 == 0) {
                self.order.used(set, way, now);
                return way;
            }
        }
        self.order.replace(set, now)
    }

    /// Takes an entry that is no longer held out of the accounts.
    #[inline]
    fn forget(&mut self, old: &Packed) {
        self.live[old.key.size_index() as usize] -= 1;
        self.fractured -= u32::from(old.fractured());
    }

    /// Empties a live slot.
    fn remove(&mut self, set: usize, way: usize) {
        let old = core::mem::take(&mut self.slots[set * self.stride + way]);
        if self.signed > 0 {
            self.signatures[set * self.signed + way] = 0;
        }
        self.order.emptied(set, way);
        self.forget(&old);
    }

    /// Drops the entries with this key that are seen where `(pcid, global)` is; returns how many.
    pub(crate) fn remove_key(&mut self, key: Key, pcid: u16, global: bool) -> u64 {
        let set = self.set_of(key);
        let mut dropped = 0;
        while let Some(way) = self.way_of(set, key, |data| data.meets(pcid, global)) {
            self.remove(set, way);
            dropped += 1;
        }
        dropped
    }

    /// Drops every entry for which `condemned` holds; returns how many.
    pub(crate) fn remove_where(&mut self, mut condemned: impl FnMut(&Packed) -> bool) -> u64 {
        let mut dropped = 0;
        for word in 0..self.occupied.len() {
            let mut sets = self.occupied[word];
            while sets != 0 {
                let bit = sets.trailing_zeros() as usize;
                sets &= sets - 1;
                let (gone, empty) = self.remove_in_set(64 * word + bit, &mut condemned);
                dropped += gone;
                self.occupied[word] &= !(u64::from(empty) << bit);
            }
        }
        dropped
    }

    /// Drops the condemned entries of one set; returns how many, and whether nothing is left.
    fn remove_in_set(&mut self, set: usize, condemned: &mut impl FnMut(&Packed) -> bool) -> (u64, bool) {
        let (mut dropped, mut empty) = (0, true);
        for way in 0..self.ways {
            let packed = self.slots[set * self.stride + way];
            if packed.key.0 == 0 {
                continue;
            }
            if condemned(&packed) {
                self.remove(set, way);
                dropped += 1;
            } else {
                empty = false;
            }
        }
        (dropped, empty)
    }

    /// Drops everything; returns how many entries that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let live: u32 = self.live.iter().sum();
        if live > 0 {
            for set in set_bits(&self.occupied) {
                self.slots[set * self.stride..set * self.stride + self.ways].fill(Packed::default());
                self.signatures[set * self.signed..(set + 1) * self.signed].fill(0);
                self.order.clear(set);
            }
            self.occupied.fill(0);
            self.live = [0; 4];
            self.fractured = 0;
        }
        u64::from(live)
    }

    /// Empties the front, for another process.
    pub(crate) fn clear_front(&mut self) {
        if let Some(front) = &mut self.front {
            *front = Front::default();
        }
    }

    /// The live entries, for inspection.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Packed> {
        self.slots.iter().filter(|slot| slot.key.0 != 0)
    }
}

/// The positions of the bits that are set.
fn set_bits(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(word, bits)| {
        let mut bits = *bits;
        core::iter::from_fn(move || {
            let bit = (bits != 0).then_some(bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(64 * word + bit)
        })
    })
}
