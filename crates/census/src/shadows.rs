//! Shadow tables as sets of entries in use, one for each guest table: what the views of Xen and VirtualBox have in common.
//!
//! The neighbour [`graph`](crate::graph) follows policies that trap every store; here a table may be stored to freely for a while,
//! and what leads to a table is kept, since a table may lose all of it. Source: the crate `memvirt-shadow`, module `graph`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use memvirt_addr::{Gfn, Gpa, Level};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};

use crate::drift::Around;
use crate::path::Way;

/// A shadow leaf: 4 KiB below a leaf entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) writable: bool,
    /// What the guest's entry was when it was looked at last.
    pub(crate) raw: u64,
}

/// A shadowed table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) level: u8,
    /// Stores to it go through.
    pub(crate) free: bool,
    /// Trapped stores, for a policy that counts them.
    pub(crate) writes: u32,
}

/// What becomes of a table that nothing leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orphans {
    /// It stays and is protected.
    Stay,
    /// It is no table any more, unless it is a root.
    Go,
}

/// Entries in use.
#[derive(Debug)]
pub(crate) struct Shadows {
    orphans: Orphans,
    links: BTreeMap<Gpa, Gfn>,
    parents: HashMap<Gfn, BTreeSet<Gpa>>,
    pieces: BTreeMap<(Gpa, Gfn), Piece>,
    aliases: HashMap<Gfn, BTreeSet<Gpa>>,
    tables: HashMap<Gfn, Table>,
}

impl Shadows {
    pub(crate) fn new(orphans: Orphans) -> Self {
        Self {
            orphans,
            links: BTreeMap::new(),
            parents: HashMap::new(),
            pieces: BTreeMap::new(),
            aliases: HashMap::new(),
            tables: HashMap::new(),
        }
    }

    pub(crate) fn table(&self, frame: Gfn) -> Option<&Table> {
        self.tables.get(&frame)
    }

    pub(crate) fn table_mut(&mut self, frame: Gfn) -> Option<&mut Table> {
        self.tables.get_mut(&frame)
    }

    /// Whether a store to the frame traps.
    pub(crate) fn is_protected(&self, frame: Gfn) -> bool {
        self.tables.get(&frame).is_some_and(|table| !table.free)
    }

    /// What is there for an access: nothing, or whether it may be stored to.
    pub(crate) fn held(&self, way: &Way) -> Option<bool> {
        let linked = way.links().all(|(entry, next, _)| self.links.get(&entry) == Some(&next));
        let piece = self.pieces.get(&(way.leaf(), way.frame)).filter(|_| linked)?;
        Some(piece.writable)
    }

    /// Makes a table of the frame, and protects it; whether it was none.
    pub(crate) fn make_table(&mut self, frame: Gfn, level: u8) -> bool {
        if self.tables.contains_key(&frame) {
            return false;
        }
        self.tables.insert(frame, Table { level, free: false, writes: 0 });
        self.protect(frame);
        true
    }

    /// No alias of the frame can be stored to.
    pub(crate) fn protect(&mut self, frame: Gfn) {
        for entry in self.aliases.get(&frame).into_iter().flatten() {
            if let Some(piece) = self.pieces.get_mut(&(*entry, frame)) {
                piece.writable = false;
            }
        }
    }

    /// Builds the path of an access and its leaf.
    pub(crate) fn fill(&mut self, way: &Way, around: &Around<'_>) {
        for (entry, next, level) in way.links() {
            self.make_table(next, level - 1);
            self.link(entry, next);
        }
        let refused = if way.write { self.is_protected(way.frame) } else { self.tables.contains_key(&way.frame) };
        let writable = !refused && (way.write || way.writable);
        self.hold((way.leaf(), way.frame), Piece { writable, raw: (around.peek)(way.leaf()) });
    }

    fn link(&mut self, entry: Gpa, next: Gfn) {
        match self.links.insert(entry, next) {
            Some(old) if old == next => return,
            Some(old) => self.lost_parent(old, entry),
            None => {}
        }
        self.parents.entry(next).or_default().insert(entry);
    }

    fn hold(&mut self, key: (Gpa, Gfn), piece: Piece) {
        self.pieces.insert(key, piece);
        self.aliases.entry(key.1).or_default().insert(key.0);
    }

    fn lost_parent(&mut self, child: Gfn, entry: Gpa) {
        let Some(parents) = self.parents.get_mut(&child) else { return };
        parents.remove(&entry);
        let root = self.tables.get(&child).is_none_or(|table| table.level == 4);
        if parents.is_empty() && self.orphans == Orphans::Go && !root {
            self.zap(child);
        }
    }

    /// Nothing leads to the table any more; it stays.
    pub(crate) fn unlink(&mut self, frame: Gfn) {
        for entry in self.parents.remove(&frame).unwrap_or_default() {
            self.links.remove(&entry);
        }
    }

