//! A model as data, for programs: what `memvirt model show --format json` prints.

use serde::Serialize;

use super::model::{Input, Model, Param, Range, Requirement, Value, ValueKind};

/// A model as data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// One line on what it predicts.
    pub title: String,
    /// What it assumes and where it ends.
    pub about: String,
    /// Where its formula comes from.
    pub source: String,
    /// Whether it takes counters of the very run it is asked about: it explains, and predicts nothing.
    pub identity: bool,
    /// Units that the file declares.
    pub units: Vec<DescribedUnit>,
    /// What it takes.
    pub inputs: Vec<DescribedInput>,
    /// What a fit may choose.
    pub params: Vec<DescribedParam>,
    /// What must hold of the inputs together.
    pub requirements: Vec<DescribedRequirement>,
    /// Its formulas, in the order of evaluation.
    pub formulas: Vec<DescribedFormula>,
}

/// A unit that a file declares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescribedUnit {
    /// Its name.
    pub name: String,
    /// What it counts.
    pub doc: String,
}

/// An input.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescribedInput {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Where its value comes from.
    pub origin: &'static str,
    /// The least value, where there is a bound.
    pub least: Option<f64>,
    /// The greatest value, where there is a bound.
    pub most: Option<f64>,
    /// What it is.
    pub doc: String,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescribedParam {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// The value predicted by mechanism, or where a fit begins.
    pub value: f64,
    /// The least value, where there is a bound.
    pub least: Option<f64>,
    /// The greatest value, where there is a bound.
    pub most: Option<f64>,
    /// What is believed of it before a fit, as a file writes it.
    pub prior: String,
    /// What it is.
    pub doc: String,
}

/// A condition on the inputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescribedRequirement {
    /// As a file writes it.
    pub text: String,
    /// In LaTeX's mathematical mode.
    pub latex: String,
    /// Why.
    pub doc: String,
}

/// A named formula.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescribedFormula {
    /// Its name.
    pub name: String,
    /// Whether it is a result, or a part of other formulas.
    pub output: bool,
    /// Its unit.
    pub unit: String,
    /// As a file writes it.
    pub text: String,
    /// In LaTeX's mathematical mode.
    pub latex: String,
    /// What it is.
    pub doc: String,
}

impl Model {
    /// The model as data.
    #[must_use]
    pub fn describe(&self) -> Description {
        let unit = |(name, doc): (&str, &str)| DescribedUnit { name: name.to_owned(), doc: doc.to_owned() };
        Description {
            name: self.name.clone(),
            title: self.title.clone(),
            about: self.about.clone(),
            source: self.source.clone(),
            identity: self.is_identity(),
            units: self.units.declared().map(unit).collect(),
            inputs: self.inputs.iter().map(input).collect(),
            params: self.params.iter().map(param).collect(),
            requirements: self.requirements.iter().map(requirement).collect(),
            formulas: self.values.iter().map(formula).collect(),
        }
    }
}

fn bounds(range: Range) -> (Option<f64>, Option<f64>) {
    let bound = |value: f64| value.is_finite().then_some(value);
    (bound(range.least), bound(range.most))
}

fn input(input: &Input) -> DescribedInput {
    let (least, most) = bounds(input.range);
    let (unit, origin) = (input.unit.text.clone(), input.origin.word());
    DescribedInput { name: input.name.clone(), unit, origin, least, most, doc: input.doc.clone() }
}

fn param(param: &Param) -> DescribedParam {
    let (least, most) = bounds(param.range);
    let (unit, value) = (param.unit.text.clone(), param.value);
    let prior = param.prior.to_string();
    DescribedParam { name: param.name.clone(), unit, value, least, most, prior, doc: param.doc.clone() }
}

fn requirement(required: &Requirement) -> DescribedRequirement {
    let Requirement { condition, doc } = required;
    DescribedRequirement { text: condition.text(), latex: condition.latex(), doc: doc.clone() }
}

fn formula(value: &Value) -> DescribedFormula {
    DescribedFormula {
        name: value.name.clone(),
        output: value.kind == ValueKind::Output,
        unit: value.unit.text.clone(),
        text: value.formula.text(),
        latex: value.formula.latex(),
        doc: value.doc.clone(),
    }
}
