//! The run-time models of the literature, fitted to memvirt's own runs as their authors prescribe, and ours beside them.
//!
//! A *mosaic* is a run whose memory is mapped partly by 2 MiB and partly by 4 KiB pages (Mosalloc; Agbarya et al., MICRO 2020). Areas
//! are so large that the lowest level of their tables outgrows the caches: with 4 KiB pages walks take a quarter of the time and more,
//! as in the literature's workloads. Every run is measured when it is warm, its tables full and all of their lines used before. The
//! linear models are calibrated by the two runs at the ends, all of the one and all of the other; Mosmodel by all runs but the one
//! that it is asked about. All of them take counters of the run that they predict. Ours takes one run, that with 4 KiB pages, for
//! the time that is neither translation nor waiting for data, and has second-level hits, walks, references and the caches that hold
//! their lines predicted from the stream (module `stream`): no counter of the run that is asked about.

use memvirt_addr::PageSize;
use memvirt_costmodel::fit::{Quality, relative_error};
use memvirt_costmodel::literature::{LinearModel, Mosmodel, Run};
use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, Mode, RegimeKind, RunResult, Setup, run};
use memvirt_ops::process::{Backing, Batch, Op, Range, Source};
use memvirt_workload::{Spec, Steady};
use rayon::prelude::*;
use serde::Serialize;

use super::guests::{SEED, bare, cut, drive, real};
use super::stream::{Expected, Hardware, LineCycles, Stream, Tables};
use crate::claims::Effort;
use crate::error::LabError;
use crate::input::Input;
use crate::switches::Overrides;

/// Workloads of one large area.
pub const WORKLOADS: [&str; 5] = ["uniform", "zipf", "hash-join", "xsbench", "graph"];
/// Regimes under which the mosaics run. The models take one dimension or two for granted no more than the time of a walk.
pub const REGIMES: [RegimeKind; 3] = [RegimeKind::Native, RegimeKind::ShadowKvm61, RegimeKind::NestedEpt];

const LARGE: u64 = 2 << 20;
const SMALL: u64 = 4 << 10;

/// Which blocks of 2 MiB of an area are mapped by one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The first so many eighths of the area: Mosalloc's growing window.
    First(u64),
    /// The last so many eighths.
    Last(u64),
    /// Every so manieth block.
    Every(u64),
}

impl Layout {
    /// All layouts; the first has no large page, the last nothing else.
    pub const ALL: [Self; 13] = [
        Self::First(0),
        Self::First(1),
        Self::First(2),
        Self::First(3),
        Self::First(4),
        Self::First(5),
        Self::First(6),
        Self::First(7),
        Self::Last(2),
        Self::Last(4),
        Self::Every(2),
        Self::Every(4),
        Self::First(8),
    ];

    fn is_large(self, block: u64, blocks: u64) -> bool {
        match self {
            Self::First(eighths) => block * 8 < blocks * eighths,
            Self::Last(eighths) => (blocks - 1 - block) * 8 < blocks * eighths,
            Self::Every(n) => block.is_multiple_of(n),
        }
    }

    /// The areas that an area is made as. A block that is to have small pages is cut, so that no large one fits.
    fn pieces(self, range: Range) -> Vec<Range> {
        let (start, end) = (range.start.as_u64(), range.start.as_u64() + range.bytes);
        let first = start.next_multiple_of(LARGE);
        let blocks = end.saturating_sub(first) / LARGE;
        let mut cuts = vec![start, first.min(end)];
        for block in 0..blocks {
            let at = first + block * LARGE;
            if self.is_large(block, blocks) {
                cuts.extend([at, at + LARGE]);
            } else {
                cuts.extend([at, at + LARGE - SMALL, at + LARGE]);
            }
        }
        cuts.push(end);
        cuts.dedup();
        let piece = |pair: &[u64]| Range { start: memvirt_addr::Gva::new_truncate(pair[0]), bytes: pair[1] - pair[0] };
        cuts.windows(2).filter(|pair| pair[1] > pair[0]).map(piece).collect()
    }
}

/// A source whose areas are made in pieces.
struct Mosaic<S> {
    inner: S,
    layout: Layout,
    queue: Vec<Op>,
}

impl<S: Source> Source for Mosaic<S> {
    type Error = S::Error;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, S::Error> {
        if let Some(op) = self.queue.pop() {
            batch.clear();
            batch.then = Some(op);
            return Ok(true);
        }
        let more = self.inner.next_batch(batch)?;
        if let Some(Op::Mmap { range, prot, backing: Backing::AnonymousPrivate }) = batch.then {
            let piece = |range| Op::Mmap { range, prot, backing: Backing::AnonymousPrivate };
            self.queue.extend(self.layout.pieces(range).into_iter().rev().map(piece));
            batch.then = self.queue.pop();
        }
        Ok(more)
    }
}

