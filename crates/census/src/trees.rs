//! Pages in use, as a shadow that belongs to an address space would see them: the events of policies that protect nothing.

use std::collections::{BTreeSet, HashMap};

use memvirt_addr::{Gfn, Gpa};

use crate::path::Way;

/// A page that was used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) frame: Gfn,
    /// Whether stores go through.
    pub(crate) writable: bool,
}

/// Pages by number.
pub(crate) type Pages = HashMap<u64, Used>;

/// What an access to a page costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    Nothing,
    Fill,
    Upgrade,
}

/// An access that completed.
pub(crate) fn access(pages: &mut Pages, way: &Way) -> Cost {
    let used = Used { frame: way.frame, writable: way.write || way.writable };
    match pages.get_mut(&way.page) {
        None => {
            pages.insert(way.page, used);
            Cost::Fill
        }
        Some(held) if way.write && !held.writable => {
            *held = used;
            Cost::Upgrade
        }
        Some(_) => Cost::Nothing,
    }
}

/// Pages used under a root, and which entries lead to them: a flush compares what has changed since the last one.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) pages: Pages,
    /// By leaf entry, the pages that were used through it; some may be gone.
    by_leaf: HashMap<Gpa, BTreeSet<u64>>,
    uppers: BTreeSet<Gpa>,
    /// How much of the log of changes the last flush has seen.
    seen: usize,
}

impl Tree {
    /// An access that completed.
    pub(crate) fn access(&mut self, way: &Way) -> Cost {
        let cost = access(&mut self.pages, way);
        if cost != Cost::Nothing {
            self.by_leaf.entry(way.leaf()).or_default().insert(way.page);
            self.uppers.extend(way.links().map(|(entry, ..)| entry));
        }
        cost
    }

    /// Compares pages with the guest's tables; `now` translates a page as they are. What has changed goes or gets its new
    /// permissions. `log` has every entry that was changed so far, in order.
    pub(crate) fn sync(&mut self, log: &[Gpa], now: impl Fn(u64) -> Option<Way>) {
        let changed = &log[self.seen.min(log.len())..];
        self.seen = log.len();
        if changed.iter().any(|entry| self.uppers.contains(entry)) {
            self.pages.retain(|page, used| agrees(used, now(*page)));
            return;
        }
        let pages: BTreeSet<u64> =
            changed.iter().filter_map(|entry| self.by_leaf.get(entry)).flatten().copied().collect();
        for page in pages {
            sync_page(&mut self.pages, page, now(page));
        }
    }
}

/// The same for one page, translated by now to `way`.
pub(crate) fn sync_page(pages: &mut Pages, page: u64, way: Option<Way>) {
    if pages.get_mut(&page).is_some_and(|used| !agrees(used, way)) {
        pages.remove(&page);
    }
}

/// Whether the page is still what it was.
fn agrees(used: &mut Used, now: Option<Way>) -> bool {
    let same = now.filter(|way| way.accessed && way.frame == used.frame);
    used.writable = same.is_some_and(|way| way.writable);
    same.is_some()
}
