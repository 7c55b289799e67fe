//! The plane with the number of vCPUs as third axis: the workload with two knobs on each of 1, 4, 16, ... vCPUs, in simulated time.
//!
//! Every point is run ([`ScalePlan`]), an instance on each vCPU, after a warm-up beyond the set-up. The rates are those of one vCPU
//! natively. Beside the measured advantage stands that of mean-value analysis, fed from the runs with one vCPU alone.

use std::num::NonZeroUsize;

use memvirt_machine::{MachineSpec, Measure, RegimeKind};
use memvirt_workload::Workload;
use rayon::prelude::*;
use serde::Serialize;

use super::separation;
use crate::error::LabError;
use crate::experiment::Experiment;
use crate::input::Input;
use crate::plan::Size;
use crate::scale::{ScalePlan, ScaleTable};
use crate::switches::Overrides;
use crate::table::csv_line;
use crate::text::fraction;
use crate::threads::on_threads;
use crate::words;

/// Who wins at one point of the plane with so many vCPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VcpuSample {
    /// vCPUs.
    pub vcpus: u16,
    /// TLB misses for 1000 instructions, natively on one vCPU.
    pub misses: f64,
    /// Stores to page tables for 1000 instructions.
    pub updates: f64,
    /// ln(T_shadow / T_nested): above 0 nested paging wins.
    pub advantage: f64,
    /// The same by mean-value analysis, fed from one vCPU.
    pub predicted: f64,
    /// The command of the runs.
    pub command: String,
}

/// The planes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VcpuPhase {
    /// The machine.
    pub machine: String,
    /// Numbers of vCPUs.
    pub vcpus: Vec<u16>,
    /// The points of all planes.
    pub samples: Vec<VcpuSample>,
}

/// A point of the grid: accesses to the large area and instructions of a round.
type Knobs = (u64, u64);

const AREA: &str = "16MiB";
const AREA_PAGES: u64 = 4096;
/// Pages that are given back and faulted in again in each round.
const HEAP_PAGES: u64 = 16;
const SHADOW: RegimeKind = RegimeKind::ShadowKvm61;

/// The points, and rounds of each.
fn grid(size: Size) -> (Vec<Knobs>, u64) {
    let (touches, computes, rounds): (&[u64], &[u64], u64) = match size {
        Size::Quick => (&[30, 1_000, 10_000], &[3_000, 100_000, 1_000_000], 3),
        Size::Full => (&[30, 300, 3_000, 30_000], &[3_000, 30_000, 300_000, 3_000_000], 12),
    };
    (touches.iter().flat_map(|touch| computes.iter().map(move |compute| (*touch, *compute))).collect(), rounds)
}

/// One point over all numbers of vCPUs.
struct Point {
    knobs: Knobs,
    rounds: u64,
    vcpus: Vec<u16>,
    machine: MachineSpec,
}

impl Point {
    fn settings(&self) -> Vec<(String, String)> {
        let (touch, compute) = self.knobs;
        [
            ("areas.far.size", AREA.to_owned()),
            ("setup.2.touch.count", AREA_PAGES.to_string()),
            ("iterations", (self.rounds + 2).to_string()),
            ("body.0.touch.count", touch.to_string()),
            ("body.1.compute", compute.to_string()),
        ]
        .map(|(path, value)| (path.to_owned(), value))
        .to_vec()
    }

    fn workload(&self) -> Result<Workload, LabError> {
        let set = |workload: Workload, (path, value): (String, String)| workload.with_field(&path, &value);
        Ok(self.settings().into_iter().try_fold(Workload::find("two-rates")?, set)?)
    }

    /// Beyond the set-up and two rounds.
    fn measure(&self) -> Measure {
        let warm_up = AREA_PAGES + HEAP_PAGES + 2 * (self.knobs.0 + HEAP_PAGES);
        Measure { warm_up_accesses: warm_up, ..Measure::default() }
    }

    fn run(&self) -> Result<Vec<VcpuSample>, LabError> {
        let native = Experiment {
            input: Input::Workload(Box::new(self.workload()?)),
            regimes: vec![RegimeKind::Native],
            overrides: Overrides::default(),
            machine: self.machine.clone(),
            seed: 0,
            measure: self.measure(),
            check: false,
            threads: None,
            command: String::new(),
        };
        let native = native.run(&|_| {})?.comparison;
        let Some(run) = native.results.first() else { return Err(LabError::NoRegime) };
        let each = |count| 1000.0 * fraction(count, run.guest.instructions);
        let (misses, updates) = (each(run.walks), each(run.guest.table_stores));
        let table = self.plan()?.run()?;
        let found = self.vcpus.iter().filter_map(|vcpus| advantages(&table, *vcpus).map(|both| (*vcpus, both)));
        let sample = |(vcpus, (advantage, predicted))| VcpuSample {
            vcpus,
            misses,
            updates,
            advantage,
            predicted,
            command: table.command.clone(),
        };
        Ok(found.map(sample).collect())
    }