/// One mosaic.
#[derive(Clone, Debug, Serialize)]
pub struct MosaicPoint {
    /// The layout.
    pub layout: Layout,
    /// Cycles of the run.
    pub cycles: f64,
    /// Cycles of its walks.
    pub walk_cycles: f64,
    /// Its second-level hits.
    pub l2_hits: f64,
    /// Its walks.
    pub walks: f64,
    /// What each model says of its cycles, in the order of [`Mosaics::models`].
    pub predicted: Vec<f64>,
}

/// The models on the mosaics of one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Mosaics {
    /// The workload.
    pub workload: &'static str,
    /// The regime.
    pub regime: RegimeKind,
    /// The share of the run's time that walks take where all pages are small.
    pub walk_share: f64,
    /// The mosaics.
    pub points: Vec<MosaicPoint>,
    /// The errors of each model on the mosaics that it was not calibrated by.
    pub errors: Vec<ModelError>,
}

/// How wrong a model is.
#[derive(Clone, Debug, Serialize)]
pub struct ModelError {
    /// The model.
    pub model: &'static str,
    /// The largest relative error.
    pub max: f64,
    /// The geometric mean of the relative errors.
    pub geometric_mean: f64,
}

/// One workload to be measured under all of [`REGIMES`].
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The workload.
    pub workload: &'static str,
    /// Accesses; a part of them warms up.
    pub accesses: u64,
    /// The area's size.
    pub footprint: u64,
}

impl Mosaics {
    /// The models: ours, then those of the literature.
    #[must_use]
    pub fn models() -> Vec<&'static str> {
        let lines = LinearModel::ALL.iter().map(|model| model.name());
        ["memvirt"].into_iter().chain(lines).chain(["Mosmodel"]).collect()
    }
}

/// One layout: its runs, and what our model expects of the stream, in the order of [`REGIMES`].
type Measured = (Vec<RunResult>, Vec<(Expected, LineCycles)>);

impl Task {
    /// All of them. The quick form's areas are small: walks take less there.
    #[must_use]
    pub fn all(effort: Effort) -> Vec<Self> {
        let (accesses, footprint, workloads) = match effort {
            Effort::Quick => (20_000, 128 << 20, &WORKLOADS[..1]),
            Effort::Full => (400_000, 6 << 30, &WORKLOADS[..]),
        };
        workloads.iter().map(|workload| Self { workload, accesses, footprint }).collect()
    }

    /// Measures the mosaics and fits the models, under each regime.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made, or a model cannot be fitted.
    pub fn measure(self, machine: &MachineSpec) -> Result<Vec<Mosaics>, LabError> {
        let one = |layout: &Layout| -> Result<Measured, LabError> {
            let runs =
                REGIMES.into_iter().map(|regime| self.run(regime, *layout, machine)).collect::<Result<_, _>>()?;
            Ok((runs, self.expected(*layout, machine)?))
        };
        let made = Layout::ALL.par_iter().with_max_len(1).map(one).collect::<Result<Vec<Measured>, LabError>>()?;
        // Choosing Mosmodel's terms takes longer than most runs.
        (0..REGIMES.len()).into_par_iter().map(|index| self.fit(index, &made, machine)).collect()
    }

    fn fit(self, index: usize, made: &[Measured], machine: &MachineSpec) -> Result<Mosaics, LabError> {
        let failed = |error: &dyn std::fmt::Display| LabError::Model(format!("{}: {error}", self.workload));
        let runs: Vec<Run> = made.iter().map(|(results, _)| counters(&results[index], machine)).collect();
        let (small, large) = (runs[0], runs[runs.len() - 1]);
        let prices = Prices::of(&made[0].0[index], machine);
        let mut predicted = vec![made.iter().map(|(_, expected)| prices.cycles(&expected[index])).collect::<Vec<_>>()];
        for model in LinearModel::ALL {
            let fitted = model.calibrate(&small, &large).map_err(|error| failed(&error))?;
            predicted.push(runs.iter().map(|run| fitted.cycles(run)).collect());
        }
        predicted.push(Mosmodel::leave_one_out(&runs, SEED).map_err(|error| failed(&error))?);
        let errors = Mosaics::models().into_iter().zip(&predicted).map(|(model, predicted)| {
            // Neither end: the linear models are made of them.
            let within = 1..runs.len() - 1;
            let observed: Vec<f64> = runs[within.clone()].iter().map(|run| run.cycles).collect();
            let quality = Quality::of(&observed, &predicted[within]);
            ModelError { model, max: quality.max_relative, geometric_mean: quality.geometric_mean_relative }
        });
        let errors = errors.collect();
        let point = |(i, run): (usize, &Run)| MosaicPoint {
            layout: Layout::ALL[i],
            cycles: run.cycles,
            walk_cycles: run.walk_cycles,
            l2_hits: run.l2_hits,
            walks: run.misses,
            predicted: predicted.iter().map(|all| all[i]).collect(),
        };
        let points = runs.iter().enumerate().map(point).collect();
        let walk_share = small.walk_cycles / small.cycles;
        Ok(Mosaics { workload: self.workload, regime: REGIMES[index], walk_share, points, errors })
    }

