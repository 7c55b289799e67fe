//! The phase diagram: who wins, shadow or nested paging, over the plane of TLB misses and page-table updates, and by how much.
//!
//! The runs are those of the plan `phase` on one machine. Both rates are the guest's, taken from the native run. Beside each
//! measured benefit stands that of the model `break-even`, fed with prices of the machine and events of the native run alone:
//! walks at the references of `walk-cold`, updates at the exits that the census says they cause (first stores to tables after each time
//! that these were brought in step, fills, flushes) and the work in their handlers. Source: Gandhi, Hill, Swift, ISCA 2016, figure 1,
//! as a diagram.

mod draw;
mod vcpus;

use std::collections::BTreeMap;

use memvirt_census::{Census, Events};
use memvirt_costmodel::Model;
use memvirt_machine::{MachineSpec, RegimeKind};
use memvirt_platform::Work;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::LabError;
use crate::fits::guests::{bare, drive, policy};
use crate::fits::times::exit_cycles;
use crate::fits::traps::MODELS;
use crate::input::Input;
use crate::plan::{Point, Row, Table};
use crate::table::csv_line;

pub(crate) use draw::Dot;
pub use vcpus::{VcpuPhase, VcpuSample};

/// A guest in the plane.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The workload's name.
    pub name: String,
    /// Whether it is one of the built-in workloads rather than the one with two knobs.
    pub known: bool,
    /// TLB misses for 1000 instructions, natively.
    pub misses: f64,
    /// Stores to page tables for 1000 instructions.
    pub updates: f64,
    /// Times native under shadow paging.
    pub shadow: f64,
    /// Times native under nested paging.
    pub nested: f64,
    /// ln(T_shadow / T_nested): above 0 nested paging wins.
    pub advantage: f64,
    /// The same, predicted.
    pub predicted: f64,
    /// The command of the native run.
    pub command: String,
    /// Cycles of exits that an update costs under shadow paging more than under nested paging, predicted.
    #[serde(skip)]
    update_cycles: f64,
}

/// The plane of one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// The machine.
    pub machine: String,
    /// The shadow regime that nested paging is compared with.
    pub shadow: RegimeKind,
    /// Misses for one update from which shadow paging wins, by the model; the line through the plane.
    pub model_misses_per_update: f64,
    /// The same by the runs of the workload with two knobs: the ratio that separates winners with the fewest exceptions.
    pub measured_misses_per_update: Option<f64>,
    /// The ratios of the runs below and above it: closer than this the runs do not say.
    pub measured_between: Option<(f64, f64)>,
    /// Runs of the workload with two knobs on the side of the line that won, of all.
    pub right_side: (usize, usize),
    /// The largest difference of predicted and measured advantage among them.
    pub worst_difference: f64,
    /// The guests.
    pub samples: Vec<Sample>,
}

impl Phase {
    /// The shadow regimes that the plan runs.
    pub const SHADOWS: [RegimeKind; 3] =
        [RegimeKind::ShadowKvm61, RegimeKind::ShadowWriteProtect, RegimeKind::ShadowLazyFill];

