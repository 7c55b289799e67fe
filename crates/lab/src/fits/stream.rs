//! What a stream of accesses does to TLBs and walk caches, predicted by stack distances.
//!
//! A [`Stream`] is a bare machine that passes everything on and keeps, beside it, the order of use within each set of each cache
//! ([`SetOrder`]) and over all keys ([`Stack`]). Its inputs are what the guest does and what stands in the guest's tables: no TLB, no
//! walk cache and no counter of a run is looked at. Under nested paging the guest does the same, so the stream says what the
//! caches of both dimensions would hold.
//!
//! Where nested tables do not map a frame yet, the walk ends in a violation, the hypervisor maps the frame, and the walk is made again: a
//! guest that goes on touching memory for the first time walks more often nested than natively. Left out: what a hypervisor flushes
//! by itself.

use std::collections::{HashMap, HashSet};

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, Gva, Hfn, PageSize, PfCode};
use memvirt_costmodel::sets::SetOrder;
use memvirt_costmodel::stack::Stack;
use memvirt_machine::{MachineError, MachineSpec};
use memvirt_ops::arch::{Control, CrWrite, Event, GfnRange, HostEvent, Invpcid};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Attrs, Entry, Guest4, Path, TableMem, Walked, walk};
use memvirt_platform::{Attribution, Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};
use memvirt_tlb::{ArrayGeometry, CacheLevel, Geometry, Shape, WalkGeometry};
use serde::Serialize;

/// What the caches are expected to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Expected {
    /// Accesses.
    pub accesses: u64,
    /// Hits in the second level of the TLB.
    pub l2_hits: u64,
    /// Walks: accesses that miss both levels, or may not do what they do.
    pub walks: u64,
    /// References to the guest's entries by level, from 1; index 0 is not used.
    pub guest_refs: [u64; 6],
    /// References to nested entries by level.
    pub host_refs: [u64; 6],
    /// Walks and translations of guest-physical addresses that a walk cache or nested TLB shortened.
    pub cached: u64,
    /// Walks that an entry without the permission caused, whatever the size of the TLB.
    pub denied: u64,
}

impl Expected {
    /// All references of walks.
    #[must_use]
    pub fn refs(&self) -> u64 {
        self.guest_refs.iter().chain(&self.host_refs).sum()
    }
}

/// Expectations of cruder models for the second-level TLB: all its entries in one set, and keys spread over sets at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Crude {
    /// Walks, were the second level fully associative.
    pub full: f64,
    /// Walks, were keys spread over the sets at random (the binomial model).
    pub binomial: f64,
}

/// What is expected of which hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Whether walk caches are there.
    pub walk_caches: bool,
    /// Whether the host translates, too.
    pub nested: bool,
    /// The largest page that a TLB entry covers: that of the host, where there is one.
    pub largest: PageSize,
}

/// One array of a level.
struct ArrayOrder {
    sizes: memvirt_tlb::Sizes,
    ways: usize,
    order: SetOrder,
}

impl ArrayOrder {
    fn new(array: &ArrayGeometry) -> Self {
        let (entries, ways) = (array.entries as usize, array.ways as usize);
        Self { sizes: array.sizes, ways, order: SetOrder::new(entries / ways, ways) }
    }

    fn touch(&mut self, key: Key) -> bool {
        self.order.touch(key.number, key.packed()).is_some_and(|distance| distance < self.ways)
    }
}

/// A page for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    number: u64,
    size: PageSize,
    pcid: u16,
    global: bool,
}

const GLOBAL: u64 = 1 << 60;
const PCID_SHIFT: u32 = 44;

impl Key {
    /// The number in 40 bits, size, PCID, global: a global page is the same in all processes.
    const fn packed(self) -> u64 {
        let space = if self.global { GLOBAL } else { (self.pcid as u64) << PCID_SHIFT };
        self.number | (self.size as u64) << 40 | space
    }
}

const fn is_global(packed: u64) -> bool {
    packed & GLOBAL != 0
}

const fn is_of(packed: u64, pcid: u16) -> bool {
    packed & GLOBAL == 0 && packed >> PCID_SHIFT == pcid as u64
}

