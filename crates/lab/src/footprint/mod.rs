//! What page tables take: bytes of guest tables, shadow pages, nested tables and a hypervisor's records, over time, at their peak and
//! by process; measured in runs, beside what a model that knows no simulator says of dense and of random sparse use.
//!
//! A *row* is one regime with so many processes. The model ([`memvirt_costmodel::footprint`]) is given the workload's parameters and the
//! machine's switches, never a counter of the run.

mod instances;
mod measure;
mod model;
mod plot;
mod table;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use memvirt_machine::{GuestConfig, HostConfig, MachineSpec, Measure, Mode, Outcome, RegimeKind, Setup};
use memvirt_workload::spec::Residents;
use memvirt_workload::units::{Areas, Count, Footprint, Share};
use memvirt_workload::{Generator, Spec, Workload};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::LabError;
use crate::input::Input;
use crate::switches::{MEMORY_BYTES, Overrides};
use crate::text;
use crate::threads::on_threads;
use instances::Stream;

pub use measure::{Bytes, Measured, Owners, ProcessBytes, SAMPLES, Sample};
pub use table::Beside;

/// How much of its area each process uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Every page.
    Dense,
    /// This share of its pages, drawn at random, at least one.
    Sparse(f64),
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct FootprintPlan {
    /// The workload. One of kind `residents` takes the numbers below; of others so many instances run beside each other, in turn.
    pub workload: Workload,
    /// The regimes, in the order of the rows.
    pub regimes: Vec<RegimeKind>,
    /// How many processes, or instances of a workload that has processes of its own, in the order of the rows.
    pub processes: Vec<u32>,
    /// Bytes that each process maps, where not what the workload's file says.
    pub footprint: Option<u64>,
    /// How much of it each uses, where not what the file says.
    pub usage: Option<Use>,
    /// How often each process comes round, where not what the file says.
    pub rounds: Option<u64>,
    /// The limit on shadow pages, where not the regime's own.
    pub shadow_page_limit: Option<u32>,
    /// Switches that differ from their defaults.
    pub overrides: Overrides,
    /// The machine.
    pub machine: MachineSpec,
    /// The seed of the generators.
    pub seed: u64,
    /// Threads; as many as the computer has processors where `None`.
    pub threads: Option<NonZeroUsize>,
    /// The command that makes these results.
    pub command: String,
}

/// What one regime takes with so many processes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The regime.
    pub regime: RegimeKind,
    /// Processes; instances of a workload that is not of kind `residents`.
    pub processes: u32,
    /// What was counted.
    pub measured: Measured,
    /// What the model says, where it says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Bytes>,
    /// The prediction of the sum, at the end of the run, less what was counted, as a fraction of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The limit on shadow pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_page_limit: Option<u64>,
    /// Hidden faults more than the same run has without a limit, where there are shadow pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refaults: Option<u64>,
}

/// All rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FootprintTable {
    /// The form of this object.
    pub schema: &'static str,
    /// The command.
    pub command: String,
    /// The seed of the generators.
    pub seed: u64,
    /// The workload's name.
    pub workload: String,
    /// Bytes that each process maps.
    pub footprint_bytes: u64,
    /// Pages that each process stores to, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub touched_pages: Option<u64>,
    /// How much that is of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Use>,
    /// The guest's switches.
    #[serde(flatten)]
    pub guest: GuestConfig,
    /// The hypervisor's.
    #[serde(flatten)]
    pub host: HostConfig,
    /// The rows.
    pub rows: Vec<Row>,
}

impl FootprintTable {
    /// The value of `schema`.
    pub const SCHEMA: &'static str = "memvirt/footprint/1";
}

/// A limit that no run reaches.
const NO_LIMIT: u32 = u32::MAX;

impl FootprintPlan {
    /// Runs every row.
    ///
    /// # Errors
    ///
    /// Where numbers do not fit the workload, or the machine or the threads cannot be had.
    pub fn run(&self) -> Result<FootprintTable, LabError> {
        let specs = self.processes.iter().map(|processes| self.spec(*processes)).collect::<Result<Vec<_>, _>>()?;
        let (guest, host) = self.machine(&specs)?;
        let cells: Vec<_> =
            self.regimes.iter().flat_map(|regime| specs.iter().map(move |spec| (*regime, spec))).collect();
        let row = |(regime, asked): &(RegimeKind, &Asked)| self.row(*regime, asked, guest, host);
        let all = || cells.par_iter().map(row).collect::<Result<Vec<_>, _>>();
        let rows = on_threads(self.threads, cells.len(), all)??;
        let residents = specs.first().and_then(|asked| asked.residents);
        Ok(FootprintTable {
            schema: FootprintTable::SCHEMA,
            command: self.command.clone(),
            seed: self.seed,
            workload: self.workload.name().to_owned(),
            footprint_bytes: residents.map_or(self.sized()?.facts().footprint_bytes, |r| r.footprint.bytes()),
            touched_pages: residents.map(|residents| residents.touched_pages()),
            usage: residents.map(|residents| match residents.touched.get() {
                share if share < 1.0 => Use::Sparse(share),
                _ => Use::Dense,
            }),
            guest,
            host,
            rows,
        })
    }