    /// The frame is no table any more.
    pub(crate) fn zap(&mut self, frame: Gfn) {
        if self.tables.remove(&frame).is_none() {
            return;
        }
        self.unlink(frame);
        let entries = frame.entry(0)..=frame.entry(511);
        let links: Vec<Gpa> = self.links.range(entries.clone()).map(|(entry, _)| *entry).collect();
        let last = Gfn::new(u64::MAX >> 12);
        let leaves = self.pieces.range((*entries.start(), Gfn::new(0))..=(*entries.end(), last));
        let leaves: Vec<Gpa> = leaves.map(|((entry, _), _)| *entry).collect();
        links.into_iter().chain(leaves).for_each(|entry| self.clear(entry));
    }

    /// The entry is in use no more.
    pub(crate) fn clear(&mut self, entry: Gpa) {
        if let Some(child) = self.links.remove(&entry) {
            self.lost_parent(child, entry);
        }
        while let Some(frame) = self.first_piece(entry) {
            self.pieces.remove(&(entry, frame));
            if let Some(entries) = self.aliases.get_mut(&frame) {
                entries.remove(&entry);
            }
        }
    }

    fn first_piece(&self, entry: Gpa) -> Option<Gfn> {
        let next = self.pieces.range((entry, Gfn::new(0))..).next();
        next.filter(|((at, _), _)| *at == entry).map(|((_, frame), _)| *frame)
    }

    /// Whether anything is there for the entry.
    pub(crate) fn is_used(&self, entry: Gpa) -> bool {
        self.links.contains_key(&entry) || self.first_piece(entry).is_some()
    }

    /// The table that the entry leads to.
    pub(crate) fn child(&self, entry: Gpa) -> Option<Gfn> {
        self.links.get(&entry).copied()
    }

    /// The leaves in use in a table of level 1.
    pub(crate) fn leaves(&self, table: Gfn) -> Vec<(Gpa, Gfn, Piece)> {
        let last = Gfn::new(u64::MAX >> 12);
        let range = (table.entry(0), Gfn::new(0))..=(table.entry(511), last);
        self.pieces.range(range).map(|((entry, frame), piece)| (*entry, *frame, *piece)).collect()
    }

    /// Makes the entry say what the guest's says, where that needs nothing new; whether it leads to a table.
    pub(crate) fn propagate(&mut self, entry: Gpa, level: u8, around: &Around<'_>) -> bool {
        let raw = (around.peek)(entry);
        match Guest4::decode(raw, Level::from_number(level).unwrap_or(Level::L1)) {
            Entry::Table { next, attrs } if attrs.contains(Attrs::ACCESSED) && self.tables.contains_key(&next) => {
                self.clear_pieces(entry);
                self.link(entry, next);
                return true;
            }
            Entry::Leaf { frame, attrs, .. }
                if level == 1 && attrs.contains(Attrs::ACCESSED) && (around.resident)(frame) =>
            {
                self.clear(entry);
                self.guess(entry, frame, attrs, raw);
            }
            _ => self.clear(entry),
        }
        false
    }

    fn clear_pieces(&mut self, entry: Gpa) {
        if self.first_piece(entry).is_some() {
            self.clear(entry);
        }
    }

    /// Holds a page that nobody asked for.
    fn guess(&mut self, entry: Gpa, frame: Gfn, attrs: Attrs, raw: u64) {
        let writable = attrs.contains(Attrs::WRITE | Attrs::DIRTY) && !self.tables.contains_key(&frame);
        self.hold((entry, frame), Piece { writable, raw });
    }

    /// Fills an entry of a leaf table that nobody asked for, if the guest has accessed it and the host has the page; says what the
    /// entry is.
    pub(crate) fn prefetch(&mut self, entry: Gpa, around: &Around<'_>) -> Neighbour {
        let raw = (around.peek)(entry);
        let Entry::Leaf { frame, attrs, .. } = Guest4::decode(raw, Level::L1) else { return Neighbour::Absent };
        if !attrs.contains(Attrs::ACCESSED) {
            return Neighbour::Unused;
        }
        if attrs.contains(Attrs::WRITE) && !attrs.contains(Attrs::DIRTY) {
            return Neighbour::Clean(frame, attrs, raw);
        }
        if (around.resident)(frame) {
            self.guess(entry, frame, attrs, raw);
        }
        Neighbour::Filled
    }

    /// Fills a clean page after all.
    pub(crate) fn prefetch_clean(&mut self, entry: Gpa, clean: (Gfn, Attrs, u64), around: &Around<'_>) {
        if (around.resident)(clean.0) {
            self.guess(entry, clean.0, clean.1, clean.2);
        }
    }

    /// Fills a piece of a large page; whether there was one.
    pub(crate) fn prefetch_piece(&mut self, way: &Way, frame: Gfn, around: &Around<'_>) -> bool {
        let key = (way.leaf(), frame);
        if self.pieces.contains_key(&key) {
            return true;
        }
        if (around.resident)(frame) {
            let writable = (way.write || way.writable) && !self.tables.contains_key(&frame);
            self.hold(key, Piece { writable, raw: 0 });
        }
        false
    }
}

/// What an entry beside the one asked for is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// Nothing is mapped.
    Absent,
    /// Nobody has accessed it.
    Unused,
    /// It may be stored to and has not been.
    Clean(Gfn, Attrs, u64),
    /// It was filled, if the host has the page.
    Filled,
}
