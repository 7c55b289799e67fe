//! L0: the hypervisor of the machine. It owns the host's frames, EPT01 in host memory, and the map from L1's frames to them.
//!
//! L0 knows nothing of what L1's frames hold, save which of them it must write-protect because they are EPT12 tables.

use memvirt_addr::{Hfn, HostPhys, Hpa, L1fn, L1pa, Level, PageSize};
use memvirt_pagetable::map::TableAttrs;
use memvirt_pagetable::{Attrs, Entry, Format, Mapper, PhysMem, Tree, Walked, walk};
use memvirt_platform::{Host, Work};

use crate::format::Nested01;

const LEAF: Attrs = Attrs::RWX.union(Attrs::WRITE_BACK);

const RESIDENT: u64 = 1;
const GUARDED: u64 = 2;
/// Bits of a slot below the frame number.
const FLAGS: u32 = 2;

/// What L1 finds at an address of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The byte lies here.
    At(Hpa),
    /// EPT01 does not map the page.
    Absent,
    /// EPT01 forbids the store.
    Protected,
}

/// The tables and the memory map of L0.
#[derive(Debug)]
pub struct L0 {
    ept01: Hfn,
    tables: u64,
    /// Per frame of L1: the host frame and the flags; 0 where none was ever given.
    frames: Vec<u64>,
}

impl L0 {
    /// Nothing is mapped yet. `None` where the host has no frame for the root of EPT01.
    pub(crate) fn new(host: &mut Host) -> Option<Self> {
        Some(Self { ept01: host.allocate(PageSize::Size4K)?, tables: 1, frames: Vec::new() })
    }

    /// The root of EPT01.
    #[must_use]
    pub const fn ept01(&self) -> Hfn {
        self.ept01
    }

    /// How many tables EPT01 has.
    #[must_use]
    pub const fn tables(&self) -> u64 {
        self.tables
    }

