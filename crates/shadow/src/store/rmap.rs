//! The reverse map: by guest frame and page size, the leaf entries that map it; by shadow page, the entries that point to it.
//!
//! Chains are kept in step with the entries by [`ShadowStore`]'s updates next door; here are the walks over them that take
//! permissions or mappings away.

use memvirt_addr::{Gfn, PageSize};
use memvirt_pagetable::Attrs;
use memvirt_platform::{Host, Work};

use super::nodes::{Chain, Nodes, Target};
use super::page::Slot;
use super::{Change, ShadowStore, number};

impl ShadowStore {
    /// Changes the chain of whatever an entry refers to, and accounts for its descriptors.
    pub(super) fn with_chain<T>(&mut self, target: Target, change: impl FnOnce(&mut Nodes, &mut Chain) -> T) -> T {
        let mut chain = match target {
            Target::Leaf(gfn, size) => self.chain_of(gfn, size),
            Target::Link(child) => self.page(child).parents,
            Target::Switch(gfn) => self.switches.get(&gfn.number()).copied().unwrap_or_default(),
        };
        let before = chain.len;
        let result = change(&mut self.nodes, &mut chain);
        let (more, less) = (self.footprint.chain(chain.len), self.footprint.chain(before));
        self.metadata = self.metadata + more - less;
        self.chains = self.chains + more - less;
        match target {
            Target::Leaf(gfn, size) => {
                let leaves = &mut self.leaves[size as usize - 1];
                *leaves = *leaves + u64::from(chain.len) - u64::from(before);
                self.rmap[size as usize - 1][number(gfn, size)] = chain.pack();
            }
            Target::Link(child) => {
                self.pages[child.index()].parents = chain;
                if let (0, Some(orphans)) = (chain.len, &mut self.orphans) {
                    orphans.push(child);
                }
            }
            Target::Switch(gfn) if chain.len == 0 => _ = self.switches.remove(&gfn.number()),
            Target::Switch(gfn) => _ = self.switches.insert(gfn.number(), chain),
        }
        result
    }

    pub(super) fn join_chain(&mut self, target: Target, slot: Slot) {
        let node = self.with_chain(target, |nodes, chain| nodes.push(chain, slot, target));
        let page = &mut self.pages[slot.page.index()];
        page.nodes[slot.at()] = node;
        page.set_present(slot.at(), true);
    }

    /// The leaf entries that map the page of `size` around `gfn` at that very size.
    pub fn mappings(&self, gfn: Gfn, size: PageSize) -> impl Iterator<Item = Slot> + '_ {
        self.nodes.slots(self.chain_of(gfn, size))
    }

    /// How many leaf entries map the page of `size` around `gfn` at that very size.
    #[must_use]
    pub fn mapping_count(&self, gfn: Gfn, size: PageSize) -> u32 {
        self.chain_of(gfn, size).len
    }

    pub(super) fn chain_of(&self, gfn: Gfn, size: PageSize) -> Chain {
        Chain::unpack(self.rmap[size as usize - 1].get(number(gfn, size)).copied().unwrap_or(0))
    }

    /// Takes the write permission from every mapping of `gfn`; large mappings go altogether.
    pub fn protect(&mut self, host: &mut Host, gfn: Gfn, work: &mut Work) -> Change {
        let mut change = self.drop_large(host, gfn, work);
        let mut at = self.chain_of(gfn, PageSize::Size4K).first;
        while !at.is_none() {
            work.rmap_visited += 1;
            change = change.or(self.restrict(host, self.nodes.slot(at), Attrs::WRITE | Attrs::DIRTY, work));
            at = self.nodes.next(at);
        }
        change
    }

    /// Removes every mapping of `gfn`, of any size, and every entry that leads into the guest table there.
    pub fn drop_mappings(&mut self, host: &mut Host, gfn: Gfn, work: &mut Work) -> Change {
        let change = self.drop_large(host, gfn, work).or(self.drop_switches(host, gfn, work));
        change.or(self.drop_sized(host, gfn, PageSize::Size4K, work))
    }

    pub(super) fn drop_large(&mut self, host: &mut Host, gfn: Gfn, work: &mut Work) -> Change {
        let change = self.drop_sized(host, gfn, PageSize::Size2M, work);
        change.or(self.drop_sized(host, gfn, PageSize::Size1G, work))
    }

    pub(super) fn drop_sized(&mut self, host: &mut Host, gfn: Gfn, size: PageSize, work: &mut Work) -> Change {
        let mut change = Change::Kept;
        loop {
            let first = self.chain_of(gfn, size).first;
            if first.is_none() {
                return change;
            }
            work.rmap_visited += 1;
            change = change.or(self.clear(host, self.nodes.slot(first), work));
        }
    }
}
