//! What KVM keeps for each vCPU: roots, pending requests, two small caches.
//!
//! Source: spec A1, A14; `struct kvm_mmu` and `struct kvm_vcpu_arch` in `arch/x86/include/asm/kvm_host.h`.

use memvirt_addr::Gva;
use memvirt_platform::Regs;

use super::page::{NONE, PageId};
use super::role::Role;

/// A shadow root and the CR3 that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    /// CR3, PCID included.
    pub(crate) pgd: u64,
    pub(crate) page: PageId,
}

impl Root {
    pub(crate) const NONE: Self = Self { pgd: 0, page: NONE };

    pub(crate) const fn is_valid(self) -> bool {
        self.page != NONE
    }
}

/// Things to do before the guest runs again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Requests(u8);

impl Requests {
    /// Drop roots that were zapped.
    pub(crate) const FREE_OBSOLETE_ROOTS: u8 = 1 << 0;
    /// Sync the current root.
    pub(crate) const SYNC: u8 = 1 << 1;
    /// Load the current root into CR3.
    pub(crate) const LOAD_PGD: u8 = 1 << 2;
    /// Flush all translations: what a remote flush asks of everybody.
    pub(crate) const FLUSH_ALL: u8 = 1 << 3;
    /// Flush the current context.
    pub(crate) const FLUSH_CURRENT: u8 = 1 << 4;
    /// Do what a guest's full flush does, previous roots included.
    pub(crate) const FLUSH_GUEST: u8 = 1 << 5;

    pub(crate) const fn make(&mut self, which: u8) {
        self.0 |= which;
    }

    /// Whether one was pending; it no longer is.
    pub(crate) const fn take(&mut self, which: u8) -> bool {
        let pending = self.0 & which != 0;
        self.0 &= !which;
        pending
    }

    pub(crate) const fn any(self) -> bool {
        self.0 != 0
    }
}

/// The last address found to be MMIO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MmioCache {
    pub(crate) page: u64,
    pub(crate) generation: u32,
}

/// How many roots besides the current one a vCPU remembers.
pub(crate) const PREVIOUS_ROOTS: usize = 3;

/// One vCPU.
#[derive(Clone, Debug)]
pub(crate) struct VcpuMmu {
    pub(crate) root: Root,
    pub(crate) previous: [Root; PREVIOUS_ROOTS],
    pub(crate) role: Role,
    pub(crate) requests: Requests,
    pub(crate) mmio: Option<MmioCache>,
    /// Address of the instruction, and of its operand, that was last retried after its page had been unshadowed.
    pub(crate) last_retry: Option<(Gva, Gva)>,
    /// CR3 points outside memory: there is nothing to shadow.
    pub(crate) dummy_root: bool,
    /// The guest has been entered before: its first CR3 load finds no earlier address space to set up.
    pub(crate) has_run: bool,
}

impl VcpuMmu {
    pub(crate) fn new(regs: &Regs) -> Self {
        Self {
            root: Root::NONE,
            previous: [Root::NONE; PREVIOUS_ROOTS],
            role: Role::root(regs),
            requests: Requests::default(),
            mmio: None,
            last_retry: None,
            dummy_root: false,
            has_run: false,
        }
    }

    /// Whether the guest cannot be entered before something is done.
    pub(crate) const fn must_prepare(&self) -> bool {
        self.requests.any() || !(self.root.is_valid() || self.dummy_root)
    }
}