/// The caches of one kind of hardware.
struct Caches {
    hardware: Hardware,
    l1: Vec<ArrayOrder>,
    l2: Vec<ArrayOrder>,
    guest: [Option<(usize, SetOrder)>; 3],
    host: [Option<(usize, SetOrder)>; 3],
    nested_tlb: Option<(usize, SetOrder)>,
    /// Whether what is cached for a page may be stored to.
    writable: HashMap<u64, bool>,
    /// Whether what the nested TLB has of a frame may be stored to, and whether its nested dirty bit is set.
    frame_writable: HashMap<Gfn, bool>,
    dirty: HashSet<Gfn>,
    mapped: Mapped,
    expected: Expected,
}

/// What nested tables map: pages of the host's, and by level the tables that lead to them; each by number.
#[derive(Debug, Default)]
struct Mapped {
    pages: HashSet<u64>,
    tables: [HashSet<u64>; 4],
}

impl Mapped {
    /// The level of the entry at which a walk for `frame` ends in a violation; `largest` is the host's page.
    fn absent(&self, frame: Gfn, largest: PageSize) -> Option<usize> {
        let leaf = usize::from(largest.level().number());
        let table = (leaf + 1..=4).rev().find(|level| !self.tables[level - 1].contains(&region(frame, level - 1)));
        table.or_else(|| (!self.pages.contains(&region(frame, leaf - 1))).then_some(leaf))
    }

    fn map(&mut self, frame: Gfn, largest: PageSize) {
        let leaf = usize::from(largest.level().number());
        self.pages.insert(region(frame, leaf - 1));
        (leaf..4).for_each(|level| _ = self.tables[level].insert(region(frame, level)));
    }
}

/// The number of the region that a table of `level` maps, around a frame.
const fn region(frame: Gfn, level: usize) -> u64 {
    frame.number() >> (9 * level)
}

fn walk_orders(geometry: &WalkGeometry) -> [Option<(usize, SetOrder)>; 3] {
    use memvirt_addr::Level;
    [Level::L2, Level::L3, Level::L4].map(|level| geometry.shape(level).map(shape_order))
}

fn shape_order(shape: Shape) -> (usize, SetOrder) {
    let (entries, ways) = (shape.entries() as usize, shape.ways() as usize);
    (ways, SetOrder::new(entries / ways, ways))
}

/// The bits of a canonical address that select an entry of `level` and those above it.
const fn number(address: u64, level: usize) -> u64 {
    (address & 0xffff_ffff_ffff) >> (12 + 9 * (level - 1))
}

/// What a walk of the guest's tables meets.
struct Seen {
    path: Path<Guest4>,
    acc: Acc,
    leaf: Option<Leaf>,
}

#[derive(Clone, Copy)]
struct Leaf {
    size: PageSize,
    frame: Gfn,
    global: bool,
    writable: bool,
}

impl Caches {
    fn new(hardware: Hardware, machine: &MachineSpec) -> Result<Self, MachineError> {
        let (tlb, mmu) = (machine.geometry()?, machine.mmu_geometry()?);
        let arrays = |level| tlb.arrays(level).iter().map(ArrayOrder::new).collect();
        let walks = |geometry: &WalkGeometry| {
            if hardware.walk_caches { walk_orders(geometry) } else { [const { None }; 3] }
        };
        Ok(Self {
            l1: arrays(CacheLevel::L1),
            l2: arrays(CacheLevel::L2),
            guest: walks(&mmu.guest),
            host: walks(&mmu.host),
            nested_tlb: mmu.nested_tlb.filter(|_| hardware.walk_caches && hardware.nested).map(shape_order),
            hardware,
            writable: HashMap::new(),
            frame_writable: HashMap::new(),
            dirty: HashSet::new(),
            mapped: Mapped::default(),
            expected: Expected::default(),
        })
    }

    fn key(&self, acc: Acc, leaf: Leaf, pcid: u16) -> Key {
        let size = leaf.size.min(self.hardware.largest);
        let number = number(acc.gva().as_u64(), usize::from(size.level().number()));
        Key { number, size, pcid, global: leaf.global }
    }

