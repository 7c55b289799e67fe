//! One comparison to be made for a claim or a published figure: what is run, how it is measured, and the command that makes it.

use memvirt_machine::{MachineSpec, Measure, Mode, RegimeKind};
use memvirt_workload::{Measured, Spec, Steady, Workload};

use super::evidence::Effort;
use crate::comparison::Comparison;
use crate::error::LabError;
use crate::experiment::Experiment;
use crate::input::Input;
use crate::switches::Overrides;
use crate::words::of_machine;

/// How a comparison is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// From the first access on, in the mode `counts`, without walk caches: what is counted there is what stands in tables of counts.
    Counted,
    /// From where the workload's file says, in the mode `cycles`, with walk caches: what is compared there is time.
    Timed,
}

/// One comparison to be made.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) workload: &'static str,
    pub(crate) regimes: Vec<RegimeKind>,
    pub(crate) overrides: Overrides,
    pub(crate) how: How,
    pub(crate) check: bool,
    /// How many times as long it runs, in the full form.
    pub(crate) times: f64,
}

/// Areas of steady workloads are cut to this in the quick form: still five times the reach of the largest TLB.
const QUICK_AREA_BYTES: u64 = 32 << 20;

impl Task {
    pub(crate) fn counted(workload: &'static str, regimes: &[RegimeKind], overrides: Overrides) -> Self {
        Self { workload, regimes: regimes.to_vec(), overrides, how: How::Counted, check: false, times: 1.0 }
    }

    pub(crate) fn timed(workload: &'static str, regimes: &[RegimeKind], overrides: Overrides) -> Self {
        Self { how: How::Timed, ..Self::counted(workload, regimes, overrides) }
    }

    /// Makes the comparison.
    pub(crate) fn run(&self, effort: Effort, machine: &MachineSpec) -> Result<Comparison, LabError> {
        let names: Vec<_> = self.regimes.iter().map(|regime| regime.name()).collect();
        let mut words = format!("memvirt compare --regimes {} --workload {}", names.join(","), self.workload);
        if machine.path().is_some() || machine.name != MachineSpec::DEFAULT {
            words += &format!(" --machine {}", of_machine(machine));
        }
        let mut workload = Workload::find(self.workload)?;
        let mut measure = Measure::default();
        let steady = self.how == How::Timed && workload.measured() == Measured::Steady;
        if steady && effort == Effort::Quick {
            workload = smaller(workload, &mut words)?;
        }
        let scale = match effort {
            Effort::Quick => effort.scale(&workload),
            Effort::Full => self.times,
        };
        if (scale - 1.0).abs() > f64::EPSILON {
            workload = workload.scaled(scale)?;
            words += &format!(" --scale {scale}");
        }
        if self.how == How::Timed {
            measure.mode = Mode::Cycles;
            words += " --mode cycles";
        }
        if steady {
            (Steady { workload, warm_up_accesses: measure.warm_up_accesses }) = workload.steady();
            words += " --steady";
        }
        for word in self.overrides.words() {
            words += " ";
            words += &word;
        }
        if self.check {
            words += " --check";
        }
        let experiment = Experiment {
            input: Input::Workload(Box::new(workload)),
            regimes: self.regimes.clone(),
            overrides: self.overrides,
            machine: machine.clone(),
            seed: 0,
            measure,
            check: self.check,
            threads: None,
            command: words,
        };
        Ok(experiment.run(&|_| {})?.comparison)
    }
}

/// The workload over areas of the quick form's size.
fn smaller(workload: Workload, words: &mut String) -> Result<Workload, LabError> {
    let bytes = QUICK_AREA_BYTES;
    let Spec::Script(script) = workload.spec() else {
        if workload.facts().footprint_bytes <= bytes {
            return Ok(workload);
        }
        *words += &format!(" --footprint {bytes}");
        return Ok(workload.with_footprint(bytes)?);
    };
    let large = script.areas.iter().filter(|(_, area)| area.size.bytes() > bytes);
    let paths: Vec<_> = large.map(|(name, _)| format!("areas.{name}.size")).collect();
    paths.into_iter().try_fold(workload, |workload, path| {
        let size = format!("{}MiB", bytes >> 20);
        *words += &format!(" --set {path}={size}");
        Ok(workload.with_field(&path, &size)?)
    })
}
