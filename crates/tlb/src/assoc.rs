//! [`Assoc`]: a small set-associative cache of any value, under the walk caches and the nested TLB.
//!
//! Unlike `array`, which serves every access of a run, this is looked at only while walking; it is kept plain.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;

use crate::geometry::{CacheLevel, Replacement};
use crate::order::Order;
use crate::tag::Tag;

/// Entries and ways of a walk cache or nested TLB, and what it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    entries: u32,
    ways: u32,
    replacement: Replacement,
}

/// A cache cannot have this shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeError {
    /// The entries asked for.
    pub entries: u32,
    /// The ways asked for.
    pub ways: u32,
    /// The replacement asked for.
    pub replacement: Replacement,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} entries in sets of {} ways with {:?} replacement; the ways must divide the entries into a power of two of \
             sets (at most 65536 entries), and a tree needs a power of two of ways, at most 64",
            self.entries, self.ways, self.replacement
        )
    }
}

impl core::error::Error for ShapeError {}

impl Shape {
    /// `entries` in sets of `ways`, with LRU replacement.
    ///
    /// # Errors
    ///
    /// [`ShapeError`] where the ways do not divide the entries, the number of sets is not a power of two (none is not),
    /// or there are more than 65536 entries.
    pub fn new(entries: u32, ways: u32) -> Result<Self, ShapeError> {
        Self { entries, ways, replacement: Replacement::Lru }.checked()
    }

    /// The same with another replacement.
    ///
    /// # Errors
    ///
    /// [`ShapeError`] for a tree over ways that are no power of two, or more than 64.
    pub fn with_replacement(self, replacement: Replacement) -> Result<Self, ShapeError> {
        Self { replacement, ..self }.checked()
    }

    /// Entries in all.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// Entries in a set.
    #[must_use]
    pub const fn ways(&self) -> u32 {
        self.ways
    }

    fn checked(self) -> Result<Self, ShapeError> {
        let Self { entries, ways, replacement } = self;
        let sets = entries.checked_div(ways).filter(|sets| sets * ways == entries);
        let whole = sets.is_some_and(u32::is_power_of_two) && entries <= CacheLevel::L2.max_entries();
        let tree = replacement != Replacement::TreePlru || (ways.is_power_of_two() && ways <= 64);
        if whole && tree { Ok(self) } else { Err(ShapeError { entries, ways, replacement }) }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Slot<V> {
    pub(crate) tag: Tag,
    /// What is looked up; its low bits select the set.
    pub(crate) number: u64,
    pub(crate) value: V,
}

pub(crate) struct Assoc<V> {
    ways: usize,
    set_mask: u64,
    slots: Box<[Option<Slot<V>>]>,
    order: Order,
    clock: u64,
}

impl<V: Copy> Assoc<V> {
    pub(crate) fn new(shape: Shape) -> Self {
        let (entries, ways) = (shape.entries as usize, shape.ways as usize);
        Self {
            ways,
            set_mask: u64::from(shape.entries / shape.ways) - 1,
            slots: vec![None; entries].into(),
            order: Order::new(shape.replacement, entries, ways, CacheLevel::L2, 0),
            clock: 0,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked below the number of sets")]
    fn set_of(&self, number: u64) -> usize {
        (number & self.set_mask) as usize
    }

    fn way_of(&self, set: usize, tag: Tag, number: u64) -> Option<usize> {
        let slots = &self.slots[set * self.ways..(set + 1) * self.ways];
        slots.iter().position(|slot| slot.as_ref().is_some_and(|held| held.number == number && held.tag == tag))
    }

    /// What is cached, without noting a use.
    pub(crate) fn peek(&self, tag: Tag, number: u64) -> Option<V> {
        let set = self.set_of(number);
        let way = self.way_of(set, tag, number)?;
        self.slots[set * self.ways + way].map(|held| held.value)
    }

    /// What is cached, if `wanted` accepts it; then its use is noted.
    pub(crate) fn get(&mut self, tag: Tag, number: u64, wanted: impl Fn(&V) -> bool) -> Option<V> {
        let set = self.set_of(number);
        let way = self.way_of(set, tag, number)?;
        let value = self.slots[set * self.ways + way].map(|held| held.value).filter(wanted)?;
        self.clock += 1;
        self.order.hit(set, way, self.clock);
        Some(value)
    }

    /// Caches a value in place of what was cached for the same tag and number, and returns what was evicted instead.
    pub(crate) fn put(&mut self, tag: Tag, number: u64, value: V) -> Option<Slot<V>> {
        let set = self.set_of(number);
        self.clock += 1;
        let present = self.way_of(set, tag, number);
        let free = present.or_else(|| self.empty_way(set));
        if let Some(way) = free {
            self.order.used(set, way, self.clock);
            self.slots[set * self.ways + way] = Some(Slot { tag, number, value });
            return None;
        }
        let way = self.order.replace(set, self.clock);
        self.slots[set * self.ways + way].replace(Slot { tag, number, value })
    }

    fn empty_way(&self, set: usize) -> Option<usize> {
        self.slots[set * self.ways..(set + 1) * self.ways].iter().position(Option::is_none)
    }

    /// Drops what is cached for a tag and number; whether there was something.
    pub(crate) fn remove(&mut self, tag: Tag, number: u64) -> bool {
        let set = self.set_of(number);
        let way = self.way_of(set, tag, number);
        if let Some(way) = way {
            self.empty(set * self.ways + way);
        }
        way.is_some()
    }

    /// Drops every entry for which `condemned` holds; returns how many.
    pub(crate) fn remove_where(&mut self, condemned: impl Fn(&Slot<V>) -> bool) -> u64 {
        let mut dropped = 0;
        for at in 0..self.slots.len() {
            if self.slots[at].as_ref().is_some_and(&condemned) {
                self.empty(at);
                dropped += 1;
            }
        }
        dropped
    }

    fn empty(&mut self, at: usize) {
        self.slots[at] = None;
        self.order.emptied(at / self.ways, at % self.ways);
    }
}
