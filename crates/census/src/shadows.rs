//! Shadow tables as sets of entries in use, one for each guest table, and what a handler does to keep them: what the views of
//! write-protection, Xen and VirtualBox have in common.
//!
//! The neighbour [`graph`](crate::graph) counts exits of policies that trap every store; here a table may be stored to freely for a
//! while, and every entry is kept, so that the work of a handler follows: entries set and cleared, tables made and freed, mappings
//! visited. Below a guest's large page lie tables of the hypervisor's own ([`direct`]), as on a host with 4 KiB pages. Source: the crate
//! `memvirt-shadow`, modules `graph` and `store`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use memvirt_addr::{Gfn, Gpa, Gva, Hfn, HostPhys, Level, PageSize};
use memvirt_pagetable::{Attrs, Entry, Format, FrameAllocator, FramePool, Guest4};
use memvirt_platform::Work;

use crate::around::Around;
use crate::path::Way;

/// A shadow leaf: 4 KiB below a leaf entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) frame: Gfn,
    pub(crate) attrs: Attrs,
    /// What the guest's entry was when it was looked at last.
    pub(crate) raw: u64,
}

impl Piece {
    const fn writable(&self) -> bool {
        self.attrs.contains(Attrs::WRITE)
    }
}

/// A shadowed table, or one of the hypervisor's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) level: u8,
    /// Stores to it go through.
    pub(crate) free: bool,
    /// Trapped stores, for a policy that counts them.
    pub(crate) writes: u32,
    /// Where the shadow lies.
    host: Hfn,
}

/// What becomes of a table that nothing leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orphans {
    /// It stays and is protected.
    Stay,
    /// It is no table any more, unless it is a root.
    Go,
}

/// How all mappings of a frame are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// There is a reverse map.
    ReverseMap,
    /// The leaf table where one was found last is looked through, and then all leaf tables.
    Scan,
}

/// Why a leaf is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    /// Nobody asked for it.
    Guess,
}

/// Entries in use.
#[derive(Debug)]
pub(crate) struct Shadows {
    orphans: Orphans,
    search: Search,
    root: Option<Gfn>,
    links: BTreeMap<Gpa, (Gfn, Attrs)>,
    parents: HashMap<Gfn, BTreeSet<Gpa>>,
    pieces: BTreeMap<Gpa, Piece>,
    aliases: HashMap<Gfn, BTreeSet<Gpa>>,
    tables: HashMap<Gfn, Table>,
    leaf_tables: u64,
    /// Tables that lost what led to them last.
    orphaned: Vec<Gfn>,
    /// Where a writable mapping of a table was found last.
    last_found: Option<Gfn>,
    pool: FramePool<HostPhys>,
    backed: HashMap<Gfn, Hfn>,
    work: Work,
    /// Whether translations were lost since the last flush.
    lost: bool,
}

/// The key of the hypervisor's own table of `level` below a guest's large page, for the region that begins at `first`: a frame number
/// that no guest has.
fn direct(first: Gfn, level: u8) -> Gfn {
    Gfn::new(1 << 38 | u64::from(level) << 36 | first.number())
}

const fn is_direct(table: Gfn) -> bool {
    table.number() >> 38 != 0
}

/// The permissions of the entry that shadows a guest leaf: none to store while the guest's page is clean.
fn guest_leaf(attrs: Attrs) -> Attrs {
    let perms = attrs & Attrs::PERMISSIONS;
    if attrs.contains(Attrs::DIRTY) { perms } else { perms - Attrs::WRITE }
}

/// One entry of a path with the table that it leads to.
#[derive(Clone, Copy, Debug)]
struct Link {
    at: Gpa,
    next: Gfn,
    level: u8,
    attrs: Attrs,
}

