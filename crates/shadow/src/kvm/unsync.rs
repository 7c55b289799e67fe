//! Tables out of sync: leaf tables that the guest may write without an exit, and the marks that lead to them.
//!
//! Each non-leaf page keeps a bit per entry below which something may be unsync. The bits are *sticky*: a page that becomes
//! synced clears them only along the path by which the walk reached it. Source: spec A7, A8; `mmu_try_to_unsync_pages`,
//! `mark_unsync`, `mmu_unsync_walk` in `arch/x86/kvm/mmu/mmu.c`.

use memvirt_platform::Cx;

use super::Kvm;
use super::leaf::Unsync;
use super::lists::{Cursor, SpteRef};
use super::page::{NONE, PageId};

/// How many pages one walk collects at most.
const BATCH: usize = 16;

/// Pages met by a walk over unsync marks, parents before children, each with its index in its parent.
#[derive(Debug)]
pub(crate) struct Batch {
    pages: [(PageId, usize); BATCH],
    len: usize,
}

/// The pages above the one that an iteration over a batch stands at.
#[derive(Debug)]
pub(crate) struct Path {
    /// By level of the child, leaf first.
    parents: [PageId; 5],
    index: [usize; 5],
}

impl Batch {
    /// Adds a page; returns whether the batch is full now.
    fn add(&mut self, page: PageId, index: usize, unsync: bool) -> bool {
        if unsync && self.pages[..self.len].iter().any(|(known, _)| *known == page) {
            return false;
        }
        self.pages[self.len] = (page, index);
        self.len += 1;
        self.len == BATCH
    }
}

impl Kvm {
    /// Whether a writable leaf for `gfn` may exist; tables become unsync for it where that is allowed.
    pub(crate) fn try_to_unsync(&mut self, gfn: u64, how: Unsync) -> bool {
        if self.slot.tracked(gfn) > 0 {
            return false;
        }
        let mut id = self.pages.first_in_bucket(gfn);
        while id != NONE {
            let next = self.pages.next_in_bucket(id);
            if self.is_table_page(id, gfn) {
                match how {
                    Unsync::Forbidden => return false,
                    _ if self.pages[id].unsync => {}
                    Unsync::IfAlready => return false,
                    Unsync::Allowed => self.unsync_page(id),
                }
            }
            id = next;
        }
        true
    }

    fn unsync_page(&mut self, id: PageId) {
        self.stats.mmu_unsync += 1;
        self.pages[id].unsync = true;
        self.mark_parents_unsync(id);
    }

    /// The page is in sync again, or about to go.
    pub(crate) fn clear_unsync(&mut self, id: PageId) {
        self.pages[id].unsync = false;
        self.stats.mmu_unsync -= 1;
    }

    fn mark_parents_unsync(&mut self, id: PageId) {
        let mut cursor = Cursor::new(self.pages[id].parents);
        while let Some(parent) = cursor.next(&self.links) {
            self.mark_unsync(parent);
        }
    }

    /// Marks an entry, and the entries above it unless they must be marked already: a page that had a marked entry has
    /// marked parents.
    pub(crate) fn mark_unsync(&mut self, at: SpteRef) {
        let page = &mut self.pages[at.page()];
        if page.unsync_bit(at.index()) {
            return;
        }
        page.set_unsync_bit(at.index());
        page.unsync_children += 1;
        if page.unsync_children == 1 {
            self.mark_parents_unsync(at.page());
        }
    }

    /// Collects unsync pages below `top`, and the pages on the way to them, until the batch is full. Marks that lead
    /// nowhere are cleared on the way. `None` where nothing is marked.
    pub(crate) fn collect_unsync(&mut self, cx: &Cx<'_>, top: PageId) -> Option<Batch> {
        if self.pages[top].unsync_children == 0 {
            return None;
        }
        let mut batch = Batch { pages: [(NONE, 0); BATCH], len: 0 };
        batch.add(top, 0, self.pages[top].unsync);
        (self.collect_below(cx, top, &mut batch) != Some(0)).then_some(batch)
    }

    /// How many unsync leaf tables were found below `page`; `None` where the batch ran full.
    fn collect_below(&mut self, cx: &Cx<'_>, page: PageId, batch: &mut Batch) -> Option<u32> {
        let (mut found, mut from) = (0, 0);
        while let Some(index) = self.pages[page].next_unsync(from) {
            from = index + 1;
            let entry = self.spte(cx, SpteRef::new(page, index));
            if !entry.is_present() || entry.is_large() {
                self.pages[page].clear_unsync_bit(index);
                continue;
            }
            let child = self.child_of(entry);
            if self.pages[child].unsync_children > 0 {
                if batch.add(child, index, self.pages[child].unsync) {
                    return None;
                }
                match self.collect_below(cx, child, batch)? {
                    0 => self.pages[page].clear_unsync_bit(index),
                    below => found += below,
                }
            } else if self.pages[child].unsync {
                found += 1;
                if batch.add(child, index, true) {
                    return None;
                }
            } else {
                self.pages[page].clear_unsync_bit(index);
            }
        }
        Some(found)
    }

    /// The leaf tables of a batch: calls `visit` with each, then clears the marks that led to it.
    pub(crate) fn for_each_unsync(
        &mut self,
        batch: &Batch,
        mut visit: impl FnMut(&mut Self, PageId, &Path) -> Visited,
    ) {
        let mut path = Path { parents: [NONE; 5], index: [0; 5] };
        let top = usize::from(self.pages[batch.pages[0].0].level());
        path.parents[top - 2] = batch.pages[0].0;
        for &(page, index) in &batch.pages[1..batch.len] {
            let level = usize::from(self.pages[page].level());
            path.index[level - 1] = index;
            if level > 1 {
                path.parents[level - 2] = page;
            } else if visit(self, page, &path) == Visited::Done {
                self.clear_marks(&path);
            }
        }
        // Pages at the end of a full batch that no leaf table follows wait for the next walk.
    }

    fn clear_marks(&mut self, path: &Path) {
        for (parent, index) in path.parents.iter().zip(path.index) {
            if *parent == NONE {
                return;
            }
            self.pages[*parent].clear_unsync_bit(index);
            if self.pages[*parent].unsync_children > 0 {
                return;
            }
        }
    }
}

/// Whether the marks that led to a table are to be cleared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Visited {
    /// They are.
    Done,
    /// They stay.
    Seen,
}
