//! Cost models fitted to memvirt's own runs, and how wrong they are on runs that they have not seen.
//!
//! - [`traps`]: exits from events of the native run alone (`memvirt-census`), by mechanism and fitted freely;
//! - [`walks`]: walks and their references, warm, from the stream by stack distances;
//! - [`times`]: run time as base, walks and exits, from the native run;
//! - [`mosaics`]: run time over mixes of page sizes, with the literature's models (Agbarya et al., MICRO 2020) beside ours.
//!
//! The same bytes come of the same effort and machine on any number of threads.

pub mod errors;
pub mod guests;
pub mod mosaics;
pub mod others;
mod stream;
#[cfg(test)]
mod tests;
pub mod times;
pub mod traps;
pub mod walks;

use std::num::NonZeroUsize;

use memvirt_machine::{MachineSpec, RegimeKind};
use rayon::prelude::*;
use serde::Serialize;

use crate::claims::{Effort, Many};
use crate::error::LabError;
use crate::threads::on_threads;
use crate::words;
pub use errors::{ErrorRow, Region};
use guests::{Accesses, GuestSpec, Observed};
use mosaics::{Mosaics, Task};
use others::Others;
pub use stream::{Crude, Expected, Hardware, Tables};
use times::Times;
use traps::Traps;
use walks::{WalkPoint, Warm};

/// How much is run.
struct Extent {
    accesses: Accesses,
    resamples: usize,
    warm: u64,
    steady: usize,
}

impl Extent {
    const fn of(effort: Effort) -> Self {
        match effort {
            Effort::Quick => Self { accesses: Accesses(1_000), resamples: 20, warm: 20_000, steady: 1 },
            Effort::Full => {
                Self { accesses: Accesses(6_000), resamples: 200, warm: 200_000, steady: walks::WORKLOADS.len() }
            }
        }
    }

    fn warm(&self) -> Vec<Warm> {
        Warm::all(self.warm, &walks::WORKLOADS[walks::WORKLOADS.len() - self.steady..])
    }
}

/// The models against the runs.
#[derive(Clone, Debug, Serialize)]
pub struct Fits {
    /// The machine, as a command names it.
    pub machine: String,
    /// How much was run.
    pub effort: Effort,
    /// Exits.
    pub traps: Vec<Traps>,
    /// Run time under each regime, from the native run.
    pub times: Vec<Times>,
    /// Run time over mixes of page sizes, with the literature's models.
    pub mosaics: Vec<Mosaics>,
    /// Walks and their references, warm.
    pub walks: Vec<WalkPoint>,
    /// The models whose runs are made elsewhere: cold walks, and what [`Fits::complete`] or [`Fits::take`] brings.
    pub others: Others,
}

impl Fits {
    /// How often [`gather`](Self::gather) tells of a step.
    #[must_use]
    pub fn steps(effort: Effort) -> usize {
        GuestSpec::all().len() + Task::all(effort).len() + Extent::of(effort).warm().len()
    }

    /// Runs everything and fits. `observer` hears what was finished, from several threads.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made or a model cannot be fitted.
    pub fn gather(
        effort: Effort,
        machine: &MachineSpec,
        threads: Option<NonZeroUsize>,
        observer: &(dyn Fn(&str) + Sync),
    ) -> Result<Self, LabError> {
        let most = GuestSpec::all().len();
        on_threads(threads, most, || Self::measure(effort, machine, observer))?
    }

    /// Adds the models of footprint and of many vCPUs, and makes their runs.
    ///
    /// # Errors
    ///
    /// Where a run cannot be made.
    pub fn complete(&mut self, machine: &MachineSpec, threads: Option<NonZeroUsize>) -> Result<(), LabError> {
        let effort = self.effort;
        on_threads(threads, GuestSpec::all().len(), || self.others.measure(effort, machine))?
    }

    /// The same from runs that were made already.
    pub fn take(&mut self, many: &Many) {
        self.others.take(&many.footprints, &many.scaling);
    }

    fn measure(effort: Effort, machine: &MachineSpec, observer: &(dyn Fn(&str) + Sync)) -> Result<Self, LabError> {
        let extent = Extent::of(effort);
        let regimes: Vec<RegimeKind> = traps::MODELS.iter().map(|(regime, _)| *regime).collect();
        let observed = each(&GuestSpec::all(), |spec| {
            let observed = Observed::of(*spec, extent.accesses, machine, &regimes)?;
            observer(spec.workload);
            Ok(observed)
        })?;
        let models: Vec<usize> = (0..regimes.len()).collect();
        let traps = each(&models, |index| Traps::of(*index, &observed, extent.resamples))?;
        let times = each(&models, |index| Times::of(*index, &observed, machine))?;
        let tasks = Task::all(effort);
        let mosaics = each(&tasks, |task| {
            let mosaics = task.measure(machine)?;
            observer(task.workload);
            Ok(mosaics)
        })?;
        let mosaics = mosaics.into_iter().flatten().collect();
        let walks = each(&extent.warm(), |warm| {
            let points = warm.measure()?;
            observer(warm.workload);
            Ok(points)
        })?;
        let walks = walks.into_iter().flatten().collect();
        let others = Others::of_walks()?;
        Ok(Self { machine: words::of_machine(machine), effort, traps, times, mosaics, walks, others })
    }
}

/// Does each side by side; the results are in the order of the tasks.
fn each<T: Sync, R: Send>(
    tasks: &[T],
    act: impl Fn(&T) -> Result<R, LabError> + Sync + Send,
) -> Result<Vec<R>, LabError> {
    tasks.par_iter().with_max_len(1).map(act).collect()
}
