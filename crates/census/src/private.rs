//! Shadow tables that belong to one address space each and protect nothing, entry by entry: the work of a virtual TLB, which empties
//! them at every flush, and of lazy filling, which keeps them by root and compares them. (Their exits are counted by the neighbour
//! [`trees`](crate::trees).)
//!
//! Each rule is that of the crate `memvirt-shadow`, module `tree`. The limit on shadow pages is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use memvirt_addr::{Gfn, Gpa, Gva, Level};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};
use memvirt_platform::Work;

use crate::path::Way;

/// The level of a root.
const ROOT: u8 = 4;

/// What an entry of a private table holds.
#[derive(Debug)]
enum Held {
    Table(Node),
    Leaf { frame: Gfn, perms: Attrs },
}

/// A private table.
#[derive(Debug)]
struct Node {
    /// The guest table that it was made for, or the first frame of a guest page that it holds in pieces.
    frame: Gfn,
    pieces: bool,
    entries: BTreeMap<u16, Held>,
}

/// Whether an entry still said what the guest's says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Kept,
    Lost,
}

impl Change {
    fn or(self, other: Self) -> Self {
        if self == Self::Lost { self } else { other }
    }
}

impl Node {
    fn new(frame: Gfn, pieces: bool, work: &mut Work) -> Self {
        work.tables_allocated += 1;
        Self { frame, pieces, entries: BTreeMap::new() }
    }

    /// Every entry goes, and every table below.
    fn empty(&mut self, work: &mut Work) -> Change {
        let entries = std::mem::take(&mut self.entries);
        let change = if entries.is_empty() { Change::Kept } else { Change::Lost };
        entries.into_values().for_each(|held| held.drop_from(work));
        change
    }

    /// How many entries there are, those of the tables below included.
    fn count(&self) -> u64 {
        let below = self.entries.values().map(|held| if let Held::Table(node) = held { node.count() } else { 0 });
        self.entries.len() as u64 + below.sum::<u64>()
    }

    /// Whether the last table on the way to an address stands for the guest's table in `frame`.
    fn leads_to(&self, gva: Gva, frame: Gfn) -> bool {
        let mut node = self;
        for level in (2..=ROOT).rev() {
            let Some(Held::Table(below)) = node.entries.get(&index(gva.as_u64(), level)) else { return false };
            node = below;
        }
        (node.frame, node.pieces) == (frame, false)
    }

    fn remove(&mut self, index: u16, work: &mut Work) -> Change {
        match self.entries.remove(&index) {
            Some(held) => {
                held.drop_from(work);
                Change::Lost
            }
            None => Change::Kept,
        }
    }

    /// The table below an entry, made or made anew where it has to be.
    fn child(&mut self, index: u16, frame: Gfn, pieces: bool, work: &mut Work) -> Option<&mut Self> {
        let right =
            matches!(self.entries.get(&index), Some(Held::Table(node)) if (node.frame, node.pieces) == (frame, pieces));
        if !right {
            let _ = self.remove(index, work);
            let node = Self::new(frame, pieces, work);
            work.entries_set += 1;
            self.entries.insert(index, Held::Table(node));
        }
        match self.entries.get_mut(&index) {
            Some(Held::Table(node)) => Some(node),
            _ => None,
        }
    }

    fn set(&mut self, index: u16, frame: Gfn, perms: Attrs, work: &mut Work) {
        match self.entries.get_mut(&index) {
            Some(Held::Leaf { frame: old, perms: held }) if *old == frame => {
                work.entries_set += u64::from(std::mem::replace(held, perms) != perms);
            }
            _ => {
                let _ = self.remove(index, work);
                work.entries_set += 1;
                self.entries.insert(index, Held::Leaf { frame, perms });
            }
        }
    }
}

impl Held {
    /// What goes with the entry: itself, and all tables below with theirs.
    fn drop_from(self, work: &mut Work) {
        work.entries_cleared += 1;
        if let Self::Table(mut node) = self {
            let _ = node.empty(work);
            work.tables_freed += 1;
        }
    }
}

const fn index(address: u64, level: u8) -> u16 {
    (address >> (12 + 9 * (level - 1)) & 511) as u16
}

/// The tree of one root.
#[derive(Debug)]
struct Tree {
    root: Node,
    /// Guest tables that its upper ones were made for; some may be gone.
    uppers: HashSet<Gfn>,
    /// Likewise by guest leaf table the addresses of what it maps.
    leaves: HashMap<Gfn, BTreeSet<u64>>,
    /// How much of the log of changes the last comparison has seen.
    seen: usize,
}

impl Tree {
    fn new(root: Gfn, work: &mut Work) -> Self {
        let (uppers, leaves) = (HashSet::from([root]), HashMap::new());
        Self { root: Node::new(root, false, work), uppers, leaves, seen: 0 }
    }

