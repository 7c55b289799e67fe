//! Evidence that takes many runs each: many vCPUs, many processes, and the plane of who wins.
//!
//! Each grid has a full and a quick form, and stands with the command that makes it alone.

use memvirt_addr::PageSize;
use memvirt_machine::{MachineSpec, Measure, RegimeKind};
use memvirt_workload::Workload;
use rayon::prelude::*;
use serde::Serialize;

use super::evidence::{Done, Effort};
use super::fair::THREE;
use crate::error::LabError;
use crate::footprint::{FootprintPlan, FootprintTable, Use};
use crate::phase::{Phase, VcpuPhase};
use crate::plan::{Plan, Size};
use crate::scale::{Interrupts, ScalePlan, ScaleTable, Sharing};
use crate::switches::Overrides;
use crate::words;

/// A workload on more and more vCPUs.
#[derive(Debug, Serialize)]
pub struct Scaled {
    /// A short name, for anchors.
    pub id: &'static str,
    /// What it does, in a word or two.
    pub title: &'static str,
    /// The runs.
    pub table: ScaleTable,
}

/// More and more processes.
#[derive(Debug, Serialize)]
pub struct Residents {
    /// A short name, for anchors.
    pub id: &'static str,
    /// What they do with their memory.
    pub title: &'static str,
    /// The runs.
    pub table: FootprintTable,
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Many {
    /// vCPUs.
    pub scaling: Vec<Scaled>,
    /// Processes.
    pub footprints: Vec<Residents>,
    /// Who wins, on one vCPU.
    pub phase: Phase,
    /// The same on several.
    pub vcpu_phase: VcpuPhase,
}

const KVM: RegimeKind = RegimeKind::ShadowKvm61;

/// One of the things to be run.
#[derive(Clone, Copy)]
enum Job {
    Scale(usize),
    Footprint(usize),
    Phase,
    VcpuPhase,
}

enum Made {
    Scale(Scaled),
    Footprint(Residents),
    Phase(Phase),
    VcpuPhase(VcpuPhase),
}

/// The longest first.
fn jobs() -> Vec<Job> {
    let mut jobs: Vec<_> = (0..SCALES.len()).map(Job::Scale).collect();
    jobs.extend([Job::Phase, Job::VcpuPhase]);
    jobs.extend((0..FOOTPRINTS.len()).map(Job::Footprint));
    jobs
}

impl Many {
    /// Whether plans take the machine: seen before anything is measured.
    pub(super) fn check(machine: &MachineSpec) -> Result<(), LabError> {
        plane(machine).map(drop)
    }

    /// How many steps it takes.
    pub(super) fn steps() -> usize {
        jobs().len()
    }

    /// The runs of many vCPUs alone.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made.
    pub(crate) fn scaling(effort: Effort, machine: &MachineSpec) -> Result<Vec<Scaled>, LabError> {
        SCALES.par_iter().with_max_len(1).map(|scale| scale.run(effort, machine)).collect()
    }

    /// The runs of many processes alone.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made.
    pub(crate) fn footprints(effort: Effort, machine: &MachineSpec) -> Result<Vec<Residents>, LabError> {
        FOOTPRINTS.par_iter().with_max_len(1).map(|footprint| footprint.run(effort, machine)).collect()
    }

