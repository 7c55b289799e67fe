//! [`Bench`]: the platform that a regime stands for, made of the parts of other crates.

use std::fmt;

use memvirt_addr::{Gfn, Gva, Hfn, PageSize};
use memvirt_alternatives::{Agile, DirectSegment, Flat, GuestSegment, Mode, Policy, RegisterWalk, Switching};
use memvirt_guest::{DIRECT_MAP, GuestConfig};
use memvirt_nested::{AdBits, Nested};
use memvirt_nestedvirt::{Arrangement, Config, EptOnEpt, ShadowOnEpt};
use memvirt_ops::VmId;
use memvirt_oracle::{Checked, FaultRule, Tally};
use memvirt_pagetable::{Attrs, Ept4, Guest4, Npt4, PhysMem, ScatteredAllocator};
use memvirt_platform::{
    Engine, Host, MemoryMap, MmuGeometry, Native, Platform, Regime, Tags, TimingSpec, Vendor, VmSpec,
};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_shadow::{InvlpgOnly, LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_tlb::Geometry;

use super::host::{FrameOrder, HostConfig};
use super::kind::RegimeKind;

/// A platform, watched by the oracle or not.
pub enum Bench {
    /// It is not.
    Plain(Box<dyn Platform>),
    /// It is.
    Watched(Box<Checked<Box<dyn Platform>>>),
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Watched(_) => "Watched",
        })
    }
}

impl Bench {
    /// The platform.
    #[must_use]
    pub fn platform(&mut self) -> &mut dyn Platform {
        match self {
            Self::Plain(platform) => platform.as_mut(),
            Self::Watched(checked) => checked.as_mut(),
        }
    }

    /// What the oracle found, where one watched.
    #[must_use]
    pub fn tally(&self) -> Option<(Tally, Vec<String>)> {
        match self {
            Self::Plain(_) => None,
            Self::Watched(checked) => {
                Some((*checked.tally(), checked.violations().iter().map(ToString::to_string).collect()))
            }
        }
    }
}

/// How many of what a platform has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Physical CPUs. vCPU k runs on the one numbered k modulo these.
    pub cpus: usize,
    /// Virtual machines, each with as much memory as the guest's switches say. A machine without virtualization is one.
    pub vms: u16,
    /// vCPUs of each. They are numbered over all virtual machines, those of the first one first.
    pub vcpus: u16,
}

impl Shape {
    /// One of each.
    pub const SINGLE: Self = Self { cpus: 1, vms: 1, vcpus: 1 };

    /// For each vCPU its virtual machine.
    #[must_use]
    pub fn vm_of(&self) -> Vec<VmId> {
        (0..self.vms).flat_map(|vm| (0..self.vcpus).map(move |_| VmId(vm))).collect()
    }
}

impl RegimeKind {
    /// What agile paging nests.
    const fn switching(self) -> Switching {
        match self {
            Self::Agile0 => Switching::Levels(0),
            Self::Agile1 => Switching::Levels(1),
            Self::Agile2 => Switching::Levels(2),
            Self::Agile3 => Switching::Levels(3),
            Self::Agile4 => Switching::Levels(4),
            _ => Switching::Activity(Policy::DEFAULT),
        }
    }

    /// Which dimensions have a segment. The guest's covers the kernel's direct map: the guest model's programs have no range that
    /// is contiguous in guest memory.
    const fn segments(self, pages: u64) -> Mode {
        let perms = Attrs::READ.union(Attrs::WRITE);
        let kernel = GuestSegment { base: Gva::new(DIRECT_MAP), pages, to: Gfn::new(0), perms };
        match self {
            Self::DirectSegmentGuest => Mode::Guest(kernel),
            Self::DirectSegmentDual => Mode::Dual(kernel),
            _ => Mode::Vmm,
        }
    }

    /// Which page faults end the life of a cached translation: KVM lets some live that hardware would drop.
    const fn fault_rule(self) -> FaultRule {
        match self {
            Self::ShadowKvm61 | Self::ShadowKvm612 => FaultRule::Kvm,
            _ => FaultRule::Architecture,
        }
    }
}

