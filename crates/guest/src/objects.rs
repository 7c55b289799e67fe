//! Pages that belong to a file or to shared memory rather than to one process: the page cache.
//!
//! A page is kept as long as some mapping shows it; then it is forgotten, as if the file were read anew the next time, unless
//! the cache itself keeps it.

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::Gfn;
use memvirt_ops::process::FileId;

/// What the pages of an area belong to: a file, by the number that the stream gives it, or one mapping call's own memory,
/// shared by the areas split from it and inherited by fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectId {
    /// The pages that the process had before its recording began.
    Adopted,
    /// The memory of one mapping call.
    Call(u32),
    /// A file.
    File(FileId),
}

impl ObjectId {
    /// Whether it is a file that other mapping calls can name.
    pub(crate) const fn is_file(self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// The pages of all objects.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pages: BTreeMap<(ObjectId, u64), Gfn>,
    owner: BTreeMap<Gfn, (ObjectId, u64)>,
    /// Frames that the cache itself uses, in the order of their numbers.
    kept: BTreeSet<Gfn>,
    next: u32,
}

impl Objects {
    /// A new object without pages.
    pub(crate) fn create(&mut self) -> ObjectId {
        self.next += 1;
        ObjectId::Call(self.next)
    }

    /// The frame of a page, where it is in memory.
    pub(crate) fn find(&self, object: ObjectId, page: u64) -> Option<Gfn> {
        self.pages.get(&(object, page)).copied()
    }

    /// Enters a page.
    pub(crate) fn insert(&mut self, object: ObjectId, page: u64, frame: Gfn) {
        self.pages.insert((object, page), frame);
        self.owner.insert(frame, (object, page));
    }

    /// Has the cache itself use a frame, so that it outlives its mappings.
    pub(crate) fn keep(&mut self, frame: Gfn) {
        self.kept.insert(frame);
    }

    /// The frames that the cache itself uses.
    pub(crate) fn kept(&self) -> impl Iterator<Item = Gfn> {
        self.kept.iter().copied()
    }

    /// Whether a frame belongs to an object.
    pub(crate) fn owns(&self, frame: Gfn) -> bool {
        self.owner.contains_key(&frame)
    }

    /// Forgets a frame that nobody uses any more.
    pub(crate) fn forget(&mut self, frame: Gfn) {
        self.kept.remove(&frame);
        if let Some(page) = self.owner.remove(&frame) {
            self.pages.remove(&page);
        }
    }
}
