//! The platforms that recordings are replayed on, by name.

use core::fmt;
use core::str::FromStr;
use std::io::BufRead;

use memvirt_nested::{AdBits, Nested};
use memvirt_oracle::FaultRule;
use memvirt_pagetable::Npt4;
use memvirt_platform::{Engine, Host, MemoryMap, Native, Regime, Vendor};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_shadow::{InvlpgOnly, LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};

use crate::golden;
use crate::recording::{Recording, Section};
use crate::replay::{Tolerance, Watch, check, compare};
use crate::report::Report;

/// What a recording is replayed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Under {
    /// KVM with shadow paging; compared counter by counter.
    KvmShadow(Kernel),
    /// KVM with nested paging (NPT); compared counter by counter. Both kernels count alike.
    KvmNested(Kernel),
    /// Write-protected shadow paging that drops the entry of each trapped store; checked.
    WriteProtect,
    /// The same, installing the new entry; checked.
    WriteProtectPropagate,
    /// Shadow paging filled on first touch, brought in step at flushes; checked.
    LazyFill,
    /// Intel's virtual TLB; checked.
    Vtlb,
    /// Xen's shadow paging: a few leaf tables out of sync; checked.
    Xen,
    /// VirtualBox's shadow paging: leaf tables written often are let go until a flush; checked.
    Vbox,
    /// The naive policy that listens to INVLPG alone; checked, and refused.
    InvlpgOnly,
    /// The bare machine; checked.
    Native,
}

impl Under {
    /// All platforms, `kernel` where one is to be chosen.
    #[must_use]
    pub const fn all(kernel: Kernel) -> [Self; 10] {
        [
            Self::KvmShadow(kernel),
            Self::KvmNested(kernel),
            Self::WriteProtect,
            Self::WriteProtectPropagate,
            Self::LazyFill,
            Self::Vtlb,
            Self::Xen,
            Self::Vbox,
            Self::InvlpgOnly,
            Self::Native,
        ]
    }

    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KvmShadow(_) => "kvm-shadow",
            Self::KvmNested(_) => "kvm-nested",
            Self::WriteProtect => "write-protect",
            Self::WriteProtectPropagate => "write-protect/propagate",
            Self::LazyFill => "lazy-fill",
            Self::Vtlb => "vtlb",
            Self::Xen => "xen",
            Self::Vbox => "vbox",
            Self::InvlpgOnly => "invlpg-only",
            Self::Native => "native",
        }
    }

    /// The kernel whose KVM is modelled, where one is.
    #[must_use]
    pub const fn kernel(self) -> Option<Kernel> {
        match self {
            Self::KvmShadow(kernel) | Self::KvmNested(kernel) => Some(kernel),
            _ => None,
        }
    }

    /// With another kernel, where one is modelled.
    #[must_use]
    pub const fn with_kernel(self, kernel: Kernel) -> Self {
        match self {
            Self::KvmShadow(_) => Self::KvmShadow(kernel),
            Self::KvmNested(_) => Self::KvmNested(kernel),
            other => other,
        }
    }

    /// How exactly the counters of this kernel have to agree: 6.1 in every column, 6.12 with flushes off by one.
    #[must_use]
    pub const fn tolerance(self) -> Tolerance {
        match self.kernel() {
            Some(Kernel::V6_12) => Tolerance::Flushes,
            _ => Tolerance::Strict,
        }
    }
}

impl fmt::Display for Under {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.kernel().map_or(Ok(()), |kernel| write!(f, " of Linux {}", kernel.name()))
    }
}

impl FromStr for Under {
    type Err = String;

    /// KVM is that of Linux 6.1 until [`Under::with_kernel`] says otherwise.
    fn from_str(s: &str) -> Result<Self, String> {
        let s = if s == "write-protect/zap" { "write-protect" } else { s };
        Self::all(Kernel::V6_1).into_iter().find(|under| under.name() == s).ok_or_else(|| {
            let known = Self::all(Kernel::V6_1).map(Self::name).join(", ");
            format!("unknown platform `{s}`; known: {known}")
        })
    }
}

/// Replays `recording` on the platform called `under`: on KVM's own against the recorded counters, elsewhere against the
/// oracle, which always watches there.
pub fn replay(recording: Recording<impl BufRead>, under: Under, tolerance: Tolerance, watch: Watch) -> Report {
    let vendor = Vendor::Svm;
    let mut report = match under {
        Under::KvmShadow(kernel) => compare(recording, tolerance, watch, |_| kvm_shadow(kernel)),
        Under::KvmNested(_) => compare(recording, tolerance, watch, |_| kvm_nested()),
        Under::WriteProtect => on(recording, |map| WriteProtect::new(map, OnStore::Zap, vendor)),
        Under::WriteProtectPropagate => on(recording, |map| WriteProtect::new(map, OnStore::Propagate, vendor)),
        Under::LazyFill => on(recording, |map| LazyFill::new(map, vendor)),
        Under::Vtlb => on(recording, |map| Vtlb::new(map, vendor)),
        Under::Xen => on(recording, |map| Xen::new(map, 1, vendor)),
        Under::Vbox => on(recording, |map| Vbox::new(map, vendor)),
        Under::InvlpgOnly => on(recording, |map| InvlpgOnly::new(map, vendor)),
        Under::Native => check(recording, FaultRule::Architecture, |_: &Section| golden::bare(Native)),
    };
    report.platform = under.name().to_owned();
    report.kernel = under.kernel().map(Kernel::name);
    report
}

fn on<R: Regime>(recording: Recording<impl BufRead>, make: impl Fn(&MemoryMap) -> R) -> Report {
    check(recording, FaultRule::Architecture, |_: &Section| golden::engine(|_, map| make(map)))
}

/// The recorded machine under KVM's shadow paging.
#[must_use]
pub fn kvm_shadow(kernel: Kernel) -> Engine<Kvm> {
    golden::engine(|_, _| Kvm::new(KvmConfig::new(kernel, Vendor::Svm)))
}

/// The recorded machine under KVM's nested paging.
///
/// # Panics
///
/// Never: the host of a recorded machine has room for the root of the nested tables.
#[must_use]
pub fn kvm_nested() -> Engine<Nested<Npt4>> {
    let nested = |host: &mut Host| Nested::new(host, AdBits::On, Vendor::Svm);
    golden::engine(|host, _| nested(host).expect("an empty host has a free frame"))
}
