//! The caches of one kind of hardware, and the walks that fill them.

use std::collections::{HashMap, HashSet};

use memvirt_addr::{Acc, Gfn, Gpa, Gva, Level, PageSize};
use memvirt_costmodel::sets::SetOrder;
use memvirt_machine::{MachineError, MachineSpec};
use memvirt_pagetable::{Entry, Guest4, Path};
use memvirt_tlb::{CacheLevel, WalkGeometry};

use super::lines::Lines;
use super::orders::{ArrayOrder, Key, Mapped, WalkOrders, number, shape_order};
use super::{Expected, Hardware, Tables};

/// The caches of one kind of hardware.
pub(super) struct Caches {
    hardware: Hardware,
    l1: Vec<ArrayOrder>,
    l2: Vec<ArrayOrder>,
    guest: WalkOrders,
    host: WalkOrders,
    nested_tlb: Option<(usize, SetOrder)>,
    /// Whether what is cached for a page may be stored to.
    writable: HashMap<u64, bool>,
    /// Whether what the nested TLB has of a frame may be stored to, and whether its nested dirty bit is set.
    frame_writable: HashMap<Gfn, bool>,
    dirty: HashSet<Gfn>,
    mapped: Mapped,
    /// Where lines are followed.
    pub(super) lines: Option<Lines>,
    pub(super) expected: Expected,
}

/// What a walk of the guest's tables meets.
pub(super) struct Seen {
    pub(super) path: Path<Guest4>,
    pub(super) acc: Acc,
    pub(super) leaf: Option<Leaf>,
}

#[derive(Clone, Copy)]
pub(super) struct Leaf {
    pub(super) size: PageSize,
    pub(super) frame: Gfn,
    pub(super) global: bool,
    pub(super) writable: bool,
}

/// What nested tables do not map: an EPT violation.
#[derive(Clone, Copy)]
struct Absent {
    gpa: Gpa,
    /// Whether it is the translation of the data, and not of an entry.
    on_data: bool,
}

impl Caches {
    pub(super) fn new(hardware: Hardware, machine: &MachineSpec) -> Result<Self, MachineError> {
        let (tlb, mmu) = (machine.geometry()?, machine.mmu_geometry()?);
        let arrays = |level| tlb.arrays(level).iter().map(ArrayOrder::new).collect();
        let walks = |geometry: &WalkGeometry| {
            if hardware.walk_caches { WalkOrders::new(geometry) } else { WalkOrders::NONE }
        };
        Ok(Self {
            l1: arrays(CacheLevel::L1),
            l2: arrays(CacheLevel::L2),
            guest: walks(&mmu.guest),
            host: walks(&mmu.host),
            nested_tlb: mmu
                .nested_tlb
                .filter(|_| hardware.walk_caches && hardware.reads == Tables::Nested)
                .map(shape_order),
            hardware,
            writable: HashMap::new(),
            frame_writable: HashMap::new(),
            dirty: HashSet::new(),
            mapped: Mapped::default(),
            lines: None,
            expected: Expected::default(),
        })
    }

    pub(super) fn key(&self, acc: Acc, leaf: Leaf, pcid: u16) -> Key {
        let size = leaf.size.min(self.hardware.largest);
        let number = number(acc.gva().as_u64(), usize::from(size.level().number()));
        Key { number, size, pcid, global: leaf.global }
    }

    /// An access that completes: the translation, then the data.
    pub(super) fn access(&mut self, seen: &Seen, leaf: Leaf, pcid: u16) {
        self.translate(seen, leaf, pcid);
        if let Some(lines) = &mut self.lines {
            lines.data(leaf.frame.at(seen.acc.gva().as_u64()));
        }
    }

    fn translate(&mut self, seen: &Seen, leaf: Leaf, pcid: u16) {
        self.expected.accesses += 1;
        let key = self.key(seen.acc, leaf, pcid);
        let packed = key.packed();
        let denied = seen.acc.is_write() && self.writable.get(&packed) == Some(&false);
        let touch = |arrays: &mut [ArrayOrder]| {
            arrays.iter_mut().find(|array| array.sizes.contains(key.size)).is_some_and(|array| array.touch(key))
        };
        let first = touch(&mut self.l1);
        if first && !denied {
            return;
        }
        let second = touch(&mut self.l2);
        if second && !denied {
            self.expected.l2_hits += 1;
            return;
        }
        self.expected.denied += u64::from(first || second);
        let stored = self.walk(seen, Some(leaf), pcid);
        self.writable.insert(packed, stored && (leaf.writable || seen.acc.is_write()));
    }

    /// An access that ends in a page fault; `leaf` where something is mapped.
    pub(super) fn fault(&mut self, seen: &Seen, pcid: u16) {
        self.expected.accesses += 1;
        self.walk(seen, None, pcid);
        if let Some(leaf) = seen.leaf {
            self.drop_key(self.key(seen.acc, leaf, pcid));
        }
        self.drop_path(seen.acc.gva(), pcid);
    }

