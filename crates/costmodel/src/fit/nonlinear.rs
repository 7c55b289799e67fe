//! Non-linear least squares within bounds: Levenberg and Marquardt's method on variables that cannot leave them.
//!
//! The solver is the crate `levenberg-marquardt`, a port of MINPACK's. It knows no bounds; as in MINUIT, each bounded parameter
//! is a smooth function of an unbounded variable (a sine between two bounds, a hyperbola above or below one).

use levenberg_marquardt::{LeastSquaresProblem, LevenbergMarquardt};
use nalgebra::{DMatrix, DVector, Dyn, Owned};

use super::error::FitError;

/// A start on a bound is moved inside by this share: on the bound itself nothing changes with the variable.
const NUDGE: f64 = 1e-4;
/// How far the first step may go, in lengths of the start: further, and a curve that flattens out is left for good.
const FIRST_STEP: f64 = 0.5;
/// A result closer to a bound than this share counts as lying on it.
const AT_BOUND: f64 = 1e-6;

/// Bounds of a parameter, both included; infinite where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The least value.
    pub least: f64,
    /// The greatest value.
    pub most: f64,
}

impl Bound {
    /// No bounds.
    pub const FREE: Self = Self { least: f64::NEG_INFINITY, most: f64::INFINITY };

    /// A width that distances from bounds are measured in.
    fn width(self, value: f64) -> f64 {
        let width = self.most - self.least;
        if width.is_finite() { width } else { value.abs().max(1.0) }
    }

    fn inside(self, value: f64) -> f64 {
        let nudge = NUDGE * self.width(value);
        let (least, most) = (self.least + nudge, self.most - nudge);
        if least > most { (self.least + self.most) / 2.0 } else { value.clamp(least, most) }
    }

    fn touches(self, value: f64) -> bool {
        let near = AT_BOUND * self.width(value);
        value - self.least <= near || self.most - value <= near
    }

    fn to_variable(self, value: f64, scale: f64) -> f64 {
        match (self.least.is_finite(), self.most.is_finite()) {
            (true, true) => libm::asin((2.0 * (value - self.least) / (self.most - self.least) - 1.0).clamp(-1.0, 1.0)),
            (true, false) => root((value - self.least) / scale),
            (false, true) => root((self.most - value) / scale),
            (false, false) => value / scale,
        }
    }

    fn to_value(self, variable: f64, scale: f64) -> f64 {
        match (self.least.is_finite(), self.most.is_finite()) {
            (true, true) => self.least + (self.most - self.least) / 2.0 * (libm::sin(variable) + 1.0),
            (true, false) => self.least + scale * (variable.hypot(1.0) - 1.0),
            (false, true) => self.most - scale * (variable.hypot(1.0) - 1.0),
            (false, false) => variable * scale,
        }
    }
}

/// The inverse of sqrt(x^2 + 1) - 1.
fn root(distance: f64) -> f64 {
    ((distance + 1.0).powi(2) - 1.0).max(0.0).sqrt()
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Nonlinear {
    /// The parameters.
    pub params: Vec<f64>,
    /// Whether each lies on a bound: the data would have it beyond.
    pub at_bound: Vec<bool>,
    /// The residuals there.
    pub residuals: Vec<f64>,
    /// How often the residuals were computed, derivatives left out.
    pub evaluations: usize,
}

/// Finds the parameters within `bounds` whose residuals have the least sum of squares, from `start`. Derivatives are taken
/// numerically.
///
/// # Errors
///
/// Where there are fewer residuals than parameters, the residuals cannot be computed (their error), or no minimum is found.
///
/// # Panics
///
/// Where there are not as many bounds as parameters.
pub fn nonlinear(
    start: &[f64],
    bounds: &[Bound],
    residuals: impl Fn(&[f64]) -> Result<Vec<f64>, FitError>,
) -> Result<Nonlinear, FitError> {
    assert_eq!(start.len(), bounds.len(), "bounds for each parameter");
    let inside: Vec<f64> = start.iter().zip(bounds).map(|(value, bound)| bound.inside(*value)).collect();
    let scales: Vec<f64> = inside.iter().map(|value| if *value == 0.0 { 1.0 } else { value.abs() }).collect();
    let observations = residuals(&inside)?.len();
    if observations < start.len() || start.is_empty() {
        return Err(FitError::TooFew { observations, unknowns: start.len() });
    }
    let variables = (0..start.len()).map(|i| bounds[i].to_variable(inside[i], scales[i]));
    let problem = Problem { variables: DVector::from_iterator(start.len(), variables), bounds, scales, residuals };
    let (problem, report) = LevenbergMarquardt::new().with_stepbound(FIRST_STEP).with_patience(400).minimize(problem);
    let params = problem.params_at(&problem.variables);
    let found = (problem.residuals)(&params)?;
    if !report.termination.was_successful() {
        return Err(FitError::Diverged(format!("{:?}", report.termination)));
    }
    Ok(Nonlinear {
        at_bound: params.iter().zip(bounds).map(|(value, bound)| bound.touches(*value)).collect(),
        residuals: found,
        evaluations: report.number_of_evaluations,
        params,
    })
}

struct Problem<'a, R> {
    variables: DVector<f64>,
    bounds: &'a [Bound],
    scales: Vec<f64>,
    residuals: R,
}

impl<R: Fn(&[f64]) -> Result<Vec<f64>, FitError>> Problem<'_, R> {
    fn params_at(&self, variables: &DVector<f64>) -> Vec<f64> {
        let each = variables.iter().zip(self.bounds).zip(&self.scales);
        // Rounding must not carry a parameter over its bound.
        each.map(|((x, bound), scale)| bound.to_value(*x, *scale).clamp(bound.least, bound.most)).collect()
    }

    fn residuals_at(&self, variables: &DVector<f64>) -> Option<DVector<f64>> {
        (self.residuals)(&self.params_at(variables)).ok().map(DVector::from_vec)
    }
}

impl<R: Fn(&[f64]) -> Result<Vec<f64>, FitError>> LeastSquaresProblem<f64, Dyn, Dyn> for Problem<'_, R> {
    type ResidualStorage = Owned<f64, Dyn>;
    type JacobianStorage = Owned<f64, Dyn, Dyn>;
    type ParameterStorage = Owned<f64, Dyn>;

    fn set_params(&mut self, variables: &DVector<f64>) {
        self.variables.copy_from(variables);
    }

    fn params(&self) -> DVector<f64> {
        self.variables.clone()
    }

    fn residuals(&self) -> Option<DVector<f64>> {
        self.residuals_at(&self.variables)
    }

    fn jacobian(&self) -> Option<DMatrix<f64>> {
        let mut columns = Vec::with_capacity(self.variables.len());
        for i in 0..self.variables.len() {
            // The cube root of the rounding error balances it against the third derivative.
            let step = f64::EPSILON.cbrt() * self.variables[i].abs().max(1e-2);
            let (mut above, mut below) = (self.variables.clone(), self.variables.clone());
            above[i] += step;
            below[i] -= step;
            columns.push((self.residuals_at(&above)? - self.residuals_at(&below)?) / (above[i] - below[i]));
        }
        Some(DMatrix::from_columns(&columns))
    }
}
