//! The host: one physical memory, one owner of its frames, and each virtual machine's memory map.
//!
//! A [`MemoryMap`] is what hypervisors call memory slots: it knows which guest frames are memory and which host frame lies
//! behind each. It is the only place where a guest frame turns into a host frame.

use core::fmt;

use memvirt_addr::{Addr, Gfn, Gpa, GuestPhys, Hfn, HostPhys, PageSize};
use memvirt_ops::arch::GfnRange;
use memvirt_pagetable::{FrameAllocator, FramePool, PhysMem, TableMem};

/// The machine's memory and the allocator of its frames.
#[derive(Debug)]
pub struct Host {
    /// What the frames hold.
    pub mem: PhysMem<HostPhys>,
    frames: HostFrames,
}

/// The allocator of a host's frames, whatever its kind.
#[derive(Debug)]
pub struct HostFrames(Box<dyn FrameAllocator<HostPhys>>);

impl FrameAllocator<HostPhys> for HostFrames {
    fn allocate(&mut self, size: PageSize) -> Option<Hfn> {
        self.0.allocate(size)
    }

    fn free(&mut self, frame: Hfn, size: PageSize) {
        self.0.free(frame, size);
    }

    fn allocated(&self) -> u64 {
        self.0.allocated()
    }
}

impl Host {
    /// A machine with `frames` frames, all free, handed out upwards. Frame 0 is never handed out.
    ///
    /// # Panics
    ///
    /// For more frames than [`PhysMem::MAX_FRAMES`].
    #[must_use]
    pub fn new(frames: u64) -> Self {
        Self::with_allocator(frames, Box::new(FramePool::new(Hfn::new(1), frames.saturating_sub(1))))
    }

    /// A machine whose frames `allocator` hands out; it must know the machine's size.
    ///
    /// # Panics
    ///
    /// For more frames than [`PhysMem::MAX_FRAMES`].
    #[must_use]
    pub fn with_allocator(frames: u64, allocator: Box<dyn FrameAllocator<HostPhys>>) -> Self {
        Self { mem: PhysMem::new(frames), frames: HostFrames(allocator) }
    }

    /// A free, zeroed page of `size`; `None` when memory is used up.
    pub fn allocate(&mut self, size: PageSize) -> Option<Hfn> {
        self.frames.allocate(size)
    }

    /// Gives a page back; its contents are forgotten.
    pub fn free(&mut self, frame: Hfn, size: PageSize) {
        for i in 0..size.frames() {
            self.mem.discard(frame.offset(i));
        }
        self.frames.free(frame, size);
    }

    /// Memory and allocator at once, for those who build tables.
    pub fn parts(&mut self) -> (&mut PhysMem<HostPhys>, &mut HostFrames) {
        (&mut self.mem, &mut self.frames)
    }

    /// How many frames are in use.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.frames.allocated()
    }
}

/// The host page behind a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// The host frame of exactly this guest frame.
    pub frame: Hfn,
    /// The size of the host page that it is part of; guest and host addresses agree below that size.
    pub size: PageSize,
}

/// The memory of one virtual machine: guest frames `0..frames`; every other guest address is a device.
pub struct MemoryMap {
    frames: u64,
    size: PageSize,
    /// Per host page of `size`: its first frame, shifted left by 1; bit 0 set while it is resident; 0 where nothing is.
    pages: Box<[u64]>,
    identity: bool,
}

const RESIDENT: u64 = 1;

impl MemoryMap {
    /// Memory of `frames` guest frames that host pages of `size` will back, none yet.
    ///
    /// # Panics
    ///
    /// Where `frames` is not a whole number of such pages.
    #[must_use]
    pub fn new(frames: u64, size: PageSize) -> Self {
        assert!(frames.is_multiple_of(size.frames()), "guest memory is a whole number of host pages");
        let pages = Hfn::new(frames / size.frames()).as_index();
        Self { frames, size, pages: vec![0; pages].into_boxed_slice(), identity: false }
    }

    /// The map of a machine without virtualization: every frame is itself.
    #[must_use]
    pub fn identity(frames: u64) -> Self {
        Self { frames, size: PageSize::Size1G, pages: Box::default(), identity: true }
    }

