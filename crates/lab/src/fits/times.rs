//! Run time predicted from the native run: base, walks, exits.
//!
//! The parts of `models/cost/time-parts.model`. Base is that of the native run, less what exits instead (CR3 loads, INVLPG).
//! Walks and second-level hits are predicted from the native stream by stack distances, for entries that cover no more than a host
//! page; a walk reads what it reads natively, under nested paging each entry and the data behind four nested ones (`walk-cold`).
//! Exits are those of the traps model, by kind, each at the machine's price, and the work in their handlers is what the census says
//! that each policy would have to do: unit by unit at the machine's prices, or at prices fitted to other workloads' runs.

use memvirt_costmodel::Model;
use memvirt_costmodel::fit::{Data, FitError, Linear, Quality, Weighting, group_folds, relative_error};
use memvirt_machine::{MachineSpec, RegimeKind};
use serde::Serialize;

use super::guests::{GuestSpec, Length, Observed, SEED, WORKLOADS, real};
use super::traps::{self, MODELS};
use crate::error::LabError;

/// The parts of a run's time, in cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Parts {
    /// Instructions and the guest kernel's work.
    pub base: f64,
    /// TLB misses and walks.
    pub walks: f64,
    /// Exits and what their handlers do.
    pub exits: f64,
}

impl Parts {
    /// All of it; nobody waits where there is one vCPU.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.base + self.walks + self.exits
    }
}

/// One guest under one regime.
#[derive(Clone, Debug, Serialize)]
pub struct TimePoint {
    /// The guest.
    #[serde(flatten)]
    pub guest: GuestSpec,
    /// The regime.
    pub regime: RegimeKind,
    /// What the run took.
    pub counted: Parts,
    /// What the model says, with the work of handlers by the mechanism.
    pub mechanism: Parts,
    /// The same with the prices of that work as fitted to other workloads.
    pub unseen: Parts,
    /// What the exits are made of.
    pub items: Vec<Item>,
}

/// One thing that exits take time for: the cycles counted and those predicted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Item {
    /// `exits` for the exits themselves, else a unit of the handlers' work.
    pub name: &'static str,
    /// Cycles counted.
    pub counted: f64,
    /// Cycles predicted.
    pub predicted: f64,
}

impl TimePoint {
    /// The relative error of the prediction.
    #[must_use]
    pub fn error(&self) -> f64 {
        relative_error(self.counted.total(), self.mechanism.total())
    }

    /// The errors of base, walks and exits as shares of the whole run: where the error comes from.
    #[must_use]
    pub fn split(&self) -> [f64; 3] {
        let (is, said, all) = (self.counted, self.mechanism, self.counted.total());
        [said.base - is.base, said.walks - is.walks, said.exits - is.exits].map(|miss| miss / all)
    }
}

/// The model of run time under one regime.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// The regime.
    pub regime: RegimeKind,
    /// With the work of handlers by the mechanism.
    pub mechanism: Quality,
    /// With the work of handlers as fitted to other workloads.
    pub unseen: Quality,
    /// Fitted to short runs, of long ones.
    pub held_out: Quality,
    /// By the mechanism, of long ones.
    pub long: Quality,
    /// The runs.
    pub points: Vec<TimePoint>,
}

/// An input of the prediction, and the most that it is wrong by: cycles missed, as a share of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputError {
    /// `base`, `walks`, `exits`, or a unit of the handlers' work.
    pub input: &'static str,
    /// The largest share.
    pub max: f64,
    /// The run where it is.
    pub guest: GuestSpec,
}

/// The units of a handler's work.
const UNITS: usize = 10;

/// Cycles of a handler's work, by unit.
type Units = [f64; UNITS];

struct Said {
    base: f64,
    walks: f64,
    /// Exits at their prices, without the work in them.
    fixed: f64,
    work: Units,
}

impl Times {
    /// How wrong each input is at most, worst first; inputs that are right everywhere are left out.
    #[must_use]
    pub fn inputs(&self) -> Vec<InputError> {
        let mut found: Vec<InputError> = Vec::new();
        for point in &self.points {
            let all = point.counted.total();
            let [base, walks, _] = point.split();
            let items = point.items.iter().map(|item| (item.name, (item.predicted - item.counted) / all));
            for (input, share) in [("base", base), ("walks", walks)].into_iter().chain(items) {
                let one = InputError { input, max: share.abs(), guest: point.guest };
                match found.iter_mut().find(|held| held.input == input) {
                    Some(held) if held.max < one.max => *held = one,
                    Some(_) => {}
                    None => found.push(one),
                }
            }
        }
        found.retain(|one| one.max > 0.0);
        found.sort_by(|a, b| b.max.total_cmp(&a.max));
        found
    }

    /// For people: the inputs that are wrong by most.
    pub(super) fn worst(&self) -> String {
        let inputs = self.inputs();
        let said = inputs.iter().take(3).map(|one| format!("{} {:.1} % ({})", one.input, 100.0 * one.max, one.guest));
        said.collect::<Vec<_>>().join("; ")
    }

