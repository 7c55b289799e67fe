//! The invariants that hold between entries in memory and the store's bookkeeping.
//!
//! Source: KVM's `mmu_audit.c` (Linux up to 5.12) and Xen's `shadow_audit_tables`: every present leaf is in exactly one chain
//! of its guest frame and the other way round; links and parents likewise; the counts of tables are those of the pages.

use memvirt_addr::{Gfn, PageSize};
use memvirt_pagetable::{Attrs, Entry, TableMem};
use memvirt_platform::{Host, MemoryMap};

use super::nodes::Chain;
use super::{Kind, Page, PageId, SWITCH, ShadowStore, Slot, Target, number};

impl ShadowStore {
    /// Compares all entries in host memory with the bookkeeping, and says what does not fit. Slow: for tests.
    #[must_use]
    pub fn audit(&self, host: &Host, map: &MemoryMap) -> Vec<String> {
        let mut found = Vec::new();
        let (mut used, mut leaves, mut metadata) = (0, [0; 3], self.footprint.fixed);
        for (id, page) in self.pages() {
            used += 1;
            metadata += self.footprint.page(page.kind) + self.footprint.chain(page.parents.len);
            for index in 0..512 {
                let slot = Slot::new(id, index);
                if let Some(wrong) = self.wrong_entry(host, map, page, slot) {
                    found.push(format!(
                        "{page_kind:?} of {gfn:?} at {level:?}, entry {index}: {wrong}",
                        page_kind = page.kind,
                        gfn = page.gfn,
                        level = page.level
                    ));
                }
                if let Some(Target::Leaf(_, size)) = self.target(slot) {
                    leaves[size as usize - 1] += 1;
                }
            }
            let parents = self.nodes.slots(page.parents).filter(|slot| self.child(*slot) == Some(id)).count();
            if parents != page.parents.len as usize {
                found.push(format!("{id:?}: {parents} parents, {} counted", page.parents.len));
            }
            if page.kind != Kind::Private && !self.pages_of(page.gfn).any(|other| other == id) {
                found.push(format!("{id:?} is not found under its frame {:?}", page.gfn));
            }
        }
        let levels: u64 = self.by_level.iter().sum();
        if levels != used {
            found.push(format!("{used} pages, {levels} by level"));
        }
        metadata += self.audit_chains(&mut found);
        metadata += self.switches.values().map(|chain| self.footprint.chain(chain.len)).sum::<u64>();
        if (used, leaves, metadata) != (self.used, self.leaves, self.metadata) {
            found.push(format!(
                "counted {used} pages, {leaves:?} leaves, {metadata} bytes: {self:?}",
                self = self.summary()
            ));
        }
        self.audit_tables(&mut found);
        found
    }

    /// The guest frames that hold a shadowed table and that some entry lets the guest store to. Slow: for tests.
    #[must_use]
    pub fn writable_tables(&self, host: &Host) -> Vec<Gfn> {
        let leaves = self.pages().flat_map(|(id, page)| page.present().map(move |index| Slot::new(id, index)));
        let writable = leaves.filter(|slot| self.entry(host, *slot).attrs().contains(Attrs::WRITE));
        let targets = writable.filter_map(|slot| match self.target(slot) {
            Some(Target::Leaf(gfn, size)) if self.tables_within(gfn, size) > 0 => Some(gfn),
            _ => None,
        });
        targets.collect()
    }

    fn summary(&self) -> (u64, [u64; 3], u64) {
        (self.used, self.leaves, self.metadata)
    }

    fn wrong_entry(&self, host: &Host, map: &MemoryMap, page: &Page, slot: Slot) -> Option<String> {
        let entry = self.entry(host, slot);
        let raw = host.mem.read_entry(page.frame.entry(slot.at()));
        let present = page.next_present(slot.at()) == Some(slot.at());
        let target = self.target(slot);
        let fits = match (entry, target) {
            (Entry::Absent, None) => !present && raw == 0,
            (Entry::Table { next, .. }, Some(Target::Link(child))) => present && self.sound_link(page, next, child),
            (Entry::Table { next, attrs }, Some(Target::Switch(gfn))) => {
                let backed = map.lookup(gfn).is_some_and(|backed| backed.frame == next);
                present && backed && attrs.contains(SWITCH) && self.switches(gfn).any(|other| other == slot)
            }
            (Entry::Leaf { frame, size, .. }, Some(Target::Leaf(gfn, mapped))) => {
                let backed = map.lookup(gfn).is_some_and(|backed| backed.frame == frame && backed.size >= size);
                present && size == mapped && backed
            }
            _ => false,
        };
        (!fits).then(|| format!("{entry:?} in memory, {target:?} noted"))
    }

    fn sound_link(&self, page: &Page, next: memvirt_addr::Hfn, child: PageId) -> bool {
        let below = self.page(child);
        below.live && below.frame == next && page.level.below() == Some(below.level)
    }

    /// Every chain entry is a present leaf that maps the chain's page. Returns the bytes of chain descriptors.
    fn audit_chains(&self, found: &mut Vec<String>) -> u64 {
        let mut bytes = 0;
        for size in PageSize::ALL {
            for (page, packed) in (0..).zip(&self.rmap[size as usize - 1]) {
                let chain = Chain::unpack(*packed);
                bytes += self.footprint.chain(chain.len);
                let gfn = Gfn::new(page << (size.shift() - 12));
                let sound =
                    self.nodes.slots(chain).filter(|s| self.target(*s) == Some(Target::Leaf(gfn, size))).count();
                if sound != chain.len as usize {
                    found.push(format!("{gfn:?}: {sound} mappings of {size}, {} counted", chain.len));
                }
            }
        }
        bytes
    }

    fn audit_tables(&self, found: &mut Vec<String>) {
        for size in [PageSize::Size2M, PageSize::Size1G] {
            let mut counts = vec![0; self.tables_in[size as usize - 2].len()];
            for gfn in (0..self.by_gfn.len() as u64).map(Gfn::new).filter(|gfn| self.is_table(*gfn)) {
                counts[number(gfn, size)] += 1;
            }
            if *counts != *self.tables_in[size as usize - 2] {
                found.push(format!("tables in each {size}: {counts:?}, noted {:?}", self.tables_in[size as usize - 2]));
            }
        }
    }
}
