//! Results: one regime with so many vCPUs, and what the points say about each other.

use memvirt_machine::{GuestConfig, HostConfig, Measure, RegimeKind};
use memvirt_platform::ExitReason;
use memvirt_smp::Run;
use memvirt_timeline::Account;
use serde::Serialize;

use super::model::{Assumptions, Feed, Fit, Prediction};
use super::{Bed, ScalePlan, Sharing};
use crate::comparison::ratio;
use crate::table::csv_line;

/// What others have found, beside which the trend stands.
pub const PUBLISHED: [(&str, &str); 2] = [
    (
        "K15",
        "Intel VT slides, c. 2006, an estimate: the benefit depends on the workload, up to 20 % as a rule and above 40 % in cases such as \
         forkwait, and grows with the number of vCPUs",
    ),
    (
        "K16",
        "vSphere documentation: the overhead of shadow paging grows with the number of vCPUs; it can win with very many TLB misses",
    ),
];

/// Shares of all vCPUs' time that went into waiting, by what for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Waits {
    /// For the MMU lock.
    pub lock: f64,
    /// Under the lock, until kicked vCPUs had left guest mode.
    pub kick: f64,
    /// For acknowledgements of shootdowns.
    pub shootdown: f64,
    /// Out of the guest because another vCPU's handler kicked it.
    pub kicked: f64,
    /// For the physical CPU.
    pub preempted: f64,
    /// All of them.
    pub total: f64,
}

impl Waits {
    fn of(run: &Run) -> Self {
        let all = run.cycles();
        let share = |of: fn(&Account) -> u64| share(run.timeline.vcpus.iter().map(of).sum(), all);
        let (lock, kick) = (share(|account| account.lock_wait), share(|account| account.kick_wait));
        let (shootdown, kicked) = (share(|account| account.shootdown_wait), share(|account| account.kicked));
        let preempted = share(|account| account.preempted);
        Self { lock, kick, shootdown, kicked, preempted, total: lock + kick + shootdown + kicked + preempted }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if part == 0 { 0.0 } else { ratio(part, whole) }
}

/// One regime with so many vCPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The regime.
    pub regime: RegimeKind,
    /// vCPUs of each virtual machine.
    pub vcpus: u16,
    /// Accesses by processes, on all vCPUs.
    pub accesses: u64,
    /// Cycles of all vCPUs, each from its beginning to its end.
    pub cycles: u64,
    /// The time of the last to end.
    pub end: u64,
    /// Accesses by processes for each million cycles of a vCPU.
    pub throughput: f64,
    /// The same, relative to one vCPU: 1 where nothing is lost.
    pub efficiency: f64,
    /// The share of time that the MMU lock was held; the mean over virtual machines.
    pub lock_utilization: f64,
    /// Shares of time that went into waiting.
    pub waits: Waits,
    /// Exits on all vCPUs.
    pub exits: u64,
    /// Those of them for INVLPG.
    pub exits_invlpg: u64,
    /// Interrupts that the guests sent to flush translations.
    pub shootdowns: u64,
    /// vCPUs that these interrupted, all together.
    pub interrupted: u64,
    /// Bytes of shadow tables, nested tables and what is kept beside them, at the end.
    pub table_bytes: u64,
    /// Broken translations, where the oracle watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<u64>,
    /// What mean-value analysis says, fed from one vCPU.
    pub mva: Prediction,
    /// Its efficiency less the measured one, as a fraction of it.
    pub mva_error: f64,
    /// Whether what the analysis assumes holds; decided by the run with one vCPU.
    pub assumptions: Assumptions,
    /// The same for the fitted law of scalability, where there are points enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usl_error: Option<f64>,
}

/// Accesses of processes for each million cycles of a vCPU.
#[expect(clippy::cast_precision_loss, reason = "a rate for people and models")]
pub(super) fn throughput(run: &Run) -> f64 {
    if run.cycles() == 0 { 0.0 } else { run.guest.user_accesses as f64 * 1e6 / run.cycles() as f64 }
}

impl Point {
    pub(super) fn new(
        regime: RegimeKind,
        vcpus: u16,
        run: &Run,
        base: &Run,
        mva: Prediction,
        usl: Option<&Fit>,
    ) -> Self {
        let (each, one) = (throughput(run), throughput(base));
        let efficiency = if one > 0.0 { each / one } else { 1.0 };
        let locks: Vec<_> = run.timeline.vms.iter().map(|vm| vm.lock.utilization(run.timeline.end)).collect();
        let tables = run.tables;
        Self {
            regime,
            vcpus,
            accesses: run.guest.user_accesses,
            cycles: run.cycles(),
            end: run.timeline.end,
            throughput: each,
            efficiency,
            lock_utilization: locks.iter().sum::<f64>() / f64::from(u32::try_from(locks.len().max(1)).unwrap_or(1)),
            waits: Waits::of(run),
            exits: run.counters.total_exits(),
            exits_invlpg: run.counters.exits_for(ExitReason::Invlpg),
            shootdowns: run.shootdowns,
            interrupted: run.interrupted,
            table_bytes: tables.shadow + tables.nested + tables.metadata,
            broken: run.broken,
            mva,
            mva_error: mva.efficiency / efficiency - 1.0,
            assumptions: Assumptions::Hold,
            usl_error: usl.map(|fit| fit.law.throughput(f64::from(vcpus)) / (each * f64::from(vcpus)) - 1.0),
        }
    }
}

/// T_shadow / T_nested - 1 with so many vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BenefitRow {
    /// The shadow regime.
    pub shadow: RegimeKind,
    /// The nested one.
    pub nested: RegimeKind,
    /// vCPUs of each virtual machine.
    pub vcpus: u16,
    /// The benefit as a fraction.
    pub benefit: f64,
}

