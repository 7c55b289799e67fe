//! The models whose runs are made elsewhere: walks of tables that nothing is cached of, page tables' bytes, and many vCPUs.
//!
//! Each is a closed form that nothing is fitted for: `walk-cold` beside walks of the laboratory's own, `footprint` beside the runs of
//! `memvirt footprint`, mean-value analysis fed from one vCPU beside those of `memvirt scale`.

use memvirt_addr::PageSize;
use memvirt_costmodel::Model;
use memvirt_costmodel::fit::Quality;
use memvirt_machine::{MachineSpec, RegimeKind};
use serde::Serialize;

use super::guests::real;
use crate::claims::{Effort, Many, Residents, Scaled};
use crate::error::LabError;
use crate::footprint::Use;
use crate::scale::Assumptions;
use crate::walk::{CacheState, GuestPaging, HostLevels, NestedFormat, Tables, WalkSpec, record_walk};

/// A count and what a model says of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// What was counted.
    pub counted: f64,
    /// What is said.
    pub predicted: f64,
}

/// How wrong predictions are.
pub(super) fn quality<'a>(pairs: impl Iterator<Item = &'a Pair>) -> Quality {
    let (counted, predicted): (Vec<f64>, Vec<f64>) = pairs.map(|pair| (pair.counted, pair.predicted)).unzip();
    Quality::of(&counted, &predicted)
}

/// A number of vCPUs: throughput of each, relative to one alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Efficiency {
    /// What they do.
    pub workload: &'static str,
    /// The regime.
    pub regime: RegimeKind,
    /// How many.
    pub vcpus: u16,
    /// Whether the analysis may be believed, decided by the run with one vCPU.
    pub assumptions: Assumptions,
    /// The throughput.
    #[serde(flatten)]
    pub pair: Pair,
}

/// The models beside their runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Others {
    /// References of one walk, nothing cached.
    pub cold: Vec<Pair>,
    /// Bytes of page tables where every page is used.
    pub dense: Vec<Pair>,
    /// Bytes of page tables where pages are used at random.
    pub sparse: Vec<Pair>,
    /// More and more vCPUs.
    pub scaling: Vec<Efficiency>,
}

impl Others {
    /// Walks only: what is made elsewhere comes later.
    pub(super) fn of_walks() -> Result<Self, LabError> {
        Ok(Self { cold: cold()?, ..Self::default() })
    }

    /// Takes the runs of many processes and many vCPUs.
    pub(super) fn take(&mut self, footprints: &[Residents], scaling: &[Scaled]) {
        for residents in footprints {
            let pairs = residents.table.rows.iter().filter_map(|row| {
                let predicted = row.predicted?;
                Some(Pair { counted: real(row.measured.end.total()), predicted: real(predicted.total()) })
            });
            match residents.table.usage {
                Some(Use::Sparse(_)) => self.sparse.extend(pairs),
                _ => self.dense.extend(pairs),
            }
        }
        for scaled in scaling {
            self.scaling.extend(scaled.table.points.iter().filter(|point| point.vcpus > 1).map(|point| Efficiency {
                workload: scaled.id,
                regime: point.regime,
                vcpus: point.vcpus,
                assumptions: point.assumptions,
                pair: Pair { counted: point.efficiency, predicted: point.mva.efficiency },
            }));
        }
    }

    /// Makes these runs.
    pub(super) fn measure(&mut self, effort: Effort, machine: &MachineSpec) -> Result<(), LabError> {
        let (footprints, scaling) =
            rayon::join(|| Many::footprints(effort, machine), || Many::scaling(effort, machine));
        self.take(&footprints?, &scaling?);
        Ok(())
    }
}

/// Every depth and page size, walked and computed.
fn cold() -> Result<Vec<Pair>, LabError> {
    let model = Model::find("walk-cold").map_err(|error| LabError::Model(error.to_string()))?;
    let mut pairs = Vec::new();
    for (guest, guest_levels) in [(GuestPaging::Four, 4.0), (GuestPaging::Five, 5.0)] {
        for (host, host_levels) in [(None, 0.0), (Some(HostLevels::Four), 4.0), (Some(HostLevels::Five), 5.0)] {
            for (guest_page, host_page) in
                PageSize::ALL.into_iter().flat_map(|guest| PageSize::ALL.map(|host| (guest, host)))
            {
                let tables = match host {
                    None => Tables::Native(guest),
                    Some(host) => Tables::Nested { guest: Some(guest), host, format: NestedFormat::Ept },
                };
                let spec = WalkSpec { tables, guest_page, host_page, address: None, caches: CacheState::Off };
                let counted = real(record_walk(&spec)?.total as u64);
                let leaf = |page: PageSize| f64::from(page.level().number());
                let point = [
                    ("guest_levels", guest_levels),
                    ("guest_leaf", leaf(guest_page)),
                    ("host_levels", host_levels),
                    ("host_leaf", leaf(host_page)),
                ];
                let outputs = model.at(&point).map_err(|error| LabError::Model(error.to_string()))?;
                pairs.push(Pair { counted, predicted: outputs[0] });
            }
        }
    }
    Ok(pairs)
}
