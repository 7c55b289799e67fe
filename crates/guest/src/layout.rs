//! Where the guest kernel lies: the virtual and physical layout that every process shares.
//!
//! Addresses follow Linux on x86-64 (`Documentation/arch/x86/x86_64/mm.rst`): the direct map of all memory, through which the
//! kernel reaches every frame, page tables included; the kernel's text; and the CPU entry area, the only part of the kernel
//! that stays mapped while a process runs under kernel-page-table isolation.

use memvirt_addr::{Gfn, Gpa, Gva};

/// The direct map: physical address `p` lies at `DIRECT_MAP + p`.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// The kernel's text, mapped with 2 MiB pages.
pub(crate) const KERNEL_TEXT: u64 = 0xffff_ffff_8100_0000;
/// Where the kernel's image lies in memory, and how long it is.
pub(crate) const KERNEL_IMAGE: (u64, u64) = (16 << 20, 16 << 20);
/// The CPU entry area: one page of entry code and one of stack.
pub(crate) const ENTRY_AREA: u64 = 0xffff_fe00_0000_0000;
/// The frames of the entry area: the last two of the kernel's image.
pub(crate) const ENTRY_FRAMES: u64 = (KERNEL_IMAGE.0 + KERNEL_IMAGE.1) - 2 * 4096;
/// The first frame that the page allocator hands out.
pub(crate) const POOL_START: Gfn = Gfn::new((KERNEL_IMAGE.0 + KERNEL_IMAGE.1) >> 12);
/// The smallest memory a guest can have, in frames (64 MiB).
pub(crate) const MIN_FRAMES: u64 = 16384;

/// The direct-map alias of a physical address.
pub(crate) const fn alias(at: Gpa) -> Gva {
    Gva::new_truncate(DIRECT_MAP + at.as_u64())
}

/// The parts of the kernel whose code runs; each lies on a page of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// System-call entry and exit.
    Syscall = 0,
    /// The page-fault handler.
    Fault = 1,
    /// The timer tick.
    Tick = 2,
    /// The scheduler.
    Schedule = 3,
    /// Code that stores page-table entries.
    SetPte = 4,
    /// Code that clears pages.
    ClearPage = 5,
    /// Device interrupts.
    Interrupt = 6,
}

impl Site {
    /// The address of the code.
    pub(crate) const fn ip(self) -> Gva {
        Gva::new_truncate(KERNEL_TEXT + (self as u64) * 4096)
    }
}
