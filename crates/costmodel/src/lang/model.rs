//! A model: what it takes, what it gives, and how; read from a file, evaluated at a point.

use std::fmt;
use std::path::Path;

use memvirt_textfile::TextError;

use super::ast::Expr;
use super::builtin;
use super::error::{EvalError, ModelError, few_digits};
use super::parser;
use super::unit::{Scaled, Units};
use super::words::short;

/// A cost model: inputs, parameters and formulas, with units that agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) source: String,
    pub(crate) units: Units,
    pub(crate) inputs: Vec<Input>,
    pub(crate) params: Vec<Param>,
    pub(crate) requirements: Vec<Requirement>,
    pub(crate) values: Vec<Value>,
}

/// Where the value of an input comes from. It decides what a prediction is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A switch or a geometry that is known before anything runs.
    Config,
    /// The machine file.
    Machine,
    /// The stream of operations itself, analyzed without running it.
    Stream,
    /// Guest-side events of the native run.
    Native,
    /// A run with one vCPU.
    OneVcpu,
    /// The very run that is predicted: the model is an identity, no prediction.
    Run,
}

impl Origin {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Config, Self::Machine, Self::Stream, Self::Native, Self::OneVcpu, Self::Run];

    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Machine => "machine",
            Self::Stream => "stream",
            Self::Native => "native",
            Self::OneVcpu => "one_vcpu",
            Self::Run => "run",
        }
    }
}

/// Bounds, both included, in the unit of what they bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least value.
    pub least: f64,
    /// The greatest value.
    pub most: f64,
    /// Whether only whole numbers are accepted.
    pub whole: bool,
}

impl Range {
    /// Every number.
    pub const ALL: Self = Self { least: f64::NEG_INFINITY, most: f64::INFINITY, whole: false };

    /// Whether a value lies within.
    #[must_use]
    pub fn contains(self, value: f64) -> bool {
        self.least <= value && value <= self.most && (!self.whole || value.fract().abs() <= 0.0)
    }
}

/// As a file writes it: `0..100`, `1..`, `whole 1..5`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.whole {
            f.write_str("whole ")?;
        }
        if self.least.is_finite() {
            f.write_str(&few_digits(self.least))?;
        }
        f.write_str("..")?;
        if self.most.is_finite() {
            f.write_str(&few_digits(self.most))?;
        }
        Ok(())
    }
}

/// What a model takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: Scaled,
    /// Where its value comes from.
    pub origin: Origin,
    /// The bounds within which the model holds, in its unit.
    pub range: Range,
    /// What it is.
    pub doc: String,
}

/// What is believed of a parameter before a fit, in its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prior {
    /// It follows from the mechanism: no fit moves it.
    Fixed,
    /// Any value within the bounds is as good as another.
    Uniform,
    /// About `mean`, give or take `sd`.
    Normal {
        /// The most likely value.
        mean: f64,
        /// The standard deviation.
        sd: f64,
    },
    /// About `median`, give or take a factor.
    LogNormal {
        /// The most likely value.
        median: f64,
        /// The factor of one standard deviation, above 1.
        factor: f64,
    },
}

/// What a fit may choose.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: Scaled,
    /// The value predicted by mechanism, or where a fit begins, in its unit.
    pub value: f64,
    /// Its bounds, in its unit.
    pub range: Range,
    /// What is believed of it before a fit.
    pub prior: Prior,
    /// What it is.
    pub doc: String,
}

/// What must hold of the inputs together: a point where it does not is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    /// The condition, on inputs alone.
    pub condition: Expr,
    /// Why.
    pub doc: String,
}

/// Whether a named formula is a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A part of other formulas.
    Let,
    /// A result.
    Output,
}

/// A named formula.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Whether it is a result.
    pub kind: ValueKind,
    /// Its name.
    pub name: String,
    /// Its unit: the declared one, or that of its formula.
    pub unit: Scaled,
    /// Whether the file declares the unit.
    pub declared: bool,
    /// The formula.
    pub formula: Expr,
    /// What it is.
    pub doc: String,
}

