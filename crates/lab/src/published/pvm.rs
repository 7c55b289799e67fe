//! Shadow against nested paging as PVM's authors measured it, predicted row by row.
//!
//! Source: Huang et al., *PVM: Efficient Shadow Paging for Deploying Secure Containers in Cloud-native Environment*, SOSP 2023,
//! LMbench on a Xeon Platinum 8269CY at 2.5 GHz, one virtual CPU's worth of processes, guest with page-table isolation. What may
//! calibrate does: the EPT column stands for the guest's own work, and the price of a CR3 exit and of an exception come from two
//! rows (P2, P3) by way of the machine file. The shadow column is predicted: the EPT column, plus what a run under KVM's policy
//! costs more than a run under nested paging, per iteration and in the steady state (the difference of a long and a short run).
//! Nothing is fitted.

use memvirt_machine::{HostConfig, MachineSpec, Measure, RegimeKind, RunResult, Setup, run};
use memvirt_workload::script::Step;
use memvirt_workload::units::Count;
use memvirt_workload::{Generator, Spec, Workload};
use serde::Serialize;

use super::Use;
use crate::error::LabError;
use crate::input::Input;
use crate::switches::Overrides;

/// How a row's figure is made of iterations of workloads: LMbench subtracts, and divides.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    id: &'static str,
    what: &'static str,
    /// Microseconds under EPT and under shadow paging.
    measured: (f64, f64),
    check: Use,
    kpti: bool,
    /// Workloads whose iterations are added (`true`) or subtracted, and whether they run without their touches.
    terms: &'static [Term],
    /// What one iteration is divided by.
    per: f64,
    /// Why the prediction may differ from what was measured.
    note: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    workload: &'static str,
    sign: f64,
    without_touches: bool,
}

const fn plus(workload: &'static str) -> Term {
    Term { workload, sign: 1.0, without_touches: false }
}

const fn minus(workload: &'static str) -> Term {
    Term { workload, sign: -1.0, without_touches: false }
}

/// The machine file that the input rows made.
const MACHINE: &str = "pvm-8269cy";

/// Cycles of a microsecond on the measured machine.
const CYCLES_PER_US: f64 = 2500.0;

/// The numbers of the rows of [`pvm`].
#[must_use]
pub fn ids() -> Vec<&'static str> {
    RECIPES.iter().map(|recipe| recipe.id).collect()
}

const RECIPES: &[Recipe] = &[
    Recipe {
        id: "P1 off",
        what: "get_pid, no isolation",
        measured: (0.06, 0.06),
        check: Use::Exact,
        kpti: false,
        terms: &[plus("null-syscall")],
        per: 1.0,
        note: "nothing exits: the ratio is 1",
    },
    Recipe {
        id: "P1 on",
        what: "get_pid, isolation",
        measured: (0.22, 2.09),
        check: Use::Band(1),
        kpti: true,
        terms: &[plus("null-syscall")],
        per: 1.0,
        note: "input: two CR3 loads a call are what the price of a CR3 exit was taken from",
    },
    Recipe {
        id: "P6",
        what: "null I/O",
        measured: (0.27, 2.15),
        check: Use::Band(15),
        kpti: true,
        terms: &[plus("null-io")],
        per: 2.0,
        note: "the mean of read and write: two CR3 loads each",
    },
    Recipe {
        id: "P7",
        what: "fork",
        measured: (82.1, 504.7),
        check: Use::Band(30),
        kpti: true,
        terms: &[plus("fork")],
        per: 1.0,
        note: "fork, 25 faults of the child, 2 of the parent, exit, wait; missing: 3.8 thousand cycles for each of the 87 exits \
               that KVM's MMU works on, which no input row prices",
    },
    Recipe {
        id: "P8",
        what: "exec",
        measured: (422.0, 1500.0),
        check: Use::Band(30),
        kpti: true,
        terms: &[plus("exec")],
        per: 1.0,
        note: "fork, 19 faults, an address space built by kernel and linker (51 faults), exit; missing: 3.5 thousand cycles for each \
               of the 211 exits that KVM's MMU works on, as for fork",
    },
    Recipe {
        id: "P9",
        what: "sh",
        measured: (1600.0, 4200.0),
        check: Use::Band(30),
        kpti: true,
        terms: &[plus("sh")],
        per: 1.0,
        note: "dash of today starts its command with vfork; the shell measured was larger: EPT column 1600 us against 422 for exec",
    },
    Recipe {
        id: "P10",
        what: "signal handler",
        measured: (1.01, 2.95),
        check: Use::Order,
        kpti: true,
        terms: &[plus("signal"), minus("null-syscall")],
        per: 1.0,
        note: "LMbench subtracts the call that sends: what is left is the return from the handler, two CR3 loads",
    },
    Recipe {
        id: "P11",
        what: "page fault",
        measured: (0.15, 0.93),
        check: Use::Order,
        kpti: true,
        terms: &[plus("page-fault"), Term { workload: "page-fault", sign: -1.0, without_touches: true }],
        per: 2048.0,
        note: "16 pages are mapped around each fault, so a page costs less than an exit",
    },
    Recipe {
        id: "P12",
        what: "protection fault",
        measured: (0.66, 3.17),
        check: Use::Order,
        kpti: true,
        terms: &[plus("protection-fault"), minus("signal"), plus("null-syscall")],
        per: 1.0,
        note: "LMbench subtracts what a signal costs: what is left is one fault and its way in and out",
    },
];