    /// The model under regime `index` of [`MODELS`] against runs.
    ///
    /// # Errors
    ///
    /// Where a traps model cannot be evaluated or nothing can be fitted.
    pub fn of(index: usize, observed: &[Observed], machine: &MachineSpec) -> Result<Self, LabError> {
        let (regime, name) = MODELS[index];
        let failed = |error: &dyn std::fmt::Display| LabError::Model(format!("{name}: {error}"));
        let model = Model::find(name).map_err(|error| failed(&error))?;
        let said = observed.iter().map(|one| said(&model, index, one, machine)).collect::<Result<Vec<_>, _>>()?;
        let counted: Vec<Parts> = observed.iter().map(|one| counted(&one.runs[index])).collect();
        let work: Vec<f64> = counted.iter().zip(&said).map(|(is, said)| is.exits - said.fixed).collect();
        let rows: Vec<Units> = said.iter().map(|said| said.work).collect();
        let totals: Vec<f64> = counted.iter().map(Parts::total).collect();
        let all = Rows { rows: &rows, work: &work, totals: &totals };
        let group = |one: &Observed| WORKLOADS.iter().position(|name| *name == one.spec.workload).unwrap_or(0);
        let groups: Vec<usize> = observed.iter().map(group).collect();
        let mut unseen = vec![0.0; observed.len()];
        for fold in group_folds(&groups, WORKLOADS.len(), SEED) {
            let fitted = all.fit(&fold.train).map_err(|error| failed(&error))?;
            fold.test.iter().for_each(|run| unseen[*run] = apply(&fitted, &rows[*run]));
        }
        let (short, long): (Vec<usize>, Vec<usize>) =
            (0..observed.len()).partition(|run| observed[*run].spec.length == Length::Short);
        let small = all.fit(&short).map_err(|error| failed(&error))?;
        let parts = |i: usize, work: f64| {
            let said = &said[i];
            Parts { base: said.base, walks: said.walks, exits: said.fixed + work }
        };
        let point = |(i, one): (usize, &Observed)| TimePoint {
            guest: one.spec,
            regime,
            counted: counted[i],
            mechanism: parts(i, said[i].work.iter().sum()),
            unseen: parts(i, unseen[i]),
            items: items(&one.runs[index], &said[i]),
        };
        let points: Vec<TimePoint> = observed.iter().enumerate().map(point).collect();
        let quality = |said: Vec<f64>| Quality::of(&totals, &said);
        let pick = |of: &[f64], which: &[usize]| which.iter().map(|i| of[*i]).collect::<Vec<f64>>();
        let large: Vec<f64> = long.iter().map(|i| parts(*i, apply(&small, &rows[*i])).total()).collect();
        Ok(Self {
            regime,
            mechanism: quality(points.iter().map(|point| point.mechanism.total()).collect()),
            unseen: quality(points.iter().map(|point| point.unseen.total()).collect()),
            held_out: Quality::of(&pick(&totals, &long), &large),
            long: {
                let said: Vec<f64> = points.iter().map(|point| point.mechanism.total()).collect();
                Quality::of(&pick(&totals, &long), &pick(&said, &long))
            },
            points,
        })
    }
}

/// The work of handlers to be fitted.
struct Rows<'a> {
    rows: &'a [Units],
    work: &'a [f64],
    totals: &'a [f64],
}

impl Rows<'_> {
    /// What each unit costs, in prices of the machine, as shares of whole runs weigh; units that do not occur cost nothing.
    fn fit(&self, which: &[usize]) -> Result<Units, FitError> {
        let mut used: Vec<usize> =
            (0..UNITS).filter(|unit| which.iter().any(|run| self.rows[*run][*unit] > 0.0)).collect();
        let mut fitted = [0.0; UNITS];
        while !used.is_empty() {
            let mut data = Data::default();
            for run in which {
                let share = |value: f64| value / self.totals[*run];
                data.push(used.iter().map(|unit| share(self.rows[*run][*unit])).collect(), share(self.work[*run]));
            }
            match Linear::fit(&data, Weighting::Absolute) {
                Ok(found) => {
                    used.iter().zip(found.coefficients).for_each(|(unit, price)| fitted[*unit] = price);
                    break;
                }
                // One unit always comes with others: the runs cannot tell what each costs.
                Err(FitError::Rank { .. }) => _ = used.pop(),
                Err(error) => return Err(error),
            }
        }
        Ok(fitted)
    }
}

fn apply(fitted: &Units, work: &Units) -> f64 {
    fitted.iter().zip(work).map(|(price, cycles)| price * cycles).sum()
}

