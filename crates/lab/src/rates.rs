//! How often a workload enters the kernel: measured by running a part of it on the bare machine.

use memvirt_machine::{HostConfig, MachineSpec, Measure, RegimeKind, Setup, run};
use memvirt_workload::Workload;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::LabError;
use crate::input::Input;
use crate::switches::Overrides;

/// Events per million instructions of processes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Page faults.
    pub faults: f64,
    /// Switches to another process.
    pub switches: f64,
    /// Kernel entries: system calls, faults, ticks, interrupts, switches.
    pub kernel_entries: f64,
}

impl Rates {
    /// Accesses of the part that is run, at most (a script's preparations come on top). First touches are part of it.
    pub const ACCESSES: u64 = 200_000;

    /// The rates of each workload, side by side on all cores.
    ///
    /// # Errors
    ///
    /// As [`Rates::of`].
    pub fn of_all(workloads: &[Workload]) -> Result<Vec<Self>, LabError> {
        workloads.par_iter().map(Self::of).collect()
    }

    /// The rates of a workload.
    ///
    /// # Errors
    ///
    /// Never in practice: the machine is built in and a checked workload can be shortened.
    pub fn of(workload: &Workload) -> Result<Self, LabError> {
        let accesses = workload.facts().accesses.value();
        let part = if accesses > Self::ACCESSES {
            workload.clone().scaled(to_f64(Self::ACCESSES) / to_f64(accesses))?
        } else {
            workload.clone()
        };
        let mut source = part.generator(0);
        let guest = Overrides::default().guest(&Input::Workload(Box::new(part)));
        let machine = MachineSpec::load(MachineSpec::DEFAULT)?;
        let (host, measure, regime) = (HostConfig::default(), Measure::default(), RegimeKind::Native);
        let setup = Setup { regime, guest, host, machine, measure, check: false };
        let result = run(&setup, &mut source, &mut |_| {})?.result;
        let millions = to_f64(result.guest.instructions.max(1)) / 1e6;
        Ok(Self {
            faults: to_f64(result.guest.faults()) / millions,
            switches: to_f64(result.guest.switches) / millions,
            kernel_entries: to_f64(result.guest.kernel_entries) / millions,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
const fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_tell_computation_from_process_creation() {
        let rates = |name| Rates::of(&Workload::find(name).unwrap()).unwrap();
        let (compute, fork, ring) = (rates("compute"), rates("fork"), rates("context-switch-16"));
        assert!(compute.faults < 100.0 && compute.switches < 1.0, "{compute:?}");
        assert!(fork.faults > 100.0 * compute.faults, "{fork:?}");
        assert!(ring.switches > ring.faults, "{ring:?}");
    }
}