    fn plan(&self) -> Result<ScalePlan, LabError> {
        let vcpus: Vec<String> = self.vcpus.iter().map(u16::to_string).collect();
        let set: Vec<String> = self.settings().iter().map(|(path, value)| format!("--set {path}={value}")).collect();
        let measure = self.measure();
        let command = format!(
            "memvirt scale --workload two-rates --vcpus {} --regimes {SHADOW},nested {} --warm-up {} --machine {}",
            vcpus.join(","),
            set.join(" "),
            measure.warm_up_accesses,
            words::of_machine(&self.machine)
        );
        let regimes = vec![SHADOW, RegimeKind::NestedEpt];
        let usual = ScalePlan::usual(self.workload()?, regimes, self.vcpus.clone(), &self.machine, command);
        Ok(ScalePlan { measure, ..usual })
    }
}

/// ln(T_shadow / T_nested) with so many vCPUs: measured, and by the analysis.
fn advantages(table: &ScaleTable, vcpus: u16) -> Option<(f64, f64)> {
    let point = |regime, vcpus| table.of(regime).find(|point| point.vcpus == vcpus);
    let (shadow, nested) = (point(SHADOW, vcpus)?, point(RegimeKind::NestedEpt, vcpus)?);
    let alone = (point(SHADOW, 1)?.throughput, point(RegimeKind::NestedEpt, 1)?.throughput);
    let predicted = (alone.1 * nested.mva.efficiency) / (alone.0 * shadow.mva.efficiency);
    Some(((nested.throughput / shadow.throughput).ln(), predicted.ln()))
}

impl VcpuPhase {
    /// The numbers of vCPUs of the report: of the full one, of the quick one.
    pub const VCPUS: [&'static [u16]; 2] = [&[1, 4, 16, 64], &[1, 4, 16]];

    /// Runs every point with each of these numbers of vCPUs, spread over rayon's threads, or so many.
    ///
    /// # Errors
    ///
    /// [`LabError`] where a run cannot be made.
    pub fn measure(
        size: Size,
        machine: &MachineSpec,
        vcpus: &[u16],
        threads: Option<NonZeroUsize>,
    ) -> Result<Self, LabError> {
        let (knobs, rounds) = grid(size);
        let one =
            |knobs: &Knobs| Point { knobs: *knobs, rounds, vcpus: vcpus.to_vec(), machine: machine.clone() }.run();
        let all = || knobs.par_iter().with_max_len(1).map(one).collect::<Result<Vec<_>, LabError>>();
        let mut samples = on_threads(threads, knobs.len(), all)??.concat();
        samples.sort_by_key(|sample| sample.vcpus);
        Ok(Self { machine: machine.name.clone(), vcpus: vcpus.to_vec(), samples })
    }

    /// The points with so many vCPUs.
    pub fn of(&self, vcpus: u16) -> impl Iterator<Item = &VcpuSample> {
        self.samples.iter().filter(move |sample| sample.vcpus == vcpus)
    }

    /// Misses for one update from which shadow paging wins with so many vCPUs: the ratio that separates winners with the fewest
    /// exceptions; `None` where one side wins everywhere.
    #[must_use]
    pub fn misses_per_update(&self, vcpus: u16) -> Option<f64> {
        let ratios = self.of(vcpus).map(|sample| (sample.misses / sample.updates, sample.advantage > 0.0)).collect();
        separation(ratios).map(|(below, above)| (below * above).sqrt())
    }

    /// The points of the grid next to that ratio: it lies somewhere between them.
    #[must_use]
    pub fn border(&self, vcpus: u16) -> Option<(f64, f64)> {
        let ratio = self.misses_per_update(vcpus)?;
        let ratios = || self.of(vcpus).map(|sample| sample.misses / sample.updates);
        let below = ratios().filter(|r| *r < ratio).fold(0.0, f64::max);
        Some((below, ratios().filter(|r| *r >= ratio).fold(f64::INFINITY, f64::min)))
    }

    /// Points whose winner the analysis names, of all with several vCPUs.
    #[must_use]
    pub fn right(&self) -> (usize, usize) {
        let several: Vec<_> = self.samples.iter().filter(|sample| sample.vcpus > 1).collect();
        let right = several.iter().filter(|sample| (sample.predicted > 0.0) == (sample.advantage > 0.0)).count();
        (right, several.len())
    }

    /// The points as CSV.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let (header, rows) = self.cells();
        let mut text = String::new();
        csv_line(&mut text, header.iter());
        rows.iter().for_each(|row| csv_line(&mut text, row.iter()));
        text
    }

    pub(super) fn cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let header = [
            "vcpus",
            "misses_per_1000_instructions",
            "updates_per_1000_instructions",
            "ln_shadow_over_nested",
            "predicted_ln_shadow_over_nested",
            "command",
        ];
        let row = |s: &VcpuSample| {
            let figures = [s.misses, s.updates, s.advantage, s.predicted].map(|x| format!("{x:.6}"));
            std::iter::once(s.vcpus.to_string()).chain(figures).chain([s.command.clone()]).collect()
        };
        (header.map(str::to_owned).to_vec(), self.samples.iter().map(row).collect())
    }
}