    /// The frames of EPT01's tables.
    pub fn table_frames<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = Hfn> + 'a {
        Tree::<Nested01, PhysMem<HostPhys>>::new(&host.mem, self.ept01).tables().map(|(frame, _)| frame)
    }

    fn slot(&self, frame: L1fn) -> u64 {
        self.frames.get(frame.as_index()).copied().unwrap_or(0)
    }

    /// The host frame that holds L1's frame, taken away or not; `None` where none was ever given.
    #[must_use]
    pub fn frame_of(&self, frame: L1fn) -> Option<Hfn> {
        Some(self.slot(frame)).filter(|slot| slot >> FLAGS != 0).map(|slot| Hfn::new(slot >> FLAGS))
    }

    /// Whether L1's frame has a host frame now.
    #[must_use]
    pub fn is_resident(&self, frame: L1fn) -> bool {
        self.slot(frame) & RESIDENT != 0
    }

    /// Whether stores of L1 to the frame must trap.
    #[must_use]
    pub fn is_guarded(&self, frame: L1fn) -> bool {
        self.slot(frame) & GUARDED != 0
    }

    /// Every frame of L1 that was ever given a host frame.
    pub fn given(&self) -> impl Iterator<Item = (L1fn, Hfn)> {
        (0u64..)
            .zip(&self.frames)
            .filter(|(_, slot)| **slot >> FLAGS != 0)
            .map(|(l1, slot)| (L1fn::new(l1), Hfn::new(slot >> FLAGS)))
    }

    fn slot_mut(&mut self, frame: L1fn) -> &mut u64 {
        let index = frame.as_index();
        if self.frames.len() <= index {
            self.frames.resize(index + 1, 0);
        }
        &mut self.frames[index]
    }

    /// What EPT01 says about L1's access to its own memory.
    pub(crate) fn look(&self, host: &Host, at: L1pa, store: bool) -> Found {
        let path = walk::<Nested01, _>(&host.mem, self.ept01, at);
        match (path.end, path.frame_of(at)) {
            (Walked::Mapped { .. }, Some(_)) if store && !path.perms.contains(Attrs::WRITE) => Found::Protected,
            (Walked::Mapped { .. }, Some(frame)) => Found::At(frame.at(at.as_u64())),
            _ => Found::Absent,
        }
    }

    /// Where a byte of L1 lies, as L0 reads and writes it: without EPT01, and whether or not the page was taken away.
    pub(crate) fn address(&self, at: L1pa) -> Option<Hpa> {
        self.frame_of(at.frame()).map(|frame| frame.at(at.as_u64()))
    }

    /// L1's frame lies in `host_frame` from now on. EPT01 is left as it is.
    pub(crate) fn give(&mut self, frame: L1fn, host_frame: Hfn) {
        let slot = self.slot_mut(frame);
        *slot = host_frame.number() << FLAGS | *slot & GUARDED | RESIDENT;
    }

    /// Maps a resident frame in EPT01. `None` where it is not resident or the host has no frame for a table.
    pub(crate) fn map(&mut self, host: &mut Host, frame: L1fn, work: &mut Work) -> Option<()> {
        let target = self.frame_of(frame).filter(|_| self.is_resident(frame))?;
        let attrs = if self.is_guarded(frame) { LEAF - Attrs::WRITE } else { LEAF };
        let (mem, frames) = host.parts();
        let mut mapper = Mapper::<Nested01, _>::new(mem, self.ept01, TableAttrs::EPT);
        let made = u64::from(mapper.map(frame.base(), target, PageSize::Size4K, attrs, frames).ok()?);
        self.tables += made;
        work.tables_allocated += made;
        work.entries_set += 1;
        Some(())
    }

    /// Lets stores of L1 to the frame trap, or no more.
    pub(crate) fn guard(&mut self, host: &mut Host, frame: L1fn, on: bool, work: &mut Work) {
        let slot = self.slot_mut(frame);
        *slot = if on { *slot | GUARDED } else { *slot & !GUARDED };
        let step = Tree::<Nested01, _>::new(&host.mem, self.ept01).descend(frame.base(), Level::L1);
        if let Entry::Leaf { .. } = step.entry {
            let entry = step.entry.map_attrs(|attrs| if on { attrs - Attrs::WRITE } else { attrs | Attrs::WRITE });
            host.mem.write(step.entry_at, Nested01::encode(entry, Level::L1));
            let changed = if on { &mut work.entries_cleared } else { &mut work.entries_set };
            *changed += 1;
        }
    }

    /// Takes L1's frame away; what it holds is kept. Tells whether it was there.
    pub(crate) fn take(&mut self, host: &mut Host, frame: L1fn, work: &mut Work) -> bool {
        if !self.is_resident(frame) {
            return false;
        }
        *self.slot_mut(frame) &= !RESIDENT;
        let mut mapper = Mapper::<Nested01, _>::new(&mut host.mem, self.ept01, TableAttrs::EPT);
        if mapper.unmap(frame.base()).is_ok() {
            work.entries_cleared += 1;
        }
        true
    }

    /// The tree of EPT01, to be read.
    #[must_use]
    pub fn tree<'a>(&self, host: &'a Host) -> Tree<'a, Nested01, PhysMem<HostPhys>> {
        Tree::new(&host.mem, self.ept01)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_frame_traps_stores_only_and_stays_guarded_while_away() {
        let (mut host, mut work) = (Host::new(64), Work::default());
        let mut l0 = L0::new(&mut host).unwrap();
        let (frame, at) = (L1fn::new(5), L1pa::new(0x5008));
        assert_eq!(l0.look(&host, at, false), Found::Absent);
        let target = host.allocate(PageSize::Size4K).unwrap();
        l0.give(frame, target);
        assert_eq!(l0.look(&host, at, false), Found::Absent, "L0's map alone is nothing to the hardware");
        l0.map(&mut host, frame, &mut work).unwrap();
        assert_eq!(l0.look(&host, at, true), Found::At(target.at(8)));
        l0.guard(&mut host, frame, true, &mut work);
        assert_eq!(l0.look(&host, at, true), Found::Protected);
        assert_eq!(l0.look(&host, at, false), Found::At(target.at(8)));
        assert!(l0.take(&mut host, frame, &mut work) && !l0.take(&mut host, frame, &mut work));
        assert_eq!((l0.look(&host, at, false), l0.address(at)), (Found::Absent, Some(target.at(8))));
        l0.give(frame, target);
        l0.map(&mut host, frame, &mut work).unwrap();
        assert_eq!(l0.look(&host, at, true), Found::Protected);
        l0.guard(&mut host, frame, false, &mut work);
        assert_eq!(l0.look(&host, at, true), Found::At(target.at(8)));
    }
}