/// Events of one unit of a row, under shadow paging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Events {
    /// Entries into the guest's kernel.
    pub kernel_entries: f64,
    /// CR3 loads.
    pub cr3_loads: f64,
    /// Page faults that the guest saw.
    pub faults: f64,
    /// Stores to page tables.
    pub table_stores: f64,
    /// Exits for hidden faults.
    pub hidden_faults: f64,
    /// Exits for stores to page tables.
    pub table_writes: f64,
    /// All exits.
    pub exits: f64,
    /// Exits under nested paging.
    pub exits_nested: f64,
}

impl Row {
    /// What the prediction lacks, in cycles for each exit on which the hypervisor's MMU works: a hidden fault or a trapped store.
    /// The input rows price the exits and not that work; where rows of the same machine lack the same, it is a price that is
    /// missing, and no event.
    #[must_use]
    pub fn missing_per_mmu_exit(&self) -> f64 {
        (self.shadow_us - self.predicted_us) * CYCLES_PER_US / (self.events.hidden_faults + self.events.table_writes)
    }
}

/// A published row beside its prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its number in the list of published results.
    pub id: &'static str,
    /// What was measured.
    pub what: &'static str,
    /// Microseconds under EPT: measured, and input.
    pub nested_us: f64,
    /// Microseconds under shadow paging: measured.
    pub shadow_us: f64,
    /// Microseconds under shadow paging: predicted.
    pub predicted_us: f64,
    /// What the figure may serve for.
    pub check: Use,
    /// The events that make the prediction.
    pub events: Events,
    /// What stands behind it.
    pub note: &'static str,
}

impl Row {
    /// Shadow to EPT as measured.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.shadow_us / self.nested_us
    }

    /// Shadow to EPT as predicted.
    #[must_use]
    pub fn predicted_ratio(&self) -> f64 {
        self.predicted_us / self.nested_us
    }

    /// How far the predicted ratio is from the measured one, in percent of it.
    #[must_use]
    pub fn difference_percent(&self) -> f64 {
        100.0 * (self.predicted_ratio() / self.ratio() - 1.0)
    }

    /// Whether the prediction is as good as its row demands.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self.check {
            Use::Exact => (self.predicted_ratio() - self.ratio()).abs() < 0.005,
            Use::Band(percent) => self.difference_percent().abs() <= f64::from(percent),
            Use::Order | Use::Points(_) | Use::Input | Use::NotReread => {
                (self.predicted_us > self.nested_us) == (self.shadow_us > self.nested_us)
            }
        }
    }
}

