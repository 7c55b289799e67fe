//! What is measured for the comparison with published figures alone.

use memvirt_addr::PageSize;
use memvirt_machine::{HostConfig, MachineSpec, Measure, Mode, RegimeKind, TableFrames};
use memvirt_workload::Workload;
use rayon::prelude::*;
use serde::Serialize;

use super::walks;
use crate::claims::{Effort, PLAIN, Task};
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::experiment::Experiment;
use crate::footprint::{FootprintPlan, FootprintTable, Use as Used};
use crate::input::Input;
use crate::scale::{ScalePlan, ScaleTable};
use crate::switches::Overrides;
use crate::walk_latency::WalkLatency;
use crate::words;

/// Measured for these rows alone.
#[derive(Debug, Serialize)]
pub struct Own {
    /// References of the cold walks of section 1, in their order.
    #[serde(skip)]
    pub(super) walks: Vec<usize>,
    /// The walks of GUPS over 128 GiB, where they were made.
    #[serde(skip)]
    pub(super) gups: Option<WalkLatency>,
    /// A guest's boot with the switches that its file asks for.
    pub boot: Comparison,
    /// Native, KVM, nested, flat and, where there is time for its policy to settle, agile.
    pub alternatives: Vec<Comparison>,
    /// Nested paging without walk caches in the nested dimension, then with them.
    pub one_dimension: Vec<(Comparison, Comparison)>,
    /// Zapping against updating at a trapped store.
    pub updating: Vec<Comparison>,
    /// Shadow paging against AMD's nested paging.
    pub npt: Vec<Comparison>,
    /// Page faults on more and more vCPUs.
    pub scaled: ScaleTable,
    /// Tables of dense memory.
    pub dense: FootprintTable,
}

const FIVE: [RegimeKind; 5] =
    [RegimeKind::Native, RegimeKind::ShadowKvm61, RegimeKind::NestedEpt, RegimeKind::Flat, RegimeKind::Agile];

/// Programs that miss the TLB and programs that change their tables, and how many times as long they run: agile paging takes a
/// table back to shadow paging after 2^20 TLB misses without a store to it, so that both of the first must make some millions.
const ALTERNATIVES: [(&str, f64); 6] = [
    ("gups", 10.0),
    ("xsbench", 16.0),
    ("jvm", 1.0),
    ("kernel-build", 1.0),
    ("key-value", 1.0),
    ("touch-and-free", 1.0),
];
const MISSING: [&str; 5] = ["b-tree", "graph", "gups", "hash-join", "xsbench"];
const MMU_BOUND: [&str; 4] = ["forkwait", "kernel-build", "touch-and-free", "web-server"];

impl Own {
    /// How often [`measure`](Self::measure) tells of a step.
    pub(crate) const STEPS: usize = 5;

    /// Measures all of it; `told` hears of each step.
    ///
    /// # Errors
    ///
    /// [`LabError`] where a run cannot be made.
    pub fn measure(effort: Effort, machine: &MachineSpec, told: &(dyn Fn(&str) + Sync)) -> Result<Self, LabError> {
        let run = |tasks: Vec<Task>, machine: &MachineSpec| -> Result<Vec<_>, LabError> {
            tasks.par_iter().with_max_len(1).map(|task| task.run(effort, machine)).collect()
        };
        let timed = |names: &[&'static str], regimes: &[RegimeKind]| -> Vec<Task> {
            names.iter().map(|name| Task::timed(name, regimes, PLAIN)).collect()
        };
        let beside = if effort == Effort::Quick { &FIVE[..4] } else { &FIVE[..] };
        let alternatives = ALTERNATIVES.map(|(name, times)| Task { times, ..Task::timed(name, beside, PLAIN) });
        let boot = Task::counted("boot", &[RegimeKind::Native, RegimeKind::ShadowKvm61], Overrides::default());
        let updating = [RegimeKind::Native, RegimeKind::ShadowWriteProtect, RegimeKind::ShadowPropagate];
        let updating = ["touch-and-free", "kernel-build"].map(|name| Task::counted(name, &updating, PLAIN));
        let one = run(timed(&MISSING, &[RegimeKind::NestedEpt]), &without_host_caches(machine))?;
        let two = run(timed(&MISSING, &[RegimeKind::NestedEpt]), machine)?;
        told("walk caches of one dimension and of two");
        let gups = if effort == Effort::Full { gups()? } else { None };
        told("GUPS");
        let alternatives = run(alternatives.to_vec(), machine)?;
        told("flat and agile tables");
        let (boot, updating) = (boot.run(effort, machine)?, run(updating.to_vec(), machine)?);
        let npt = run(timed(&MMU_BOUND, &[RegimeKind::ShadowKvm61, RegimeKind::NestedNpt]), machine)?;
        told("boot, updates of tables, NPT");
        let (scaled, dense) = (scaled(effort, machine)?, dense(machine)?);
        told("vCPUs and processes");
        let one_dimension = one.into_iter().zip(two).collect();
        Ok(Self { walks: walks::walk_all()?, gups, boot, alternatives, one_dimension, updating, npt, scaled, dense })
    }
}