    /// Whether an access goes through.
    fn serves(&self, way: &Way) -> bool {
        let (address, mut node, mut level) = (way.page << 12, &self.root, ROOT);
        loop {
            match node.entries.get(&index(address, level)) {
                Some(Held::Table(below)) => (node, level) = (below, level - 1),
                Some(Held::Leaf { perms, .. }) => return !way.write || perms.contains(Attrs::WRITE),
                None => return false,
            }
        }
    }

    /// Fills the translation in.
    fn fill(&mut self, way: &Way, work: &mut Work) {
        let (address, top) = (way.page << 12, way.leaf_level());
        let mut node = &mut self.root;
        for (_, next, level) in way.links() {
            if level > 2 {
                self.uppers.insert(next);
            } else {
                self.leaves.entry(next).or_default().insert(address >> 21 << 21);
            }
            let Some(below) = node.child(index(address, level), next, false, work) else { return };
            node = below;
        }
        for level in (2..=top).rev() {
            let first = Gfn::new(way.frame.number() >> (9 * (level - 1)) << (9 * (level - 1)));
            let Some(below) = node.child(index(address, level), first, true, work) else { return };
            node = below;
        }
        let clean = !way.write && !way.leaf_attrs().contains(Attrs::DIRTY);
        let perms = way.perms() & Attrs::PERMISSIONS;
        node.set(index(address, 1), way.frame, if clean { perms - Attrs::WRITE } else { perms }, work);
    }

    /// Compares all of the tree with the guest's tables. Only what the log says has changed since the last time can differ, unless an
    /// upper table has changed.
    fn sync(&mut self, root: Gfn, peek: &dyn Fn(Gpa) -> u64, log: &[Gpa], work: &mut Work) -> Change {
        let changed: BTreeSet<Gpa> = log[self.seen.min(log.len())..].iter().copied().collect();
        self.seen = log.len();
        let mut compared = Compared { peek, work };
        if changed.iter().any(|entry| self.uppers.contains(&entry.frame())) {
            return compared.table(&mut self.root, root, ROOT, Attrs::PERMISSIONS);
        }
        let synced = compared.work.entries_synced + self.root.count();
        let mut change = Change::Kept;
        for entry in changed {
            for address in self.leaves.get(&entry.frame()).into_iter().flatten() {
                let gva = Gva::new_truncate(address | (entry.as_u64() & 0xff8) << 9);
                if self.root.leads_to(gva, entry.frame()) {
                    let at = index(gva.as_u64(), ROOT);
                    let one = compared.entry(&mut self.root, at, (root, ROOT), Attrs::PERMISSIONS, Depth::Leaf(gva));
                    change = change.or(one);
                }
            }
        }
        compared.work.entries_synced = synced;
        change
    }

    /// Drops the translation of an address with all pieces of the guest page that it is part of.
    fn invalidate(&mut self, gva: Gva, work: &mut Work) {
        let (mut node, mut level) = (&mut self.root, ROOT);
        loop {
            let at = index(gva.as_u64(), level);
            if !matches!(node.entries.get(&at), Some(Held::Table(below)) if !below.pieces) {
                let _ = node.remove(at, work);
                return;
            }
            let Some(Held::Table(below)) = node.entries.get_mut(&at) else { return };
            (node, level) = (below, level - 1);
        }
    }
}

/// What a comparison reads and counts.
struct Compared<'a> {
    peek: &'a dyn Fn(Gpa) -> u64,
    work: &'a mut Work,
}

