//! Entries in use, where leaf tables may drift between two flushes: the events of KVM's policy.
//!
//! A leaf table that is stored to leaves the step once; from then on its stores are free, and what was used of it stays usable as
//! it was, until a load of CR3 brings it back (INVLPG: one entry). Tables above stay in step, every store to them noticed,
//! and are given up at the third store without a use. Neighbours of a leaf that need nothing are filled with it. Source: Linux
//! 6.1, `arch/x86/kvm/mmu`; the shadow MMU of memvirt documents each rule.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use memvirt_addr::{Gfn, Gpa, Level};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};

use crate::events::Events;
use crate::path::Way;

/// Entries that are filled together.
const GROUP: u64 = 8;
/// Stores to an upper table, without a use between them, that end its being one.
const FLOODED: u32 = 3;

/// A frame that is used through more entries than this loses them all (`RMAP_RECYCLE_THRESHOLD`).
const MOST_ALIASES: usize = 1000;

/// A table in use.
#[derive(Clone, Debug)]
struct Table {
    /// The levels at which the frame is used, a bit for each: what was a leaf table may have become an upper one.
    levels: u8,
    /// Whether it was stored to since it was last brought in step.
    drifting: bool,
    /// Stores since it was last used, above level 1.
    stores: u32,
}

/// The bit of a leaf table.
const LEAF: u8 = 1 << 1;

/// What the view may look at.
pub(crate) struct Around<'a> {
    /// The guest's memory.
    pub(crate) peek: &'a dyn Fn(Gpa) -> u64,
    /// Whether the frame was touched before: the host has it at hand.
    pub(crate) resident: &'a dyn Fn(Gfn) -> bool,
}

/// What a store to a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreTo {
    /// One to data, or to a table that drifts already: an access like any other.
    Anything,
    /// The first to a leaf table in step.
    Leaf,
    /// One to a table above.
    Upper,
}

/// Which entries have been used, and which tables drift.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    used: BTreeSet<Gpa>,
    /// For each leaf entry and 4 KiB frame below it that was used, whether stores go through.
    pieces: BTreeMap<(Gpa, Gfn), bool>,
    aliases: HashMap<Gfn, BTreeSet<Gpa>>,
    tables: HashMap<Gfn, Table>,
}

impl Drift {
    /// What a store to a frame is.
    pub(crate) fn store_to(&self, frame: Gfn) -> StoreTo {
        match self.tables.get(&frame) {
            Some(table) if table.levels & !LEAF != 0 => StoreTo::Upper,
            Some(table) if !table.drifting => StoreTo::Leaf,
            _ => StoreTo::Anything,
        }
    }

    /// An access that completed.
    pub(crate) fn access(&mut self, way: &Way, around: &Around<'_>, events: &mut Events) {
        let unsyncs = way.write && self.store_to(way.frame) == StoreTo::Leaf;
        let key = (way.leaf(), way.frame);
        let held = self.pieces.get(&key).copied();
        let linked = way.entries().all(|(entry, level)| level == way.leaf_level() || self.used.contains(&entry));
        if linked && held.is_some() && (!way.write || held == Some(true)) {
            return;
        }
        if unsyncs {
            events.table_epochs += 1;
            if let Some(table) = self.tables.get_mut(&way.frame) {
                table.drifting = true;
            }
        } else if linked && held.is_some() {
            events.drift_upgrades += 1;
        } else {
            events.drift_fills += 1;
        }
        let mut linked_anew = false;
        for (entry, level) in way.entries() {
            self.becomes_table(entry.frame(), level);
            if linked_anew {
                // What drifts is compared before it is linked.
                self.compare_drifting(entry.frame(), around);
            }
            linked_anew = level != way.leaf_level() && self.used.insert(entry);
        }
        let writable = self.may_be_stored(way.frame) && (way.write || way.writable);
        self.hold(key, writable || held == Some(true) && !way.write);
        if held.is_none() {
            self.neighbours(way, around);
        }
    }

