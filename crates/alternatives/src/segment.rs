//! [`Segment`]: the second stage as one run of host memory behind a run of guest frames, and a tree for everything else.
//!
//! Three registers (base, limit, offset) translate without any reference. The memory must be contiguous, so the hypervisor
//! takes it all when the virtual machine is made. Pages that the host takes away later escape ([`EscapeFilter`]); while single
//! stores are to be logged the registers are empty, for a segment cannot protect a page. Source: Basu, Gandhi, Chang, Hill
//! and Swift, *Efficient Virtual Memory for Big Memory Servers*, ISCA 2013; Gandhi, Basu, Hill and Swift, MICRO 2014.

use memvirt_addr::{Gfn, Gpa, Hfn, HostPhys, Level, PageSize};
use memvirt_nested::Want;
use memvirt_pagetable::{Attrs, PhysMem};
use memvirt_platform::{Backed, Caches, Host, MemoryMap, Probe, Work};
use memvirt_shadow::store::Change;

use crate::escape::EscapeFilter;
use crate::meter::Meter;
use crate::radix::Radix;
use crate::stage::{HostPage, HostTables, Stage, Violation};

/// A segment over guest frames `0..frames`, and tables.
#[derive(Debug)]
pub struct Segment {
    frames: u64,
    first: Hfn,
    /// Whether the registers are loaded.
    on: bool,
    escape: EscapeFilter,
    tables: Radix,
}

impl Segment {
    /// Takes host memory for all of `map`; the segment covers what of it is contiguous from frame 0 on. `None` where the host
    /// has no frame for the tables' root.
    pub fn reserve(host: &mut Host, map: &mut MemoryMap) -> Option<Self> {
        let tables = Radix::new(host)?;
        let step = map.page_size().frames();
        let first = map.back(Gfn::new(0), host)?.0.frame;
        let mut frames = step;
        while frames < map.frames() {
            let next = map.back(Gfn::new(frames), host).map(|(backed, _)| backed.frame);
            if next != Some(first.offset(frames)) {
                break;
            }
            frames += step;
        }
        Some(Self { frames, first, on: true, escape: EscapeFilter::default(), tables })
    }

    /// No segment, only tables. `None` where the host has no frame for their root.
    pub fn empty(host: &mut Host) -> Option<Self> {
        let (tables, escape) = (Radix::new(host)?, EscapeFilter::default());
        Some(Self { frames: 0, first: Hfn::new(0), on: false, escape, tables })
    }

    /// How many guest frames the segment covers.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether hardware translates `gfn` by the registers.
    #[must_use]
    pub fn covers(&self, gfn: Gfn) -> bool {
        self.on && gfn.number() < self.frames && !self.escape.may_hold(gfn)
    }

    /// The largest page around `gfn` that lies in the segment with guest and host addresses alike below its size. Where any
    /// page escapes, 4 KiB.
    fn size_at(&self, gfn: Gfn) -> PageSize {
        let fits = |size: &PageSize| {
            let end = gfn.align_down(*size).number() + size.frames();
            self.first.is_aligned(*size) && end <= self.frames
        };
        let largest = [PageSize::Size1G, PageSize::Size2M].into_iter().find(fits);
        if self.escape.is_empty() { largest.unwrap_or(PageSize::Size4K) } else { PageSize::Size4K }
    }
}

impl Stage for Segment {
    #[inline]
    fn translate<P: Probe, C: Caches>(
        &self,
        mem: &mut PhysMem<HostPhys>,
        gpa: Gpa,
        serves: Option<Level>,
        want: Want,
        meter: &mut Meter<'_, P, C>,
    ) -> Result<HostPage, Violation> {
        let gfn = gpa.frame();
        if !self.covers(gfn) {
            return self.tables.translate(mem, gpa, serves, want, meter);
        }
        let (frame, perms) = (self.first.offset(gfn.number()), Attrs::PERMISSIONS);
        Ok(HostPage { frame, size: self.size_at(gfn), perms, dirty: true, entry: None })
    }
}

impl HostTables for Segment {
    fn map(&mut self, host: &mut Host, gfn: Gfn, backed: Backed, writable: bool, work: &mut Work) -> Option<Change> {
        if self.on && gfn.number() < self.frames && backed.frame == self.first.offset(gfn.number()) {
            // The host page is back where it was.
            let first = gfn.align_down(backed.size);
            (0..backed.size.frames()).for_each(|i| self.escape.remove(first.offset(i)));
            if !self.escape.may_hold(gfn) {
                return Some(Change::Kept);
            }
        }
        self.tables.map(host, gfn, backed, writable, work)
    }

    fn unmap(&mut self, host: &mut Host, first: Gfn, frames: u64, work: &mut Work) -> Change {
        let mut change = self.tables.unmap(host, first, frames, work);
        for number in first.number()..first.number().saturating_add(frames).min(self.frames) {
            self.escape.insert(Gfn::new(number));
            change = Change::Lost;
        }
        change
    }

    fn protect_all(&mut self, host: &mut Host, work: &mut Work) -> Change {
        self.tables.protect_all(host, work)
    }

    fn clear(&mut self, host: &mut Host, work: &mut Work) -> Change {
        self.tables.clear(host, work)
    }

    fn set_logging(&mut self, on: bool) -> Change {
        self.on = !on && self.frames > 0;
        if on { Change::Lost } else { Change::Kept }
    }

    fn bytes(&self) -> u64 {
        self.tables.bytes()
    }
}
