//! The machine that the recordings were made on, at the start of a sequence.
//!
//! One vCPU, 128 MiB of memory, all of it resident in 4 KiB host pages, no PCID. The guest's tables: an identity map of its
//! first 16 pages, a direct map of the first 32 MiB, and the test tables that the operations change. The kernel (the pages of
//! the identity map) executes at [`CODE`], takes its commands from [`COMMAND`] and handles page faults.

use memvirt_addr::{Gfn, Gpa, Gva, Level, PageSize};
use memvirt_ops::VmId;
use memvirt_pagetable::{Format, Guest4};
use memvirt_platform::{Engine, Host, MemoryMap, Platform, Regime, Tags, VmSpec};
use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};

/// Entry bit: present.
pub const P: u64 = 0x1;
/// Entry bit: writable.
pub const W: u64 = 0x2;
/// Entry bit: user.
pub const U: u64 = 0x4;
/// Entry bit: accessed.
pub const A: u64 = 0x20;
/// Entry bit: dirty.
pub const D: u64 = 0x40;
/// Entry bit: a large page.
pub const PS: u64 = 0x80;

/// The base of the direct map.
pub const DM: u64 = 0xffff_8880_0000_0000;
/// The base of the test region, slot 1 of the root tables.
pub const TV: u64 = 0x80_0000_0000;

/// The first root table, current at the start.
pub const PML4A: u64 = 0x1_0000;
/// The second root table.
pub const PML4B: u64 = 0x2_0000;
/// The test tables under [`PML4A`].
pub const PDPT_A: u64 = 0x10_0000;
/// See [`PDPT_A`].
pub const PD_A: u64 = 0x10_1000;
/// See [`PDPT_A`].
pub const PT_A: u64 = 0x10_2000;
/// The second leaf table under [`PD_A`].
pub const PT_A1: u64 = 0x10_3000;
/// The test tables under [`PML4B`].
pub const PDPT_B: u64 = 0x11_0000;
/// See [`PDPT_B`].
pub const PD_B: u64 = 0x11_1000;
/// See [`PDPT_B`].
pub const PT_B: u64 = 0x11_2000;
/// Data page 0.
pub const DATA: u64 = 0x40_0000;
/// The frames behind the two 2 MiB pages of FUZZ2 sequences.
pub const LARGE: u64 = 0x200_0000;

/// Where the guest's code lies, the fault handler included.
pub const CODE: Gva = Gva::new(0x5000);
/// Where the guest reads its command.
pub const COMMAND: Gva = Gva::new(0x4000);

/// The frames of guest memory: 128 MiB.
pub const GUEST_FRAMES: u64 = 0x800_0000 >> 12;
/// The frames of a host that holds the guest and all tables a regime makes for it.
pub const HOST_FRAMES: u64 = 8 * GUEST_FRAMES;

/// Frames for tables that the set-up needs and that have no name.
const TABLE_POOL: u64 = 0x80_0000;

/// Which machine a section of a recording starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sequence {
    /// Two roots, 4 KiB pages.
    Fuzz,
    /// Six roots, also 2 MiB pages and a shared page directory.
    Fuzz2,
}

impl Sequence {
    /// The name in recordings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fuzz => "FUZZ",
            Self::Fuzz2 => "FUZZ2",
        }
    }
}

/// The address of an entry in the direct map, as the guest stores to it.
#[must_use]
pub const fn alias(at: u64) -> Gva {
    Gva::new_truncate(DM.wrapping_add(at))
}

/// A machine of the recordings' size under the regime that `make` makes.
///
/// Translations carry no tags, as on the recorded machine: every exit empties the TLB.
pub fn engine<R: Regime>(make: impl FnOnce(&mut Host, &MemoryMap) -> R) -> Engine<R> {
    let mut host = Host::new(HOST_FRAMES);
    let map = MemoryMap::new(GUEST_FRAMES, PageSize::Size4K);
    let regime = make(&mut host, &map);
    Engine::new(host, 1, &small_tlb(), Tags::Off, vec![(VmSpec { map, vcpus: 1 }, regime)])
}

/// A TLB with room for what one operation touches. It is emptied at every exit, so a larger one would hold nothing more, and
/// would only take longer to empty.
fn small_tlb() -> Geometry {
    Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 16)], &[]).unwrap_or_default()
}

/// The bare machine of the recordings' size.
#[must_use]
pub fn bare<R: Regime>(regime: R) -> Engine<R> {
    let vm = VmSpec { map: MemoryMap::identity(GUEST_FRAMES), vcpus: 1 };
    Engine::new(Host::new(GUEST_FRAMES), 1, &small_tlb(), Tags::Off, vec![(vm, regime)])
}

