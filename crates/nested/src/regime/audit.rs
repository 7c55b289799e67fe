//! Holding the nested tables against the memory map and the hypervisor's own books.

use std::collections::BTreeSet;

use memvirt_addr::{Gfn, GuestPhys, GuestVirt, PageSize};
use memvirt_pagetable::{Attrs, Format, Mapping, Tree};
use memvirt_platform::{Host, MemoryMap};

use super::{DirtyLogging, Nested};
use crate::stage::SecondStage;

impl<H, G> Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    /// What is wrong with the tables, in words; nothing where they are sound. For tests: it reads the whole tree.
    ///
    /// Every leaf maps what the memory map has there, at a size no larger than the host's page; gauges and the number of
    /// tables are those of the tree; while dirty logging is on, every page whose next store would go unnoticed is logged.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let mut wrong = Vec::new();
        let logged: BTreeSet<Gfn> = self.logs.iter().flatten().flat_map(|log| log.pages(&host.mem)).collect();
        let mut leaves = [0; 3];
        for leaf in self.leaves(host, map) {
            leaves[leaf.size as usize - 1] += 1;
            let gfn = leaf.at.frame();
            match map.lookup(gfn) {
                Some(backed) if backed.frame == leaf.frame && leaf.size <= backed.size => {}
                backed => wrong.push(format!("{leaf:?} maps what the host has as {backed:?}")),
            }
            if self.goes_unnoticed(&leaf) && !self.dirty.contains(gfn) && !logged.contains(&gfn) {
                wrong.push(format!("{leaf:?}: the next store would not be logged"));
            }
        }
        if leaves != self.stats.leaves {
            wrong.push(format!("{leaves:?} leaves, counted as {:?}", self.stats.leaves));
        }
        let tables = Tree::<H, _>::new(&host.mem, self.root).tables().count() as u64;
        if tables != self.tables {
            wrong.push(format!("{tables} tables, counted as {}", self.tables));
        }
        wrong
    }

    /// Whether a store to the page would leave no trace.
    fn goes_unnoticed(&self, leaf: &Mapping<H>) -> bool {
        let bits = match self.dirty_logging() {
            None => return false,
            Some(DirtyLogging::ModificationLog) if leaf.size == PageSize::Size4K => Attrs::WRITE | Attrs::DIRTY,
            Some(_) => Attrs::WRITE,
        };
        leaf.attrs.contains(bits)
    }
}