/// Every entry above the shadow leaf of an access, and the leaf with what it permits.
fn chain(way: &Way) -> (impl Iterator<Item = Link> + '_, Gpa, Attrs) {
    let (leaf, top) = (way.leaf(), way.leaf_level());
    let attrs = way.leaf_attrs() | if way.write { Attrs::DIRTY } else { Attrs::ACCESSED };
    let perms = guest_leaf(attrs);
    let tables = way.tables().map(|(at, next, level, attrs)| Link {
        at,
        next,
        level: level - 1,
        attrs: attrs & Attrs::PERMISSIONS,
    });
    let frame = way.frame.number();
    let region = move |level: u8| direct(Gfn::new(frame >> (9 * level) << (9 * level)), level);
    let index = move |level: u8| Gfn::new(frame >> (9 * (level - 1)) & 511).as_index();
    let slot = move |level: u8| if level == top { leaf } else { region(level).entry(index(level)) };
    let directs = (1..top).rev().map(move |level| {
        let attrs = if level + 1 == top { perms } else { Attrs::PERMISSIONS };
        Link { at: slot(level + 1), next: region(level), level, attrs }
    });
    (tables.chain(directs), slot(1), if top == 1 { perms } else { Attrs::PERMISSIONS })
}

impl Shadows {
    pub(crate) fn new(orphans: Orphans, search: Search) -> Self {
        Self {
            orphans,
            search,
            root: None,
            links: BTreeMap::new(),
            parents: HashMap::new(),
            pieces: BTreeMap::new(),
            aliases: HashMap::new(),
            tables: HashMap::new(),
            leaf_tables: 0,
            orphaned: Vec::new(),
            last_found: None,
            pool: FramePool::new(Hfn::new(1), 1 << 36),
            backed: HashMap::new(),
            work: Work::default(),
            lost: false,
        }
    }

    /// What handlers did so far.
    pub(crate) const fn work(&self) -> &Work {
        &self.work
    }

    pub(crate) const fn work_mut(&mut self) -> &mut Work {
        &mut self.work
    }

    pub(crate) const fn root(&self) -> Option<Gfn> {
        self.root
    }

    /// The guest runs on the tables under `root`.
    pub(crate) fn enter(&mut self, root: Gfn) {
        self.make_table(root, 4);
        self.root = Some(root);
    }

    /// An exit ends: where translations were lost, all are flushed.
    pub(crate) fn flush(&mut self) {
        self.work.remote_flushes += u64::from(std::mem::take(&mut self.lost));
    }

    /// An exit ends at which nobody flushes more than the guest did.
    pub(crate) const fn no_flush(&mut self) {
        self.lost = false;
    }

    /// The host frame behind a guest frame, which the host hands out upwards, what was freed last first.
    pub(crate) fn back(&mut self, frame: Gfn) -> Hfn {
        if let Some(host) = self.backed.get(&frame) {
            return *host;
        }
        let host = self.pool.allocate(PageSize::Size4K).unwrap_or(Hfn::new(0));
        self.backed.insert(frame, host);
        host
    }

    /// The same, as work of a handler.
    fn bring_in(&mut self, frame: Gfn) {
        self.work.frames_backed += u64::from(!self.backed.contains_key(&frame));
        self.back(frame);
    }

