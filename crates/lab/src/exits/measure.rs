//! Runs one event on one regime: a machine of its own for each, so that nothing that an earlier event left behind counts.

use memvirt_nested::{AdBits, DirtyLogging, Nested, SecondStage};
use memvirt_pagetable::{Ept4, Npt4};
use memvirt_platform::{Engine, Host, MemoryMap, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_shadow::{InvlpgOnly, LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_tlb::{ArrayGeometry, Geometry, Sizes};

use super::events::Event;
use super::guest::{FRAMES, Guest, HOST_PAGE};

/// A measured column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// The naive policy that listens to INVLPG alone; column N of the specification.
    InvlpgOnly,
    /// Write protection, a trapped store drops the entry; column WP, figures marked z.
    Zap,
    /// Write protection, a trapped store installs the new entry; column WP, figures marked e.
    Propagate,
    /// KVM's shadow MMU; column LAZY.
    Kvm(Kernel),
    /// Intel's virtual TLB.
    Vtlb,
    /// Nested paging: EPT or NPT; column EPT.
    Nested,
    /// Nested paging whose dirty logging uses the page-modification log; column EPT, figures marked PML. VMX only.
    NestedPml,
    /// Shadow tables filled on first touch; no column in the specification.
    LazyFill,
    /// Xen's shadow paging; no column.
    Xen,
    /// VirtualBox's shadow paging; no column.
    Vbox,
}

impl Column {
    /// All columns: those of the specification first.
    pub const ALL: [Self; 11] = [
        Self::InvlpgOnly,
        Self::Zap,
        Self::Propagate,
        Self::Kvm(Kernel::V6_1),
        Self::Kvm(Kernel::V6_12),
        Self::Vtlb,
        Self::Nested,
        Self::NestedPml,
        Self::LazyFill,
        Self::Xen,
        Self::Vbox,
    ];

    /// The columns that the hardware of `vendor` can have.
    pub fn of(vendor: Vendor) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |column| vendor == Vendor::Vmx || *column != Self::NestedPml)
    }

    /// The name in results.
    #[must_use]
    pub const fn key(self, vendor: Vendor) -> &'static str {
        match (self, vendor) {
            (Self::InvlpgOnly, _) => "invlpg-only",
            (Self::Zap, _) => "write-protect/zap",
            (Self::Propagate, _) => "write-protect/propagate",
            (Self::Kvm(Kernel::V6_1), _) => "kvm-6.1",
            (Self::Kvm(Kernel::V6_12), _) => "kvm-6.12",
            (Self::Vtlb, _) => "vtlb",
            (Self::Nested, Vendor::Vmx) => "ept",
            (Self::Nested, Vendor::Svm) => "npt",
            (Self::NestedPml, _) => "ept+pml",
            (Self::LazyFill, _) => "lazy-fill",
            (Self::Xen, _) => "xen",
            (Self::Vbox, _) => "vbox",
        }
    }

    /// The regime's column in the specification, from the left; `None` where it has none.
    #[must_use]
    pub const fn specified(self) -> Option<usize> {
        match self {
            Self::InvlpgOnly => Some(0),
            Self::Zap | Self::Propagate => Some(1),
            Self::Kvm(_) => Some(2),
            Self::Vtlb => Some(3),
            Self::Nested | Self::NestedPml => Some(4),
            Self::LazyFill | Self::Xen | Self::Vbox => None,
        }
    }

    /// A fresh machine under this regime.
    fn platform(self, vendor: Vendor, vcpus: u16) -> Box<dyn Platform> {
        let config = |kernel| KvmConfig::new(kernel, vendor);
        match self {
            Self::InvlpgOnly => shadow(vcpus, |map| InvlpgOnly::new(map, vendor)),
            Self::Zap => shadow(vcpus, |map| WriteProtect::new(map, OnStore::Zap, vendor)),
            Self::Propagate => shadow(vcpus, |map| WriteProtect::new(map, OnStore::Propagate, vendor)),
            Self::Kvm(kernel) => shadow(vcpus, |_| Kvm::new(config(kernel))),
            Self::Vtlb => shadow(vcpus, |map| Vtlb::new(map, vendor)),
            Self::LazyFill => shadow(vcpus, |map| LazyFill::new(map, vendor)),
            Self::Xen => shadow(vcpus, |map| Xen::new(map, vcpus, vendor)),
            Self::Vbox => shadow(vcpus, |map| Vbox::new(map, vendor)),
            Self::Nested if vendor == Vendor::Vmx => nested::<Ept4>(vendor, vcpus, DirtyLogging::WriteProtect),
            Self::Nested => nested::<Npt4>(vendor, vcpus, DirtyLogging::WriteProtect),
            Self::NestedPml => nested::<Ept4>(vendor, vcpus, DirtyLogging::ModificationLog),
        }
    }
}

fn shadow<R: Regime + 'static>(vcpus: u16, make: impl FnOnce(&MemoryMap) -> R) -> Box<dyn Platform> {
    engine(vcpus, |_, map| make(map))
}

fn nested<H: SecondStage>(vendor: Vendor, vcpus: u16, logging: DirtyLogging) -> Box<dyn Platform> {
    engine(vcpus, |host, _| {
        let nested = Nested::<H>::new(host, AdBits::On, vendor).expect("an empty host has a free frame");
        nested.with_dirty_logging(logging)
    })
}

/// Translations carry no tags, as on the recorded machines: every exit empties the TLB.
fn engine<R: Regime + 'static>(vcpus: u16, make: impl FnOnce(&mut Host, &MemoryMap) -> R) -> Box<dyn Platform> {
    let mut host = Host::new(4 * FRAMES + 4096);
    let map = MemoryMap::new(FRAMES, HOST_PAGE);
    let regime = make(&mut host, &map);
    // Small, because it is emptied so often.
    let tlb = Geometry::new(&[ArrayGeometry::full(Sizes::ALL, 16)], &[]).unwrap_or_default();
    Box::new(Engine::new(host, usize::from(vcpus), &tlb, Tags::Off, vec![(VmSpec { map, vcpus }, regime)]))
}

/// What one event did on one regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// VM exits.
    pub(crate) exits: u64,
    /// Page faults that the guest saw.
    pub(crate) faults: u64,
}

/// Runs `event` on a fresh machine under `column`; `None` where the event is none that a machine here can execute.
pub(crate) fn measure(event: &Event, column: Column, vendor: Vendor) -> Option<Measured> {
    let measured = event.measured?;
    let mut guest = Guest::new(column.platform(vendor, event.vcpus));
    (event.prepare)(&mut guest);
    let before = (guest.exits(), guest.faults());
    measured(&mut guest);
    Some(Measured { exits: guest.exits() - before.0, faults: guest.faults() - before.1 })
}
