//! [`FlatTable`]: the second stage as one array of entries in host memory, indexed by guest frame number.
//!
//! Guest memory is nearly all in use and never sparse, so a hypervisor gains little from a tree: 8 bytes for each 4 KiB frame
//! are 0.2 % of the memory that they map, and a translation is one reference. The array must be contiguous in host memory; it
//! is allocated whole when the virtual machine is made. Entries are those of an EPT leaf table; two bits that EPT ignores say
//! that the entry is one of a larger host page, so that a TLB may cache it at that size. A larger page fills all its entries.
//! Source: Ahn, Jin and Huh, *Revisiting Hardware-Assisted Page Walks for Virtualized Systems*, ISCA 2012; the size bits are
//! ours.

use memvirt_addr::{Gfn, Gpa, Hfn, HostPhys, Hpa, Level, PageSize};
use memvirt_nested::{SecondStage, Want};
use memvirt_pagetable::{Attrs, Entry, Ept4, Format, PhysMem};
use memvirt_platform::{Backed, Caches, Host, Probe, Work};
use memvirt_shadow::store::Change;

use crate::meter::Meter;
use crate::stage::{HostPage, HostTables, Leaf, Stage, Violation, mark};

/// The entry is one of a host page of 2 MiB, of 1 GiB.
const SIZES: [(PageSize, Attrs); 2] = [(PageSize::Size2M, Attrs::SOFT_1), (PageSize::Size1G, Attrs::SOFT_2)];

/// One array of entries for all frames of a virtual machine.
#[derive(Clone, Copy, Debug)]
pub struct FlatTable {
    first: Hfn,
    frames: u64,
}

impl FlatTable {
    /// An array for `frames` guest frames, in one host page large enough for it. `None` where the host has none, and for more
    /// than the 2^27 frames (512 GiB) whose array fills a page of 1 GiB.
    pub fn new(host: &mut Host, frames: u64) -> Option<Self> {
        let size = PageSize::ALL.into_iter().find(|size| 8 * frames <= size.bytes())?;
        Some(Self { first: host.allocate(size)?, frames })
    }

    /// Where the entry for `gfn` lies.
    #[must_use]
    pub const fn entry_at(&self, gfn: Gfn) -> Hpa {
        self.first.base().wrapping_add(8 * gfn.number())
    }

    fn read(&self, mem: &PhysMem<HostPhys>, gfn: Gfn) -> (u64, Entry<HostPhys>) {
        let raw = mem.read(self.entry_at(gfn));
        (raw, Ept4::decode(raw, Level::L1))
    }

    /// Calls `change` for each present entry of `frames` frames from `first` on.
    fn each(&self, host: &mut Host, first: Gfn, frames: u64, mut change: impl FnMut(u64) -> u64) -> u64 {
        let mut changed = 0;
        for number in first.number()..first.number().saturating_add(frames).min(self.frames) {
            let at = self.entry_at(Gfn::new(number));
            let raw = host.mem.read(at);
            let new = change(raw);
            if new != raw {
                host.mem.write(at, new);
                changed += 1;
            }
        }
        changed
    }
}

fn size_of(attrs: Attrs) -> PageSize {
    SIZES.into_iter().find(|(_, bit)| attrs.contains(*bit)).map_or(PageSize::Size4K, |(size, _)| size)
}

impl Stage for FlatTable {
    #[inline]
    fn translate<P: Probe, C: Caches>(
        &self,
        mem: &mut PhysMem<HostPhys>,
        gpa: Gpa,
        serves: Option<Level>,
        want: Want,
        meter: &mut Meter<'_, P, C>,
    ) -> Result<HostPage, Violation> {
        let stop = |had| Violation { gpa, want, had, on_data: serves.is_none(), update: 0 };
        let gfn = gpa.frame();
        if gfn.number() >= self.frames {
            return Err(stop(Attrs::empty()));
        }
        let (raw, entry) = self.read(mem, gfn);
        let at = self.entry_at(gfn);
        meter.host(serves, Level::L1, at, gpa, raw);
        let Entry::Leaf { frame, attrs, .. } = entry else { return Err(stop(Attrs::empty())) };
        if !attrs.contains(want.perms) {
            return Err(stop(attrs & Attrs::PERMISSIONS));
        }
        let leaf = mark(mem, Leaf { at, raw, level: Level::L1 }, want.write, meter);
        let dirty = leaf.raw & Ept4::RAW_DIRTY != 0;
        Ok(HostPage { frame, size: size_of(attrs), perms: attrs & Attrs::PERMISSIONS, dirty, entry: Some(leaf) })
    }
}

impl HostTables for FlatTable {
    fn map(&mut self, host: &mut Host, gfn: Gfn, backed: Backed, writable: bool, work: &mut Work) -> Option<Change> {
        let (first, frame) = (gfn.align_down(backed.size), backed.frame.align_down(backed.size));
        let size_bit = SIZES.into_iter().find(|(size, _)| *size == backed.size).map_or(Attrs::empty(), |(_, bit)| bit);
        let perms = if writable { Ept4::LEAF } else { Ept4::LEAF - Attrs::WRITE };
        let mut change = Change::Kept;
        for i in 0..backed.size.frames() {
            let at = self.entry_at(first.offset(i));
            let (old, entry) = self.read(&host.mem, first.offset(i));
            let kept = entry.attrs() & (Attrs::ACCESSED | Attrs::DIRTY);
            let leaf = Entry::Leaf { frame: frame.offset(i), size: PageSize::Size4K, attrs: perms | size_bit | kept };
            let new = Ept4::encode(leaf, Level::L1);
            if new != old {
                host.mem.write(at, new);
                work.entries_set += 1;
                if entry.is_present() && !(perms | size_bit).contains(entry.attrs() & Attrs::PERMISSIONS) {
                    change = Change::Lost;
                }
            }
        }
        Some(change)
    }

    fn unmap(&mut self, host: &mut Host, first: Gfn, frames: u64, work: &mut Work) -> Change {
        let cleared = self.each(host, first, frames, |_| 0);
        work.entries_cleared += cleared;
        if cleared > 0 { Change::Lost } else { Change::Kept }
    }

    fn protect_all(&mut self, host: &mut Host, work: &mut Work) -> Change {
        let gone = Attrs::WRITE | Attrs::DIRTY | Attrs::SOFT_1 | Attrs::SOFT_2;
        let changed = self.each(host, Gfn::new(0), self.frames, |raw| {
            Ept4::encode(Ept4::decode(raw, Level::L1).map_attrs(|attrs| attrs - gone), Level::L1)
        });
        work.entries_cleared += changed;
        if changed > 0 { Change::Lost } else { Change::Kept }
    }

    fn clear(&mut self, host: &mut Host, work: &mut Work) -> Change {
        self.unmap(host, Gfn::new(0), self.frames, work)
    }

    fn bytes(&self) -> u64 {
        (8 * self.frames).next_multiple_of(PageSize::Size4K.bytes())
    }
}