    /// The walks of one access; whether the nested tables let later stores through.
    fn walk(&mut self, seen: &Seen, leaf: Option<Leaf>, pcid: u16) -> bool {
        loop {
            self.expected.walks += 1;
            let start = self.guest_start(seen.acc.gva(), pcid);
            let mut found = start < 4;
            let end = self.descend(seen, leaf, pcid, start, true, &mut found);
            let fault = end.is_err() || leaf.is_none();
            if fault && found && self.hardware.walk_caches {
                // What ends in a fault is walked again from the root.
                self.drop_path(seen.acc.gva(), pcid);
                if let Err(absent) = end {
                    self.drop_nested(absent.gpa);
                }
                let _ = self.descend(seen, leaf, pcid, 4, false, &mut found);
            }
            match end {
                Ok(stored) => return stored,
                Err(absent) => {
                    // The exit drops what was kept on the way, once more (SDM 28.3.3.1).
                    self.drop_nested(absent.gpa);
                    if absent.on_data {
                        self.drop_path(seen.acc.gva(), pcid);
                    }
                    self.map(absent.gpa.frame());
                }
            }
        }
    }

    /// The hypervisor maps a frame; stores need nothing more of it.
    pub(super) fn map(&mut self, frame: Gfn) {
        let largest = self.hardware.largest;
        self.mapped.map(frame, largest);
        self.dirty.insert(frame.align_down(largest));
    }

    fn drop_nested(&mut self, gpa: Gpa) {
        self.host.drop_path(gpa.as_u64(), 0);
        let frame = gpa.frame().align_down(self.hardware.largest);
        if let Some((_, order)) = &mut self.nested_tlb {
            order.remove(frame.number() / self.hardware.largest.frames(), frame.number());
        }
    }

    /// Reads the guest's entries from level `start` downwards, and under nested paging what translates each and the data; whether later
    /// stores go through, or what nested tables do not map.
    fn descend(
        &mut self,
        seen: &Seen,
        leaf: Option<Leaf>,
        pcid: u16,
        start: usize,
        looks: bool,
        found: &mut bool,
    ) -> Result<bool, Absent> {
        let absent = |on_data| move |gpa| Absent { gpa, on_data };
        for step in seen.path.steps() {
            let level = usize::from(step.level.number());
            if level > start {
                continue;
            }
            if self.hardware.reads == Tables::Nested {
                self.host_walk(step.entry_at, true, looks, found).map_err(absent(false))?;
            }
            self.expected.guest_refs[level] += 1;
            if let Some(lines) = &mut self.lines {
                match self.hardware.reads {
                    Tables::Shadow => lines.shadow(step.level, seen.acc.gva()),
                    Tables::Guest | Tables::Nested => lines.guest(step.level, step.entry_at),
                }
            }
            if matches!(step.entry, Entry::Table { .. }) {
                self.guest.keep(seen.acc.gva().as_u64(), level, pcid);
            }
        }
        match leaf {
            Some(leaf) if self.hardware.reads == Tables::Nested => {
                self.host_walk(leaf.frame.base(), seen.acc.is_write(), looks, found).map_err(absent(true))?;
                Ok(self.dirty.contains(&leaf.frame.align_down(self.hardware.largest)))
            }
            _ => Ok(true),
        }
    }

    /// The level at which a walk begins.
    fn guest_start(&mut self, gva: Gva, pcid: u16) -> usize {
        let start = self.guest.start(gva.as_u64(), pcid);
        self.expected.cached += u64::from(start < 4);
        start
    }

    /// Translates a guest-physical address; the address again where nothing maps it.
    fn host_walk(&mut self, gpa: Gpa, write: bool, looks: bool, found: &mut bool) -> Result<(), Gpa> {
        let frame = gpa.frame().align_down(self.hardware.largest);
        let page = frame.number() / self.hardware.largest.frames();
        if looks && let Some((ways, order)) = &mut self.nested_tlb {
            let there = order.distance(page, frame.number()).is_some_and(|distance| distance < *ways);
            if there && (!write || self.frame_writable.get(&frame) == Some(&true)) {
                order.touch(page, frame.number());
                self.expected.cached += 1;
                *found = true;
                return Ok(());
            }
        }
        let start = if looks { self.host.start(gpa.as_u64(), 0) } else { 4 };
        self.expected.cached += u64::from(start < 4);
        *found |= start < 4;
        let leaf = usize::from(self.hardware.largest.level().number());
        let absent = self.mapped.absent(gpa.frame(), self.hardware.largest);
        for level in (absent.unwrap_or(leaf)..=start).rev() {
            self.expected.host_refs[level] += 1;
            if let (Some(lines), Some(level)) = (&mut self.lines, Level::ALL.get(level - 1)) {
                lines.nested(*level, gpa);
            }
        }
        if absent.is_some() {
            return Err(gpa);
        }
        if write {
            self.dirty.insert(frame);
        }
        for level in (leaf + 1..=start).rev() {
            self.host.keep(gpa.as_u64(), level, 0);
        }
        if let Some((_, order)) = &mut self.nested_tlb {
            order.touch(page, frame.number());
            self.frame_writable.insert(frame, self.dirty.contains(&frame));
        }
        Ok(())
    }

    pub(super) fn drop_key(&mut self, key: Key) {
        for array in self.l1.iter_mut().chain(&mut self.l2).filter(|array| array.sizes.contains(key.size)) {
            array.order.remove(key.number, key.packed());
        }
        self.writable.remove(&key.packed());
    }

    pub(super) fn drop_path(&mut self, gva: Gva, pcid: u16) {
        self.guest.drop_path(gva.as_u64(), pcid);
    }

    pub(super) fn drop_walks(&mut self, condemned: impl Fn(u16) -> bool) {
        self.guest.drop_where(condemned);
    }

    pub(super) fn drop_where(&mut self, condemned: impl Fn(u64) -> bool + Copy) {
        for array in self.l1.iter_mut().chain(&mut self.l2) {
            array.order.remove_where(condemned);
        }
    }
}
