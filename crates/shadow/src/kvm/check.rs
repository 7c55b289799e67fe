//! The invariants of the structure, checked from scratch. For tests: it looks at everything there is.
//!
//! Source: spec E (3 and 7 to 12); the kernel's `mmu_audit.c` (5.10).

use std::collections::{BTreeMap, BTreeSet};

use memvirt_addr::{Gfn, Level};
use memvirt_pagetable::{Entry, Format, Guest4};
use memvirt_platform::{Host, MemoryMap, read_guest};

use super::Kvm;
use super::gpte::Gpte;
use super::lists::SpteRef;
use super::page::{NONE, Page, PageId};
use super::role::Access;
use super::spte::Spte;

/// A broken invariant, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect(String);

impl core::fmt::Display for Defect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Defect {}

type Checked = Result<(), Defect>;

/// Fails with `what` unless `holds`.
fn require(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Defect(what())) }
}

impl Kvm {
    /// Looks for a broken invariant: reverse map and parents against entries, marks of unsync pages, write protection, the
    /// hash, the counts.
    ///
    /// # Errors
    ///
    /// The first [`Defect`] found.
    pub fn check_structure(&self, host: &Host, map: &MemoryMap) -> Result<(), Defect> {
        let mut leaves = [0u64; 3];
        for (id, page) in self.pages.iter() {
            self.check_page(id, page)?;
            for (index, raw) in host.mem.words(page.table).iter().enumerate() {
                let (at, entry) = (SpteRef::new(id, index), Spte(*raw));
                if !entry.is_present() {
                    continue;
                }
                require(!self.is_obsolete(id), || format!("an obsolete page has entries: {page:?}"))?;
                if entry.is_leaf(page.level()) {
                    leaves[usize::from(page.level() - 1)] += 1;
                    self.check_leaf(at, page, entry, map)?;
                } else {
                    self.check_link(at, page, entry)?;
                }
            }
        }
        self.check_lists(host, leaves)?;
        self.check_counts()
    }

    /// Checks that entries of synced tables grant nothing that the guest's tables, as they are now, do not. Holds while
    /// nobody changes guest memory behind KVM's back.
    ///
    /// # Errors
    ///
    /// The first [`Defect`] found.
    pub fn check_against_guest(&self, host: &Host, map: &MemoryMap) -> Result<(), Defect> {
        for (id, page) in self.pages.iter() {
            if !page.has_gptes() || page.unsync || self.is_obsolete(id) {
                continue;
            }
            for (index, raw) in host.mem.words(page.table).iter().enumerate() {
                let entry = Spte(*raw);
                let gpte = Gpte(read_guest(host, map, Gfn::new(page.gfn).entry(index)));
                if entry.is_present() {
                    self.check_grant(page, index, entry, gpte)?;
                }
            }
        }
        Ok(())
    }

    fn check_grant(&self, page: &Page, index: usize, entry: Spte, gpte: Gpte) -> Checked {
        let complain =
            |what: &str| format!("{what}: entry {index} is {entry:x?} for guest entry {gpte:x?} in {page:?}");
        let level = Level::ALL[usize::from(page.level()) - 1];
        let decoded = Guest4::decode(gpte.0, level);
        require(decoded.is_present() && gpte.is_accessed(), || complain("nothing to shadow"))?;
        let access = page.role.access().and(gpte.access());
        if entry.is_leaf(page.level()) {
            require(gpte.gfn(page.level()) == page.gfn_of(index), || complain("another frame"))?;
            // With CR0.WP clear a read-only user page may be writable for the supervisor.
            let exact = page.role.respects_write_protection();
            let writable = access.has(Access::WRITE) && gpte.is_dirty();
            require(!exact || !entry.is_writable() || writable, || complain("writable"))?;
            require(entry.0 & Spte::U == 0 || access.has(Access::USER), || complain("user"))?;
            return require(entry.0 & Spte::NX != 0 || access.has(Access::EXEC), || complain("executable"));
        }
        let child = &self.pages[self.child_of(entry)];
        match decoded {
            Entry::Table { next, .. } => {
                let same = child.has_gptes() && child.gfn == next.number() && child.role.access() == access;
                require(same, || complain("another table"))
            }
            _ => require(child.role.is_direct() && child.gfn == gpte.gfn(page.level()), || complain("no direct page")),
        }
    }

    fn check_page(&self, id: PageId, page: &Page) -> Checked {
        let bits: u32 = page.unsync_bits.iter().map(|word| word.count_ones()).sum();
        require(bits == page.unsync_children, || format!("{bits} bits for the marks counted: {page:?}"))?;
        require(!page.unsync || page.level() == 1 && page.has_gptes() && !self.is_obsolete(id), || {
            format!("unsync, but no leaf table: {page:?}")
        })?;
        for parent in self.links.iter(page.parents) {
            let above = &self.pages[parent.page()];
            let marked = above.unsync_bit(parent.index());
            require(marked || !(page.unsync || page.unsync_children > 0), || {
                format!("no mark at {parent:?} leads to {page:?}")
            })?;
        }
        if page.has_gptes() && !self.is_obsolete(id) {
            self.check_protection(id, page)?;
        }
        Ok(())
    }

