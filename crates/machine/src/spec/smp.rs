//! `[smp]`: what several vCPUs cost each other in time. Without the section everything is an estimate made of the exits' prices.
//!
//! Used by whoever gives vCPUs clocks (`memvirt_smp`); a run of one vCPU meets none of it.

use memvirt_platform::Interrupts;
use serde::{Deserialize, Serialize};

use super::MachineSpec;
use super::figures::{Figure, Listed};
use super::number::text;

/// Which inter-processor interrupts exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InterruptsName {
    /// Sending one does, and receiving one.
    #[default]
    Exiting,
    /// Sending does; the hypervisor posts it to the receiver.
    Posted,
    /// Neither does.
    Virtualized,
}

impl InterruptsName {
    /// The name in machine files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exiting => "exiting",
            Self::Posted => "posted",
            Self::Virtualized => "virtualized",
        }
    }
}

impl From<InterruptsName> for Interrupts {
    fn from(name: InterruptsName) -> Self {
        match name {
            InterruptsName::Exiting => Self::Exiting,
            InterruptsName::Posted => Self::Posted,
            InterruptsName::Virtualized => Self::Virtualized,
        }
    }
}

/// How interrupts between vCPUs are delivered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// Which of them exit.
    pub by: InterruptsName,
    /// Where that stands.
    #[serde(deserialize_with = "text")]
    pub source: String,
}

/// What several vCPUs cost each other, in cycles.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SmpCosts {
    /// How interrupts are delivered.
    pub interrupts: Delivery,
    /// From sending an interrupt to its arrival at a running vCPU.
    pub interrupt: Figure,
    /// What a kick costs the vCPU that is kicked: exit, handler, entry.
    pub kicked: Figure,
    /// From one vCPU to another on the same physical CPU.
    pub world_switch: Figure,
    /// From giving a lock back until the next in its queue has it: its line travels from core to core.
    pub lock_handover: Figure,
}

impl SmpCosts {
    pub(super) fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        let names = ["interrupt", "kicked", "world_switch", "lock_handover"];
        let figures = [&self.interrupt, &self.kicked, &self.world_switch, &self.lock_handover];
        names.into_iter().zip(figures).map(|(name, figure)| Listed { section: "smp", name, unit: "cycles", figure })
    }
}

/// The times of [`SmpCosts`] as numbers, in cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmpTimes {
    /// Which interrupts between vCPUs exit.
    pub interrupts: Interrupts,
    /// From sending an interrupt to its arrival.
    pub interrupt: u64,
    /// What a kick costs the vCPU that is kicked.
    pub kicked: u64,
    /// From one vCPU to another on the same physical CPU.
    pub world_switch: u64,
    /// From giving a lock back until the next in its queue has it.
    pub lock_handover: u64,
}

/// What is taken for a machine whose file has no `[smp]`: estimates. An IPI between cores takes about a microsecond there and
/// back, half of it one way; a line that another core has written comes from there in some 60 ns.
const INTERRUPT: u64 = 1_000;
const LOCK_HANDOVER: u64 = 150;

impl MachineSpec {
    /// What several vCPUs cost each other. Without `[smp]` interrupts exit, a kick is an exit and an entry, and a world switch two
    /// round trips and a context switch of the host.
    #[must_use]
    pub fn smp_times(&self) -> SmpTimes {
        let round_trip = self.exits.round_trip.times(1);
        self.smp.as_ref().map_or_else(
            || SmpTimes {
                interrupts: Interrupts::Exiting,
                interrupt: INTERRUPT,
                kicked: round_trip + self.exits.other.times(1),
                world_switch: 2 * round_trip + self.base.context_switch.times(1),
                lock_handover: LOCK_HANDOVER,
            },
            |smp| SmpTimes {
                interrupts: smp.interrupts.by.into(),
                interrupt: smp.interrupt.times(1),
                kicked: smp.kicked.times(1),
                world_switch: smp.world_switch.times(1),
                lock_handover: smp.lock_handover.times(1),
            },
        )
    }
}