/// All points of a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScaleTable {
    /// The form of this object.
    pub schema: &'static str,
    /// The command.
    pub command: String,
    /// The workload's name.
    pub workload: String,
    /// The seed.
    pub seed: u64,
    /// The machine that priced.
    pub machine: String,
    /// What vCPUs share.
    pub sharing: Sharing,
    /// Virtual machines.
    pub vms: u16,
    /// Physical CPUs; none where each vCPU has its own.
    pub physical_cpus: Option<u16>,
    /// Instances in each virtual machine; none where each vCPU has one.
    pub processes: Option<u32>,
    /// Cycles from sending an interrupt to its arrival.
    pub interrupt_cycles: u64,
    /// What a kick costs the kicked vCPU.
    pub kicked_cycles: u64,
    /// What a world switch costs.
    pub world_switch_cycles: u64,
    /// From giving a lock back until the next in its queue has it.
    pub handover_cycles: u64,
    /// What was measured: accesses of each vCPU before time began, and whether memory was there as soon as it was mapped.
    pub measure: Measure,
    /// vCPUs began at random times within so many times what one alone takes.
    pub stagger: f64,
    /// The guest's switches.
    pub guest: GuestConfig,
    /// The hypervisor's.
    pub host: HostConfig,
    /// The points, by regime, then by vCPUs.
    pub points: Vec<Point>,
    /// The benefit of each nested regime over each shadow regime.
    pub benefits: Vec<BenefitRow>,
    /// What the analysis was fed with, by regime.
    pub feeds: Vec<Feed>,
    /// The fitted laws of scalability.
    pub usl: Vec<Fit>,
    /// What is published of the trend.
    pub published: Vec<(&'static str, &'static str)>,
}

impl ScaleTable {
    /// The value of `schema`.
    pub const SCHEMA: &'static str = "memvirt/scale/1";

    pub(super) fn new(plan: &ScalePlan, bed: &Bed, points: Vec<Point>, models: (Vec<Feed>, Vec<Fit>)) -> Self {
        let benefits = benefits(&points);
        Self {
            schema: Self::SCHEMA,
            command: plan.command.clone(),
            workload: plan.workload.name().to_owned(),
            seed: plan.seed,
            machine: plan.machine.name.clone(),
            sharing: plan.sharing,
            vms: plan.vms,
            physical_cpus: plan.physical_cpus,
            processes: plan.processes,
            interrupt_cycles: bed.latencies.interrupt,
            kicked_cycles: bed.latencies.kicked,
            world_switch_cycles: bed.latencies.world_switch,
            handover_cycles: bed.latencies.handover,
            measure: plan.measure,
            stagger: plan.stagger,
            guest: bed.guest,
            host: bed.host,
            points,
            benefits,
            feeds: models.0,
            usl: models.1,
            published: PUBLISHED.to_vec(),
        }
    }

    /// The points of one regime.
    pub fn of(&self, regime: RegimeKind) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.regime == regime)
    }

    /// The regimes, in order.
    #[must_use]
    pub fn regimes(&self) -> Vec<RegimeKind> {
        let mut regimes: Vec<_> = self.points.iter().map(|point| point.regime).collect();
        regimes.dedup();
        regimes
    }

    /// Broken translations over all points.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.points.iter().filter_map(|point| point.broken).sum()
    }

    /// A row for each point.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        let header = "workload,sharing,regime,vcpus,accesses,cycles,end,throughput,efficiency,lock_utilization,wait_lock,\
             wait_kick,wait_shootdown,wait_kicked,wait_preempted,exits,shootdowns,interrupted,table_bytes,mva_efficiency,\
             mva_error,usl_error,benefit,assumptions";
        csv_line(&mut text, header.split(','));
        for point in &self.points {
            let (waits, fixed) = (&point.waits, |x: f64| format!("{x:.6}"));
            let rival = self.benefits.iter().find(|row| row.shadow == point.regime && row.vcpus == point.vcpus);
            let sharing = if self.sharing == Sharing::Threads { "threads" } else { "tenants" };
            let cells = [
                self.workload.clone(),
                sharing.to_owned(),
                point.regime.name().to_owned(),
                point.vcpus.to_string(),
                point.accesses.to_string(),
                point.cycles.to_string(),
                point.end.to_string(),
                fixed(point.throughput),
                fixed(point.efficiency),
                fixed(point.lock_utilization),
                fixed(waits.lock),
                fixed(waits.kick),
                fixed(waits.shootdown),
                fixed(waits.kicked),
                fixed(waits.preempted),
                point.exits.to_string(),
                point.shootdowns.to_string(),
                point.interrupted.to_string(),
                point.table_bytes.to_string(),
                fixed(point.mva.efficiency),
                fixed(point.mva_error),
                point.usl_error.map(fixed).unwrap_or_default(),
                rival.map(|row| fixed(row.benefit)).unwrap_or_default(),
                point.assumptions.name().to_owned(),
            ];
            csv_line(&mut text, cells.iter().map(String::as_str));
        }
        text
    }
}

/// Of every pair of a shadow regime and a nested one, by number of vCPUs.
fn benefits(points: &[Point]) -> Vec<BenefitRow> {
    let kind =
        |prefix: &'static str| points.iter().filter(move |point| point.regime.name().split(':').next() == Some(prefix));
    let pairs = kind("shadow").flat_map(|shadow| kind("nested").map(move |nested| (shadow, nested)));
    pairs
        .filter(|(shadow, nested)| shadow.vcpus == nested.vcpus)
        .map(|(shadow, nested)| BenefitRow {
            shadow: shadow.regime,
            nested: nested.regime,
            vcpus: shadow.vcpus,
            benefit: nested.throughput / shadow.throughput - 1.0,
        })
        .collect()
}
