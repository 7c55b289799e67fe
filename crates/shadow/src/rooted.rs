//! [`Rooted`]: trees kept for each CR3 value, so that a guest process finds its shadow again.
//!
//! The common part of lazy-fill, which brings a tree in step before it is used again, and of invlpg-only, which does not.

use std::collections::BTreeMap;

use memvirt_addr::Gfn;
use memvirt_platform::{Cx, Work};

use crate::store::{Change, PageId};
use crate::tree::{Identity, Tree, WalkedBy};

/// Trees by the frame of the guest's root.
#[derive(Debug)]
pub(crate) struct Rooted {
    pub(crate) tree: Tree,
    roots: BTreeMap<Gfn, PageId>,
}

impl Rooted {
    pub(crate) fn new(frames: u64, identity: Identity) -> Self {
        Self { tree: Tree::new(frames, identity, WalkedBy::Several), roots: BTreeMap::new() }
    }

    /// Frees old trees under the limit.
    pub(crate) fn make_room(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Change {
        let roots = &mut self.roots;
        self.tree.make_room(cx, work, |gfn| _ = roots.remove(&gfn))
    }

    /// Puts the vCPU on the tree of its CR3; says whether that was there already. `None` where the host has no frame left.
    pub(crate) fn load(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> Option<Kept> {
        let gfn = cx.regs().cr3.root.frame();
        if !cx.map.contains(gfn) {
            self.tree.enter(cx, None);
            return Some(Kept::No(Change::Kept));
        }
        if let Some(root) = self.roots.get(&gfn).copied() {
            self.tree.enter(cx, Some(root));
            return Some(Kept::Yes(root));
        }
        let recycled = self.make_room(cx, work);
        let root = self.tree.plant(cx, gfn, work)?;
        self.roots.insert(gfn, root);
        self.tree.enter(cx, Some(root));
        Some(Kept::No(recycled))
    }

    /// What the host does by itself.
    pub(crate) fn host(&mut self, cx: &mut Cx<'_>, event: &memvirt_ops::arch::HostEvent) {
        let roots = &mut self.roots;
        self.tree.host(cx, event, |gfn| _ = roots.remove(&gfn));
    }
}

/// Whether a CR3 value was known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    /// Its tree is this one.
    Yes(PageId),
    /// It got a new tree; old ones may have gone for it.
    No(Change),
}