    fn check_protection(&self, id: PageId, page: &Page) -> Checked {
        let mut same = self.pages.first_in_bucket(page.gfn);
        while same != NONE {
            let other = &self.pages[same];
            let twin = same != id && other.gfn == page.gfn && other.role == page.role && !self.is_obsolete(same);
            require(!twin, || format!("two pages: {page:?} and {other:?}"))?;
            same = self.pages.next_in_bucket(same);
        }
        require(page.level() == 1 || self.slot.tracked(page.gfn) > 0, || format!("not tracked: {page:?}"))?;
        require(!page.unsync || self.slot.tracked(page.gfn) == 0, || format!("tracked and unsync: {page:?}"))
    }

    fn check_leaf(&self, at: SpteRef, page: &Page, entry: Spte, map: &MemoryMap) -> Checked {
        let gfn = page.gfn_of(at.index());
        let complain = |what: &str| format!("{what}: {at:?} = {entry:x?} maps {gfn:#x} in {page:?}");
        let listed = self.lists.iter(self.slot.rmap(gfn, page.level())).filter(|entry| *entry == at).count();
        require(listed == 1, || complain("not in the reverse map once"))?;
        require(entry.writable_bits_are_sane(), || complain("impossible writable bits"))?;
        let backed = map.lookup(Gfn::new(gfn));
        require(backed.is_some_and(|backed| backed.frame == entry.frame()), || complain("not the host's frame"))?;
        let large = backed.is_some_and(|backed| backed.size.level().number() >= page.level());
        require(large, || complain("larger than the host's page"))?;
        if !entry.is_writable() {
            return Ok(());
        }
        if page.level() > 1 {
            let clear = self.slot.level_without_tables(gfn, page.level()) == page.level();
            return require(clear, || complain("a writable large page over a table"));
        }
        require(self.slot.tracked(gfn) == 0, || complain("writable and tracked"))?;
        let mut id = self.pages.first_in_bucket(gfn);
        while id != NONE {
            let protected = self.is_table_page(id, gfn) && !self.pages[id].unsync;
            require(!protected, || complain("writable over a synced table"))?;
            id = self.pages.next_in_bucket(id);
        }
        Ok(())
    }

    fn check_link(&self, at: SpteRef, page: &Page, entry: Spte) -> Checked {
        let child = self.child_of(entry);
        require(child != NONE, || format!("{at:?} leads to no page"))?;
        let child_page = &self.pages[child];
        let below = child_page.level() + 1 == page.level() && !self.is_obsolete(child);
        require(below, || format!("{at:?} of {page:?} leads to {child_page:?}"))?;
        let listed = self.links.iter(child_page.parents).filter(|parent| *parent == at).count();
        require(listed == 1, || format!("{at:?} is listed {listed} times by {child_page:?}"))
    }

    fn check_lists(&self, host: &Host, leaves: [u64; 3]) -> Checked {
        let gauges = [self.stats.pages_4k, self.stats.pages_2m, self.stats.pages_1g];
        require(gauges == leaves, || format!("{leaves:?} leaves, {gauges:?} counted"))?;
        for (level, leaves) in (1..=3).zip(leaves) {
            let heads = self.slot.rmaps(level);
            let listed: usize = heads.iter().map(|head| self.lists.iter(*head).count()).sum();
            require(listed as u64 == leaves, || format!("{listed} entries in the reverse map, {leaves} leaves"))?;
        }
        for (_, page) in self.pages.iter() {
            for parent in self.links.iter(page.parents) {
                let entry = self.pages.read(&host.mem, parent);
                let leads = entry.is_present() && entry.frame() == page.table;
                require(leads, || format!("{parent:?} is {entry:x?}, not a link to {page:?}"))?;
            }
        }
        Ok(())
    }

    fn check_counts(&self) -> Checked {
        let (mut unsync, mut used, mut tables) = (0, 0, BTreeMap::<u64, u16>::new());
        let mut in_region = BTreeMap::<u64, u32>::new();
        for (id, page) in self.pages.iter() {
            used += 1;
            unsync += u64::from(page.unsync);
            let held =
                self.vcpus.iter().flat_map(|mmu| mmu.previous.iter().chain([&mmu.root])).filter(|r| r.page == id);
            let held = held.count();
            require(held == page.root_count as usize, || format!("held {held} times: {page:?}"))?;
            if page.has_gptes() && !page.role.is_invalid() {
                *in_region.entry(page.gfn >> 9).or_default() += 1;
                *tables.entry(page.gfn).or_default() += u16::from(page.level() > 1);
            }
        }
        require(unsync == self.stats.mmu_unsync, || {
            format!("{unsync} unsync pages, {} counted", self.stats.mmu_unsync)
        })?;
        require(used == self.pages.used, || format!("{used} pages, {} counted", self.pages.used))?;
        let indirect: u64 = in_region.values().map(|count| u64::from(*count)).sum();
        require(indirect == self.pages.indirect, || format!("{indirect} tables, {} counted", self.pages.indirect))?;
        for (gfn, count) in tables {
            require(self.slot.tracked(gfn) == count, || {
                format!("{gfn:#x} is tracked {} times", self.slot.tracked(gfn))
            })?;
        }
        let regions: BTreeSet<u64> = in_region.into_keys().collect();
        for region in 0..self.slot.frames().div_ceil(512) {
            let without = self.slot.level_without_tables(region << 9, 2) == 2;
            require(without != regions.contains(&region), || {
                format!("region {region:#x}: tables inside are forgotten")
            })?;
        }
        Ok(())
    }
}
