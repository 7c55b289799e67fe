//! [`Page`]: the descriptor of one shadow page, and the names by which pages and their entries go.

use memvirt_addr::{Gfn, Hfn, Level};

use super::nodes::{Chain, NodeId};

/// The number of a shadow page in its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PageId(u32);

impl PageId {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn new(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    pub(crate) const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u32 {
        self.0
    }

    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One entry of one shadow page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The shadow page.
    pub page: PageId,
    /// The index of the entry, below 512.
    pub index: u16,
}

impl Slot {
    /// Entry `index` (modulo 512) of `page`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo 512")]
    pub const fn new(page: PageId, index: usize) -> Self {
        Self { page, index: (index & 511) as u16 }
    }

    /// The index as an index.
    #[must_use]
    pub const fn at(self) -> usize {
        self.index as usize
    }
}

/// What a shadow page stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It shadows the guest table in its frame, for all paths that lead there.
    Table,
    /// No guest table stands behind it: it is a piece of a guest page that is larger than the host's, whose first frame is
    /// its frame.
    Direct,
    /// It belongs to one place of one address space and is found through its parent only.
    Private,
}

/// The descriptor of a shadow page.
#[derive(Debug)]
pub struct Page {
    /// The host frame that holds its 512 entries.
    pub frame: Hfn,
    /// The guest frame that it stands for.
    pub gfn: Gfn,
    /// Its level.
    pub level: Level,
    /// What it stands for.
    pub kind: Kind,
    /// Emulated stores to the guest table since it was last used.
    pub writes: u32,
    /// Free for the policy.
    pub mark: u32,
    /// How many vCPUs have it as their root now.
    pub(crate) pins: u32,
    pub(crate) live: bool,
    pub(crate) parents: Chain,
    pub(crate) nodes: Box<[NodeId; 512]>,
    pub(crate) present: [u64; 8],
    /// The next page of the same guest frame.
    pub(crate) sibling: PageId,
    pub(crate) older: PageId,
    pub(crate) newer: PageId,
}

impl Page {
    pub(crate) fn empty() -> Self {
        Self {
            frame: Hfn::new(0),
            gfn: Gfn::new(0),
            level: Level::L1,
            kind: Kind::Private,
            writes: 0,
            mark: 0,
            pins: 0,
            live: false,
            parents: Chain::default(),
            nodes: Box::new([NodeId::NONE; 512]),
            present: [0; 8],
            sibling: PageId::NONE,
            older: PageId::NONE,
            newer: PageId::NONE,
        }
    }

    /// The first present entry at or after `from`.
    #[must_use]
    pub fn next_present(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = *self.present.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.present.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// The indices of all present entries.
    pub fn present(&self) -> impl Iterator<Item = usize> + '_ {
        let mut next = 0;
        core::iter::from_fn(move || {
            let found = self.next_present(next)?;
            next = found + 1;
            Some(found)
        })
    }

    /// How many entries are present.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.present.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether some vCPU runs on it.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.pins > 0
    }

    /// How many entries of other shadow pages point to it.
    #[must_use]
    pub const fn parents(&self) -> u32 {
        self.parents.len
    }

    pub(crate) fn set_present(&mut self, index: usize, present: bool) {
        let bit = 1 << (index % 64);
        if present {
            self.present[index / 64] |= bit;
        } else {
            self.present[index / 64] &= !bit;
        }
    }
}