    fn is_backed(&self, frame: Gfn) -> bool {
        self.backed.contains_key(&frame)
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
    fn held(&self, way: &Way) -> Option<bool> {
        let (links, slot, _) = chain(way);
        let mut writable = true;
        for link in links {
            let (next, attrs) = self.links.get(&link.at)?;
            if *next != link.next {
                return None;
            }
            writable &= attrs.contains(Attrs::WRITE);
        }
        let piece = self.pieces.get(&slot).filter(|piece| piece.frame == way.frame)?;
        Some(writable && piece.writable())
    }

    /// Whether the access goes through; hardware marks what it uses.
    pub(crate) fn serves(&mut self, way: &Way) -> bool {
        let served = self.held(way).is_some_and(|writable| writable || !way.write);
        if served && let Some(piece) = self.pieces.get_mut(&chain(way).1) {
            piece.attrs |= Attrs::ACCESSED;
        }
        served
    }

    /// Whether nothing is there for the access.
    pub(crate) fn is_absent(&self, way: &Way) -> bool {
        let (mut links, slot, _) = chain(way);
        let broken = links.any(|link| self.links.get(&link.at).is_none_or(|(next, _)| *next != link.next));
        broken || !self.pieces.contains_key(&slot)
    }

    /// Makes a table of the frame, and protects it; whether it was none.
    pub(crate) fn make_table(&mut self, frame: Gfn, level: u8) -> bool {
        if self.tables.contains_key(&frame) {
            return false;
        }
        let host = self.pool.allocate(PageSize::Size4K).unwrap_or(Hfn::new(0));
        self.tables.insert(frame, Table { level, free: false, writes: 0, host });
        self.leaf_tables += u64::from(level == 1);
        self.work.tables_allocated += 1;
        if !is_direct(frame) {
            self.protect(frame);
        }
        true
    }

    /// No alias of the frame can be stored to.
    pub(crate) fn protect(&mut self, frame: Gfn) {
        let (mut found, mut visited) = (None, 0);
        for entry in self.aliases.get(&frame).into_iter().flatten() {
            visited += 1;
            let Some(piece) = self.pieces.get_mut(entry) else { continue };
            if piece.attrs.intersects(Attrs::WRITE | Attrs::DIRTY) {
                if piece.writable() {
                    found = found.or(Some(entry.frame()));
                    self.lost = true;
                }
                piece.attrs -= Attrs::WRITE | Attrs::DIRTY;
                self.work.entries_cleared += 1;
            }
        }
        self.work.rmap_visited += match (self.search, found) {
            (Search::ReverseMap, _) => visited,
            (Search::Scan, None) => 0,
            (Search::Scan, page) if page == self.last_found => 512,
            (Search::Scan, _) => 512 * self.leaf_tables,
        };
        self.last_found = found.or(self.last_found);
    }

    /// Builds the path of an access and its leaf; where that lies.
    pub(crate) fn fill(&mut self, way: &Way, around: &Around<'_>) -> Gpa {
        self.bring_in(way.frame);
        let (links, slot, perms) = chain(way);
        for link in links {
            self.make_table(link.next, link.level);
            self.link(link.at, link.next, link.attrs);
        }
        let attrs = self.permitted(way.frame, perms, if way.write { Use::Write } else { Use::Read });
        self.hold(slot, Piece { frame: way.frame, attrs, raw: (around.peek)(way.leaf()) });
        slot
    }

    /// The attributes of a leaf.
    fn permitted(&self, frame: Gfn, perms: Attrs, use_: Use) -> Attrs {
        let refused = match use_ {
            Use::Write => self.is_protected(frame),
            Use::Read | Use::Guess => self.tables.contains_key(&frame),
        };
        let mut attrs = if refused { perms - Attrs::WRITE } else { perms };
        if use_ != Use::Guess {
            attrs |= Attrs::ACCESSED;
        }
        if attrs.contains(Attrs::WRITE) { attrs | Attrs::DIRTY } else { attrs }
    }

    fn link(&mut self, entry: Gpa, next: Gfn, attrs: Attrs) {
        match self.links.get_mut(&entry) {
            Some((old, held)) if *old == next => {
                if *held == attrs {
                    return;
                }
                self.lost |= !attrs.contains(*held);
                *held = attrs;
            }
            _ => {
                self.clear(entry);
                self.links.insert(entry, (next, attrs));
                self.parents.entry(next).or_default().insert(entry);
            }
        }
        self.work.entries_set += 1;
    }

    fn hold(&mut self, entry: Gpa, piece: Piece) {
        match self.pieces.get_mut(&entry) {
            Some(held) if held.frame == piece.frame => {
                held.raw = piece.raw;
                if held.attrs == piece.attrs {
                    return;
                }
                self.lost |= !piece.attrs.contains(held.attrs & Attrs::PERMISSIONS);
                held.attrs = piece.attrs;
            }
            _ => {
                self.clear(entry);
                self.pieces.insert(entry, piece);
                self.aliases.entry(piece.frame).or_default().insert(entry);
            }
        }
        self.work.entries_set += 1;
    }

    /// Frees the tables that nothing leads to any more.
    pub(crate) fn reap(&mut self) {
        while let Some(frame) = self.orphaned.pop() {
            let lonely = self.parents.get(&frame).is_none_or(BTreeSet::is_empty);
            if lonely && self.root != Some(frame) && self.tables.get(&frame).is_some_and(|table| table.level < 4) {
                self.zap(frame);
            }
        }
    }

    /// Nothing leads to the table any more; it stays.
    pub(crate) fn unlink(&mut self, frame: Gfn) {
        for entry in self.parents.get(&frame).cloned().unwrap_or_default() {
            self.clear(entry);
        }
    }

    /// The frame is no table any more; a root in use stays, empty.
    pub(crate) fn zap(&mut self, frame: Gfn) {
        if !self.tables.contains_key(&frame) {
            return;
        }
        self.unlink(frame);
        let entries = frame.entry(0)..=frame.entry(511);
        let links = self.links.range(entries.clone()).map(|(entry, _)| *entry);
        let present: BTreeSet<Gpa> = links.chain(self.pieces.range(entries).map(|(entry, _)| *entry)).collect();
        present.into_iter().for_each(|entry| self.clear(entry));
        if self.root != Some(frame)
            && let Some(table) = self.tables.remove(&frame)
        {
            self.pool.free(table.host, PageSize::Size4K);
            self.leaf_tables -= u64::from(table.level == 1);
            self.work.tables_freed += 1;
        }
    }

    /// The entry is in use no more.
    pub(crate) fn clear(&mut self, entry: Gpa) {
        if let Some((child, _)) = self.links.remove(&entry) {
            if let Some(parents) = self.parents.get_mut(&child) {
                parents.remove(&entry);
                if parents.is_empty() && self.orphans == Orphans::Go {
                    self.orphaned.push(child);
                }
            }
        } else if let Some(piece) = self.pieces.remove(&entry) {
            if let Some(entries) = self.aliases.get_mut(&piece.frame) {
                entries.remove(&entry);
            }
        } else {
            return;
        }
        self.work.entries_cleared += 1;
        self.lost = true;
    }

    /// The last entry that a walk of the shadow for an address reads.
    pub(crate) fn lowest(&self, gva: Gva) -> Option<Gpa> {
        let mut table = self.root?;
        for level in (1..=4).rev() {
            let entry = table.entry(Gfn::new(gva.as_u64() >> (12 + 9 * (level - 1)) & 511).as_index());
            match self.child(entry) {
                Some(next) => table = next,
                None => return Some(entry),
            }
        }
        None
    }

    /// Whether anything is there for the entry.
    pub(crate) fn is_used(&self, entry: Gpa) -> bool {
        self.links.contains_key(&entry) || self.pieces.contains_key(&entry)
    }

    /// The table that the entry leads to.
    pub(crate) fn child(&self, entry: Gpa) -> Option<Gfn> {
        self.links.get(&entry).map(|(next, _)| *next)
    }

    /// The leaves in use in a table of level 1.
    pub(crate) fn leaves(&self, table: Gfn) -> Vec<(Gpa, Piece)> {
        self.pieces.range(table.entry(0)..=table.entry(511)).map(|(entry, piece)| (*entry, *piece)).collect()
    }

    /// What the guest's entries are now is what later ones are compared with, but for the one that is being stored to.
    pub(crate) fn snapshot(&mut self, table: Gfn, stored: Option<Gpa>, around: &Around<'_>) {
        for (entry, piece) in self.pieces.range_mut(table.entry(0)..=table.entry(511)) {
            if Some(*entry) != stored {
                piece.raw = (around.peek)(*entry);
            }
        }
    }

    /// Makes the entry say what the guest's says, where that needs nothing new; whether it leads to a table.
    pub(crate) fn propagate(&mut self, entry: Gpa, level: u8, around: &Around<'_>) -> bool {
        let raw = (around.peek)(entry);
        match Guest4::decode(raw, Level::from_number(level).unwrap_or(Level::L1)) {
            Entry::Table { next, attrs }
                if attrs.contains(Attrs::ACCESSED)
                    && self.tables.get(&next).is_some_and(|table| table.level + 1 == level) =>
            {
                self.link(entry, next, attrs & Attrs::PERMISSIONS);
            }
            Entry::Leaf { frame, attrs, .. } if attrs.contains(Attrs::ACCESSED) => {
                let below = direct(frame, level - 1);
                if level == 1 && self.is_backed(frame) {
                    self.guess(entry, frame, guest_leaf(attrs), raw);
                } else if level > 1 && self.tables.contains_key(&below) {
                    self.link(entry, below, guest_leaf(attrs));
                } else {
                    self.clear(entry);
                }
            }
            _ => self.clear(entry),
        }
        self.child(entry).is_some()
    }

    /// Holds a page that nobody asked for.
    fn guess(&mut self, entry: Gpa, frame: Gfn, perms: Attrs, raw: u64) {
        let attrs = self.permitted(frame, perms, Use::Guess);
        self.hold(entry, Piece { frame, attrs, raw });
    }

    /// What an entry of a leaf table that nobody asked for is: `None` for one of the hypervisor's own.
    fn neighbour(&mut self, entry: Gpa, around: &Around<'_>) -> Neighbour {
        let table = entry.frame();
        if is_direct(table) {
            let first = table.number() & ((1 << 36) - 1);
            let frame = Gfn::new(first + (entry.as_u64() & 0xfff) / 8);
            return Neighbour::Ready(frame, Attrs::PERMISSIONS, 0);
        }
        self.work.guest_entries_read += 1;
        let raw = (around.peek)(entry);
        let Entry::Leaf { frame, attrs, .. } = Guest4::decode(raw, Level::L1) else { return Neighbour::Absent };
        if !attrs.contains(Attrs::ACCESSED) {
            return Neighbour::Unused;
        }
        let clean = attrs.contains(Attrs::WRITE) && !attrs.contains(Attrs::DIRTY);
        let perms = guest_leaf(attrs);
        if clean { Neighbour::Clean(frame, perms, raw) } else { Neighbour::Ready(frame, perms, raw) }
    }

    /// Looks at an entry that nobody asked for and fills it, if the guest has accessed it and the host has the page; clean pages that
    /// may be stored to where `clean` says so. Says what the entry is.
    pub(crate) fn prefetch(&mut self, entry: Gpa, clean: Clean, around: &Around<'_>) -> Neighbour {
        let neighbour = self.neighbour(entry, around);
        match neighbour {
            Neighbour::Clean(..) if clean == Clean::Skipped => {}
            Neighbour::Ready(frame, perms, raw) | Neighbour::Clean(frame, perms, raw) if self.is_backed(frame) => {
                self.guess(entry, frame, perms, raw);
            }
            _ => {}
        }
        neighbour
    }
}

/// Whether clean pages that may be stored to are filled without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clean {
    Skipped,
    Filled,
}

/// What an entry beside the one asked for is: its frame, permissions and bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// Nothing is mapped.
    Absent,
    /// Nobody has accessed it.
    Unused,
    /// It may be stored to and has not been.
    Clean(Gfn, Attrs, u64),
    /// It needs nothing from the guest.
    Ready(Gfn, Attrs, u64),
}