impl Model {
    /// The model in `text`; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ModelError::Invalid`] with line and column where the text is no model.
    pub fn parse(file: &str, text: &str) -> Result<Self, ModelError> {
        parser::parse(text).map_err(|(at, problem)| {
            let before = &text[..at.0];
            let line = before.rfind('\n').map_or(0, |newline| newline + 1);
            ModelError::Invalid {
                file: file.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before[line..].chars().count() + 1,
                problem: Box::new(problem),
            }
        })
    }

    /// The model in a file.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), and where the file cannot be read or is no text.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let text = memvirt_textfile::read(path).map_err(|error| match error {
            TextError::Read(source) => ModelError::Read { path: path.to_owned(), source },
            other => ModelError::NotAModel { path: path.to_owned(), reason: other.to_string() },
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// A built-in model by its name.
    ///
    /// # Errors
    ///
    /// [`ModelError::Unknown`], with the known names.
    pub fn find(name: &str) -> Result<Self, ModelError> {
        builtin::find(name)?.model()
    }

    /// A model by what a user types: a path (with a `/` or ending in `.model`) or the name of a built-in one.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`find`](Self::find).
    pub fn resolve(name: &str) -> Result<Self, ModelError> {
        if name.contains('/') || Path::new(name).extension().is_some_and(|extension| extension == "model") {
            Self::load(Path::new(name))
        } else {
            Self::find(name)
        }
    }

    /// The models that are built in, in the order of their names.
    pub fn builtin() -> impl ExactSizeIterator<Item = &'static builtin::Builtin> {
        builtin::ALL.iter()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line on what it predicts.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What it assumes and where it ends.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Where its formula comes from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What it takes, in the order of evaluation.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// What a fit may choose, in the order of evaluation.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// What must hold of the inputs together.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Its named formulas, in the order of evaluation.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The units that the file declares.
    #[must_use]
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// Its results, in the order of evaluation.
    pub fn outputs(&self) -> impl Iterator<Item = &Value> {
        self.values.iter().filter(|value| value.kind == ValueKind::Output)
    }

    /// Whether it takes a counter of the very run it is to predict. Such a model explains; it predicts nothing.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.inputs.iter().any(|input| input.origin == Origin::Run)
    }

    /// The parameters' values as the file gives them, each in its unit.
    #[must_use]
    pub fn predicted(&self) -> Vec<f64> {
        self.params.iter().map(|param| param.value).collect()
    }

    /// Evaluates at a point given by names. Parameters that are not named have the file's values. Everything is in the units
    /// that the file declares; the results come in the order of [`outputs`](Self::outputs).
    ///
    /// # Errors
    ///
    /// Where an input is missing, a name unknown, a value out of its bounds or a result no number.
    pub fn at(&self, point: &[(&str, f64)]) -> Result<Vec<f64>, EvalError> {
        let mut inputs = vec![None; self.inputs.len()];
        let mut params = self.predicted();
        for (name, value) in point {
            if let Some(i) = self.inputs.iter().position(|input| input.name == *name) {
                inputs[i] = Some(*value);
            } else if let Some(i) = self.params.iter().position(|param| param.name == *name) {
                params[i] = *value;
            } else {
                return Err(self.unknown(name));
            }
        }
        let missing = |i: usize| EvalError::Missing { model: self.name.clone(), name: self.inputs[i].name.clone() };
        let inputs: Result<Vec<f64>, _> =
            inputs.into_iter().enumerate().map(|(i, value)| value.ok_or_else(|| missing(i))).collect();
        self.evaluate(&inputs?, &params)
    }

    fn unknown(&self, name: &str) -> EvalError {
        let inputs = self.inputs.iter().map(|input| input.name.clone());
        let known = inputs.chain(self.params.iter().map(|param| param.name.clone())).collect();
        EvalError::Unknown { model: self.name.clone(), name: short(name), known }
    }
}
