//! What caches hold, as orders of use; and what nested tables map.

use std::collections::HashSet;

use memvirt_addr::{Gfn, Level, PageSize};
use memvirt_costmodel::sets::SetOrder;
use memvirt_tlb::{ArrayGeometry, Shape, WalkGeometry};

/// One array of a level.
pub(super) struct ArrayOrder {
    pub(super) sizes: memvirt_tlb::Sizes,
    ways: usize,
    pub(super) order: SetOrder,
}

impl ArrayOrder {
    pub(super) fn new(array: &ArrayGeometry) -> Self {
        let (entries, ways) = (array.entries as usize, array.ways as usize);
        Self { sizes: array.sizes, ways, order: SetOrder::new(entries / ways, ways) }
    }

    pub(super) fn touch(&mut self, key: Key) -> bool {
        self.order.touch(key.number, key.packed()).is_some_and(|distance| distance < self.ways)
    }
}

/// A page for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) number: u64,
    pub(super) size: PageSize,
    pub(super) pcid: u16,
    pub(super) global: bool,
}

const GLOBAL: u64 = 1 << 60;
const PCID_SHIFT: u32 = 44;

impl Key {
    /// The number in 40 bits, size, PCID, global: a global page is the same in all processes.
    pub(super) const fn packed(self) -> u64 {
        let space = if self.global { GLOBAL } else { (self.pcid as u64) << PCID_SHIFT };
        self.number | (self.size as u64) << 40 | space
    }
}

pub(super) const fn is_global(packed: u64) -> bool {
    packed & GLOBAL != 0
}

pub(super) const fn is_of(packed: u64, pcid: u16) -> bool {
    packed & GLOBAL == 0 && packed >> PCID_SHIFT == pcid as u64
}

/// What nested tables map: pages of the host's, and by level the tables that lead to them; each by number.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    pages: HashSet<u64>,
    tables: [HashSet<u64>; 4],
}

impl Mapped {
    /// The level of the entry at which a walk for `frame` ends in a violation; `largest` is the host's page.
    pub(super) fn absent(&self, frame: Gfn, largest: PageSize) -> Option<usize> {
        let leaf = usize::from(largest.level().number());
        let table = (leaf + 1..=4).rev().find(|level| !self.tables[level - 1].contains(&region(frame, level - 1)));
        table.or_else(|| (!self.pages.contains(&region(frame, leaf - 1))).then_some(leaf))
    }

    pub(super) fn map(&mut self, frame: Gfn, largest: PageSize) {
        let leaf = usize::from(largest.level().number());
        self.pages.insert(region(frame, leaf - 1));
        (leaf..4).for_each(|level| _ = self.tables[level].insert(region(frame, level)));
    }
}

/// The number of the region that a table of `level` maps, around a frame.
const fn region(frame: Gfn, level: usize) -> u64 {
    frame.number() >> (9 * level)
}

/// The order of use in the caches of entries at levels 2 to 4 that walks of one dimension keep; each with its ways, where there is one.
pub(super) struct WalkOrders([Option<(usize, SetOrder)>; 3]);

impl WalkOrders {
    pub(super) const NONE: Self = Self([const { None }; 3]);

    pub(super) fn new(geometry: &WalkGeometry) -> Self {
        Self([Level::L2, Level::L3, Level::L4].map(|level| geometry.shape(level).map(shape_order)))
    }

    /// The level below the deepest cached entry, whose use is noted; 4 for the root.
    pub(super) fn start(&mut self, address: u64, pcid: u16) -> usize {
        for (level, cache) in (2..).zip(&mut self.0) {
            if let Some((ways, order)) = cache {
                let number = number(address, level);
                let key = walk_key(number, pcid);
                if order.distance(number, key).is_some_and(|distance| distance < *ways) {
                    order.touch(number, key);
                    return level - 1;
                }
            }
        }
        4
    }

    pub(super) fn keep(&mut self, address: u64, level: usize, pcid: u16) {
        if let Some(Some((_, order))) = level.checked_sub(2).and_then(|at| self.0.get_mut(at)) {
            let number = number(address, level);
            order.touch(number, walk_key(number, pcid));
        }
    }

    /// Forgets the entries on the way to an address.
    pub(super) fn drop_path(&mut self, address: u64, pcid: u16) {
        for (level, cache) in (2..).zip(&mut self.0) {
            if let Some((_, order)) = cache {
                let number = number(address, level);
                order.remove(number, walk_key(number, pcid));
            }
        }
    }

    /// Forgets all entries of condemned processes.
    pub(super) fn drop_where(&mut self, condemned: impl Fn(u16) -> bool) {
        for (_, order) in self.0.iter_mut().flatten() {
            order.remove_where(|key| condemned(u16::try_from(key >> PCID_SHIFT).unwrap_or(0)));
        }
    }
}

/// The ways of a cache, and the order of use in its sets.
pub(super) fn shape_order(shape: Shape) -> (usize, SetOrder) {
    let (entries, ways) = (shape.entries() as usize, shape.ways() as usize);
    (ways, SetOrder::new(entries / ways, ways))
}

/// The bits of a canonical address that select an entry of `level` and those above it.
pub(super) const fn number(address: u64, level: usize) -> u64 {
    (address & 0xffff_ffff_ffff) >> (12 + 9 * (level - 1))
}

const fn walk_key(number: u64, pcid: u16) -> u64 {
    number | (pcid as u64) << PCID_SHIFT
}
