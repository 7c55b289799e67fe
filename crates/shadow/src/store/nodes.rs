//! [`Nodes`]: the arena of doubly linked chains behind the reverse map and the parent lists.
//!
//! Each present shadow entry is in exactly one chain: a leaf in the chain of the guest frame that it maps, a link in the
//! chain of the shadow page that it points to. Whoever holds the entry's node takes it out in O(1), whatever the chain's
//! length: the zero page of a guest is mapped thousands of times. (KVM's `pte_list` scans descriptors instead.)

use memvirt_addr::{Gfn, PageSize};

use super::page::{PageId, Slot};

/// The number of a node; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a present shadow entry refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A page of guest memory, by its first frame.
    Leaf(Gfn, PageSize),
    /// A shadow page.
    Link(PageId),
    /// The guest table in this frame itself: hardware that can goes on in it by a two-dimensional walk.
    Switch(Gfn),
}

/// The head of a chain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    pub(crate) first: NodeId,
    pub(crate) len: u32,
}

impl Chain {
    /// As one word: arrays of these are zeroed lazily by the operating system.
    pub(crate) const fn pack(self) -> u64 {
        (self.len as u64) << 32 | self.first.0 as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub(crate) const fn unpack(word: u64) -> Self {
        Self { first: NodeId(word as u32), len: (word >> 32) as u32 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    slot: Slot,
    target: Target,
    next: NodeId,
    prev: NodeId,
}

/// All nodes of a store.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let none = Node {
            slot: Slot { page: PageId::NONE, index: 0 },
            target: Target::Link(PageId::NONE),
            next: NodeId::NONE,
            prev: NodeId::NONE,
        };
        Self { nodes: vec![none], free: Vec::new() }
    }

    /// Puts a new node at the front of `chain`.
    pub(crate) fn push(&mut self, chain: &mut Chain, slot: Slot, target: Target) -> NodeId {
        let node = Node { slot, target, next: chain.first, prev: NodeId::NONE };
        let id = if let Some(id) = self.free.pop() {
            self.nodes[id.index()] = node;
            id
        } else {
            self.nodes.push(node);
            NodeId(u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX))
        };
        if !chain.first.is_none() {
            self.nodes[chain.first.index()].prev = id;
        }
        chain.first = id;
        chain.len += 1;
        id
    }

    /// Takes a node out of `chain`, the one it is in.
    pub(crate) fn remove(&mut self, chain: &mut Chain, id: NodeId) {
        let Node { next, prev, .. } = self.nodes[id.index()];
        if prev.is_none() {
            chain.first = next;
        } else {
            self.nodes[prev.index()].next = next;
        }
        if !next.is_none() {
            self.nodes[next.index()].prev = prev;
        }
        chain.len -= 1;
        self.free.push(id);
    }

    pub(crate) fn target(&self, id: NodeId) -> Target {
        self.nodes[id.index()].target
    }

    pub(crate) fn slot(&self, id: NodeId) -> Slot {
        self.nodes[id.index()].slot
    }

    pub(crate) fn next(&self, id: NodeId) -> NodeId {
        self.nodes[id.index()].next
    }

    /// The entries of a chain, newest first.
    pub(crate) fn slots(&self, chain: Chain) -> impl Iterator<Item = Slot> + '_ {
        let mut at = chain.first;
        core::iter::from_fn(move || {
            (!at.is_none()).then(|| {
                let slot = self.slot(at);
                at = self.next(at);
                slot
            })
        })
    }
}
