//! An experiment: one input under several regimes, in parallel, with the same bytes on any number of threads.
//!
//! Each regime's run is sequential and shares nothing with the others; rayon only decides when it happens, and the results
//! are collected by index.

use std::num::NonZeroUsize;

use memvirt_machine::{Finished, MachineSpec, Measure, Mode, RegimeKind, RunResult, Setup, run};
use memvirt_trace::TraceError;
use rayon::prelude::*;

use crate::comparison::Comparison;
use crate::error::LabError;
use crate::input::{Described, Input};
use crate::switches::Overrides;
use crate::threads::on_threads;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The input.
    pub input: Input,
    /// The regimes, in the order of the results.
    pub regimes: Vec<RegimeKind>,
    /// Switches that differ from their defaults.
    pub overrides: Overrides,
    /// The machine that prices.
    pub machine: MachineSpec,
    /// The seed of generators.
    pub seed: u64,
    /// How the runs are measured.
    pub measure: Measure,
    /// Whether the oracle watches.
    pub check: bool,
    /// Threads; as many as the computer has processors where `None`.
    pub threads: Option<NonZeroUsize>,
    /// The command that makes these results, as it stands in them.
    pub command: String,
}

/// How far a regime's run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The index of the regime.
    pub regime: usize,
    /// Accesses of processes done.
    pub accesses: u64,
    /// How much of the input was consumed, in accesses or bytes.
    pub done: u64,
    /// The whole of it, where that is known.
    pub total: Option<u64>,
}

/// What an experiment came to.
#[derive(Debug)]
pub struct Done {
    /// The results.
    pub comparison: Comparison,
    /// Why the input could not be read to its end, where it could not. The results hold up to there.
    pub input_error: Option<TraceError>,
    /// What the oracle found, in words: the regime and the first violations.
    pub violations: Vec<(RegimeKind, Vec<String>)>,
}

struct One {
    finished: Finished<TraceError>,
    described: Described,
}

impl Experiment {
    /// Runs every regime. `observer` hears of each run's progress, from several threads.
    ///
    /// # Errors
    ///
    /// Where the input cannot be read at all, or the machine or the threads cannot be had.
    pub fn run(&self, observer: &(dyn Fn(Progress) + Sync)) -> Result<Done, LabError> {
        if self.regimes.is_empty() {
            return Err(LabError::NoRegime);
        }
        let all = || -> Result<Vec<One>, LabError> {
            self.regimes.par_iter().enumerate().map(|(index, kind)| self.one(index, *kind, observer)).collect()
        };
        // More threads than regimes would find nothing to do, and a great many take minutes to start.
        let runs = on_threads(self.threads, self.regimes.len(), all)??;
        self.collect(runs)
    }

    /// What one regime's run depends on, its input aside.
    #[must_use]
    pub fn setup(&self, regime: RegimeKind) -> Setup {
        Setup {
            regime,
            guest: self.overrides.guest(&self.input),
            host: self.overrides.host(self.measure.mode),
            machine: self.machine.clone(),
            measure: self.measure,
            check: self.check,
        }
    }

    fn one(&self, index: usize, kind: RegimeKind, observer: &(dyn Fn(Progress) + Sync)) -> Result<One, LabError> {
        let mut stream = self.input.open(self.seed)?;
        if self.measure.mode == Mode::Cycles {
            stream.must_have_lines()?;
        }
        let reader = stream.progress();
        let total = match (&self.input, &reader) {
            (Input::Workload(workload), _) => Some(workload.facts().accesses.value()),
            (Input::Trace(..), reader) => reader.as_ref().and_then(memvirt_trace::Progress::total_bytes),
        };
        let finished = run(&self.setup(kind), &mut stream, &mut |accesses| {
            let done = reader.as_ref().map_or(accesses, memvirt_trace::Progress::bytes);
            observer(Progress { regime: index, accesses, done, total });
        })?;
        let described = stream.describe(&self.input);
        Ok(One { finished, described })
    }

    fn collect(&self, runs: Vec<One>) -> Result<Done, LabError> {
        let (mut results, mut violations): (Vec<RunResult>, Vec<_>) = (Vec::new(), Vec::new());
        let (mut input_error, mut workload) = (None, None);
        for One { finished, described } in runs {
            let Finished { result, input_error: error, violations: found } = finished;
            if !found.is_empty() {
                violations.push((result.regime, found));
            }
            results.push(result);
            input_error = input_error.or(error);
            workload = workload.or(Some(described));
        }
        match (workload, input_error) {
            // Nothing was read: there is nothing to show.
            (_, Some(error)) if results.iter().all(|result| result.guest.user_accesses == 0) => Err(error.into()),
            (None, _) => Err(LabError::NoRegime),
            (Some(workload), input_error) => {
                let (seed, machine, command) = (self.seed, self.machine.clone(), self.command.clone());
                let comparison = Comparison { command, seed, workload, machine, results };
                Ok(Done { comparison, input_error, violations })
            }
        }
    }
}
