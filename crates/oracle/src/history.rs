//! What every word of guest memory held, and when.
//!
//! Time is a counter of events (stores and flushes). Only changes are kept; a word without one has always held what it
//! holds now. Accessed and dirty bits that hardware sets are no change: they alter neither frame nor permission.

use std::collections::HashMap;

use memvirt_addr::Gpa;

/// An instant: the number of the event that began it.
pub(crate) type Tick = u64;

/// The end of what has not ended.
pub(crate) const OPEN: Tick = Tick::MAX;

/// A store that changed a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// From this instant on the word holds `new`.
    pub(crate) at: Tick,
    /// What it held before, bits set by hardware included.
    pub(crate) old: u64,
    /// What it holds since.
    pub(crate) new: u64,
}

/// A word's value over the half-open interval `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) value: u64,
    pub(crate) from: Tick,
    pub(crate) to: Tick,
}

/// The changes of all words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    changes: HashMap<u64, Vec<Change>>,
    records: usize,
}

impl Words {
    pub(crate) fn record(&mut self, word: Gpa, change: Change) {
        self.changes.entry(key(word)).or_default().push(change);
        self.records += 1;
    }

    /// The changes of one word, oldest first.
    pub(crate) fn of(&self, word: Gpa) -> &[Change] {
        self.changes.get(&key(word)).map_or(&[], Vec::as_slice)
    }

    /// How many changes are kept.
    pub(crate) const fn records(&self) -> usize {
        self.records
    }

    /// The values that the word had at or after `since`; it holds `now` at present. `ignore` are the bits hardware sets.
    pub(crate) fn pieces(&self, word: Gpa, since: Tick, now: u64, ignore: u64, out: &mut Vec<Piece>) {
        out.clear();
        let changes = self.of(word);
        let first = changes.partition_point(|change| change.at <= since);
        let mut from = 0;
        let mut value = None;
        if let Some(before) = first.checked_sub(1).map(|i| changes[i]) {
            (from, value) = (before.at, Some(before.new));
        }
        for change in &changes[first..] {
            // Where the value found by a store is not the one left by the store before it, something stored unseen.
            if let Some(left) = value.filter(|left| (left ^ change.old) & !ignore != 0) {
                out.push(Piece { value: left, from, to: change.at });
            }
            out.push(Piece { value: change.old, from, to: change.at });
            (from, value) = (change.at, Some(change.new));
        }
        if let Some(left) = value.filter(|left| (left ^ now) & !ignore != 0) {
            out.push(Piece { value: left, from, to: OPEN });
        }
        out.push(Piece { value: now, from, to: OPEN });
    }

    /// Forgets what no instant from `floor` on can see.
    pub(crate) fn prune(&mut self, floor: Tick) {
        self.changes.retain(|_, changes| {
            let gone = changes.partition_point(|change| change.at <= floor);
            changes.drain(..gone);
            !changes.is_empty()
        });
        self.records = self.changes.values().map(Vec::len).sum();
    }
}

const fn key(word: Gpa) -> u64 {
    word.as_u64() >> 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(words: &Words, since: Tick, now: u64) -> Vec<(u64, Tick, Tick)> {
        let mut out = Vec::new();
        words.pieces(Gpa::new(8), since, now, 0x60, &mut out);
        out.into_iter().map(|p| (p.value, p.from, p.to)).collect()
    }

    #[test]
    fn a_word_without_changes_was_always_what_it_is() {
        assert_eq!(pieces(&Words::default(), 5, 7), [(7, 0, OPEN)]);
    }

    #[test]
    fn values_tile_time_and_hardware_bits_are_no_change() {
        let mut words = Words::default();
        words.record(Gpa::new(8), Change { at: 3, old: 1, new: 2 });
        words.record(Gpa::new(8), Change { at: 6, old: 0x22, new: 4 });
        assert_eq!(pieces(&words, 0, 0x44), [(1, 0, 3), (0x22, 3, 6), (0x44, 6, OPEN)]);
        assert_eq!(pieces(&words, 4, 4), [(0x22, 3, 6), (4, 6, OPEN)], "only what was there at 4 or later");
        assert_eq!(pieces(&words, 9, 8), [(4, 6, OPEN), (8, 6, OPEN)], "a store nobody reported");
        words.prune(4);
        assert_eq!(pieces(&words, 4, 4), [(0x22, 0, 6), (4, 6, OPEN)]);
        words.prune(6);
        assert_eq!((pieces(&words, 6, 4), words.records()), (vec![(4, 0, OPEN)], 0));
    }
}