    /// Whether the frame is no table in step.
    fn may_be_stored(&self, frame: Gfn) -> bool {
        self.store_to(frame) == StoreTo::Anything
    }

    fn hold(&mut self, key: (Gpa, Gfn), writable: bool) {
        let new = self.pieces.insert(key, writable).is_none();
        let aliases = self.aliases.entry(key.1).or_default();
        let others = aliases.len();
        aliases.insert(key.0);
        if new && others > MOST_ALIASES {
            // All of them go, this one too.
            for entry in std::mem::take(aliases) {
                self.pieces.remove(&(entry, key.1));
            }
        }
    }

    fn becomes_table(&mut self, frame: Gfn, level: u8) {
        let bit = 1 << level;
        let table = self.tables.entry(frame).or_insert(Table { levels: 0, drifting: false, stores: 0 });
        if table.levels & bit != 0 {
            table.stores = 0;
            return;
        }
        table.levels |= bit;
        if level > 1 && std::mem::take(&mut table.drifting) {
            // A leaf table that drifts is given up where the frame turns out to hold an upper one.
            table.levels &= !LEAF;
            (0..512).for_each(|index| self.drop_entry(frame.entry(index)));
        }
        self.protect(frame);
    }

    fn compare_drifting(&mut self, frame: Gfn, around: &Around<'_>) {
        if self.tables.get(&frame).is_some_and(|table| table.drifting) {
            let _ = self.compare(frame, around);
        }
    }

    /// No alias of a table in step can be stored to.
    fn protect(&mut self, frame: Gfn) {
        for entry in self.aliases.get(&frame).into_iter().flatten() {
            if let Some(writable) = self.pieces.get_mut(&(*entry, frame)) {
                *writable = false;
            }
        }
    }

    /// Fills the neighbours of a leaf that need nothing from the guest or the host.
    fn neighbours(&mut self, way: &Way, around: &Around<'_>) {
        if way.leaf_level() > 1 {
            return self.neighbouring_pieces(way, around);
        }
        let first = way.leaf().as_u64() & !(GROUP * 8 - 1);
        for i in 0..GROUP {
            let entry = Gpa::new(first + 8 * i);
            if entry == way.leaf() || self.any_piece(entry).is_some() {
                continue;
            }
            if !self.fill_alone(entry, around) {
                return;
            }
        }
    }

    /// Fills one entry if that needs nothing from the guest or the host.
    fn fill_alone(&mut self, entry: Gpa, around: &Around<'_>) -> bool {
        let Entry::Leaf { frame, attrs, .. } = decode((around.peek)(entry)) else { return false };
        if !attrs.contains(Attrs::ACCESSED) || !(around.resident)(frame) {
            return false;
        }
        let writable = attrs.contains(Attrs::WRITE | Attrs::DIRTY) && self.may_be_stored(frame);
        self.hold((entry, frame), writable);
        true
    }

    /// A large page has no entries of its own that could forbid anything.
    fn neighbouring_pieces(&mut self, way: &Way, around: &Around<'_>) {
        let first = way.frame.number() & !(GROUP - 1);
        let mut filled = false;
        for frame in (first..first + GROUP).map(Gfn::new) {
            let key = (way.leaf(), frame);
            if frame == way.frame || self.pieces.contains_key(&key) {
                filled = false;
                continue;
            }
            if !(around.resident)(frame) {
                if !filled {
                    return;
                }
                filled = false;
                continue;
            }
            let writable = way.writable && self.may_be_stored(frame);
            self.hold(key, writable);
            filled = true;
        }
    }

    fn any_piece(&self, entry: Gpa) -> Option<(Gpa, Gfn)> {
        let next = self.pieces.range((entry, Gfn::new(0))..).next().map(|(key, _)| *key);
        next.filter(|key| key.0 == entry)
    }

