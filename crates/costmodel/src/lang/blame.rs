//! Why a result, or a side of a comparison, is no number: the smallest part of a formula whose own parts are all numbers, and the names in it. `eval` asks when
//! an output is infinite or not a number, or a comparison is neither true nor false.

use super::ast::{Expr, Factor, Function, Kind, Slot};
use super::error::few_digits;
use super::eval::Scope;
use super::model::{Model, ValueKind};

/// What went wrong first.
pub(crate) struct Blame {
    /// The formula that it stands in.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: f64,
    /// The part at fault, with the values of the names in it and what it does with them.
    pub(crate) why: String,
}

/// The blame for an output that is no number; `None` where all are.
pub(crate) fn blame(model: &Model, scope: &mut Scope<'_>) -> Option<Blame> {
    let at = (0..model.values.len()).find(|i| {
        let (value, result) = (&model.values[*i], scope.values[*i]);
        value.kind == ValueKind::Output && !(result / value.unit.scale).is_finite()
    })?;
    let (holder, part) = smallest(model, scope, at, &model.values[at].formula);
    let why = sentence(model, scope, part);
    Some(Blame { name: model.values[holder].name.clone(), value: scope.values[holder], why })
}

/// Why the side of a comparison is no number.
pub(crate) fn undecided(model: &Model, scope: &mut Scope<'_>, side: &Expr) -> String {
    let (_, part) = smallest(model, scope, 0, side);
    sentence(model, scope, part)
}

fn sentence(model: &Model, scope: &mut Scope<'_>, part: &Expr) -> String {
    let shown = shown(model, scope, part);
    let with = if shown.is_empty() { String::new() } else { format!(" with {}", shown.join(", ")) };
    format!("`{}`{with} is {}", part.text(), fault(scope, part))
}

/// The values of the names in a part, each in the unit that the file declares: `x = 1 KiB`.
pub(crate) fn shown(model: &Model, scope: &Scope<'_>, part: &Expr) -> Vec<String> {
    let mut names = Vec::new();
    part.names(&mut names);
    names.iter().filter_map(|(name, slot)| Some(format!("{name} = {}", in_its_unit(model, scope, *slot)?))).collect()
}

/// The formula and the part of it that is no number though its own parts are.
fn smallest<'m>(model: &'m Model, scope: &mut Scope<'_>, mut holder: usize, formula: &'m Expr) -> (usize, &'m Expr) {
    let mut part = formula;
    loop {
        if let Kind::Name { slot: Slot::Value(i), .. } = part.kind {
            (holder, part) = (i, &model.values[i].formula);
            // A comparison within a sum was left with the sum's variable; another formula has sums of its own.
            scope.indices.clear();
            continue;
        }
        match quantities(scope, part).into_iter().find(|inner| !number(scope, inner).is_finite()) {
            Some(inner) => part = inner,
            None => return (holder, part),
        }
    }
}

/// The parts whose values make that of the whole. The term of a sum over a range has none outside of it.
fn quantities<'m>(scope: &mut Scope<'_>, expr: &'m Expr) -> Vec<&'m Expr> {
    match &expr.kind {
        Kind::Sum(terms) => terms.iter().map(|(_, term)| term).collect(),
        Kind::Product(factors) => factors.iter().map(|(_, factor)| factor).collect(),
        Kind::Negative(inner) => vec![inner],
        Kind::Power(base, exponent) => vec![base, exponent],
        Kind::Call(_, arguments) => arguments.iter().collect(),
        Kind::If(holds, then, otherwise) => {
            vec![if scope.holds(holds).unwrap_or(false) { then } else { otherwise }]
        }
        _ => Vec::new(),
    }
}

fn number(scope: &mut Scope<'_>, expr: &Expr) -> f64 {
    // What was computed once can be computed again; a long sum may use up the steps, and then the whole is to blame.
    scope.number(expr).unwrap_or(0.0)
}

/// What is done to numbers so that the result is none.
fn fault(scope: &mut Scope<'_>, expr: &Expr) -> &'static str {
    match &expr.kind {
        Kind::Product(factors) => {
            let zero = |(factor, expr): &(Factor, Expr)| *factor == Factor::Over && number(scope, expr) == 0.0;
            if factors.iter().any(zero) { "a division by zero" } else { "beyond the largest number, about 1.8e308" }
        }
        Kind::Power(base, exponent) => {
            let (base, exponent) = (number(scope, base), number(scope, exponent));
            match base {
                0.0 if exponent < 0.0 => "a division by zero",
                base if base < 0.0 => "a root of a negative number",
                _ => "beyond the largest number, about 1.8e308",
            }
        }
        Kind::Call(Function::Log | Function::Log2 | Function::Log10, _) => "the logarithm of what is not above 0",
        Kind::Call(Function::Log1p, _) => "the logarithm of what is not above 0 when 1 is added",
        Kind::Call(Function::Sqrt, _) => "the root of a negative number",
        Kind::Call(Function::Lgamma, _) => "the gamma function of 0 or of a negative whole number",
        Kind::Series { .. } => "a sum or product with a term that is no number, or beyond the largest one",
        _ => "beyond the largest number, about 1.8e308",
    }
}

fn in_its_unit(model: &Model, scope: &Scope<'_>, slot: Slot) -> Option<String> {
    let (value, unit) = match slot {
        Slot::Input(i) => (scope.inputs[i], &model.inputs[i].unit),
        Slot::Param(i) => (scope.params[i], &model.params[i].unit),
        Slot::Value(i) => (*scope.values.get(i)?, &model.values[i].unit),
        Slot::Index(_) => return None,
    };
    let value = few_digits(value / unit.scale);
    Some(if unit.text == "1" { value } else { format!("{value} {}", unit.text) })
}