    /// An access that completes.
    fn access(&mut self, seen: &Seen, leaf: Leaf, pcid: u16) {
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
    fn fault(&mut self, seen: &Seen, pcid: u16) {
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
                if let Err(gpa) = end {
                    self.drop_nested(gpa);
                }
                let _ = self.descend(seen, leaf, pcid, 4, false, &mut found);
            }
            match end {
                Ok(stored) => return stored,
                Err(gpa) => self.map(gpa.frame()),
            }
        }
    }

    /// The hypervisor maps a frame; stores need nothing more of it.
    fn map(&mut self, frame: Gfn) {
        let largest = self.hardware.largest;
        self.mapped.map(frame, largest);
        self.dirty.insert(frame.align_down(largest));
    }

    fn drop_nested(&mut self, gpa: Gpa) {
        for (level, cache) in (2..).zip(&mut self.host) {
            if let Some((_, order)) = cache {
                let number = number(gpa.as_u64(), level);
                order.remove(number, walk_key(number, 0));
            }
        }
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
    ) -> Result<bool, Gpa> {
        for step in seen.path.steps() {
            let level = usize::from(step.level.number());
            if level > start {
                continue;
            }
            if self.hardware.nested {
                self.host_walk(step.entry_at, true, looks, found)?;
            }
            self.expected.guest_refs[level] += 1;
            if matches!(step.entry, Entry::Table { .. }) {
                keep(&mut self.guest, seen.acc.gva().as_u64(), level, pcid);
            }
        }
        match leaf {
            Some(leaf) if self.hardware.nested => {
                self.host_walk(leaf.frame.base(), seen.acc.is_write(), looks, found)?;
                Ok(self.dirty.contains(&leaf.frame.align_down(self.hardware.largest)))
            }
            _ => Ok(true),
        }
    }

    /// The level at which a walk begins.
    fn guest_start(&mut self, gva: Gva, pcid: u16) -> usize {
        let start = start(&mut self.guest, gva.as_u64(), pcid);
        self.expected.cached += u64::from(start < 4);
        start
    }

    /// Translates a guest-physical address.
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
        let start = if looks { start(&mut self.host, gpa.as_u64(), 0) } else { 4 };
        self.expected.cached += u64::from(start < 4);
        *found |= start < 4;
        let leaf = usize::from(self.hardware.largest.level().number());
        let absent = self.mapped.absent(gpa.frame(), self.hardware.largest);
        for level in absent.unwrap_or(leaf)..=start {
            self.expected.host_refs[level] += 1;
        }
        if absent.is_some() {
            return Err(gpa);
        }
        if write {
            self.dirty.insert(frame);
        }
        for level in (leaf + 1..=start).rev() {
            keep(&mut self.host, gpa.as_u64(), level, 0);
        }
        if let Some((_, order)) = &mut self.nested_tlb {
            order.touch(page, frame.number());
            self.frame_writable.insert(frame, self.dirty.contains(&frame));
        }
        Ok(())
    }

    fn drop_key(&mut self, key: Key) {
        for array in self.l1.iter_mut().chain(&mut self.l2).filter(|array| array.sizes.contains(key.size)) {
            array.order.remove(key.number, key.packed());
        }
        self.writable.remove(&key.packed());
    }

    fn drop_path(&mut self, gva: Gva, pcid: u16) {
        for (level, cache) in (2..).zip(&mut self.guest) {
            if let Some((_, order)) = cache {
                let number = number(gva.as_u64(), level);
                order.remove(number, walk_key(number, pcid));
            }
        }
    }

    fn drop_walks(&mut self, condemned: impl Fn(u16) -> bool) {
        for (_, order) in self.guest.iter_mut().flatten() {
            order.remove_where(|key| condemned(u16::try_from(key >> PCID_SHIFT).unwrap_or(0)));
        }
    }

    fn drop_where(&mut self, condemned: impl Fn(u64) -> bool + Copy) {
        for array in self.l1.iter_mut().chain(&mut self.l2) {
            array.order.remove_where(condemned);
        }
    }
}

fn walk_key(number: u64, pcid: u16) -> u64 {
    number | u64::from(pcid) << PCID_SHIFT
}

/// The level below the deepest cached entry, whose use is noted; 4 for the root.
fn start(caches: &mut [Option<(usize, SetOrder)>; 3], address: u64, pcid: u16) -> usize {
    for (level, cache) in (2..).zip(caches) {
        if let Some((ways, order)) = cache {
            let (number, key) = (number(address, level), walk_key(number(address, level), pcid));
            if order.distance(number, key).is_some_and(|distance| distance < *ways) {
                order.touch(number, key);
                return level - 1;
            }
        }
    }
    4
}

