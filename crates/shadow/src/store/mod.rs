//! [`ShadowStore`]: the shadow pages of one virtual machine and everything that leads to them.
//!
//! A shadow page is a table of 512 hardware entries in a host frame, and a descriptor here. The store keeps, in step with the
//! entries in memory:
//!
//! - by guest frame, the shadow pages that stand for it (no hashing: a lazily zeroed array of heads);
//! - the reverse map: by guest frame and page size, the leaf entries that map it; a chain of any length gives up an entry in
//!   O(1);
//! - by shadow page, the entries that point to it;
//! - by guest frame, the entries that lead hardware from the shadow into a guest table (agile paging);
//! - how many guest tables are shadowed in each 2 MiB and 1 GiB of guest memory: no large page may cover them;
//! - the order of allocation, for recycling the oldest under a limit, and the bytes of it all.
//!
//! Policies decide *what* an entry should say; the store makes it so and reports whether translations were lost, which is
//! when somebody must flush. Source of the structure: KVM's `arch/x86/kvm/mmu/mmu.c`; the per-entry nodes are ours.

mod audit;
mod footprint;
mod nodes;
mod page;
mod pages;
mod rmap;
mod served;
mod switch;

use std::collections::BTreeMap;

use memvirt_addr::{Gfn, HostPhys, Hpa, Level, PageSize};
use memvirt_pagetable::{Attrs, Entry, Format, Shadow4, TableMem};
use memvirt_platform::{Backed, Host, TableBytes, Work};

pub use footprint::Footprint;
pub use nodes::Target;
use nodes::{Chain, Nodes};
pub use page::{Kind, Page, PageId, Slot};
pub use switch::SWITCH;

/// What became of cached translations when an entry was written.
#[must_use = "lost translations have to be flushed"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// None was lost: the entry was absent, or allows at least what it did.
    Kept,
    /// Some may be cached that the entry no longer gives.
    Lost,
}

impl Change {
    /// The worse of two.
    pub fn or(self, other: Self) -> Self {
        if self == Self::Lost { self } else { other }
    }

    /// Whether translations were lost.
    #[must_use]
    pub const fn is_lost(self) -> bool {
        matches!(self, Self::Lost)
    }

    const fn lost_if(lost: bool) -> Self {
        if lost { Self::Lost } else { Self::Kept }
    }
}

/// A leaf to be installed.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// The guest frame that the faulting address lies in (any of the page's frames).
    pub gfn: Gfn,
    /// The host page behind that frame; its size is the size to map.
    pub backed: Backed,
    /// The entry's attributes.
    pub attrs: Attrs,
}

/// The shadow pages of one virtual machine.
#[derive(Debug)]
pub struct ShadowStore {
    /// Slot 0 stands for none.
    pages: Vec<Page>,
    free: Vec<PageId>,
    nodes: Nodes,
    /// By page size: the chains of leaves by the number of the guest page.
    rmap: [Box<[u64]>; 3],
    /// By guest frame: the number of the first of its shadow pages.
    by_gfn: Box<[u32]>,
    /// Shadowed guest tables in each 2 MiB and each 1 GiB.
    tables_in: [Box<[u32]>; 2],
    oldest: PageId,
    newest: PageId,
    used: u64,
    limit: u64,
    footprint: Footprint,
    metadata: u64,
    /// The part of it that is descriptors of chains.
    chains: u64,
    leaves: [u64; 3],
    by_level: [u64; 6],
    /// Pages that lost their last parent, where somebody wants to know.
    orphans: Option<Vec<PageId>>,
    /// By guest frame: the entries that lead hardware into the guest table there.
    switches: BTreeMap<u64, Chain>,
}

impl ShadowStore {
    /// An empty store for a machine of `frames` guest frames, with the default limit.
    #[must_use]
    pub fn new(frames: u64, footprint: Footprint) -> Self {
        let count = |size: PageSize| Gfn::new(frames.div_ceil(size.frames())).as_index();
        Self {
            pages: vec![Page::empty()],
            free: Vec::new(),
            nodes: Nodes::new(),
            rmap: PageSize::ALL.map(|size| vec![0; count(size)].into_boxed_slice()),
            by_gfn: vec![0; count(PageSize::Size4K)].into_boxed_slice(),
            tables_in: [PageSize::Size2M, PageSize::Size1G].map(|size| vec![0; count(size)].into_boxed_slice()),
            oldest: PageId::NONE,
            newest: PageId::NONE,
            used: 0,
            limit: Self::default_limit(frames),
            footprint,
            metadata: footprint.fixed,
            chains: 0,
            leaves: [0; 3],
            by_level: [0; 6],
            orphans: None,
            switches: BTreeMap::new(),
        }
    }