/// Guest memory as a boot loader fills it.
#[derive(Debug)]
pub struct Loader<'a, P: ?Sized> {
    platform: &'a mut P,
    next_table: u64,
}

impl<'a, P: Platform + ?Sized> Loader<'a, P> {
    /// A loader into the memory of the platform's first virtual machine.
    pub fn new(platform: &'a mut P) -> Self {
        Self { platform, next_table: TABLE_POOL }
    }

    /// The word at a guest-physical address.
    #[must_use]
    pub fn get(&self, at: u64) -> u64 {
        self.platform.peek(VmId::FIRST, Gpa::new_truncate(at))
    }

    /// Stores a word at a guest-physical address.
    pub fn set(&mut self, at: u64, value: u64) {
        self.platform.poke(VmId::FIRST, Gpa::new_truncate(at), value);
    }

    /// Makes every frame of guest memory resident.
    pub fn populate(&mut self) {
        for number in 0..GUEST_FRAMES {
            self.set(Gfn::new(number).base().as_u64(), 0);
        }
    }

    /// Steps 1 to 4: roots, identity map, direct map, empty test tables.
    pub fn tables(&mut self) {
        for page in 0..16 {
            self.map(page << 12, page << 12);
        }
        self.set(PML4B, self.get(PML4A));
        for page in 0..0x200_0000 >> 12 {
            self.map(DM + (page << 12), page << 12);
        }
        let slot = 8 * Gva::new(DM).index(Level::L4) as u64;
        self.set(PML4B + slot, self.get(PML4A + slot));
        for (at, table) in [
            (PML4A + 8, PDPT_A),
            (PDPT_A, PD_A),
            (PD_A, PT_A),
            (PD_A + 8, PT_A1),
            (PML4B + 8, PDPT_B),
            (PDPT_B, PD_B),
            (PD_B, PT_B),
        ] {
            self.set(at, table | P | W | U | A);
        }
    }

    /// Maps one 4 KiB page under [`PML4A`] for the supervisor, read-write, accessed and dirty.
    fn map(&mut self, virt: u64, phys: u64) {
        let gva = Gva::new_truncate(virt);
        let mut table = Gpa::new(PML4A).frame();
        for level in [Level::L4, Level::L3, Level::L2] {
            let at = table.entry(Guest4::index(gva, level)).as_u64();
            if self.get(at) & P == 0 {
                self.set(at, self.next_table | P | W | U | A | D);
                self.next_table += 0x1000;
            }
            table = Gpa::new_truncate(self.get(at) & !0xfff).frame();
        }
        self.set(table.entry(Guest4::index(gva, Level::L1)).as_u64(), phys | P | W | A | D);
    }

    /// Steps 6 and 7: what the host stores once the guest has run up to its first marker.
    pub fn data(&mut self, sequence: Sequence) {
        for page in 0..32 {
            self.set(DATA + (page << 12), DATA + (page << 12));
        }
        self.set(PD_B + 8, PT_A1 | P | W | U | A);
        for (t, table) in [(0, PT_A), (1, PT_A1), (2, PT_B)] {
            for i in 0..16 {
                self.set(table + 8 * i, (DATA + (((7 * t + i) % 32) << 12)) | P | W | A | D);
            }
        }
        if sequence == Sequence::Fuzz2 {
            self.large_pages_and_roots();
        }
    }

    fn large_pages_and_roots(&mut self) {
        for page in 0..1024 {
            self.set(LARGE + (page << 12), LARGE + (page << 12));
        }
        for table in [PD_A, PD_B] {
            self.set(table + 16, LARGE | P | W | U | A | D | PS);
            self.set(table + 24, (LARGE + 0x20_0000) | P | W | U | A | PS);
        }
        self.set(PDPT_A + 8, PD_B | P | W | U | A);
        self.set(PDPT_B + 8, PD_A | P | U | A);
        for n in 2..6 {
            let root = 0x4_0000 + ((n - 2) << 12);
            for i in 0..512 {
                let entry = self.get(PML4A + 8 * i);
                if entry & P != 0 {
                    self.set(root + 8 * i, entry);
                }
            }
            let pdpt = if n % 2 == 0 { PDPT_A } else { PDPT_B };
            let write = if n < 4 { W } else { 0 };
            self.set(root + 8, pdpt | P | U | A | write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tlb_is_the_small_one() {
        assert_ne!(small_tlb(), Geometry::default());
    }
}