/// PVM's rows, predicted on the machine file that its input rows made.
///
/// # Errors
///
/// Never in practice: the workloads and the machine are built in.
pub fn pvm() -> Result<Vec<Row>, LabError> {
    RECIPES.iter().map(predict).collect()
}

fn predict(recipe: &Recipe) -> Result<Row, LabError> {
    let (mut more_cycles, mut events) = (0.0, Events::default());
    for term in recipe.terms {
        let [nested, shadow] =
            [RegimeKind::NestedEpt, RegimeKind::ShadowKvm61].map(|regime| steady(term, regime, recipe.kpti));
        let (nested, shadow) = (nested?, shadow?);
        let share = term.sign / recipe.per;
        more_cycles += share * (shadow.cycles - nested.cycles);
        events.add(share, &shadow.events, &nested.events);
    }
    let (nested_us, shadow_us) = recipe.measured;
    let predicted_us = nested_us + more_cycles / CYCLES_PER_US;
    let Recipe { id, what, check, note, .. } = *recipe;
    Ok(Row { id, what, nested_us, shadow_us, predicted_us, check, events, note })
}

impl Events {
    fn add(&mut self, share: f64, shadow: &Self, nested: &Self) {
        self.kernel_entries += share * shadow.kernel_entries;
        self.cr3_loads += share * shadow.cr3_loads;
        self.faults += share * shadow.faults;
        self.table_stores += share * shadow.table_stores;
        self.hidden_faults += share * shadow.hidden_faults;
        self.table_writes += share * shadow.table_writes;
        self.exits += share * shadow.exits;
        self.exits_nested += share * nested.exits;
    }
}

/// One iteration in the steady state.
struct Steady {
    cycles: f64,
    events: Events,
}

/// Iterations of the short and of the long run: by the short one, every table and frame has been used before.
const SHORT: u64 = 40;
const LONG: u64 = 120;

fn steady(term: &Term, regime: RegimeKind, kpti: bool) -> Result<Steady, LabError> {
    let short = iterations(term, regime, kpti, SHORT)?;
    let long = iterations(term, regime, kpti, LONG)?;
    let per = |count: &dyn Fn(&RunResult) -> u64| (to_f64(count(&long)) - to_f64(count(&short))) / to_f64(LONG - SHORT);
    let exit = |key: &'static str| move |result: &RunResult| result.exits.get(key).copied().unwrap_or(0);
    let events = Events {
        kernel_entries: per(&|result| result.guest.kernel_entries),
        cr3_loads: per(&|result| result.guest.cr3_loads),
        faults: per(&|result| result.guest_page_faults),
        table_stores: per(&|result| result.guest.table_stores),
        hidden_faults: per(&exit("hidden_fault")),
        table_writes: per(&exit("table_write")),
        exits: per(&|result| result.total_exits()),
        exits_nested: 0.0,
    };
    Ok(Steady { cycles: per(&|result| result.cycles.total), events })
}

fn iterations(term: &Term, regime: RegimeKind, kpti: bool, times: u64) -> Result<RunResult, LabError> {
    let workload = Workload::find(term.workload)?;
    let spec = shortened(workload.spec(), times, term.without_touches);
    let input = Input::Workload(Box::new(workload));
    let guest = Overrides { kpti: Some(kpti), memory_bytes: Some(1 << 30), ..Overrides::default() }.guest(&input);
    let machine = MachineSpec::load(MACHINE)?;
    let (host, measure) = (HostConfig::default(), Measure::default());
    let setup = Setup { regime, guest, host, machine, measure, check: false };
    let mut source = Generator::new(&spec, 0)?;
    Ok(run(&setup, &mut source, &mut |_| {})?.result)
}

/// A script with so many iterations, with or without the touches of its body.
fn shortened(spec: &Spec, times: u64, without_touches: bool) -> Spec {
    let mut spec = spec.clone();
    if let Spec::Script(script) = &mut spec {
        script.iterations = Count::try_new(times).unwrap_or(Count::MIN);
        script.body.retain(|step| !(without_touches && matches!(step, Step::Touch(_))));
    }
    spec
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
const fn to_f64(count: u64) -> f64 {
    count as f64
}