    /// From now on a page that loses its last parent is to be freed by [`ShadowStore::reap`], as under a hypervisor that counts
    /// references. Without this it stays, to be found again.
    pub fn count_references(&mut self) {
        self.orphans.get_or_insert_default();
    }

    /// How many shadow pages there are at `level`.
    #[must_use]
    pub const fn used_at(&self, level: Level) -> u64 {
        self.by_level[level as usize]
    }

    /// How many shadow pages a machine of `frames` guest frames may have unless told otherwise: one for 50 frames, and at
    /// least 64. Source: KVM, `kvm_mmu_calculate_default_mmu_pages`.
    #[must_use]
    pub const fn default_limit(frames: u64) -> u64 {
        if frames / 50 > Self::MIN_LIMIT { frames / 50 } else { Self::MIN_LIMIT }
    }

    /// How many shadow pages there may be.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The least limit that may be set. Below it one fault could throw out what the fault before it made.
    pub const MIN_LIMIT: u64 = 64;

    /// Changes the limit, to at least [`ShadowStore::MIN_LIMIT`]; [`ShadowStore::make_room`] enforces it. Source: KVM,
    /// `KVM_MIN_ALLOC_MMU_PAGES`.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit.max(Self::MIN_LIMIT);
    }

    /// How many shadow pages there are.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Present leaf entries by page size (4K, 2M, 1G).
    #[must_use]
    pub const fn leaves(&self) -> [u64; 3] {
        self.leaves
    }

    /// The bytes of tables and bookkeeping.
    #[must_use]
    pub const fn table_bytes(&self) -> TableBytes {
        TableBytes {
            shadow: self.used * PageSize::Size4K.bytes(),
            nested: 0,
            metadata: self.metadata,
            reverse_map: self.footprint.reverse_map + self.chains,
        }
    }

    /// The descriptor of a shadow page.
    #[must_use]
    pub fn page(&self, id: PageId) -> &Page {
        &self.pages[id.index()]
    }

    /// The descriptor of a shadow page, to be changed.
    pub fn page_mut(&mut self, id: PageId) -> &mut Page {
        &mut self.pages[id.index()]
    }

    /// Where an entry lies.
    fn address(&self, slot: Slot) -> Hpa {
        self.pages[slot.page.index()].frame.entry(slot.at())
    }

    /// What a present entry refers to; `None` where the entry is absent.
    #[must_use]
    pub fn target(&self, slot: Slot) -> Option<Target> {
        let node = self.pages[slot.page.index()].nodes[slot.at()];
        (!node.is_none()).then(|| self.nodes.target(node))
    }

    /// The shadow page that an entry points to.
    #[must_use]
    pub fn child(&self, slot: Slot) -> Option<PageId> {
        match self.target(slot) {
            Some(Target::Link(child)) => Some(child),
            _ => None,
        }
    }

    /// What an entry says.
    #[must_use]
    pub fn entry(&self, host: &Host, slot: Slot) -> Entry<HostPhys> {
        Shadow4::decode(host.mem.read_entry(self.address(slot)), self.page(slot.page).level)
    }

    /// Whether `gfn` holds a shadowed guest table.
    #[must_use]
    pub fn is_table(&self, gfn: Gfn) -> bool {
        self.pages_of(gfn).any(|id| self.page(id).kind == Kind::Table)
    }

    /// How many guest tables are shadowed within the page of `size` around `gfn`.
    #[must_use]
    pub fn tables_within(&self, gfn: Gfn, size: PageSize) -> u32 {
        match size {
            PageSize::Size4K => u32::from(self.is_table(gfn)),
            _ => self.tables_in[size as usize - 2][number(gfn, size)],
        }
    }

    /// The largest size, at most `size`, at which a page around `gfn` covers no shadowed table.
    #[must_use]
    pub fn clear_of_tables(&self, gfn: Gfn, size: PageSize) -> PageSize {
        let fits = |size: &PageSize| self.tables_within(gfn, *size) == 0;
        [PageSize::Size1G, PageSize::Size2M].into_iter().find(|s| *s <= size && fits(s)).unwrap_or(PageSize::Size4K)
    }

    /// Removes an entry.
    pub fn clear(&mut self, host: &mut Host, slot: Slot, work: &mut Work) -> Change {
        let page = &mut self.pages[slot.page.index()];
        let node = core::mem::take(&mut page.nodes[slot.at()]);
        if node.is_none() {
            return Change::Kept;
        }
        page.set_present(slot.at(), false);
        host.mem.write_entry(page.frame.entry(slot.at()), 0);
        let target = self.nodes.target(node);
        self.with_chain(target, |nodes, chain| nodes.remove(chain, node));
        work.entries_cleared += 1;
        Change::Lost
    }

    /// Makes an entry map a page of guest memory. The size is that of the shadow page's level.
    pub fn set_leaf(&mut self, host: &mut Host, slot: Slot, leaf: Leaf, work: &mut Work) -> Change {
        let level = self.page(slot.page).level;
        let size = level.page_size().unwrap_or(PageSize::Size4K);
        let frame = leaf.backed.frame.align_down(size);
        let new = Entry::Leaf { frame, size, attrs: leaf.attrs };
        self.replace(host, slot, new, Target::Leaf(leaf.gfn.align_down(size), size), work)
    }

    /// Makes an entry point to another shadow page.
    pub fn link(&mut self, host: &mut Host, slot: Slot, child: PageId, attrs: Attrs, work: &mut Work) -> Change {
        let new = Entry::Table { next: self.page(child).frame, attrs: attrs | Attrs::ACCESSED };
        self.replace(host, slot, new, Target::Link(child), work)
    }

    fn replace(
        &mut self,
        host: &mut Host,
        slot: Slot,
        new: Entry<HostPhys>,
        target: Target,
        work: &mut Work,
    ) -> Change {
        let (at, level) = (self.address(slot), self.page(slot.page).level);
        let old_raw = host.mem.read_entry(at);
        let raw = Shadow4::encode(new, level);
        let mut change = Change::Kept;
        if self.target(slot) == Some(target) {
            if raw == old_raw {
                return change;
            }
            let old = Shadow4::decode(old_raw, level);
            let moved = frame_of(&old) != frame_of(&new);
            change = Change::lost_if(moved || !new.attrs().contains(old.attrs() & Attrs::PERMISSIONS));
        } else {
            change = change.or(self.clear(host, slot, work));
            self.join_chain(target, slot);
        }
        host.mem.write_entry(at, raw);
        work.entries_set += 1;
        change
    }

    /// Gives a present entry other attributes.
    pub fn set_attrs(&mut self, host: &mut Host, slot: Slot, attrs: Attrs, work: &mut Work) -> Change {
        match self.target(slot) {
            Some(target) => {
                let new = self.entry(host, slot).map_attrs(|_| attrs);
                self.replace(host, slot, new, target, work)
            }
            None => Change::Kept,
        }
    }

    /// Takes permissions away from an entry.
    pub fn restrict(&mut self, host: &mut Host, slot: Slot, without: Attrs, work: &mut Work) -> Change {
        let (at, level) = (self.address(slot), self.page(slot.page).level);
        let old = Shadow4::decode(host.mem.read_entry(at), level);
        if !old.attrs().intersects(without) {
            return Change::Kept;
        }
        host.mem.write_entry(at, Shadow4::encode(old.map_attrs(|attrs| attrs - without), level));
        work.entries_cleared += 1;
        Change::lost_if(old.attrs().intersects(without & Attrs::PERMISSIONS))
    }

    /// Every live shadow page.
    pub fn pages(&self) -> impl Iterator<Item = (PageId, &Page)> {
        self.pages.iter().enumerate().filter(|(_, page)| page.live).map(|(i, page)| (PageId::new(i), page))
    }

    /// Calls `change` for every present leaf entry.
    pub fn each_leaf(&mut self, mut change: impl FnMut(&mut Self, Slot)) {
        for id in (1..self.pages.len()).map(PageId::new) {
            let mut next = 0;
            while let Some(index) = self.page(id).next_present(next) {
                let slot = Slot::new(id, index);
                if matches!(self.target(slot), Some(Target::Leaf(..))) {
                    change(self, slot);
                }
                next = index + 1;
            }
        }
    }
}

/// The number of the guest page of `size` around `gfn`.
fn number(gfn: Gfn, size: PageSize) -> usize {
    Gfn::new(gfn.number() >> (size.shift() - 12)).as_index()
}

fn frame_of(entry: &Entry<HostPhys>) -> Option<u64> {
    match entry {
        Entry::Table { next, .. } => Some(next.number()),
        Entry::Leaf { frame, .. } => Some(frame.number()),
        Entry::Absent | Entry::Reserved => None,
    }
}

/// The level of the table below a table of `level`; level 1 has none and stays.
pub(crate) fn below(level: Level) -> Level {
    level.below().unwrap_or(Level::L1)
}