impl Compared<'_> {
    /// Compares everything below a table with the guest's, entry by entry.
    fn table(&mut self, node: &mut Node, guest: Gfn, level: u8, perms: Attrs) -> Change {
        let indices: Vec<u16> = node.entries.keys().copied().collect();
        let each = indices.into_iter().map(|index| self.entry(node, index, (guest, level), perms, Depth::All));
        each.fold(Change::Kept, Change::or)
    }

    /// Compares one entry; where it leads to the right table, goes on there with all entries or that of the same address.
    fn entry(&mut self, node: &mut Node, at: u16, (guest, level): (Gfn, u8), perms: Attrs, depth: Depth) -> Change {
        self.work.entries_synced += 1;
        let raw = (self.peek)(guest.entry(usize::from(at)));
        let entry = Guest4::decode(raw, Level::from_number(level).unwrap_or(Level::L1));
        let Some(held) = node.entries.get_mut(&at) else { return Change::Kept };
        // Of a single page the guest's own INVLPG has flushed what there is.
        let single = matches!((depth, &held), (Depth::Of(_), Held::Leaf { .. }));
        let seen = |change| if single { Change::Kept } else { change };
        if entry.attrs().contains(Attrs::ACCESSED) {
            let perms = perms & entry.attrs();
            match (entry, held) {
                (Entry::Table { next, .. }, Held::Table(below)) if (below.frame, below.pieces) == (next, false) => {
                    return match depth {
                        Depth::All => self.table(below, next, level - 1, perms),
                        Depth::Of(gva) | Depth::Leaf(gva) => {
                            self.entry(below, index(gva.as_u64(), level - 1), (next, level - 1), perms, depth)
                        }
                    };
                }
                (Entry::Leaf { frame, attrs, .. }, held) => {
                    let perms = if attrs.contains(Attrs::DIRTY) { perms } else { perms - Attrs::WRITE };
                    match held {
                        Held::Leaf { frame: old, perms: held } if *old == frame => return seen(self.leaf(held, perms)),
                        Held::Table(below) if (below.frame, below.pieces) == (frame, true) => {
                            return self.pieces(below, perms);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        seen(node.remove(at, self.work))
    }

    fn pieces(&mut self, node: &mut Node, perms: Attrs) -> Change {
        let mut change = Change::Kept;
        for held in node.entries.values_mut() {
            self.work.entries_synced += 1;
            change = change.or(match held {
                Held::Table(below) => self.pieces(below, perms),
                Held::Leaf { perms: held, .. } => self.leaf(held, perms),
            });
        }
        change
    }

    fn leaf(&mut self, held: &mut Attrs, perms: Attrs) -> Change {
        let (before, perms) = (*held, perms & Attrs::PERMISSIONS);
        self.work.entries_set += u64::from(before != perms);
        *held = perms;
        if perms.contains(before) { Change::Kept } else { Change::Lost }
    }
}

/// How much below an entry is compared.
#[derive(Clone, Copy, Debug)]
enum Depth {
    All,
    /// What translates this address, which the guest itself has flushed.
    Of(Gva),
    /// The same, which nobody has flushed.
    Leaf(Gva),
}

/// The view of a virtual TLB.
#[derive(Debug, Default)]
pub(crate) struct Vtlb {
    tree: Option<Tree>,
    pub(crate) work: Work,
}

impl Vtlb {
    /// An access that completed; the guest's root is `root`.
    pub(crate) fn access(&mut self, way: &Way, root: Gfn) {
        let work = &mut self.work;
        let tree = self.tree.get_or_insert_with(|| Tree::new(root, work));
        if !tree.serves(way) {
            work.guest_entries_read += way.refs();
            tree.fill(way, work);
        }
    }

    /// A page fault that the guest gets, after a walk of so many entries; INVLPG.
    pub(crate) fn invalidate(&mut self, gva: Gva, refs: u64) {
        self.work.guest_entries_read += refs;
        if let Some(tree) = &mut self.tree {
            tree.invalidate(gva, &mut self.work);
        }
    }

    /// A flush of everything.
    pub(crate) fn empty(&mut self) {
        if let Some(tree) = &mut self.tree {
            let _ = tree.root.empty(&mut self.work);
        }
    }
}

/// The view of lazy filling.
#[derive(Debug, Default)]
pub(crate) struct Lazy {
    trees: HashMap<Gfn, Tree>,
    pub(crate) work: Work,
}

impl Lazy {
    /// An access that completed under `root`.
    pub(crate) fn access(&mut self, way: &Way, root: Gfn) {
        let work = &mut self.work;
        let tree = self.trees.entry(root).or_insert_with(|| Tree::new(root, work));
        if !tree.serves(way) {
            let freed = work.tables_freed;
            work.guest_entries_read += way.refs();
            tree.fill(way, work);
            work.remote_flushes += u64::from(work.tables_freed > freed);
        }
    }

    /// A page fault that the guest gets, after a walk of so many entries.
    pub(crate) fn reflect(&mut self, gva: Gva, refs: u64, root: Gfn) {
        let work = &mut self.work;
        work.guest_entries_read += refs;
        if let Some(tree) = self.trees.get_mut(&root) {
            let freed = work.tables_freed;
            tree.invalidate(gva, work);
            work.remote_flushes += u64::from(work.tables_freed > freed);
        }
    }

    /// A load of CR3, or a flush of everything under it: all of the tree is compared.
    /// `log` has every entry that was changed so far, in order.
    pub(crate) fn sync(&mut self, root: Gfn, peek: &dyn Fn(Gpa) -> u64, log: &[Gpa]) {
        let work = &mut self.work;
        let Some(tree) = self.trees.get_mut(&root) else {
            self.trees.insert(root, Tree::new(root, work));
            return;
        };
        let change = tree.sync(root, peek, log, work);
        work.remote_flushes += u64::from(change == Change::Lost);
    }

    /// INVLPG: the path to the address is compared. What is lost beyond one page is flushed.
    pub(crate) fn sync_page(&mut self, gva: Gva, root: Gfn, peek: &dyn Fn(Gpa) -> u64) {
        let work = &mut self.work;
        let Some(tree) = self.trees.get_mut(&root) else { return };
        let at = index(gva.as_u64(), ROOT);
        let change =
            Compared { peek, work }.entry(&mut tree.root, at, (root, ROOT), Attrs::PERMISSIONS, Depth::Of(gva));
        work.remote_flushes += u64::from(change == Change::Lost);
    }
}