    /// A store to an upper table was carried out.
    pub(crate) fn upper_stored(&mut self, entry: Gpa, events: &mut Events) {
        events.noticed_stores += 1;
        self.drop_entry(entry);
        let frame = entry.frame();
        let flooded = self.tables.get_mut(&frame).is_some_and(|table| {
            table.stores += 1;
            table.stores >= FLOODED
        });
        if flooded {
            self.no_upper_table(frame);
        }
    }

    fn drop_entry(&mut self, entry: Gpa) {
        self.used.remove(&entry);
        while let Some(key) = self.any_piece(entry) {
            self.pieces.remove(&key);
            if let Some(entries) = self.aliases.get_mut(&key.1) {
                entries.remove(&entry);
            }
        }
    }

    /// The upper table is given up; a leaf table in the same frame stays.
    fn no_upper_table(&mut self, frame: Gfn) {
        let Some(table) = self.tables.get_mut(&frame) else { return };
        table.levels &= LEAF;
        table.stores = 0;
        if table.levels == 0 {
            return self.no_table(frame);
        }
        (0..512).for_each(|index| _ = self.used.remove(&frame.entry(index)));
    }

    /// The table is given up.
    pub(crate) fn no_table(&mut self, frame: Gfn) {
        self.tables.remove(&frame);
        for index in 0..512 {
            self.drop_entry(frame.entry(index));
        }
    }

    /// One page is flushed: its entry is looked at anew, where its table drifts.
    pub(crate) fn flush_page(&mut self, way: Option<(Gpa, u8)>, around: &Around<'_>) {
        let Some((entry, 1)) = way else { return };
        if self.tables.get(&entry.frame()).is_some_and(|table| table.drifting) {
            self.drop_entry(entry);
            let _ = self.fill_alone(entry, around);
        }
    }

    /// Brings the tables under a root in step: those that it leads to through entries in use.
    pub(crate) fn sync(&mut self, root: Gfn, around: &Around<'_>, events: &mut Events) {
        let mut drifting = BTreeSet::new();
        let mut open = vec![root];
        while let Some(frame) = open.pop() {
            match self.tables.get(&frame) {
                Some(table) if table.drifting => _ = drifting.insert(frame),
                Some(table) if table.levels & !LEAF != 0 => {
                    let level = Level::from_number(if table.levels & 0b1_0000 != 0 { 4 } else { 2 });
                    let level = level.unwrap_or(Level::L2);
                    let links = self.used.range(frame.entry(0)..=frame.entry(511));
                    let next = links.filter_map(|entry| match Guest4::decode((around.peek)(*entry), level) {
                        Entry::Table { next, .. } => Some(next),
                        _ => None,
                    });
                    open.extend(next);
                }
                _ => {}
            }
        }
        for frame in &drifting {
            if let Some(table) = self.tables.get_mut(frame) {
                table.drifting = false;
            }
            self.protect(*frame);
        }
        for frame in drifting {
            events.drift_compared += self.compare(frame, around);
        }
    }

    /// Compares what was used of a leaf table with what it says now.
    /// Gives how many entries in use there were.
    fn compare(&mut self, table: Gfn, around: &Around<'_>) -> u64 {
        let mut compared = 0;
        for entry in (0..512).map(|index| table.entry(index)) {
            let Some((_, held)) = self.any_piece(entry) else { continue };
            compared += 1;
            match decode((around.peek)(entry)) {
                Entry::Leaf { frame, attrs, .. } if frame == held && attrs.contains(Attrs::ACCESSED) => {
                    let writable = attrs.contains(Attrs::WRITE | Attrs::DIRTY) && self.may_be_stored(held);
                    self.hold((entry, held), writable);
                }
                _ => self.drop_entry(entry),
            }
        }
        compared
    }
}

fn decode(raw: u64) -> Entry<memvirt_addr::GuestPhys> {
    Guest4::decode(raw, Level::L1)
}
