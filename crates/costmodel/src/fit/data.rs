//! Observations to fit to.

use super::error::FitError;

/// What a residual of 1 means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weighting {
    /// One unit of the observation: large runs decide.
    Absolute,
    /// The whole observation: every run counts alike. Observations below 1 count as 1.
    #[default]
    Relative,
}

impl Weighting {
    /// The factor of an observation's residual.
    #[must_use]
    pub fn weight(self, observed: f64) -> f64 {
        match self {
            Self::Absolute => 1.0,
            Self::Relative => 1.0 / observed.abs().max(1.0),
        }
    }
}

/// Rows of inputs, each with what was observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Data {
    /// The inputs of each run, in the order that the model takes them.
    pub inputs: Vec<Vec<f64>>,
    /// What was observed in each run.
    pub observed: Vec<f64>,
}

impl Data {
    /// Adds a run.
    pub fn push(&mut self, inputs: Vec<f64>, observed: f64) {
        self.inputs.push(inputs);
        self.observed.push(observed);
    }

    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.observed.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.observed.is_empty()
    }

    /// The runs at these positions, in this order; one may come several times.
    ///
    /// # Panics
    ///
    /// Where a position lies beyond the end.
    #[must_use]
    pub fn pick(&self, positions: &[usize]) -> Self {
        Self {
            inputs: positions.iter().map(|i| self.inputs[*i].clone()).collect(),
            observed: positions.iter().map(|i| self.observed[*i]).collect(),
        }
    }

    /// That the rows are of one length, and finite.
    pub(crate) fn check(&self) -> Result<(), FitError> {
        let width = self.inputs.first().map_or(0, Vec::len);
        if self.inputs.len() != self.observed.len() {
            let (found, expected) = (self.observed.len(), self.inputs.len());
            return Err(FitError::Shape { row: found.min(expected), found, expected });
        }
        for (row, (inputs, observed)) in self.inputs.iter().zip(&self.observed).enumerate() {
            if inputs.len() != width {
                return Err(FitError::Shape { row, found: inputs.len(), expected: width });
            }
            if let Some(value) = inputs.iter().chain([observed]).find(|value| !value.is_finite()) {
                return Err(FitError::NotFinite { row, value: *value });
            }
        }
        Ok(())
    }
}
