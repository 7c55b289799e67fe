//! Regimes by name, and the platforms they stand for.

use std::fmt;
use std::str::FromStr;

use memvirt_addr::{Gfn, Gva, Hfn, PageSize};
use memvirt_alternatives::{Agile, DirectSegment, Flat, GuestSegment, Mode, Policy, RegisterWalk, Switching};
use memvirt_guest::{DIRECT_MAP, GuestConfig, TableFrames};
use memvirt_nested::{AdBits, Nested};
use memvirt_nestedvirt::{Arrangement, Config, EptOnEpt, ShadowOnEpt};
use memvirt_ops::VmId;
use memvirt_oracle::{Checked, FaultRule, Tally};
use memvirt_pagetable::{Attrs, Ept4, Guest4, Npt4, PhysMem, ScatteredAllocator};
use memvirt_platform::{
    Engine, Host, Interrupts, MemoryMap, MmuGeometry, Native, Platform, Regime, Tags, TimingSpec, Vendor, VmSpec,
};
use memvirt_shadow::kvm::{Kernel, Kvm, KvmConfig};
use memvirt_shadow::{InvlpgOnly, LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use memvirt_tlb::Geometry;
use serde::{Serialize, Serializer};

macro_rules! regimes {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $about:literal;)*) => {
        /// How guest addresses are translated.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RegimeKind {
            $($(#[$doc])* $kind,)*
        }

        impl RegimeKind {
            /// Every regime.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The name on the command line and in results.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// One line on what the regime is.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Self::$kind => $about,)*
                }
            }
        }
    };
}

regimes! {
    /// A machine without virtualization.
    Native = "native", "no virtualization: hardware walks the guest's own tables";
    /// Shadow tables, every store to a guest table trapped; the shadow entry is dropped.
    ShadowWriteProtect = "shadow:write-protect", "every store to a guest table exits; its shadow entry is dropped";
    /// Shadow tables, every store to a guest table trapped; the shadow entry is replaced by the new one.
    ShadowPropagate = "shadow:write-protect/propagate",
        "every store to a guest table exits; its shadow entry is renewed at once";
    /// Shadow tables without write protection, kept per CR3 and resynced at INVLPG and CR3 loads.
    ShadowLazyFill = "shadow:lazy-fill",
        "no write protection: filled on first touch, kept per CR3, resynced at INVLPG and CR3 loads";
    /// Intel's virtual TLB: emptied at each CR3 load.
    ShadowVtlb = "shadow:vtlb", "Intel's virtual TLB: filled on first touch, emptied at each CR3 load";
    /// KVM's shadow MMU as of Linux 6.1.
    ShadowKvm61 = "shadow:kvm", "KVM's shadow MMU of Linux 6.1: leaf tables go out of sync, upper levels trap";
    /// KVM's shadow MMU as of Linux 6.12.
    ShadowKvm612 = "shadow:kvm-6.12", "KVM's shadow MMU of Linux 6.12";
    /// Xen's shadow paging.
    ShadowXen = "shadow:xen", "Xen: at most three leaf tables per vCPU out of sync, with snapshots";
    /// VirtualBox's shadow paging.
    ShadowVbox = "shadow:vbox", "VirtualBox: every table monitored; leaf tables stored to often turn dirty, 16 at most";
    /// The naive policy, which is wrong.
    ShadowInvlpgOnly = "shadow:invlpg-only",
        "the naive one: entries go at INVLPG only; hands out wrong translations to guests that flush otherwise";
    /// Nested paging with Intel's EPT.
    NestedEpt = "nested", "Intel EPT: hardware walks both dimensions; only EPT violations exit";
    /// Nested paging with AMD's NPT.
    NestedNpt = "nested:npt", "AMD NPT: the same with NPT's permission rules; CR4 accesses exit too (SVM)";
    /// The guest is an L2 whose tables L1 shadows, under L0's EPT.
    NestedVirtShadow = "nested-virt:shadow-on-ept",
        "nested virtualization: L1 shadows the guest's tables, hardware walks the shadow under L0's EPT; exits pass through L0";
    /// The guest is an L2 whose EPT of L1 is merged with L0's.
    NestedVirtEpt = "nested-virt:ept-on-ept",
        "nested virtualization: L1 keeps an EPT, which L0 merges with its own; L1's stores to it exit";
    /// The guest is an L2 that L1 shadows and reaches without L0.
    NestedVirtPvm = "nested-virt:pvm",
        "nested virtualization as PVM does it: L1 shadows the guest's tables, a switcher changes between both without L0";
    /// A flat nested table.
    Flat = "flat", "flat nested table (ISCA 2012): guest tables over one linear table of the host; 9 references cold";
    /// Agile paging that follows the guest's stores.
    Agile = "agile", "agile paging (ISCA 2016): shadow tables, nested from where the guest changes its tables";
    /// Agile paging, all shadow.
    Agile0 = "agile:0", "agile paging with no level nested: 4 references cold";
    /// Agile paging with leaf tables nested.
    Agile1 = "agile:1", "agile paging with leaf tables nested: 8 references cold";
    /// Agile paging with two levels nested.
    Agile2 = "agile:2", "agile paging with the lowest two levels nested: 12 references cold";
    /// Agile paging with three levels nested.
    Agile3 = "agile:3", "agile paging with the lowest three levels nested: 16 references cold";
    /// Agile paging with all levels nested.
    Agile4 = "agile:4", "agile paging with all levels nested, the root named by its host frame: 20 references cold";
    /// A direct segment of the host.
    DirectSegment = "direct-segment",
        "direct segment (MICRO 2014), VMM direct: guest tables over host memory translated by registers; 4 references cold";
    /// A direct segment of the guest kernel.
    DirectSegmentGuest = "direct-segment:guest",
        "direct segment, guest direct: the guest kernel's direct map by registers, the host by EPT; all else as nested";
    /// Direct segments of both.
    DirectSegmentDual = "direct-segment:dual",
        "direct segment, dual direct: the guest kernel's direct map by registers in both dimensions, 0 references; all else VMM direct";
    /// Registers that name leaf tables.
    RegisterWalk = "register-walk",
        "registers name leaf tables (DMT, ASPLOS 2024): 3 references; the guest keeps its leaf tables in arrays for it";
}