/// Makes the platform of a regime. `None` where the host has no memory for it.
pub(crate) fn build(
    kind: RegimeKind,
    memory_bytes: u64,
    config: &HostConfig,
    hardware: &Hardware,
    shape: Shape,
    check: bool,
) -> Option<Bench> {
    let pages = memory_bytes.div_ceil(config.host_page.bytes());
    let frames = pages * config.host_page.frames();
    // Host memory costs nothing until it is used: room for the guests, their tables below and their alignment.
    let room = (frames * 2 * u64::from(shape.vms)).saturating_add(1 << 20);
    let host_frames = room.min(PhysMem::<memvirt_addr::HostPhys>::MAX_FRAMES);
    let ad = if config.ept_ad { AdBits::On } else { AdBits::Off };
    let arena = GuestConfig { memory_bytes, ..GuestConfig::default() }.leaf_arena();
    let native = kind == RegimeKind::Native;
    let host = if native { Host::new(frames) } else { host(host_frames, config) };
    let map = || if native { MemoryMap::identity(frames) } else { MemoryMap::new(frames, config.host_page) };
    let place = Place { hardware, config, shape };
    let vendor = Vendor::Vmx;
    let kvm = |kernel| Kvm::new(KvmConfig::new(kernel, vendor));
    let platform: Box<dyn Platform> = match kind {
        RegimeKind::Native => place.engine(host, map, |_, _| Some(Native))?,
        RegimeKind::ShadowWriteProtect => {
            place.engine(host, map, |_, map| Some(WriteProtect::new(map, OnStore::Zap, vendor)))?
        }
        RegimeKind::ShadowPropagate => {
            place.engine(host, map, |_, map| Some(WriteProtect::new(map, OnStore::Propagate, vendor)))?
        }
        RegimeKind::ShadowLazyFill => place.engine(host, map, |_, map| Some(LazyFill::new(map, vendor)))?,
        RegimeKind::ShadowVtlb => place.engine(host, map, |_, map| Some(Vtlb::new(map, vendor)))?,
        RegimeKind::ShadowInvlpgOnly => place.engine(host, map, |_, map| Some(InvlpgOnly::new(map, vendor)))?,
        RegimeKind::ShadowXen => place.engine(host, map, |_, map| Some(Xen::new(map, shape.vcpus, vendor)))?,
        RegimeKind::ShadowVbox => place.engine(host, map, |_, map| Some(Vbox::new(map, vendor)))?,
        RegimeKind::ShadowKvm61 => place.engine(host, map, |_, _| Some(kvm(Kernel::V6_1)))?,
        RegimeKind::ShadowKvm612 => place.engine(host, map, |_, _| Some(kvm(Kernel::V6_12)))?,
        RegimeKind::NestedEpt => place.engine(host, map, |host, _| Nested::<Ept4>::new(host, ad, vendor))?,
        RegimeKind::NestedNpt => {
            place.engine(host, map, |host, _| Nested::<Npt4>::new(host, AdBits::On, Vendor::Svm))?
        }
        RegimeKind::NestedVirtShadow | RegimeKind::NestedVirtPvm => {
            let pvm = kind == RegimeKind::NestedVirtPvm;
            let arrangement = if pvm { Arrangement::Pvm } else { Arrangement::ShadowOnEpt };
            place.engine(host, map, |host, map| ShadowOnEpt::<4>::new(host, map, arrangement, Config::KVM))?
        }
        RegimeKind::NestedVirtEpt => place.engine(host, map, |host, map| EptOnEpt::<4>::new(host, map, Config::KVM))?,
        RegimeKind::Flat => place.engine(host, map, |host, map| Flat::<Guest4>::new(host, map))?,
        RegimeKind::Agile
        | RegimeKind::Agile0
        | RegimeKind::Agile1
        | RegimeKind::Agile2
        | RegimeKind::Agile3
        | RegimeKind::Agile4 => place.engine(host, map, |host, map| Agile::new(host, map, kind.switching()))?,
        RegimeKind::DirectSegment | RegimeKind::DirectSegmentGuest | RegimeKind::DirectSegmentDual => {
            let segments = kind.segments(memory_bytes / PageSize::Size4K.bytes());
            place.engine(host, map, |host, map| DirectSegment::new(host, map, segments))?
        }
        RegimeKind::RegisterWalk => place.engine(host, map, |host, map| RegisterWalk::new(host, map, arena))?,
    };
    Some(if check {
        Bench::Watched(Box::new(Checked::new(platform, shape.vm_of()).with_fault_rule(kind.fault_rule())))
    } else {
        Bench::Plain(platform)
    })
}

/// A virtual machine's host.
fn host(frames: u64, config: &HostConfig) -> Host {
    match config.host_frames {
        FrameOrder::Contiguous => Host::new(frames),
        FrameOrder::Scattered => {
            let first = Hfn::new(1);
            let allocator = ScatteredAllocator::new(first, frames - first.number(), config.host_page, 0);
            Host::with_allocator(frames, Box::new(allocator))
        }
    }
}

/// What a run takes of a machine's hardware.
#[derive(Clone, Debug)]
pub(crate) struct Hardware {
    pub(crate) tlb: Geometry,
    /// The walk caches, where they are modelled.
    pub(crate) mmu: Option<MmuGeometry>,
    /// What the mode `cycles` needs, in that mode.
    pub(crate) timing: Option<TimingSpec>,
}

/// What every engine of a run has in common.
struct Place<'a> {
    hardware: &'a Hardware,
    config: &'a HostConfig,
    shape: Shape,
}

impl Place<'_> {
    /// `regime` makes one for each virtual machine.
    fn engine<R: Regime + 'static>(
        &self,
        mut host: Host,
        map: impl Fn() -> MemoryMap,
        regime: impl Fn(&mut Host, &mut MemoryMap) -> Option<R>,
    ) -> Option<Box<dyn Platform>> {
        let tags = if self.config.tags { Tags::On } else { Tags::Off };
        let Hardware { tlb, mmu, timing } = self.hardware;
        let mut vms = Vec::new();
        for _ in 0..self.shape.vms {
            let mut map = map();
            let regime = regime(&mut host, &mut map)?;
            vms.push((VmSpec { map, vcpus: self.shape.vcpus }, regime));
        }
        let mut engine = Engine::new(host, self.shape.cpus, tlb, tags, vms).with_interrupts(self.config.interrupts);
        if let Some(geometry) = mmu {
            engine = engine.with_walk_caches(geometry);
        }
        if let Some(spec) = timing {
            engine = engine.with_timing(*spec);
        }
        Some(Box::new(engine))
    }
}
