//! What the kernel keeps for each CPU: who runs there, which address spaces its TLB may still know.
//!
//! Source: Linux `arch/x86/include/asm/tlbflush.h` (`struct tlb_state`: `loaded_mm`, `loaded_mm_asid`, `ctxs`, `is_lazy`),
//! `arch/x86/mm/tlb.c` (`choose_new_asid`).

use memvirt_addr::Gfn;
use memvirt_ops::VcpuId;
use memvirt_ops::arch::Pcid;
use memvirt_ops::process::ProcessId;

use super::stats::GuestStats;
use super::tick::Clock;

/// How many address spaces keep their translations at once (`TLB_NR_DYN_ASIDS`).
const PCIDS: usize = 6;
/// The number of the kernel's own address space (`init_mm`); those of processes begin at 1.
const KERNEL_SPACE: u64 = 0;
/// The bit that tells a process' own PCID from its kernel's under isolation (`X86_CR3_PTI_PCID_USER_BIT`).
const USER_PCID: u16 = 1 << 11;

/// One CPU.
#[derive(Debug)]
pub(crate) struct Cpu {
    pub(crate) vcpu: VcpuId,
    /// The process that runs here; `None` where the CPU idles.
    pub(crate) current: Option<ProcessId>,
    /// The root that the kernel runs on. A CPU that idles may keep that of the process that ran last (`is_lazy`).
    pub(crate) loaded: Gfn,
    /// The current process holds the address space that its parent has just lent it, but the parent is on the CPU still.
    pub(crate) parent_on_cpu: bool,
    pub(crate) pcids: Pcids,
    pub(crate) clock: Clock,
    pub(crate) stats: GuestStats,
}

/// An address space that a CPU may hold translations of.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Its number (`ctx_id`).
    space: Option<u64>,
    /// The last of its flushes that was carried out here (`tlb_gen`).
    generation: u64,
    /// The process' own PCID must be flushed when it is loaded again.
    user_stale: bool,
}

/// Which address space holds which PCID. Without PCIDs there is one slot, that of the loaded space.
#[derive(Debug, Default)]
pub(crate) struct Pcids {
    slots: [Slot; PCIDS],
    next: usize,
    current: usize,
}

impl Pcids {
    /// Takes the slot of a space that is being loaded; whether its translations are still there and none of them out of date.
    pub(crate) fn choose(&mut self, space: u64, generation: u64) -> bool {
        let known = self.slots.iter().position(|slot| slot.space == Some(space));
        self.current = known.unwrap_or_else(|| {
            let slot = self.next;
            self.next = (self.next + 1) % PCIDS;
            slot
        });
        let keep = known.is_some() && self.slots[self.current].generation == generation;
        let slot = &mut self.slots[self.current];
        *slot = Slot { space: Some(space), generation, user_stale: slot.user_stale || !keep };
        keep
    }

    /// Takes the slot of the kernel's own space, which nobody flushes; whether its translations are still there.
    pub(crate) fn choose_kernel(&mut self) -> bool {
        self.choose(KERNEL_SPACE, 0)
    }

    /// The only slot there is without PCIDs.
    pub(crate) const fn occupy(&mut self, space: u64, generation: u64) {
        let slot = &mut self.slots[self.current];
        slot.space = Some(space);
        slot.generation = generation;
    }

    /// The loaded space is flushed, or another root loaded in its place.
    pub(crate) const fn flushed(&mut self, space: Option<u64>, generation: u64) {
        self.slots[self.current] = Slot { space, generation, user_stale: true };
    }

    /// Single pages of the loaded space were flushed.
    pub(crate) const fn caught_up(&mut self, generation: u64) {
        self.slots[self.current].generation = generation;
    }

    /// The last flush of the loaded space that was carried out here.
    pub(crate) const fn generation(&self) -> u64 {
        self.slots[self.current].generation
    }

    /// Whether the process' own PCID must be flushed as it is loaded; asking forgets it.
    pub(crate) const fn take_user_stale(&mut self) -> bool {
        core::mem::replace(&mut self.slots[self.current].user_stale, false)
    }

    pub(crate) fn kernel(&self) -> Pcid {
        Pcid::try_new(u16::try_from(self.current + 1).unwrap_or(0)).unwrap_or_default()
    }

    pub(crate) fn user(&self) -> Pcid {
        Pcid::try_new(self.kernel().number() | USER_PCID).unwrap_or_default()
    }
}