    /// Runs everything, spread over rayon's threads; `observer` hears of each step.
    pub(super) fn measure(
        effort: Effort,
        machine: &MachineSpec,
        of: usize,
        observer: &(dyn Fn(Done) + Sync),
    ) -> Result<Self, LabError> {
        let one = |job: &Job| {
            let (made, what) = match *job {
                Job::Scale(i) => (Made::Scale(SCALES[i].run(effort, machine)?), format!("{} by vCPUs", SCALES[i].id)),
                Job::Footprint(i) => {
                    (Made::Footprint(FOOTPRINTS[i].run(effort, machine)?), format!("{} by processes", FOOTPRINTS[i].id))
                }
                Job::Phase => (Made::Phase(phase(effort, machine)?), "phase diagram".to_owned()),
                Job::VcpuPhase => {
                    let vcpus = VcpuPhase::VCPUS[usize::from(effort == Effort::Quick)];
                    let planes = VcpuPhase::measure(size(effort), machine, vcpus, None)?;
                    (Made::VcpuPhase(planes), "phase by vCPUs".to_owned())
                }
            };
            observer(Done { what, of });
            Ok(made)
        };
        let made = jobs().par_iter().with_max_len(1).map(one).collect::<Result<Vec<_>, LabError>>()?;
        let (mut scaling, mut footprints) = (Vec::new(), Vec::new());
        let (mut phase, mut vcpu_phase) = (None, None);
        for one in made {
            match one {
                Made::Scale(one) => scaling.push(one),
                Made::Footprint(one) => footprints.push(one),
                Made::Phase(one) => phase = Some(one),
                Made::VcpuPhase(one) => vcpu_phase = Some(one),
            }
        }
        let missing = || LabError::Model("the plane was not measured".to_owned());
        Ok(Self { scaling, footprints, phase: phase.ok_or_else(missing)?, vcpu_phase: vcpu_phase.ok_or_else(missing)? })
    }
}

const fn size(effort: Effort) -> Size {
    match effort {
        Effort::Quick => Size::Quick,
        Effort::Full => Size::Full,
    }
}

/// The plan of the plane of one vCPU; of its regimes those that the figure compares.
fn plane(machine: &MachineSpec) -> Result<Plan, LabError> {
    let failed = |error| LabError::Plan(Box::new(error));
    let names = THREE.map(RegimeKind::name);
    let plan = Plan::resolve("phase".as_ref()).and_then(|plan| plan.with_axis("regime", &names)).map_err(failed)?;
    let file = machine.path().map(|path| path.to_string_lossy().into_owned());
    plan.with_axis("machine", &[file.as_deref().unwrap_or(&machine.name)]).map_err(failed)
}

fn phase(effort: Effort, machine: &MachineSpec) -> Result<Phase, LabError> {
    let failed = |error| LabError::Plan(Box::new(error));
    let plan = plane(machine)?;
    let table = plan.measure(size(effort)).map_err(failed)?;
    let points = plan.points(size(effort)).map_err(failed)?;
    Phase::of(&table, &points, machine, KVM)
}

/// A workload over numbers of vCPUs: full and quick.
struct Scale {
    id: &'static str,
    title: &'static str,
    workload: &'static str,
    footprint: Option<u64>,
    factors: [f64; 2],
    /// Accesses of each vCPU before time begins; where there are any, memory is there from the beginning.
    warm_up: u64,
    sharing: Sharing,
    most: u16,
}

const SCALES: [Scale; 5] = [
    Scale {
        id: "forks",
        title: "processes made and ended",
        workload: "forkwait",
        footprint: None,
        factors: [0.05, 0.01],
        warm_up: 0,
        sharing: Sharing::Tenants,
        most: 64,
    },
    Scale {
        id: "faults",
        title: "page faults",
        workload: "touch-and-free",
        footprint: None,
        factors: [0.2, 0.02],
        warm_up: 0,
        sharing: Sharing::Tenants,
        most: 64,
    },
    Scale {
        id: "unmapping",
        title: "threads that unmap and protect",
        workload: "churn",
        footprint: None,
        factors: [0.01, 0.002],
        warm_up: 0,
        sharing: Sharing::Threads,
        most: 64,
    },
    Scale {
        id: "misses",
        title: "TLB misses",
        workload: "uniform",
        footprint: Some(8 << 20),
        factors: [0.25, 0.05],
        warm_up: 20_000,
        sharing: Sharing::Tenants,
        most: 64,
    },
    Scale {
        id: "computation",
        title: "computation",
        workload: "compute",
        footprint: None,
        factors: [0.5, 0.1],
        warm_up: 10_000,
        sharing: Sharing::Tenants,
        most: 64,
    },
];

impl Scale {
    fn run(&self, effort: Effort, machine: &MachineSpec) -> Result<Scaled, LabError> {
        let (factor, vcpus, regimes) = match effort {
            Effort::Quick => (self.factors[1], vec![1, 4, 16], THREE.to_vec()),
            Effort::Full => {
                let regimes = vec![RegimeKind::Native, KVM, RegimeKind::ShadowWriteProtect, RegimeKind::NestedEpt];
                (self.factors[0], (0..).map(|i| 1 << i).take_while(|n| *n <= self.most).collect(), regimes)
            }
        };
        let workload = Workload::find(self.workload)?.scaled(factor)?;
        let workload = self.footprint.map_or(Ok(workload.clone()), |bytes| workload.with_footprint(bytes))?;
        let list = |items: Vec<String>| items.join(",");
        let mut command = format!(
            "memvirt scale --workload {} --vcpus {} --regimes {} --scale {factor} --interrupts exiting",
            self.workload,
            list(vcpus.iter().map(u16::to_string).collect()),
            list(regimes.iter().map(RegimeKind::to_string).collect())
        );
        if self.sharing == Sharing::Threads {
            command += " --threads";
        }
        if let Some(bytes) = self.footprint {
            command += &format!(" --footprint {bytes}");
        }
        if self.warm_up > 0 {
            command += &format!(" --prefault --warm-up {}", self.warm_up);
        }
        command += &format!(" --machine {}", words::of_machine(machine));
        let plan = ScalePlan {
            sharing: self.sharing,
            interrupts: Interrupts::Exiting,
            measure: Measure { warm_up_accesses: self.warm_up, prefault: self.warm_up > 0, ..Measure::default() },
            ..ScalePlan::usual(workload, regimes, vcpus, machine, command)
        };
        Ok(Scaled { id: self.id, title: self.title, table: plan.run()? })
    }
}

/// Processes over numbers of them.
struct Footprint {
    id: &'static str,
    title: &'static str,
    /// Bytes of each: full and quick.
    bytes: [u64; 2],
    usage: Use,
    page: PageSize,
}

const FOOTPRINTS: [Footprint; 4] = [
    Footprint {
        id: "dense-4k",
        title: "every page used, 4 KiB pages",
        bytes: [16 << 20, 4 << 20],
        usage: Use::Dense,
        page: PageSize::Size4K,
    },
    Footprint {
        id: "sparse-4k",
        title: "2 % of the pages used, 4 KiB pages",
        bytes: [64 << 20, 64 << 20],
        usage: Use::Sparse(0.02),
        page: PageSize::Size4K,
    },
    Footprint {
        id: "dense-2m",
        title: "every page used, 2 MiB pages of guest and host",
        bytes: [64 << 20, 16 << 20],
        usage: Use::Dense,
        page: PageSize::Size2M,
    },
    Footprint {
        id: "sparse-2m",
        title: "one 4 KiB page in twenty stored to, 2 MiB pages of guest and host (every one is used)",
        bytes: [1 << 30, 256 << 20],
        usage: Use::Sparse(0.05),
        page: PageSize::Size2M,
    },
];

impl Footprint {
    fn run(&self, effort: Effort, machine: &MachineSpec) -> Result<Residents, LabError> {
        let (bytes, processes) = match effort {
            Effort::Quick => (self.bytes[1], vec![1, 4, 16]),
            Effort::Full => (self.bytes[0], vec![1, 2, 4, 8, 16, 32, 64]),
        };
        let usage = match self.usage {
            Use::Dense => "--dense".to_owned(),
            Use::Sparse(share) => format!("--sparse {share}"),
        };
        let numbers: Vec<String> = processes.iter().map(u32::to_string).collect();
        let names: Vec<&str> = THREE.iter().map(|regime| regime.name()).collect();
        let page = self.page.name();
        let command = format!(
            "memvirt footprint --processes {} --footprint {bytes} {usage} --page {page} --host-page {page} --regimes {} --machine {}",
            numbers.join(","),
            names.join(","),
            words::of_machine(machine)
        );
        let overrides = Overrides { guest_page: Some(self.page), host_page: Some(self.page), ..Overrides::default() };
        let plan = FootprintPlan {
            workload: Workload::find("footprint")?,
            regimes: THREE.to_vec(),
            processes,
            footprint: Some(bytes),
            usage: Some(self.usage),
            rounds: Some(2),
            shadow_page_limit: None,
            overrides,
            machine: machine.clone(),
            seed: 0,
            threads: None,
            command,
        };
        Ok(Residents { id: self.id, title: self.title, table: plan.run()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole report once failed over it, after half of its runs.
    #[test]
    fn a_machine_of_a_user_s_own_file_has_its_plane() {
        let text = include_str!("../../../machine/models/zen4.toml").replace("name = \"zen4\"", "name = \"mine\"");
        // Plans take paths relative to where they are run.
        let dir = tempfile::tempdir_in(".").unwrap();
        let file = std::path::Path::new(dir.path().file_name().unwrap()).join("mine.toml");
        std::fs::write(&file, text).unwrap();
        let plane = phase(Effort::Quick, &MachineSpec::load(&file).unwrap()).unwrap();
        assert_eq!(plane.machine, "mine");
        let absolute = MachineSpec::load(file.canonicalize().unwrap()).unwrap();
        assert!(Many::check(&absolute).unwrap_err().to_string().contains("relative to where the plan is run"));
    }
}