    /// The workload with so many processes.
    fn spec(&self, processes: u32) -> Result<Asked, LabError> {
        let refuse = |field: &str, error: &dyn std::fmt::Display| LabError::Footprint(format!("{field}: {error}"));
        let Spec::Residents(mut residents) = self.workload.spec().clone() else {
            return self.instances(processes);
        };
        residents.processes = Areas::try_new(processes).map_err(|error| refuse("processes", &error))?;
        if let Some(bytes) = self.footprint {
            residents.footprint = Footprint::try_new(bytes).map_err(|error| refuse("footprint", &error))?;
        }
        if let Some(usage) = self.usage {
            let share = if let Use::Sparse(share) = usage { share } else { 1.0 };
            residents.touched = Share::try_new(share).map_err(|error| refuse("touched", &error))?;
        }
        if let Some(rounds) = self.rounds {
            residents.rounds = Count::try_new(rounds).map_err(|error| refuse("rounds", &error))?;
        }
        let spec = Spec::Residents(residents);
        spec.check()?;
        Ok(Asked { processes, spec, residents: Some(residents) })
    }

    /// So many instances of a workload of any other kind.
    fn instances(&self, processes: u32) -> Result<Asked, LabError> {
        let refuse = |text: String| Err(LabError::Footprint(text));
        if processes == 0 {
            return refuse("processes: expected at least one".to_owned());
        }
        if self.usage.is_some() {
            return refuse(format!(
                "`{}` uses its memory as its file says; how densely is for workloads of kind `residents`, such as footprint",
                self.workload.name()
            ));
        }
        Ok(Asked { processes, spec: self.sized()?.spec().clone(), residents: None })
    }

    /// The workload over areas of the size asked for.
    fn sized(&self) -> Result<Workload, LabError> {
        let workload = self.workload.clone();
        Ok(match (self.footprint, workload.spec()) {
            (Some(bytes), spec) if !matches!(spec, Spec::Residents(_)) => workload.with_footprint(bytes)?,
            _ => workload,
        })
    }

    /// One machine for all rows: its memory is that of the largest, so that what follows memory is the same in each.
    fn machine(&self, specs: &[Asked]) -> Result<(GuestConfig, HostConfig), LabError> {
        let input = Input::Workload(Box::new(self.workload.clone()));
        let mut guest = self.overrides.guest(&input);
        let mut host = self.overrides.host(Mode::Counts);
        host.shadow_page_limit = self.shadow_page_limit;
        if self.overrides.memory_bytes.is_none() {
            let need = specs.iter().filter_map(|asked| asked.residents).map(|r| model::frames_needed(&r, &guest));
            if let Some(frames) = need.max() {
                guest.memory_bytes = enough(frames)?;
            } else if let Some(instances) = specs.iter().map(|asked| asked.processes).max().filter(|n| *n > 1) {
                // As much as one instance asks for, and room for its tables, files and copies, for each.
                let frames = (self.sized()?.facts().footprint_bytes * 2).div_ceil(4096).max(1 << 10);
                guest.memory_bytes = guest.memory_bytes.max(enough(frames.saturating_mul(instances.into()))?);
            }
        }
        Ok((guest, host))
    }

    fn row(&self, regime: RegimeKind, asked: &Asked, guest: GuestConfig, host: HostConfig) -> Result<Row, LabError> {
        let guest = regime.asks_of(guest);
        let setup = |limit| Setup {
            regime,
            guest,
            host: HostConfig { shadow_page_limit: limit, ..host },
            machine: self.machine.clone(),
            measure: Measure::default(),
            check: false,
        };
        let instances = if asked.residents.is_some() { 1 } else { asked.processes };
        // The seeds of `scale`.
        let one = |number: u32| Generator::new(&asked.spec, self.seed ^ (u64::from(number) << 16));
        let stream = Stream::of(instances, one)?;
        let open = || stream.clone();
        let measured = measure::measure(&setup(host.shadow_page_limit), open)?;
        let limit = model::limit(regime, &guest, &host);
        let peak_pages = measured.series.iter().map(|sample| sample.bytes.shadow / 4096).max().unwrap_or(0);
        let refaults = match limit {
            None => None,
            Some(limit) if peak_pages + NEAR < limit => Some(0),
            Some(_) => {
                let free = measure::measure(&setup(Some(NO_LIMIT)), open)?;
                Some(measured.hidden_faults.saturating_sub(free.hidden_faults))
            }
        };
        // What is said is of a run that comes to its end.
        let whole = asked.residents.filter(|_| measured.outcome == Outcome::Completed);
        let predicted = whole.and_then(|residents| model::predict(regime, &residents, &guest, &host));
        let error = predicted.map(|predicted| relative(predicted.total(), measured.end.total()));
        Ok(Row { regime, processes: asked.processes, measured, predicted, error, shadow_page_limit: limit, refaults })
    }
}

/// Guest memory for so many frames and a quarter more: a power of two.
fn enough(frames: u64) -> Result<u64, LabError> {
    let bytes = frames.saturating_add(frames / 4).saturating_mul(4096);
    match bytes.checked_next_power_of_two() {
        Some(bytes) if bytes <= *MEMORY_BYTES.end() => Ok(bytes.max(1 << 30)),
        _ => Err(LabError::Footprint(format!(
            "all processes together need about {} of guest memory, and a guest has at most {}: ask for fewer processes, less for each, or \
             less of it used (--sparse)",
            text::bytes(frames.saturating_mul(4096)),
            text::bytes(*MEMORY_BYTES.end())
        ))),
    }
}

/// Pages below its limit from which on a hypervisor may have recycled some.
const NEAR: u64 = 32;

/// A workload with so many processes.
#[derive(Clone, Debug)]
struct Asked {
    processes: u32,
    spec: Spec,
    residents: Option<Residents>,
}

#[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
fn relative(predicted: u64, measured: u64) -> f64 {
    if predicted == measured { 0.0 } else { predicted as f64 / measured as f64 - 1.0 }
}