fn keep(caches: &mut [Option<(usize, SetOrder)>; 3], address: u64, level: usize, pcid: u16) {
    if let Some(Some((_, order))) = level.checked_sub(2).and_then(|at| caches.get_mut(at)) {
        let number = number(address, level);
        order.touch(number, walk_key(number, pcid));
    }
}

/// A bare machine whose stream is followed.
pub(super) struct Stream<P> {
    inner: P,
    root: Option<Gfn>,
    pcid: u16,
    pcids: bool,
    caches: Vec<Caches>,
    stack: Stack,
    l2: (usize, usize),
}

/// Guest memory as its kernel knows it.
struct Peek<'a, P: ?Sized>(&'a P);

impl<P: Platform + ?Sized> TableMem<GuestPhys> for Peek<'_, P> {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.0.peek(VmId::FIRST, at)
    }

    /// Walks only read.
    fn write_entry(&mut self, _: Gpa, _: u64) {}
}

impl<P: Platform> Stream<P> {
    /// Follows what happens on `inner` in the caches of `machine`, for each kind of hardware.
    pub(super) fn new(inner: P, machine: &MachineSpec, hardware: &[Hardware]) -> Result<Self, MachineError> {
        let tlb: Geometry = machine.geometry()?;
        let largest = tlb.arrays(CacheLevel::L2).iter().find(|array| array.sizes.contains(PageSize::Size4K));
        let l2 = largest.map_or((0, 1), |array| (array.entries as usize, array.ways as usize));
        let caches = hardware.iter().map(|hardware| Caches::new(*hardware, machine)).collect::<Result<_, _>>()?;
        Ok(Self { inner, root: None, pcid: 0, pcids: false, caches, stack: Stack::default(), l2 })
    }

    /// Counts from 0 again.
    pub(super) fn restart(&mut self) {
        self.caches.iter_mut().for_each(|caches| caches.expected = Expected::default());
        self.stack.restart();
    }

    /// What is expected, in the order of the hardware.
    pub(super) fn expected(&self) -> impl Iterator<Item = Expected> {
        self.caches.iter().map(|caches| caches.expected)
    }

    /// What cruder models expect of the first kind of hardware.
    pub(super) fn crude(&self) -> Crude {
        let (distances, (entries, ways)) = (self.stack.distances(), self.l2);
        let accesses = super::guests::real(distances.accesses());
        let denied = super::guests::real(self.caches.first().map_or(0, |caches| caches.expected.denied));
        Crude {
            full: accesses - super::guests::real(distances.hits(entries)) + denied,
            binomial: accesses - distances.expected_hits(entries / ways.max(1), ways) + denied,
        }
    }

    fn see(&self, acc: Acc) -> Option<Seen> {
        let path = walk::<Guest4, _>(&Peek(&self.inner), self.root?, acc.gva());
        let leaf = path.leaf().and_then(|step| match step.entry {
            Entry::Leaf { size, attrs, .. } if matches!(path.end, Walked::Mapped { .. }) => Some(Leaf {
                size,
                frame: path.frame_of(acc.gva())?,
                global: attrs.contains(Attrs::GLOBAL),
                writable: attrs.contains(Attrs::DIRTY) && path.perms.contains(Attrs::WRITE),
            }),
            _ => None,
        });
        Some(Seen { path, acc, leaf })
    }

    fn done(&mut self, seen: Option<Seen>) {
        let Some(seen) = seen else { return };
        let Some(leaf) = seen.leaf else { return };
        for caches in &mut self.caches {
            caches.access(&seen, leaf, self.pcid);
        }
        if let Some(caches) = self.caches.first() {
            let key = caches.key(seen.acc, leaf, self.pcid);
            self.stack.access(key.packed());
        }
    }

    fn fault(&mut self, seen: Option<Seen>) {
        let Some(seen) = seen else { return };
        for caches in &mut self.caches {
            caches.fault(&seen, self.pcid);
        }
        if let (Some(caches), Some(leaf)) = (self.caches.first(), seen.leaf) {
            self.stack.remove(caches.key(seen.acc, leaf, self.pcid).packed());
        }
    }