    /// The size in 4 KiB frames.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// The size of the host pages behind it.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.size
    }

    /// Whether it is the map of a machine without virtualization.
    #[must_use]
    pub const fn is_bare(&self) -> bool {
        self.identity
    }

    /// Whether guest memory is all of the host's, every frame itself: then a guest address is a host address.
    #[must_use]
    #[inline]
    pub const fn is_whole_host(&self, host: &Host) -> bool {
        self.identity && host.mem.frames() <= self.frames
    }

    /// Whether `gfn` is memory.
    #[must_use]
    #[inline]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        gfn.number() < self.frames
    }

    /// The host page behind `gfn`, `None` while there is none or where `gfn` is no memory.
    #[must_use]
    #[inline]
    pub fn lookup(&self, gfn: Gfn) -> Option<Backed> {
        self.entry(gfn).filter(|entry| entry & RESIDENT != 0).map(|entry| self.backed(gfn, entry))
    }

    #[inline]
    fn entry(&self, gfn: Gfn) -> Option<u64> {
        if self.identity {
            return (gfn.number() < self.frames).then(|| gfn.align_down(self.size).number() << 1 | RESIDENT);
        }
        self.pages.get(self.page_of(gfn)).copied()
    }

    /// The number of the host page that holds `gfn`. A shift: this is in the path of every read of guest memory.
    #[inline]
    const fn page_of(&self, gfn: Gfn) -> usize {
        Gfn::new(gfn.number() >> (self.size.shift() - 12)).as_index()
    }

    #[inline]
    fn backed(&self, gfn: Gfn, entry: u64) -> Backed {
        Backed { frame: Hfn::new(entry >> 1).offset(gfn.number() & (self.size.frames() - 1)), size: self.size }
    }

    /// The host page behind `gfn`, brought in where it was taken away, allocated where there was none. The flag tells whether
    /// a page was allocated. `None` when the host has none left, or `gfn` is no memory.
    pub fn back(&mut self, gfn: Gfn, host: &mut Host) -> Option<(Backed, bool)> {
        let entry = self.entry(gfn)?;
        if entry & RESIDENT != 0 {
            return Some((self.backed(gfn, entry), false));
        }
        let fresh = entry == 0;
        let entry = if fresh { host.allocate(self.size)?.number() << 1 } else { entry } | RESIDENT;
        self.pages[self.page_of(gfn)] = entry;
        Some((self.backed(gfn, entry), fresh))
    }

    /// Takes the host pages of `range` away from the guest; their contents are kept for when they are touched again.
    pub fn unmap(&mut self, range: GfnRange) {
        let mut number = range.start.align_down(self.size).number();
        while !self.identity && number < range.start.number() + range.frames && number < self.frames {
            self.pages[Gfn::new(number / self.size.frames()).as_index()] &= !RESIDENT;
            number += self.size.frames();
        }
    }

    /// All host pages of this machine, in guest order.
    pub fn host_pages(&self) -> impl Iterator<Item = (Hfn, PageSize)> {
        self.pages.iter().filter(|entry| **entry != 0).map(|entry| (Hfn::new(entry >> 1), self.size))
    }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryMap({} frames over {} host pages)", self.frames, self.size)
    }
}

/// Guest-physical memory as the hypervisor reads and writes it: through the map, into host memory. Reading what was never
/// written gives zero; a store brings the page in.
#[derive(Debug)]
pub struct GuestMem<'a> {
    /// The machine.
    pub host: &'a mut Host,
    /// The virtual machine's map.
    pub map: &'a mut MemoryMap,
}

impl GuestMem<'_> {
    /// The host address of a guest address, where there is memory behind it.
    #[must_use]
    pub fn host_address(&self, at: Gpa) -> Option<Addr<HostPhys>> {
        read_address(self.map, at)
    }

    /// Reads the aligned word at `at`.
    #[must_use]
    #[inline]
    pub fn read(&self, at: Gpa) -> u64 {
        read_guest(self.host, self.map, at)
    }

    /// Forgets what the frames of `range` hold: they read as zero.
    pub fn forget(&mut self, range: GfnRange) {
        let frames = range.frames.min(self.map.frames().saturating_sub(range.start.number()));
        for i in 0..frames {
            if let Some(at) = self.host_address(range.start.offset(i).base()) {
                self.host.mem.discard(at.frame());
            }
        }
    }

    /// Stores `bytes` bytes; returns false, having stored nothing, where there is no memory or the host has no frame left.
    pub fn write_bytes(&mut self, at: Gpa, bytes: u64, value: u64) -> bool {
        let Some((backed, _)) = self.map.back(at.frame(), self.host) else { return false };
        self.host.mem.write_bytes(backed.frame.at(at.as_u64()), bytes, value);
        true
    }
}

/// Where the bytes of a guest address lie, taken away or not.
#[inline]
fn read_address(map: &MemoryMap, at: Gpa) -> Option<Addr<HostPhys>> {
    if map.identity {
        return map.contains(at.frame()).then(|| Hfn::new(at.frame().number()).at(at.as_u64()));
    }
    let entry = map.entry(at.frame()).filter(|entry| *entry != 0)?;
    Some(map.backed(at.frame(), entry).frame.at(at.as_u64()))
}

/// The aligned word at a guest address; 0 where there is no memory.
#[must_use]
#[inline]
pub fn read_guest(host: &Host, map: &MemoryMap, at: Gpa) -> u64 {
    read_address(map, at).map_or(0, |hpa| host.mem.read(hpa))
}

impl TableMem<GuestPhys> for GuestMem<'_> {
    #[inline]
    fn read_entry(&self, at: Gpa) -> u64 {
        self.read(at)
    }

    fn write_entry(&mut self, at: Gpa, value: u64) {
        self.write_bytes(at, 8, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_backed_once_and_keep_their_contents() {
        let mut host = Host::new(4096);
        let mut map = MemoryMap::new(1024, PageSize::Size2M);
        assert_eq!(map.lookup(Gfn::new(5)), None);
        let (backed, fresh) = map.back(Gfn::new(5), &mut host).unwrap();
        assert!(fresh && backed.size == PageSize::Size2M);
        assert_eq!(backed.frame.number() % 512, 5, "guest and host agree below the page size");
        let (again, fresh) = map.back(Gfn::new(6), &mut host).unwrap();
        assert!(!fresh);
        assert_eq!(again.frame, backed.frame.offset(1));

        assert!(GuestMem { host: &mut host, map: &mut map }.write_bytes(Gpa::new(0x5010), 8, 77));
        map.unmap(GfnRange { start: Gfn::new(5), frames: 1 });
        assert_eq!(map.lookup(Gfn::new(5)), None);
        assert_eq!(read_guest(&host, &map, Gpa::new(0x5010)), 77);
        assert_eq!(map.back(Gfn::new(5), &mut host), Some((backed, false)));
    }

    #[test]
    fn devices_and_exhausted_hosts_give_nothing() {
        let mut host = Host::new(2);
        let mut map = MemoryMap::new(4, PageSize::Size4K);
        assert!(map.back(Gfn::new(4), &mut host).is_none());
        assert!(map.back(Gfn::new(0), &mut host).is_some());
        assert!(map.back(Gfn::new(1), &mut host).is_none(), "one frame only, frame 0 is kept back");
    }
}
