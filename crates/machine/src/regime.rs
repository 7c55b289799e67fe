//! Regimes by name, and the platforms they stand for.

use std::fmt;
use std::str::FromStr;

use memvirt_addr::PageSize;
use memvirt_nested::{AdBits, Nested};
use memvirt_oracle::{Checked, Tally};
use memvirt_pagetable::{Ept4, Npt4, PhysMem};
use memvirt_platform::{Engine, Host, MemoryMap, Native, Platform, Regime, Tags, Vendor, VmSpec};
use memvirt_shadow::{OnStore, WriteProtect};
use memvirt_tlb::Geometry;
use serde::{Serialize, Serializer};

/// How guest addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegimeKind {
    /// A machine without virtualization.
    Native,
    /// Shadow tables, every store to a guest table trapped; the shadow entry is dropped.
    ShadowWriteProtectZap,
    /// Shadow tables, every store to a guest table trapped; the shadow entry is replaced by the new one.
    ShadowWriteProtectPropagate,
    /// Nested paging with Intel's EPT.
    NestedEpt,
    /// Nested paging with AMD's NPT.
    NestedNpt,
}

impl RegimeKind {
    /// Every regime.
    pub const ALL: [Self; 5] = [
        Self::Native,
        Self::ShadowWriteProtectZap,
        Self::ShadowWriteProtectPropagate,
        Self::NestedEpt,
        Self::NestedNpt,
    ];

    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::ShadowWriteProtectZap => "shadow:write-protect",
            Self::ShadowWriteProtectPropagate => "shadow:write-protect/propagate",
            Self::NestedEpt => "nested",
            Self::NestedNpt => "nested:npt",
        }
    }

    /// One line on what the regime is.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Native => "no virtualization: hardware walks the guest's own tables",
            Self::ShadowWriteProtectZap => "every store to a guest table exits; its shadow entry is dropped",
            Self::ShadowWriteProtectPropagate => {
                "every store to a guest table exits; its shadow entry is renewed at once"
            }
            Self::NestedEpt => "Intel EPT: hardware walks both dimensions; only EPT violations exit",
            Self::NestedNpt => "AMD NPT: the same with NPT's permission rules; CR4 accesses exit too (SVM)",
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
            "shadow:write-protect/zap" => "shadow:write-protect",
            other => other,
        };
        Self::ALL.into_iter().find(|kind| kind.name() == alias).ok_or_else(|| {
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
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { host_page: PageSize::Size4K, tags: true, ept_ad: true }
    }
}

/// A platform, watched by the oracle or not.
pub(crate) enum Bench {
    Plain(Box<dyn Platform>),
    Watched(Box<Checked<Box<dyn Platform>>>),
}

impl Bench {
    pub(crate) fn platform(&mut self) -> &mut dyn Platform {
        match self {
            Self::Plain(platform) => platform.as_mut(),
            Self::Watched(checked) => checked.as_mut(),
        }
    }

    /// What the oracle found, where one watched.
    pub(crate) fn tally(&self) -> Option<(Tally, Vec<String>)> {
        match self {
            Self::Plain(_) => None,
            Self::Watched(checked) => {
                Some((*checked.tally(), checked.violations().iter().map(ToString::to_string).collect()))
            }
        }
    }
}

/// Makes the platform of a regime for one virtual machine with one vCPU. `None` where the host has no memory for it.
pub(crate) fn build(
    kind: RegimeKind,
    memory_bytes: u64,
    config: &HostConfig,
    geometry: &Geometry,
    check: bool,
) -> Option<Bench> {
    let pages = memory_bytes.div_ceil(config.host_page.bytes());
    let frames = pages * config.host_page.frames();
    // Host memory costs nothing until it is used: room for the guest, its tables below and their alignment.
    let host_frames = (frames * 2 + (1 << 20)).min(PhysMem::<memvirt_addr::HostPhys>::MAX_FRAMES);
    let ad = if config.ept_ad { AdBits::On } else { AdBits::Off };
    let mut host = Host::new(if kind == RegimeKind::Native { frames } else { host_frames });
    let map = || MemoryMap::new(frames, config.host_page);
    let platform: Box<dyn Platform> = match kind {
        RegimeKind::Native => engine(host, geometry, config, MemoryMap::identity(frames), Native),
        RegimeKind::ShadowWriteProtectZap => {
            let map = map();
            let regime = WriteProtect::new(&map, OnStore::Zap, Vendor::Vmx);
            engine(host, geometry, config, map, regime)
        }
        RegimeKind::ShadowWriteProtectPropagate => {
            let map = map();
            let regime = WriteProtect::new(&map, OnStore::Propagate, Vendor::Vmx);
            engine(host, geometry, config, map, regime)
        }
        RegimeKind::NestedEpt => {
            let regime = Nested::<Ept4>::new(&mut host, ad, Vendor::Vmx)?;
            engine(host, geometry, config, map(), regime)
        }
        RegimeKind::NestedNpt => {
            let regime = Nested::<Npt4>::new(&mut host, AdBits::On, Vendor::Svm)?;
            engine(host, geometry, config, map(), regime)
        }
    };
    Some(if check { Bench::Watched(Box::new(Checked::single(platform))) } else { Bench::Plain(platform) })
}

fn engine<R: Regime + 'static>(
    host: Host,
    geometry: &Geometry,
    config: &HostConfig,
    map: MemoryMap,
    regime: R,
) -> Box<dyn Platform> {
    let tags = if config.tags { Tags::On } else { Tags::Off };
    Box::new(Engine::new(host, 1, geometry, tags, vec![(VmSpec { map, vcpus: 1 }, regime)]))
}
