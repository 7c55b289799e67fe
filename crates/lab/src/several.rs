//! An experiment on several vCPUs, in simulated time: the same results as with one ([`RunResult`]), summed over all vCPUs, and what
//! they waited for.
//!
//! Each vCPU runs an instance of the workload, or all are threads of one process, with the fixed times of the machine file: the
//! runs are those of [`ScalePlan`] with nothing but its defaults. Neighbours: [`Experiment::run`] is one vCPU.

use memvirt_machine::price::{Cycles, Part};
use memvirt_machine::result::{SmpCounts, Stale, TableCounts};
use memvirt_machine::{Mode, RegimeKind, RunResult, Setup};
use memvirt_smp::Run;
use memvirt_timeline::Account;

use crate::comparison::Comparison;
use crate::error::LabError;
use crate::experiment::{Done, Experiment, Progress};
use crate::input::{Described, Input};
use crate::scale::{ScalePlan, Sharing};

/// How many vCPUs an experiment has, and what they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpus {
    /// How many; with one it is [`Experiment::run`] that runs.
    pub count: u16,
    /// What they share.
    pub sharing: Sharing,
}

impl Vcpus {
    /// The most vCPUs.
    pub const MOST: u16 = 256;
}

impl Default for Vcpus {
    fn default() -> Self {
        Self { count: 1, sharing: Sharing::Tenants }
    }
}

impl Experiment {
    /// Runs every regime on so many vCPUs. `observer` hears of progress: with several vCPUs when a regime has finished.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and where several vCPUs are asked for that the input or the mode does not allow.
    pub fn run_on(&self, vcpus: Vcpus, observer: &(dyn Fn(Progress) + Sync)) -> Result<Done, LabError> {
        if vcpus.count == 1 {
            return self.run(observer);
        }
        let refuse = |text: &str| Err(LabError::Scale(text.to_owned()));
        let Input::Workload(workload) = &self.input else {
            return refuse("a recording runs on one vCPU; leave out --vcpus, or give a workload");
        };
        if self.measure.mode == Mode::Cycles {
            return refuse("several vCPUs are simulated with --mode counts; leave out --vcpus, or --mode cycles");
        }
        let (regimes, counts) = (self.regimes.clone(), vec![vcpus.count]);
        let usual = ScalePlan::usual((**workload).clone(), regimes, counts, &self.machine, self.command.clone());
        let plan = ScalePlan {
            sharing: vcpus.sharing,
            overrides: self.overrides,
            seed: self.seed,
            measure: self.measure,
            check: self.check,
            threads: self.threads,
            ..usual
        };
        let (mut results, mut violations) = (Vec::new(), Vec::new());
        for (index, (regime, finished)) in plan.finish(vcpus.count)?.into_iter().enumerate() {
            if let Some(error) = finished.input_error {
                return Err(LabError::Scale(format!("{}: {error}", workload.name())));
            }
            let result = result(&plan.setup(regime), vcpus.count, &finished.run);
            let accesses = result.guest.user_accesses;
            observer(Progress { regime: index, accesses, done: accesses, total: Some(accesses) });
            if !finished.violations.is_empty() {
                violations.push((regime, finished.violations));
            }
            results.push(result);
        }
        let (command, seed, machine) = (self.command.clone(), self.seed, self.machine.clone());
        let comparison =
            Comparison { command, seed, workload: Described::Workload(workload.clone()), machine, results };
        Ok(Done { comparison, input_error: None, violations })
    }
}

/// What all vCPUs counted together.
fn result(setup: &Setup, vcpus: u16, run: &Run) -> RunResult {
    let setup = Setup { guest: setup.regime.asks_of(setup.guest), ..setup.clone() };
    let checked = Stale { checked: true, allowed: run.allowed, broken: run.broken.unwrap_or_default() };
    let stale = if run.broken.is_some() { checked } else { Stale::default() };
    let tables = TableCounts::new(run.guest_tables, run.tables, run.peak);
    let one = RunResult::new(&setup, run.outcome, &run.counters, run.guest, tables, stale, account(run));
    let lock = run.timeline.vms.first().map_or(0.0, |vm| vm.lock.utilization(run.timeline.end));
    let smp = SmpCounts {
        end: run.timeline.end,
        // Six digits, as in tables: the same text wherever it is read back.
        lock_utilization: (lock * 1e6).round() / 1e6,
        shootdowns: run.shootdowns,
        interrupted: run.interrupted,
    };
    RunResult { switches: memvirt_machine::result::Switches { vcpus, ..one.switches }, smp: Some(smp), ..one }
}

/// Where the time of all vCPUs went. What a vCPU does for others when its own program has ended is counted, but takes nobody's time:
/// so the guests' own work is what is left of their time, not what was counted.
fn account(run: &Run) -> Cycles {
    let sum = |of: fn(&Account) -> u64| run.timeline.vcpus.iter().map(of).sum::<u64>();
    let vcpus = run.timeline.vcpus.len() as u64;
    let translation = run.translation.min(sum(|vcpu| vcpu.guest));
    let base = sum(|vcpu| vcpu.guest) - translation;
    let parts = [
        ("base", "the guests' own work", vcpus, base),
        ("translation", "TLB misses and walks", run.counters.walks, translation),
        ("exits", "handlers, without the MMU lock", run.counters.total_exits(), sum(|vcpu| vcpu.host)),
        ("exits", "handlers, under the MMU lock", run.counters.total_exits(), sum(|vcpu| vcpu.locked)),
        ("exits", "kicked out of the guest", sum(|vcpu| vcpu.kicks), sum(|vcpu| vcpu.kicked)),
        ("waiting", "for the MMU lock", vcpus, sum(|vcpu| vcpu.lock_wait)),
        ("waiting", "under the lock for kicked vCPUs", vcpus, sum(|vcpu| vcpu.kick_wait)),
        ("waiting", "for shootdowns", sum(|vcpu| vcpu.shootdowns), sum(|vcpu| vcpu.shootdown_wait)),
        ("waiting", "for the physical CPU", vcpus, sum(|vcpu| vcpu.preempted)),
    ];
    let parts = parts.into_iter().filter(|(.., cycles)| *cycles > 0);
    let parts = parts.map(|(group, name, count, cycles)| Part { group, name: name.to_owned(), count, cycles });
    Cycles {
        base,
        translation,
        exits: run.exits(),
        waiting: run.waiting(),
        total: run.cycles(),
        parts: parts.collect(),
        references: Vec::new(),
    }
}

impl ScalePlan {
    /// The runs of all regimes with so many vCPUs, however they ended. One vCPU runs before: its time says when the others begin.
    fn finish(&self, vcpus: u16) -> Result<Vec<(RegimeKind, crate::scale::Ended)>, LabError> {
        let one = |regime: &RegimeKind| {
            let alone = self.simulate(*regime, 1, 0)?.run.timeline.end;
            Ok((*regime, self.simulate(*regime, vcpus, alone)?))
        };
        self.on_all_regimes(one)
    }
}
