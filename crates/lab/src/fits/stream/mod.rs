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

mod caches;
mod lines;
mod orders;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, Gva, Hfn, PageSize, PfCode};
use memvirt_costmodel::stack::Stack;
use memvirt_machine::{MachineError, MachineSpec};
use memvirt_ops::arch::{Control, CrWrite, Event, GfnRange, HostEvent, Invpcid};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::{Attrs, Entry, Guest4, TableMem, Walked, walk};
use memvirt_platform::{Attribution, Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};
use memvirt_tlb::{CacheLevel, Geometry};
use serde::Serialize;

use caches::{Caches, Leaf, Seen};
pub(super) use lines::LineCycles;
use lines::Lines;
use orders::{Key, is_global, is_of, number};

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

/// Whose tables walks read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// The guest's: there is no hypervisor.
    Guest,
    /// A hypervisor's, one for each of the guest's.
    Shadow,
    /// The guest's, and nested ones.
    Nested,
}

/// What is expected of which hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Whether walk caches are there.
    pub walk_caches: bool,
    /// Whose tables its walks read.
    pub reads: Tables,
    /// The largest page that a TLB entry covers: that of the host, where there is one.
    pub largest: PageSize,
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

    /// Follows lines of tables and data through the caches of `machine`, too, where it has any.
    pub(super) fn with_lines(mut self, machine: &MachineSpec) -> Result<Self, MachineError> {
        if let Some(hierarchy) = machine.cache_hierarchy()? {
            self.caches.iter_mut().for_each(|caches| caches.lines = Some(Lines::new(hierarchy)));
        }
        Ok(self)
    }

    /// Counts from 0 again.
    pub(super) fn restart(&mut self) {
        for caches in &mut self.caches {
            caches.expected = Expected::default();
            caches.lines.iter_mut().for_each(Lines::restart);
        }
        self.stack.restart();
    }

    /// What is expected, in the order of the hardware.
    pub(super) fn expected(&self) -> impl Iterator<Item = Expected> {
        self.caches.iter().map(|caches| caches.expected)
    }

    /// What references to lines take, in the order of the hardware; nothing where lines are not followed.
    pub(super) fn line_cycles(&self) -> impl Iterator<Item = LineCycles> {
        self.caches.iter().map(|caches| caches.lines.as_ref().map_or_else(LineCycles::default, Lines::cycles))
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
