//! Walks and their references: predicted from the stream by stack distances, and counted.

use memvirt_addr::PageSize;
use memvirt_costmodel::fit::relative_error;
use memvirt_machine::{HostConfig, MachineSpec, Measure, RegimeKind, Setup, run};
use memvirt_workload::Workload;
use serde::Serialize;

use super::guests::{SEED, bare, cut, drive, real};
use super::stream::{Crude, Expected, Hardware, Stream, Tables};
use crate::error::LabError;
use crate::input::Input;
use crate::switches::Overrides;

/// Workloads that touch memory all along: what is warm stays as it is.
pub const WORKLOADS: [&str; 12] = [
    "b-tree",
    "database",
    "graph",
    "hash-join",
    "jvm",
    "key-value",
    "pointer-chase",
    "sequential",
    "stream",
    "uniform",
    "xsbench",
    "zipf",
];

/// Machines: one without and one with a nested TLB.
pub const MACHINES: [&str; 2] = ["skylake-sp", "zen4"];

/// One guest, warm, in one kind of hardware.
#[derive(Clone, Debug, Serialize)]
pub struct WalkPoint {
    /// The workload.
    pub workload: &'static str,
    /// The machine.
    pub machine: &'static str,
    /// Native or nested.
    pub regime: RegimeKind,
    /// The guest's pages.
    pub guest_page: String,
    /// Walks counted.
    pub walks: f64,
    /// References of walks counted.
    pub refs: f64,
    /// What the order of use within sets expects.
    pub expected: Expected,
    /// What cruder models expect.
    pub crude: Crude,
}

impl WalkPoint {
    /// The error of the walks expected.
    #[must_use]
    pub fn walk_error(&self) -> f64 {
        relative_error(self.walks, real(self.expected.walks))
    }

    /// The error of the references expected.
    #[must_use]
    pub fn ref_error(&self) -> f64 {
        relative_error(self.refs, real(self.expected.refs()))
    }

    /// The error of walks, were the TLB's second level fully associative.
    #[must_use]
    pub fn full_error(&self) -> f64 {
        relative_error(self.walks, self.crude.full)
    }

    /// The error of walks, were pages spread over sets at random.
    #[must_use]
    pub fn binomial_error(&self) -> f64 {
        relative_error(self.walks, self.crude.binomial)
    }
}

/// One guest to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Warm {
    /// The workload.
    pub workload: &'static str,
    /// The machine.
    pub machine: &'static str,
    /// The guest's pages.
    pub guest_page: PageSize,
    /// Accesses, half of them to warm up.
    pub accesses: u64,
}

impl Warm {
    /// The guests of these workloads, of so many accesses each.
    #[must_use]
    pub fn all(accesses: u64, workloads: &[&'static str]) -> Vec<Self> {
        let sizes = [PageSize::Size4K, PageSize::Size2M];
        let of = |workload: &&'static str| {
            let workload = *workload;
            let one = move |(machine, guest_page)| Self { workload, machine, guest_page, accesses };
            MACHINES.into_iter().flat_map(move |machine| sizes.map(|size| (machine, size))).map(one)
        };
        workloads.iter().flat_map(of).collect()
    }

    /// Predicts and counts, natively and nested.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made.
    pub fn measure(self) -> Result<Vec<WalkPoint>, LabError> {
        let (workload, machine) = (cut(self.workload, self.accesses)?, MachineSpec::load(self.machine)?);
        let overrides = Overrides { guest_page: Some(self.guest_page), ..Overrides::default() };
        let guest = overrides.guest(&Input::Workload(Box::new(workload.clone())));
        let warm_up = workload.facts().accesses.value().min(self.accesses) / 2;
        let hardware = |regime| match regime {
            RegimeKind::Native => Hardware { walk_caches: true, reads: Tables::Guest, largest: PageSize::Size1G },
            _ => Hardware { walk_caches: true, reads: Tables::Nested, largest: PageSize::Size4K },
        };
        let each = [RegimeKind::Native, RegimeKind::NestedEpt].map(|regime| {
            let measure = Measure { prefault: true, warm_up_accesses: warm_up, ..Measure::default() };
            let host = HostConfig { walk_caches: true, ..HostConfig::default() };
            let setup = Setup { regime, guest, host, machine: machine.clone(), measure, check: false };
            let counted = run(&setup, &mut workload.generator(SEED), &mut |_| {})?.result;
            let (expected, crude) = expect(&workload, guest, &machine, hardware(regime), warm_up)?;
            Ok(WalkPoint {
                workload: self.workload,
                machine: self.machine,
                regime,
                guest_page: self.guest_page.name().to_owned(),
                walks: real(counted.walks),
                refs: real(counted.walk_refs.total),
                expected,
                crude,
            })
        });
        each.into_iter().collect()
    }
}

/// What the stream says of a workload whose memory is there, after a warm-up.
fn expect(
    workload: &Workload,
    guest: memvirt_machine::GuestConfig,
    machine: &MachineSpec,
    hardware: Hardware,
    warm_up: u64,
) -> Result<(Expected, Crude), LabError> {
    let mut stream = Stream::new(bare(guest, machine)?, machine, &[hardware])?;
    let mut warming = true;
    drive(&mut workload.generator(SEED), guest, true, &mut stream, |guest, stream| {
        if warming && guest.stats().user_accesses >= warm_up {
            warming = false;
            stream.restart();
        }
    })?;
    Ok((stream.expected().next().unwrap_or_default(), stream.crude()))
}
