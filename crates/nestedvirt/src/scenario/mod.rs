//! Events executed on a fresh machine, step by step: one page fault of L2 and a few others.
//!
//! L2 is a kernel and a process, driven through [`memvirt_platform::Engine`] as every guest is: its accesses, its stores to its own tables through
//! a direct map, its CR3 loads. Nothing here counts; [`World`](crate::World) does.
//!
//! **The fault.** A process of L2 stores to a page for the first time. Nothing of the way to it exists: all `N` entries of its
//! tables, from the root's down, are absent. L2's kernel stores them one by one, root first, into tables that it cleared
//! earlier; then the process tries again. The frame it gets is one that L1 has never mapped for L2 and that no table of EPT12
//! but the root covers: the worst case, as in Huang et al., SOSP 2023, section 2.2. L2's kernel has its direct map in SPT12 or
//! EPT02 already. Frames are cleared beforehand, not between fault and retry.

mod machine;

use memvirt_addr::PageSize;
use memvirt_ops::VmId;
use memvirt_platform::{Host, MemoryMap, Regime, WalkRefs};

use crate::config::{Arrangement, Config};
use crate::ept_on_ept::EptOnEpt;
use crate::hypervisor::Nesting;
use crate::shadow_on_ept::ShadowOnEpt;
use crate::world::{Counts, Step};
use machine::{HOST_FRAMES, Layout, Machine};

/// Whether L0 has given L1 its memory before the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nested01State {
    /// EPT01 maps all of L1 that the fault needs. What the published counts take for granted.
    Warm,
    /// L0 backs and maps each frame of L1 when it is first touched.
    Cold,
}

/// What is to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Who keeps which tables.
    pub arrangement: Arrangement,
    /// The levels of L2's tables, and of EPT12: 2 to 5. Others are taken for the nearest.
    pub levels: u8,
    /// The hypervisors' switches.
    pub config: Config,
    /// Whether L1's memory is there.
    pub ept01: Nested01State,
}

impl Spec {
    /// The published case: [`Config::PUBLISHED`], EPT01 warm.
    #[must_use]
    pub const fn published(arrangement: Arrangement, levels: u8) -> Self {
        Self { arrangement, levels, config: Config::PUBLISHED, ept01: Nested01State::Warm }
    }
}

/// What one fault did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Everything that happened, in order.
    pub steps: Vec<Step>,
    /// The sums.
    pub counts: Counts,
    /// The references of one walk for the page after that, with all caches cold.
    pub walk: WalkRefs,
}

/// Executes the fault.
#[must_use]
pub fn one_fault(spec: &Spec) -> Option<Fault> {
    dispatch(spec, FaultRun)
}

/// Something else that L2 or a hypervisor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    /// A fault on the page beside one that is mapped: one entry to fill.
    NeighbourFault,
    /// L2 loads CR3.
    Cr3Load,
    /// INVLPG.
    Invlpg,
    /// A hypercall of L2 to its hypervisor.
    Hypercall,
    /// What fork does to the parent: 64 leaf entries lose their write permission, then a flush by CR3 load.
    Fork64,
    /// L1 takes a page from L2, and L2 touches it again.
    L1Swap,
    /// L0 takes a page from L1 in which L2's page lies, and L2 touches it again.
    L0Swap,
}

impl Happening {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::NeighbourFault, Self::Cr3Load, Self::Invlpg, Self::Hypercall, Self::Fork64, Self::L1Swap, Self::L0Swap];

    /// The stable key in results.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::NeighbourFault => "neighbour_fault",
            Self::Cr3Load => "cr3_load",
            Self::Invlpg => "invlpg",
            Self::Hypercall => "hypercall",
            Self::Fork64 => "fork_64",
            Self::L1Swap => "l1_swap",
            Self::L0Swap => "l0_swap",
        }
    }

    /// In words.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::NeighbourFault => "fault on the page beside a mapped one",
            Self::Cr3Load => "CR3 load",
            Self::Invlpg => "INVLPG",
            Self::Hypercall => "hypercall to L1",
            Self::Fork64 => "fork: 64 entries lose W, then a CR3 load",
            Self::L1Swap => "L1 takes a page from L2; L2 touches it",
            Self::L0Swap => "L0 takes a page from L1; L2 touches it",
        }
    }
}

/// Executes `what` after the fault; what that alone counted.
#[must_use]
pub fn happening(spec: &Spec, what: Happening) -> Option<Counts> {
    dispatch(spec, HappeningRun(what))
}

/// Something to be done on a machine of any depth and arrangement.
trait Run {
    type Result;
    fn run<R: Regime + Nesting, const N: u8>(self, machine: Machine<R, N>) -> Option<Self::Result>;
}

struct FaultRun;

impl Run for FaultRun {
    type Result = Fault;

    fn run<R: Regime + Nesting, const N: u8>(self, mut machine: Machine<R, N>) -> Option<Fault> {
        let before = machine.counts();
        machine.act(|regime| regime.world_mut().record());
        machine.fault()?;
        let counts = machine.counts().since(&before);
        let steps = machine.engine.regime(VmId::FIRST).world().steps().to_vec();
        Some(Fault { steps, counts, walk: machine.cold_walk()? })
    }
}

struct HappeningRun(Happening);

impl Run for HappeningRun {
    type Result = Counts;

    fn run<R: Regime + Nesting, const N: u8>(self, mut machine: Machine<R, N>) -> Option<Counts> {
        machine.fault()?;
        machine.prepare(self.0)?;
        let before = machine.counts();
        machine.perform(self.0)?;
        Some(machine.counts().since(&before))
    }
}

fn dispatch<T: Run>(spec: &Spec, run: T) -> Option<T::Result> {
    match spec.levels {
        0..=2 => arranged::<T, 2>(spec, run),
        3 => arranged::<T, 3>(spec, run),
        4 => arranged::<T, 4>(spec, run),
        _ => arranged::<T, 5>(spec, run),
    }
}

fn arranged<T: Run, const N: u8>(spec: &Spec, run: T) -> Option<T::Result> {
    let mut host = Host::new(HOST_FRAMES);
    let map = MemoryMap::new(Layout::<N>::MEMORY, PageSize::Size1G);
    match spec.arrangement {
        Arrangement::EptOnEpt => {
            let regime = EptOnEpt::<N>::new(&mut host, &map, spec.config)?;
            run.run(Machine::<_, N>::boot(host, map, regime, spec)?)
        }
        shadow => {
            let regime = ShadowOnEpt::<N>::new(&mut host, &map, shadow, spec.config)?;
            run.run(Machine::<_, N>::boot(host, map, regime, spec)?)
        }
    }
}

#[cfg(test)]
mod tests;
