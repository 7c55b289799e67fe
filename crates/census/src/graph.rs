//! Entries in use, as a shadow that is kept for each guest table would see them: the events of write-protecting policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use memvirt_addr::{Gfn, Gpa};

use crate::events::Events;
use crate::path::Way;

/// Which entries have been used since they were last stored to.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    used: BTreeSet<Gpa>,
    /// Entries stored to while their table was in use, and not used since.
    renewed: BTreeSet<Gpa>,
    /// For each leaf entry and 4 KiB frame below it that was used, whether stores go through.
    pieces: BTreeMap<(Gpa, Gfn), bool>,
    /// The leaf entries through which a frame was used.
    aliases: HashMap<Gfn, Vec<Gpa>>,
    /// Tables in use and their levels.
    tables: HashMap<Gfn, u8>,
}

impl Graph {
    /// The level of the table in `frame`, where it is one in use.
    pub(crate) fn level(&self, frame: Gfn) -> Option<u8> {
        self.tables.get(&frame).copied()
    }

    /// An access that completed.
    pub(crate) fn access(&mut self, way: &Way, events: &mut Events) {
        let key = (way.leaf(), way.frame);
        let held = self.pieces.get(&key).copied();
        let linked = way.entries().all(|(entry, level)| level == 1 || self.used.contains(&entry));
        let fresh = held.is_none() || way.entries().any(|(entry, _)| !self.used.contains(&entry));
        let protected = self.tables.contains_key(&way.frame);
        let writable = !protected && (way.write || way.writable);
        if fresh {
            events.fills += 1;
            let ready = way.accessed && (!way.write || way.writable);
            events.spared += u64::from(self.renewed.remove(&way.leaf()) && linked && ready);
            for (entry, level) in way.entries() {
                self.used.insert(entry);
                self.becomes_table(entry.frame(), level);
            }
            self.hold(key, writable || held == Some(true));
        } else if way.write && held == Some(false) {
            events.upgrades += 1;
            self.hold(key, writable);
        }
    }

    fn hold(&mut self, key: (Gpa, Gfn), writable: bool) {
        if self.pieces.insert(key, writable).is_none() {
            self.aliases.entry(key.1).or_default().push(key.0);
        }
    }

    /// A table that comes into use is write-protected under all its aliases.
    fn becomes_table(&mut self, frame: Gfn, level: u8) {
        if self.tables.insert(frame, level).is_some() {
            return;
        }
        for entry in self.aliases.get(&frame).into_iter().flatten() {
            if let Some(writable) = self.pieces.get_mut(&(*entry, frame)) {
                *writable = false;
            }
        }
    }

    /// An entry of a table in use was stored to; its value changed.
    pub(crate) fn stored(&mut self, entry: Gpa) {
        self.renewed.insert(entry);
        self.forget(entry);
    }

    fn forget(&mut self, entry: Gpa) {
        self.used.remove(&entry);
        let pieces: Vec<Gfn> = self
            .pieces
            .range((entry, Gfn::new(0))..)
            .take_while(|((at, _), _)| *at == entry)
            .map(|((_, gfn), _)| *gfn)
            .collect();
        for frame in pieces {
            self.pieces.remove(&(entry, frame));
            if let Some(entries) = self.aliases.get_mut(&frame) {
                entries.retain(|alias| *alias != entry);
            }
        }
    }

    /// The frame holds data from now on.
    pub(crate) fn no_table(&mut self, frame: Gfn) {
        self.tables.remove(&frame);
        for index in 0..512 {
            let entry = frame.entry(index);
            self.renewed.remove(&entry);
            if self.used.contains(&entry) {
                self.forget(entry);
            }
        }
    }
}
