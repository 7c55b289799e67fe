//! Exits predicted from events of the native run, and the same models fitted freely.
//!
//! The models are `models/cost/traps-*.model`: linear in counts of the census, with a coefficient for each event. What the mechanism
//! says of a coefficient stands in the file; what the runs would have it be stands beside it, with its interval.

use memvirt_census::Events;
use memvirt_costmodel::Model;
use memvirt_costmodel::fit::{Assessment, Data, Fold, Options, Quality, assess, relative_error};
use memvirt_machine::RegimeKind;
use serde::Serialize;

use super::guests::{GuestSpec, Length, Observed, WORKLOADS, real};
use crate::error::LabError;

/// A regime and the model of its exits.
pub const MODELS: [(RegimeKind, &str); 7] = [
    (RegimeKind::NestedEpt, "traps-nested"),
    (RegimeKind::ShadowWriteProtect, "traps-write-protect"),
    (RegimeKind::ShadowLazyFill, "traps-lazy-fill"),
    (RegimeKind::ShadowVtlb, "traps-vtlb"),
    (RegimeKind::ShadowKvm61, "traps-kvm"),
    (RegimeKind::ShadowXen, "traps-xen"),
    (RegimeKind::ShadowVbox, "traps-vbox"),
];

/// One guest under one regime.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// The guest.
    #[serde(flatten)]
    pub guest: GuestSpec,
    /// Exits counted.
    pub counted: f64,
    /// Exits by the coefficients of the mechanism.
    pub mechanism: f64,
    /// Exits by a fit that has seen no run of this workload.
    pub unseen: f64,
}

impl Point {
    /// The relative error of the mechanism.
    #[must_use]
    pub fn error(&self) -> f64 {
        relative_error(self.counted, self.mechanism)
    }
}

/// The model of one regime against the runs.
#[derive(Clone, Debug, Serialize)]
pub struct Traps {
    /// The regime.
    pub regime: RegimeKind,
    /// The model.
    pub model: &'static str,
    /// Mechanism and fit.
    pub assessment: Assessment,
    /// The runs.
    pub points: Vec<Point>,
}

/// The model's inputs, all from the native run.
///
/// # Errors
///
/// Where the model asks for anything else.
pub fn inputs(model: &Model, events: &Events) -> Result<Vec<f64>, LabError> {
    let refuse = |name: &str| LabError::Model(format!("{} takes `{name}`, no event of a native run", model.name()));
    let one = |input: &memvirt_costmodel::lang::Input| {
        let native = input.origin.word() == "native";
        events.get(&input.name).filter(|_| native).map(real).ok_or_else(|| refuse(&input.name))
    };
    model.inputs().iter().map(one).collect()
}

impl Traps {
    /// How wrong the mechanism is on long runs.
    #[must_use]
    pub fn long(&self) -> Quality {
        let long = self.points.iter().filter(|point| point.guest.length == Length::Long);
        let (counted, said): (Vec<f64>, Vec<f64>) = long.map(|point| (point.counted, point.mechanism)).unzip();
        Quality::of(&counted, &said)
    }

    /// For people: the run that the mechanism misses by most.
    pub(super) fn worst(&self) -> String {
        let worst = self.points.iter().max_by(|a, b| a.error().total_cmp(&b.error()));
        worst.map_or_else(String::new, |point| format!("exits of {}", point.guest))
    }

    /// The model of regime `index` of [`MODELS`] against runs.
    ///
    /// # Errors
    ///
    /// Where the model takes what no native run has, or cannot be fitted.
    pub fn of(index: usize, observed: &[Observed], resamples: usize) -> Result<Self, LabError> {
        let (regime, name) = MODELS[index];
        let failed = |error: &dyn std::fmt::Display| LabError::Model(format!("{name}: {error}"));
        let model = Model::find(name).map_err(|error| failed(&error))?;
        let mut data = Data::default();
        for one in observed {
            data.push(inputs(&model, &one.events)?, real(one.runs[index].total_exits()));
        }
        let group = |one: &Observed| WORKLOADS.iter().position(|name| *name == one.spec.workload).unwrap_or(0);
        let options = Options { groups: observed.iter().map(group).collect(), resamples, ..Options::default() };
        let (train, test) = (0..observed.len()).partition(|run| observed[*run].spec.length == Length::Short);
        let region = Fold { train, test };
        let assessment = assess(&model, "exits", &data, Some(&region), &options).map_err(|error| failed(&error))?;
        let point = |(i, one): (usize, &Observed)| Point {
            guest: one.spec,
            counted: data.observed[i],
            mechanism: data.observed[i] - assessment.mechanism_residuals[i],
            unseen: assessment.unseen[i],
        };
        let points = observed.iter().enumerate().map(point).collect();
        Ok(Self { regime, model: name, points, assessment })
    }
}
