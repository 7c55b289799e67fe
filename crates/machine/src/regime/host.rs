//! [`HostConfig`]: what a hypervisor and its hardware can be told.

use std::fmt;
use std::str::FromStr;

use memvirt_addr::PageSize;
use memvirt_platform::Interrupts;
use serde::{Serialize, Serializer};

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