/// The machine with walk caches for the guest's dimension only.
fn without_host_caches(machine: &MachineSpec) -> MachineSpec {
    let mut machine = machine.clone();
    if let Some(caches) = &mut machine.walk_caches {
        caches.host.clear();
        caches.nested_tlb = None;
    }
    machine
}

fn gups() -> Result<Option<WalkLatency>, LabError> {
    let workload = Workload::find("gups")?.scaled(24.0)?.with_footprint(128 << 30)?;
    let measure = Measure { mode: Mode::Cycles, prefault: true, warm_up_accesses: 4_000_000, ..Measure::default() };
    let experiment = Experiment {
        input: Input::Workload(Box::new(workload)),
        regimes: vec![RegimeKind::NestedEpt],
        overrides: Overrides { table_frames: Some(TableFrames::Grouped), ..Overrides::default() },
        machine: MachineSpec::load("paper-2024")?,
        seed: 0,
        measure,
        check: false,
        threads: None,
        command: walks::GUPS.to_owned(),
    };
    let comparison = experiment.run(&|_| {})?.comparison;
    Ok(comparison.results.first().and_then(WalkLatency::of))
}

fn scaled(effort: Effort, machine: &MachineSpec) -> Result<ScaleTable, LabError> {
    let (factor, vcpus) = match effort {
        Effort::Quick => (0.02, vec![1, 4, 16]),
        Effort::Full => (0.1, vec![1, 2, 4, 8, 16, 32]),
    };
    let regimes = vec![RegimeKind::ShadowKvm61, RegimeKind::NestedEpt];
    let list: Vec<_> = vcpus.iter().map(u16::to_string).collect();
    let command = format!(
        "memvirt scale --workload touch-and-free --vcpus {} --regimes shadow:kvm,nested --scale {factor} --machine {}",
        list.join(","),
        words::of_machine(machine)
    );
    let workload = Workload::find("touch-and-free")?.scaled(factor)?;
    ScalePlan::usual(workload, regimes, vcpus, machine, command).run()
}

fn dense(machine: &MachineSpec) -> Result<FootprintTable, LabError> {
    let bytes: u64 = 8 << 20;
    let command = format!(
        "memvirt footprint --processes 1,4,16 --footprint {bytes} --dense --regimes native,shadow:kvm,nested --machine {}",
        words::of_machine(machine)
    );
    let plan = FootprintPlan {
        workload: Workload::find("footprint")?,
        regimes: vec![RegimeKind::Native, RegimeKind::ShadowKvm61, RegimeKind::NestedEpt],
        processes: vec![1, 4, 16],
        footprint: Some(bytes),
        usage: Some(Used::Dense),
        rounds: None,
        shadow_page_limit: None,
        overrides: Overrides {
            host_page: Some(HostConfig::default().host_page),
            guest_page: Some(PageSize::Size4K),
            ..Overrides::default()
        },
        machine: machine.clone(),
        seed: 0,
        threads: None,
        command,
    };
    plan.run()
}
