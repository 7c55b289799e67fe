//! [`Array`]: one set-associative array of packed entries, with true LRU order.
//!
//! Storage is a structure of arrays indexed by slot (`set * ways + way`): a lookup reads keys, and of the one slot whose
//! key matches the meta word. Order of use is a time stamp per slot, so a hit costs one store and only a replacement
//! searches for the oldest. A slot is empty where its key is 0; its stamp is then 0 too, so the oldest of a set is an
//! empty slot if there is one.
//!
//! A *hint* remembers for the low bits of a page number the slot where that page was last found. Hints only save the
//! search: a hint is believed where the slot holds the right key.

use alloc::boxed::Box;
use alloc::vec;

use memvirt_addr::PageSize;

use crate::entry::{Key, Meta, Packed};
use crate::geometry::{ArrayGeometry, CacheLevel, Sizes};

/// Slots that every first-level array has in storage, used or not: a constant, so that a masked index needs no check.
pub(crate) const L1_SLOTS: usize = 1024;
/// Hints of an array.
pub(crate) const HINTS: usize = 512;

pub(crate) struct Array {
    pub(crate) sizes: Sizes,
    ways: usize,
    set_mask: u64,
    entries: usize,
    pub(crate) keys: Box<[u64]>,
    pub(crate) metas: Box<[u32]>,
    frames: Box<[u64]>,
    pub(crate) stamps: Box<[u64]>,
    pub(crate) hints: Box<[u16; HINTS]>,
    /// Live entries by size; index 0 is not used.
    live: [u32; 4],
    fractured: u32,
}

impl Array {
    pub(crate) fn new(geometry: &ArrayGeometry, level: CacheLevel) -> Self {
        let entries = geometry.entries as usize;
        let slots = match level {
            CacheLevel::L1 => L1_SLOTS,
            CacheLevel::L2 => entries,
        };
        Self {
            sizes: geometry.sizes,
            ways: geometry.ways as usize,
            set_mask: u64::from(geometry.entries / geometry.ways) - 1,
            entries,
            keys: vec![0; slots].into(),
            metas: vec![0; slots].into(),
            frames: vec![0; slots].into(),
            stamps: vec![0; slots].into(),
            hints: Box::new([0; HINTS]),
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

    fn set_base(&self, key: Key) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "masked below the number of sets")]
        let set = (key.number() & self.set_mask) as usize;
        set * self.ways
    }

    /// The slot of the entry with this key that `pcid` sees. There is at most one.
    #[inline]
    pub(crate) fn find(&self, key: Key, pcid: u16) -> Option<usize> {
        let base = self.set_base(key);
        let keys = &self.keys[base..base + self.ways];
        let metas = &self.metas[base..base + self.ways];
        let way = keys.iter().zip(metas).position(|(k, m)| *k == key.0 && Meta(*m).visible_to(pcid))?;
        Some(base + way)
    }

    pub(crate) fn packed(&self, slot: usize) -> Packed {
        Packed { key: Key(self.keys[slot]), meta: Meta(self.metas[slot]), frame: self.frames[slot] }
    }

    /// Notes a use at `now`.
    #[inline]
    pub(crate) fn touch(&mut self, slot: usize, now: u64) {
        self.stamps[slot] = now;
    }

    #[inline]
    pub(crate) fn hint(&mut self, key: Key, slot: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "masked; an array has at most 65536 slots")]
        {
            self.hints[key.number() as usize % HINTS] = slot as u16;
        }
    }

    /// Stores `new` as the most recently used entry of its set and returns whether a live entry had to go for it.
    ///
    /// Entries for the same page that some process sees besides `new` are replaced: the first in place, others dropped.
    pub(crate) fn insert(&mut self, new: &Packed, now: u64) -> bool {
        let mut slot = None;
        let base = self.set_base(new.key);
        let (pcid, global) = (new.meta.pcid(), new.meta.is_global());
        for at in base..base + self.ways {
            if self.keys[at] == new.key.0 && Meta(self.metas[at]).meets(pcid, global) {
                self.remove(at);
                slot = slot.or(Some(at));
            }
        }
        let slot = slot.unwrap_or_else(|| self.oldest(base));
        let evicts = self.keys[slot] != 0;
        if evicts {
            self.remove(slot);
        }
        self.put(slot, new, now);
        evicts
    }

    fn oldest(&self, base: usize) -> usize {
        let stamps = &self.stamps[base..base + self.ways];
        let (mut way, mut least) = (0, u64::MAX);
        for (at, stamp) in stamps.iter().enumerate() {
            if *stamp < least {
                (way, least) = (at, *stamp);
            }
        }
        base + way
    }

    fn put(&mut self, slot: usize, new: &Packed, now: u64) {
        self.keys[slot] = new.key.0;
        self.metas[slot] = new.meta.0;
        self.frames[slot] = new.frame;
        self.stamps[slot] = now;
        self.live[new.key.size() as usize] += 1;
        self.fractured += u32::from(new.fractured());
        self.hint(new.key, slot);
    }

    /// Empties a live slot.
    pub(crate) fn remove(&mut self, slot: usize) {
        let old = self.packed(slot);
        self.live[old.key.size() as usize] -= 1;
        self.fractured -= u32::from(old.fractured());
        self.keys[slot] = 0;
        self.stamps[slot] = 0;
    }

    /// Drops the entries of the set of `key` that have it and are seen where `(pcid, global)` is; returns how many.
    pub(crate) fn remove_key(&mut self, key: Key, pcid: u16, global: bool) -> u64 {
        let base = self.set_base(key);
        let mut dropped = 0;
        for slot in base..base + self.ways {
            if self.keys[slot] == key.0 && Meta(self.metas[slot]).meets(pcid, global) {
                self.remove(slot);
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops every entry for which `condemned` holds; returns how many.
    pub(crate) fn remove_where(&mut self, mut condemned: impl FnMut(Key, Meta) -> bool) -> u64 {
        let mut dropped = 0;
        for slot in 0..self.entries {
            let key = Key(self.keys[slot]);
            if key.0 != 0 && condemned(key, Meta(self.metas[slot])) {
                self.remove(slot);
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops everything; returns how many entries that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let live: u32 = self.live.iter().sum();
        if live > 0 {
            self.keys[..self.entries].fill(0);
            self.stamps[..self.entries].fill(0);
            self.live = [0; 4];
            self.fractured = 0;
        }
        u64::from(live)
    }

    /// The live entries, for inspection.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Packed> {
        (0..self.entries).filter(|slot| self.keys[*slot] != 0).map(|slot| self.packed(slot))
    }
}