impl RegimeKind {
    /// Whether the regime never hands out a translation that the guest has flushed.
    #[must_use]
    pub const fn is_correct(self) -> bool {
        !matches!(self, Self::ShadowInvlpgOnly)
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

    /// The guest's switches with those that the regime cannot do without.
    #[must_use]
    pub fn asks_of(self, guest: GuestConfig) -> GuestConfig {
        match self {
            Self::RegisterWalk => GuestConfig { table_frames: TableFrames::LeafArrays, ..guest },
            _ => guest,
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

impl fmt::Display for RegimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RegimeKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let alias = match s {
            "nested:ept" => "nested",
            "direct-segment:vmm" => "direct-segment",
            "shadow:write-protect/zap" => "shadow:write-protect",
            "shadow:kvm-6.1" | "shadow:unsync" => "shadow:kvm",
            other => other,
        };
        Self::ALL.iter().copied().find(|kind| kind.name() == alias).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("unknown regime `{s}`; known: {}", known.join(", "))
        })
    }
}

impl Serialize for RegimeKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Switches of the hypervisor and its hardware. The defaults are stated with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostConfig {
    /// The host pages behind the guest's memory; default 4 KiB.
    #[serde(serialize_with = "crate::result::page_size")]
    pub host_page: PageSize,
    /// Whether translations are tagged with a VPID or ASID and survive exits; default yes.
    pub tags: bool,
    /// Whether EPT maintains accessed and dirty bits; default yes. NPT always does.
    pub ept_ad: bool,
    /// Whether the machine's walk caches are modelled; default no, and yes in the mode `cycles`.
    pub walk_caches: bool,
    /// In which order the host hands out its frames; default contiguous. A machine without virtualization has no host.
    pub host_frames: FrameOrder,
    /// The limit on shadow pages, where it is not the regime's own (KVM's: one page for 50 guest frames); no less than 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_page_limit: Option<u32>,
    /// Which inter-processor interrupts exit; default: sending one and receiving one.
    #[serde(skip_serializing_if = "is_default", serialize_with = "interrupts")]
    pub interrupts: Interrupts,
}

fn is_default(interrupts: &Interrupts) -> bool {
    *interrupts == Interrupts::default()
}

fn interrupts<S: Serializer>(which: &Interrupts, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match which {
        Interrupts::Exiting => "exiting",
        Interrupts::Posted => "posted",
        Interrupts::Virtualized => "virtualized",
    })
}

/// In which order a host hands out frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameOrder {
    /// Upwards, as a host does that has just started.
    #[default]
    Contiguous,
    /// In a pseudo-random order, as of a host that has been up for long. Pages of the host's size stay whole.
    Scattered,
}

impl FromStr for FrameOrder {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "contiguous" => Ok(Self::Contiguous),
            "scattered" => Ok(Self::Scattered),
            _ => Err(format!("unknown order of frames `{s}`; known: contiguous, scattered")),
        }
    }
}

impl fmt::Display for FrameOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contiguous => "contiguous",
            Self::Scattered => "scattered",
        })
    }
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            host_page: PageSize::Size4K,
            tags: true,
            ept_ad: true,
            walk_caches: false,
            host_frames: FrameOrder::Contiguous,
            shadow_page_limit: None,
            interrupts: Interrupts::Exiting,
        }
    }
}

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
