//! What can be chosen about KVM: the kernel's version, the vendor of the hardware, the limit on shadow pages.

use memvirt_platform::Vendor;

/// Which kernel's KVM is modelled. The two differ in how an INVLPG and a sync treat an entry, and in when an instruction on a
/// table is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Linux 6.1: stands for everything up to about 6.3.
    V6_1,
    /// Linux 6.12: stands for everything from about 6.4 on.
    V6_12,
}

impl Kernel {
    /// The version as written: `6.1`, `6.12`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl core::str::FromStr for Kernel {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::V6_1, Self::V6_12].into_iter().find(|kernel| kernel.name() == s).ok_or("expected 6.1 or 6.12")
    }
}

/// The configuration of one virtual machine's KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmConfig {
    /// The kernel.
    pub kernel: Kernel,
    /// The hardware.
    pub vendor: Vendor,
    /// The limit on shadow pages; `None` for KVM's own, 2 % of guest memory. Never below 64 pages.
    pub page_limit: Option<u32>,
}

impl KvmConfig {
    /// The smallest limit on shadow pages that KVM accepts (`KVM_MIN_ALLOC_MMU_PAGES`).
    pub const MIN_PAGE_LIMIT: u32 = 64;

    /// This kernel on this hardware, with KVM's own limit on shadow pages.
    #[must_use]
    pub const fn new(kernel: Kernel, vendor: Vendor) -> Self {
        Self { kernel, vendor, page_limit: None }
    }

    /// The limit for a guest of `frames` frames.
    pub(crate) fn limit(&self, frames: u64) -> u64 {
        let chosen = self.page_limit.map_or(frames / 50, u64::from);
        chosen.max(u64::from(Self::MIN_PAGE_LIMIT))
    }
}

impl Default for KvmConfig {
    fn default() -> Self {
        Self::new(Kernel::V6_12, Vendor::Svm)
    }
}
