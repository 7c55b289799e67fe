//! Pages that belong to a file or to shared memory rather than to one process: the page cache.
//!
//! A page is kept as long as some mapping shows it; then it is forgotten, as if the file were read anew the next time.

use std::collections::BTreeMap;

use memvirt_addr::Gfn;

use super::area::ObjectId;

/// The pages of all objects.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pages: BTreeMap<(ObjectId, u64), Gfn>,
    owner: BTreeMap<Gfn, (ObjectId, u64)>,
    next: u32,
}

impl Objects {
    /// A new object without pages.
    pub(crate) fn create(&mut self) -> ObjectId {
        self.next += 1;
        ObjectId(self.next)
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

    /// Whether a frame belongs to an object.
    pub(crate) fn owns(&self, frame: Gfn) -> bool {
        self.owner.contains_key(&frame)
    }

    /// Forgets a frame that no mapping shows any more.
    pub(crate) fn forget(&mut self, frame: Gfn) {
        if let Some(page) = self.owner.remove(&frame) {
            self.pages.remove(&page);
        }
    }
}