/// What was counted of each item of the exits, beside what is said of it.
fn items(run: &memvirt_machine::RunResult, said: &Said) -> Vec<Item> {
    let counted = |name: &str| {
        let parts = run.cycles.parts.iter().filter(|part| part.group == "exits" && part.name == name);
        real(parts.map(|part| part.cycles).sum())
    };
    let units = memvirt_platform::Work::default();
    let work: Vec<Item> = units
        .units()
        .zip(said.work)
        .map(|((name, _), predicted)| Item { name, counted: counted(name), predicted })
        .collect();
    let rest = real(run.cycles.exits) - work.iter().map(|item| item.counted).sum::<f64>();
    std::iter::once(Item { name: "exits", counted: rest, predicted: said.fixed }).chain(work).collect()
}

fn counted(run: &memvirt_machine::RunResult) -> Parts {
    let cycles = &run.cycles;
    Parts { base: real(cycles.base), walks: real(cycles.translation), exits: real(cycles.exits) }
}

/// What the exits of a guest under regime `index` of [`MODELS`] cost, with the work in them.
pub(crate) fn exit_cycles(
    index: usize,
    events: &memvirt_census::Events,
    work: &memvirt_platform::Work,
    machine: &MachineSpec,
) -> Result<f64, LabError> {
    let (_, name) = MODELS[index];
    let model = Model::find(name).map_err(|error| LabError::Model(error.to_string()))?;
    let Exits { fixed, .. } = exits(&model, index, events, machine)?;
    Ok(fixed + units(work, machine).iter().sum::<f64>())
}

/// A handler's work at the machine's prices.
fn units(work: &memvirt_platform::Work, machine: &MachineSpec) -> Units {
    let mut cycles = [0.0; UNITS];
    for (cycles, ((_, count), (_, figure))) in cycles.iter_mut().zip(work.units().zip(machine.work.figures())) {
        *cycles = real(figure.times(count));
    }
    cycles
}

/// Exits by kind, and what they cost without the work in them.
struct Exits {
    hidden: f64,
    stores: f64,
    violations: f64,
    invlpgs: f64,
    loads: f64,
    fixed: f64,
}

fn exits(
    model: &Model,
    index: usize,
    events: &memvirt_census::Events,
    machine: &MachineSpec,
) -> Result<Exits, LabError> {
    let failed = |error: &dyn std::fmt::Display| LabError::Model(error.to_string());
    let inputs = traps::inputs(model, events)?;
    let outputs = model.evaluate(&inputs, &model.predicted()).map_err(|error| failed(&error))?;
    let output = |name: &str| {
        model.outputs().zip(&outputs).find(|(output, _)| output.name == name).map_or(0.0, |(_, value)| *value)
    };
    let (hidden, stores, violations) = (output("hidden_faults"), output("table_writes"), output("ept_violations"));
    let nested = MODELS[index].0 == RegimeKind::NestedEpt;
    let (faults, invlpgs, loads) =
        if nested { (0.0, 0.0, 0.0) } else { (real(events.faults), real(events.invlpgs), real(events.cr3_loads)) };
    let (exits, price) = (&machine.exits, |figure: &memvirt_machine::spec::Figure| real(figure.times(1)));
    let kinds = [
        (hidden, &exits.hidden_fault),
        (faults, &exits.reflected_fault),
        (stores, &exits.table_write),
        (invlpgs, &exits.invlpg),
        (loads, &exits.cr3_load),
        (violations, &exits.ept_violation),
    ];
    let fixed = kinds.iter().map(|(count, handler)| count * (price(&exits.round_trip) + price(handler))).sum();
    Ok(Exits { hidden, stores, violations, invlpgs, loads, fixed })
}

/// What the native run and its events say of a guest under a regime.
fn said(model: &Model, index: usize, one: &Observed, machine: &MachineSpec) -> Result<Said, LabError> {
    let (regime, _) = MODELS[index];
    let Exits { hidden, stores, violations, invlpgs, loads, fixed } = exits(model, index, &one.events, machine)?;
    let native = &one.native;
    let price = |figure: &memvirt_machine::spec::Figure| real(figure.times(1));
    let (base, walk) = (&machine.base, &machine.translation);
    let nested = regime == RegimeKind::NestedEpt;
    let stream = &one.splintered;
    let guest_refs = real(stream.guest_refs.iter().sum());
    let (l2_hits, walks) = (real(stream.l2_hits), real(stream.walks));
    let marked = real(native.ad_updates) * price(&walk.ad_update);
    let references = if nested {
        // A walk that ends in a violation is made once more.
        let again = 1.0 + violations / walks.max(1.0);
        let read = guest_refs * price(&walk.guest_reference) + 4.0 * (guest_refs + walks) * price(&walk.host_reference);
        again * read + marked
    } else {
        // A walk that exits has looked for the entry in vain.
        (guest_refs + 4.0 * (hidden + stores)) * price(&walk.shadow_reference)
    };
    let work = units(&one.work[index], machine);
    Ok(Said {
        base: real(native.cycles.base) - loads * price(&base.cr3_load) - invlpgs * price(&base.invlpg),
        walks: l2_hits * price(&walk.l2_tlb_hit) + references,
        fixed,
        work,
    })
}