    /// The plane of a table of the plan `phase` on one machine; `points` are the plan's, of which the native ones are counted.
    ///
    /// # Errors
    ///
    /// Where the models do not take the figures, or the table holds no run of the workload with two knobs.
    pub fn of(table: &Table, points: &[Point], machine: &MachineSpec, shadow: RegimeKind) -> Result<Self, LabError> {
        let mut groups: BTreeMap<String, BTreeMap<String, &Row>> = BTreeMap::new();
        let mut order = Vec::new();
        for row in &table.rows {
            let (Some(command), Some(regime)) = (table.cell(row, "command"), table.cell(row, "regime")) else {
                continue;
            };
            let guest = command.replacen(&format!("--regime {regime} "), "", 1);
            if !groups.contains_key(&guest) {
                order.push(guest.clone());
            }
            groups.entry(guest).or_default().insert(regime, row);
        }
        let costs = Costs::of(machine)?;
        let sample = |guest: &String| {
            let row = |regime: RegimeKind| groups[guest].get(regime.name()).copied();
            Some([row(RegimeKind::Native)?, row(shadow)?, row(RegimeKind::NestedEpt)?])
        };
        let exits = exits_of(points, machine, shadow)?;
        let samples = order.iter().filter_map(sample).filter_map(|rows| costs.sample(table, rows, &exits).transpose());
        let samples = samples.collect::<Result<Vec<_>, _>>()?;
        let knobs: Vec<&Sample> = samples.iter().filter(|sample| !sample.known).collect();
        let mut updates: Vec<f64> = knobs.iter().map(|sample| sample.update_cycles).collect();
        updates.sort_by(f64::total_cmp);
        let Some(update) = updates.get(updates.len() / 2) else {
            return Err(LabError::Model("the table holds no run of the workload with two knobs".to_owned()));
        };
        let model_misses_per_update = update / (costs.nested_walk - costs.shadow_walk);
        let right = |s: &&&Sample| (s.misses < model_misses_per_update * s.updates) == (s.advantage > 0.0);
        let right_side = (knobs.iter().filter(right).count(), knobs.len());
        let worst = knobs.iter().map(|sample| (sample.predicted - sample.advantage).abs()).fold(0.0, f64::max);
        let ratios = knobs.iter().map(|s| (s.misses / s.updates, s.advantage > 0.0)).collect();
        let measured_between = separation(ratios);
        let measured_misses_per_update = measured_between.map(|(below, above)| (below * above).sqrt());
        let (machine, worst_difference) = (machine.name.clone(), worst);
        Ok(Self {
            machine,
            shadow,
            model_misses_per_update,
            measured_misses_per_update,
            measured_between,
            right_side,
            worst_difference,
            samples,
        })
    }

    /// The samples as CSV.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let (header, rows) = self.cells();
        let mut text = String::new();
        csv_line(&mut text, header.iter());
        rows.iter().for_each(|row| csv_line(&mut text, row.iter()));
        text
    }

    fn cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let header = [
            "workload",
            "known",
            "misses_per_1000_instructions",
            "updates_per_1000_instructions",
            "shadow_times_native",
            "nested_times_native",
            "ln_shadow_over_nested",
            "predicted_ln_shadow_over_nested",
            "command",
        ];
        let row = |s: &Sample| {
            let figures =
                [s.misses, s.updates, s.shadow, s.nested, s.advantage, s.predicted].map(|x| format!("{x:.6}"));
            let names = [s.name.clone(), s.known.to_string()];
            names.into_iter().chain(figures).chain([s.command.clone()]).collect()
        };
        (header.map(str::to_owned).to_vec(), self.samples.iter().map(row).collect())
    }
}

/// The ratios of misses to updates between which winners are separated with the fewest exceptions; `None` where one side wins
/// everywhere.
fn separation(mut ratios: Vec<(f64, bool)>) -> Option<(f64, f64)> {
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    if ratios.windows(2).all(|pair| pair[0].1 == pair[1].1) {
        return None;
    }
    // Below the ratio nested paging is expected to win, from it on shadow paging.
    let wrong = |cut: usize| ratios.iter().enumerate().filter(|(i, (_, nested))| (*i < cut) != *nested).count();
    let cut = (1..ratios.len()).min_by_key(|cut| wrong(*cut))?;
    Some((ratios[cut - 1].0, ratios[cut].0))
}

/// Cycles of the exits of a guest under a shadow regime and under nested paging, predicted from its native run.
type Exits = [f64; 2];

/// What the census says of each native run, by its command.
fn exits_of(points: &[Point], machine: &MachineSpec, shadow: RegimeKind) -> Result<BTreeMap<String, Exits>, LabError> {
    let native: Vec<&Point> = points.iter().filter(|point| point.regime == RegimeKind::Native).collect();
    let one = |point: &&Point| Ok((point.command(), exits(point, machine, [shadow, RegimeKind::NestedEpt])?));
    native.par_iter().with_max_len(1).map(one).collect()
}