    fn flush_where(&mut self, condemned: impl Fn(u64) -> bool + Copy, walks: impl Fn(u16) -> bool + Copy) {
        for caches in &mut self.caches {
            caches.drop_where(condemned);
            caches.drop_walks(walks);
        }
        self.stack.remove_where(condemned);
    }

    fn flush_page(&mut self, gva: Gva, pcid: u16) {
        for global in [false, true] {
            for size in PageSize::ALL {
                let number = number(gva.as_u64(), usize::from(size.level().number()));
                let key = Key { number, size, pcid, global };
                self.caches.iter_mut().for_each(|caches| caches.drop_key(key));
                self.stack.remove(key.packed());
            }
        }
    }

    fn control(&mut self, control: &Control) {
        match *control {
            Control::Cr3(cr3) => {
                self.root = Some(cr3.root.frame());
                self.pcid = if self.pcids { cr3.pcid.number() } else { 0 };
                let pcid = self.pcid;
                if !(cr3.keep && self.pcids) {
                    self.flush_where(|key| is_of(key, pcid), |held| held == pcid);
                }
            }
            Control::Invlpg(gva) => {
                let pcid = self.pcid;
                self.flush_page(gva, pcid);
                self.caches.iter_mut().for_each(|caches| caches.drop_walks(|held| held == pcid));
            }
            Control::Cr(CrWrite::TogglePge) | Control::Invpcid(Invpcid::AllGlobal) => {
                self.flush_where(|_| true, |_| true)
            }
            Control::Cr(CrWrite::PcidEnable(on)) => {
                self.pcids = on;
                if !on {
                    self.flush_where(|_| true, |_| true);
                }
            }
            Control::Invpcid(Invpcid::Address(pcid, gva)) => {
                self.flush_page(gva, pcid.number());
                self.caches.iter_mut().for_each(|caches| caches.drop_path(gva, pcid.number()));
            }
            Control::Invpcid(Invpcid::Single(pcid)) => {
                let pcid = pcid.number();
                self.flush_where(|key| is_of(key, pcid), |held| held == pcid);
            }
            Control::Invpcid(Invpcid::All) => self.flush_where(|key| !is_global(key), |_| true),
            _ => {}
        }
    }
}

impl<P: Platform> Platform for Stream<P> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        for (done, acc) in run.iter().enumerate() {
            let seen = self.see(*acc);
            let (one, stop) = self.inner.accesses(v, core::slice::from_ref(acc), horizon, out);
            match stop {
                Stop::GuestFault(fault) if one == 0 => {
                    let seen = if fault.code.bits() & PfCode::PRESENT != 0 { seen } else { seen.map(absent) };
                    self.fault(seen);
                    return (done, stop);
                }
                _ if one == 0 => return (done, stop),
                _ => self.done(seen),
            }
        }
        (run.len(), Stop::Done)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        let seen = match event {
            Event::Load { gva } => self.see(Acc::supervisor(*gva, AccessKind::Read)),
            Event::Store { via, .. } => self.see(Acc::supervisor(*via, AccessKind::Write)),
            Event::Control(_) => None,
        };
        let result = self.inner.event(v, event, out);
        if result.is_ok() {
            match event {
                Event::Control(control) => self.control(control),
                _ => self.done(seen),
            }
        }
        result
    }

    fn host(&mut self, event: &HostEvent, out: &mut Ledger) {
        self.inner.host(event, out);
    }

    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger) {
        self.inner.world_switch(v, out);
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        self.inner.peek(vm, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        self.inner.poke(vm, at, value);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        // Nested tables map it writable, and nobody logs stores: entries are made dirty.
        for caches in &mut self.caches {
            (0..range.frames).for_each(|i| caches.map(range.start.offset(i)));
        }
        self.inner.populate(vm, range, out);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        self.inner.backing(vm, gfn)
    }

    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached> {
        self.inner.reached(v, gva)
    }

    fn table_bytes(&self) -> TableBytes {
        self.inner.table_bytes()
    }

    fn attribution(&self, vm: VmId) -> Option<Attribution> {
        self.inner.attribution(vm)
    }
}

/// The same walk, where it ends before a page.
fn absent(seen: Seen) -> Seen {
    Seen { leaf: None, ..seen }
}
