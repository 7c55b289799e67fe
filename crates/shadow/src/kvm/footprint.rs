//! What the shadow costs in memory.
//!
//! A page that stands for a guest table costs a second page of translations; every page has a header of 184 bytes. The memory
//! slot costs a word and a count for each frame, whether anything is shadowed or not. Source: spec A17 (slab sizes measured on
//! Linux 6.1 and 6.12).

use memvirt_addr::Gfn;
use memvirt_platform::{Attribution, Host, RootTables, Served, ShadowSum, TableBytes};

use super::Kvm;
use super::page::{NONE, PageId};
use super::spte::Spte;

const TABLE: u64 = 4096;
const HEADER: u64 = 184;
const DESCRIPTOR: u64 = 128;
const HASH: u64 = 4096 * 8;

impl Kvm {
    pub(crate) fn footprint(&self) -> TableBytes {
        let frames = self.slot.frames();
        let large = frames / 512 + frames / (512 * 512);
        let descriptors = (self.lists.descriptors() + self.links.descriptors()) as u64;
        let reverse_map = 8 * (frames + large) + DESCRIPTOR * descriptors;
        let slot = 4 * large + 2 * frames;
        TableBytes {
            shadow: TABLE * self.pages.tables,
            nested: 0,
            metadata: TABLE * self.pages.with_translations + HEADER * self.pages.tables + reverse_map + slot + HASH,
            reverse_map,
        }
    }

    /// Whom the pages serve, by the entries in memory.
    pub(crate) fn served(&self, host: &Host) -> Attribution {
        let mut roots: Vec<_> =
            self.pages.iter().filter(|(_, page)| page.level() == 4).map(|(id, page)| (page.gfn, id)).collect();
        roots.sort_unstable();
        let mut sum = Attribution::default();
        let mut served: Vec<(PageId, Served)> = self.pages.iter().map(|(id, _)| (id, Served::Nobody)).collect();
        let mut stack = Vec::new();
        for (gfn, root) in roots {
            // A root that was zapped while held lives beside its successor: one address space.
            if sum.roots.last().is_none_or(|last| last.root.number() != gfn) {
                sum.roots.push(RootTables { root: Gfn::new(gfn), sum: ShadowSum::default() });
            }
            let number = sum.roots.len() - 1;
            stack.push(root);
            while let Some(id) = stack.pop() {
                let Ok(at) = served.binary_search_by_key(&id, |(id, _)| *id) else { continue };
                let before = served[at].1;
                served[at].1 = before.and(number);
                if served[at].1 != before {
                    self.children(host, id, &mut stack);
                }
            }
        }
        for (id, served) in served {
            let translations = if self.pages[id].has_gptes() { TABLE } else { 0 };
            sum.enter(served, TABLE + HEADER + translations);
        }
        sum
    }

    /// Appends the pages that the entries of a page lead to.
    fn children(&self, host: &Host, id: PageId, found: &mut Vec<PageId>) {
        if self.pages[id].level() == 1 {
            return;
        }
        for word in host.mem.words(self.pages[id].table).iter().filter(|word| **word != 0) {
            let entry = Spte(*word);
            let child = if entry.is_present() && !entry.is_large() { self.pages.of_table(entry.frame()) } else { NONE };
            if child != NONE {
                found.push(child);
            }
        }
    }
}