    /// The workload over its area, and its guest. A store to each page comes first, so that shadow tables are full and lines of
    /// tables were used before; then half of the accesses warm up.
    fn guest(self) -> Result<(Steady, GuestConfig), LabError> {
        let workload = cut(self.workload, self.accesses)?;
        let workload = match workload.spec() {
            Spec::Script(script) => {
                let paths: Vec<_> = script.areas.keys().map(|area| format!("areas.{area}.size")).collect();
                let size = format!("{}MiB", self.footprint >> 20);
                paths.iter().try_fold(workload, |workload, path| workload.with_field(path, &size))?
            }
            _ => workload.with_footprint(self.footprint)?,
        };
        let overrides = Overrides { guest_page: Some(PageSize::Size2M), ..Overrides::default() };
        let guest = overrides.guest(&Input::Workload(Box::new(workload.clone())));
        let mut steady = workload.steady();
        // A quarter of them is part of a steady workload already.
        steady.warm_up_accesses += self.accesses / 4;
        Ok((steady, guest))
    }

    fn run(self, regime: RegimeKind, layout: Layout, machine: &MachineSpec) -> Result<RunResult, LabError> {
        let (Steady { workload, warm_up_accesses }, guest) = self.guest()?;
        let measure = Measure { mode: Mode::Cycles, prefault: true, warm_up_accesses, ..Measure::default() };
        let host = HostConfig { walk_caches: true, host_page: PageSize::Size2M, ..HostConfig::default() };
        let setup = Setup { regime, guest, host, machine: machine.clone(), measure, check: false };
        let mut source = Mosaic { inner: workload.generator(SEED), layout, queue: Vec::new() };
        Ok(run(&setup, &mut source, &mut |_| {})?.result)
    }

    /// What the stream does to the translation hardware of each regime; no run is looked at.
    fn expected(self, layout: Layout, machine: &MachineSpec) -> Result<Vec<(Expected, LineCycles)>, LabError> {
        let (Steady { workload, warm_up_accesses }, guest) = self.guest()?;
        let hardware = REGIMES.map(|regime| Hardware {
            walk_caches: true,
            reads: match regime {
                RegimeKind::Native => Tables::Guest,
                RegimeKind::NestedEpt => Tables::Nested,
                _ => Tables::Shadow,
            },
            largest: if regime == RegimeKind::Native { PageSize::Size1G } else { PageSize::Size2M },
        });
        let mut stream = Stream::new(bare(guest, machine)?, machine, &hardware)?.with_lines(machine)?;
        let mut warming = true;
        let mut source = Mosaic { inner: workload.generator(SEED), layout, queue: Vec::new() };
        drive(&mut source, guest, true, &mut stream, |guest, stream| {
            if warming && guest.stats().user_accesses >= warm_up_accesses {
                warming = false;
                stream.restart();
            }
        })?;
        Ok(stream.expected().zip(stream.line_cycles()).collect())
    }
}

fn counters(result: &RunResult, machine: &MachineSpec) -> Run {
    let hits = machine.translation.l2_tlb_hit.times(result.tlb.l2_hits);
    Run {
        cycles: real(result.cycles.total),
        walk_cycles: real(result.cycles.translation - hits),
        l2_hits: real(result.tlb.l2_hits),
        misses: real(result.tlb.misses),
    }
}

/// What our model takes of the run with small pages, and of the machine.
struct Prices {
    /// Cycles that are neither translation nor waiting for data: the program's instructions, and a hypervisor's work.
    base: f64,
    l2_hit: f64,
    cached: f64,
}

impl Prices {
    fn of(small: &RunResult, machine: &MachineSpec) -> Self {
        let references = small.cycles.references.iter().filter(|row| !row.is_of_a_walk());
        let data: u64 = references.map(|row| row.cycles).sum();
        let cached = machine.walk_caches.as_ref().map_or(0.0, |caches| f64::from(caches.latency.value));
        Self {
            base: real(small.cycles.total - small.cycles.translation - data),
            l2_hit: real(machine.translation.l2_tlb_hit.times(1)),
            cached,
        }
    }

    fn cycles(&self, (expected, lines): &(Expected, LineCycles)) -> f64 {
        self.base
            + real(lines.data + lines.tables)
            + real(expected.l2_hits) * self.l2_hit
            + real(expected.cached) * self.cached
    }
}

impl MosaicPoint {
    /// The relative error of each model.
    #[must_use]
    pub fn errors(&self) -> Vec<f64> {
        self.predicted.iter().map(|predicted| relative_error(self.cycles, *predicted)).collect()
    }
}