fn exits(point: &Point, machine: &MachineSpec, regimes: [RegimeKind; 2]) -> Result<Exits, LabError> {
    let experiment = point.experiment()?;
    let (guest, measure) = (experiment.setup(RegimeKind::Native).guest, experiment.measure);
    let Input::Workload(workload) = &experiment.input else {
        return Err(LabError::Model("the line is drawn through workloads, not traces".to_owned()));
    };
    let mut census = Census::new(bare(guest, machine)?);
    let count = |census: &Census<_>| -> (Events, [Work; 2]) {
        let work = regimes.map(|regime| policy(regime).map_or_else(Work::default, |policy| census.work(policy)));
        (*census.events(), work)
    };
    let mut before = None;
    drive(&mut workload.generator(point.seed), guest, measure.prefault, &mut census, |guest, census| {
        if before.is_none() && guest.stats().user_accesses >= measure.warm_up_accesses {
            before = Some(count(census));
        }
    })?;
    let after = count(&census);
    let mut cycles = [0.0; 2];
    for (i, cycles) in cycles.iter_mut().enumerate() {
        let Some(index) = MODELS.iter().position(|(of, _)| *of == regimes[i]) else { continue };
        let of = |(events, work): &(Events, [Work; 2])| exit_cycles(index, events, &work[i], machine);
        *cycles = of(&after)? - before.as_ref().map_or(Ok(0.0), of)?;
    }
    Ok(cycles)
}

/// What the model takes from the machine.
struct Costs {
    model: Model,
    shadow_walk: f64,
    nested_walk: f64,
}

impl Costs {
    fn of(machine: &MachineSpec) -> Result<Self, LabError> {
        let failed = |error: &dyn std::fmt::Display| LabError::Model(error.to_string());
        let walk = Model::find("walk-cold").map_err(|error| failed(&error))?;
        let refs = |host: f64| {
            let point = [("guest_levels", 4.0), ("guest_leaf", 1.0), ("host_levels", host), ("host_leaf", 1.0)];
            walk.at(&point).map_err(|error| failed(&error))
        };
        let (flat, two) = (refs(0.0)?, refs(4.0)?);
        let translation = &machine.translation;
        let [guest, own, host] =
            [&translation.guest_reference, &translation.shadow_reference, &translation.host_reference]
                .map(|figure| exact(figure.times(1)));
        Ok(Self {
            model: Model::find("break-even").map_err(|error| failed(&error))?,
            shadow_walk: flat[1] * own,
            nested_walk: two[1] * guest + two[2] * host,
        })
    }

    fn sample(
        &self,
        table: &Table,
        [native, shadow, nested]: [&Row; 3],
        exits: &BTreeMap<String, Exits>,
    ) -> Result<Option<Sample>, LabError> {
        let of = |row: &Row, column: &str| table.number(row, column).unwrap_or(0.0);
        let count = |column: &str| of(native, column);
        let finished =
            [native, shadow, nested].iter().all(|row| table.cell(row, "outcome").as_deref() == Some("completed"));
        let (instructions, stores) = (count("guest.instructions"), count("guest.table_stores"));
        let name = table.cell(native, "workload").unwrap_or_default();
        let (walks, cycles) = (count("walks"), count("cycles.total"));
        let command = table.cell(native, "command").unwrap_or_default();
        let Some(exits) = exits.get(&command).filter(|_| finished) else { return Ok(None) };
        if instructions <= 0.0 || walks <= 0.0 || stores <= 0.0 {
            return Ok(None);
        }
        let updates = exits.map(|cycles| cycles / stores);
        let base = (cycles / instructions - walks / instructions * self.shadow_walk).max(0.0);
        let point = [
            ("base", base),
            ("misses", walks / instructions),
            ("update_rate", stores / instructions),
            ("shadow_walk", self.shadow_walk),
            ("nested_walk", self.nested_walk),
            ("shadow_update", updates[0].min(200_000.0)),
            ("nested_update", updates[1].min(200_000.0)),
        ];
        let outputs = self.model.at(&point).map_err(|error| LabError::Model(error.to_string()))?;
        let (shadow, nested) = (of(shadow, "cycles.total"), of(nested, "cycles.total"));
        Ok(Some(Sample {
            known: name != "two-rates",
            name: if table.cell(native, "footprint").is_some_and(|footprint| !footprint.is_empty()) {
                format!("{name}, warm")
            } else {
                name
            },
            misses: 1000.0 * walks / instructions,
            updates: 1000.0 * stores / instructions,
            shadow: shadow / cycles,
            nested: nested / cycles,
            advantage: (shadow / nested).ln(),
            predicted: (outputs[0] / outputs[1]).ln(),
            command,
            update_cycles: updates[0] - updates[1],
        }))
    }
}

#[expect(clippy::cast_precision_loss, reason = "prices are small")]
const fn exact(n: u64) -> f64 {
    n as f64
}
