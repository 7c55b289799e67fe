//! Whom the shadow pages of a store serve: those that only one root leads to, those that several do, those that none does.

use memvirt_addr::PageSize;
use memvirt_pagetable::{Format, Shadow4};
use memvirt_platform::{Attribution, RootTables, Served, ShadowSum};

use super::{PageId, ShadowStore, Slot, Target};

impl ShadowStore {
    /// Goes down from every root. Slow: it looks at all pages.
    #[must_use]
    pub fn attribution(&self) -> Attribution {
        let mut roots: Vec<_> =
            self.pages().filter(|(_, page)| page.level == Shadow4::ROOT).map(|(id, page)| (page.gfn, id)).collect();
        roots.sort_unstable();
        let mut sum = Attribution::default();
        let mut served = vec![Served::Nobody; self.pages.len()];
        let mut stack = Vec::new();
        for (gfn, root) in roots {
            if sum.roots.last().is_none_or(|last| last.root != gfn) {
                sum.roots.push(RootTables { root: gfn, sum: ShadowSum::default() });
            }
            let number = sum.roots.len() - 1;
            stack.push(root);
            while let Some(id) = stack.pop() {
                let before = served[id.index()];
                served[id.index()] = before.and(number);
                if served[id.index()] != before {
                    self.children(id, &mut stack);
                }
            }
        }
        for (id, page) in self.pages() {
            let bytes = PageSize::Size4K.bytes() + self.footprint.page(page.kind);
            sum.enter(served[id.index()], bytes);
        }
        sum
    }

    fn children(&self, id: PageId, found: &mut Vec<PageId>) {
        let targets = self.page(id).present().filter_map(|index| self.target(Slot::new(id, index)));
        found.extend(targets.filter_map(|target| match target {
            Target::Link(child) => Some(child),
            Target::Leaf(..) | Target::Switch(_) => None,
        }));
    }
}
