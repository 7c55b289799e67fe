//! The unit of every formula, worked out from the units of names and numbers.

use super::ast::{Expr, Factor, Function, Kind, Place, SeriesKind, Slot};
use super::error::Problem;
use super::eval;
use super::unit::Unit;

/// What a formula gives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    /// A quantity in a unit.
    Quantity(Unit),
    /// True or false.
    Condition,
}

type Checked<T> = Result<T, (Place, Problem)>;

/// Looks up the unit of a name.
pub(crate) trait Names {
    fn unit_of(&self, slot: Slot) -> Unit;
}

/// The unit of a quantity.
pub(crate) fn quantity(names: &impl Names, expr: &Expr) -> Checked<Unit> {
    match type_of(names, expr)? {
        Type::Quantity(unit) => Ok(unit),
        Type::Condition => Err((expr.at, Problem::Kind { expected: "a quantity", found: "a condition" })),
    }
}

/// Insists on a condition.
pub(crate) fn condition(names: &impl Names, expr: &Expr) -> Checked<()> {
    match type_of(names, expr)? {
        Type::Condition => Ok(()),
        Type::Quantity(_) => {
            Err((expr.at, Problem::Kind { expected: "a condition, as in `x > 0`", found: "a quantity" }))
        }
    }
}

fn plain(names: &impl Names, expr: &Expr, place: &'static str) -> Checked<()> {
    let unit = quantity(names, expr)?;
    if unit.is_one() { Ok(()) } else { Err((expr.at, Problem::NotPlain { place, found: unit.to_string() })) }
}

/// The common unit of several quantities.
fn alike<'a>(
    names: &impl Names,
    action: &'static str,
    mut exprs: impl Iterator<Item = &'a Expr>,
) -> Checked<Option<Unit>> {
    let Some(first) = exprs.next() else { return Ok(None) };
    let unit = quantity(names, first)?;
    for expr in exprs {
        let other = quantity(names, expr)?;
        if other != unit {
            let factor = unit.over(&other).ok_or((expr.at, Problem::UnitPower))?.to_string();
            let (left, right) = (unit.to_string(), other.to_string());
            return Err((expr.at, Problem::Units { action, left, right, factor }));
        }
    }
    Ok(Some(unit))
}

fn type_of(names: &impl Names, expr: &Expr) -> Checked<Type> {
    let unit = match &expr.kind {
        Kind::Number { unit, .. } => unit.as_ref().map_or_else(Unit::one, |unit| unit.unit.clone()),
        Kind::Name { slot, .. } => names.unit_of(*slot),
        Kind::Sum(terms) => alike(names, "add", terms.iter().map(|(_, term)| term))?.unwrap_or_default(),
        Kind::Product(factors) => product(names, factors)?,
        Kind::Negative(inner) => quantity(names, inner)?,
        Kind::Power(base, exponent) => power(names, base, exponent)?,
        Kind::Call(function, arguments) => call(names, *function, arguments)?,
        Kind::If(holds, then, otherwise) => {
            condition(names, holds)?;
            alike(names, "choose between", [&**then, &**otherwise].into_iter())?.unwrap_or_default()
        }
        Kind::Series { kind, from, to, body, .. } => {
            plain(names, from, "the bound of a range")?;
            plain(names, to, "the bound of a range")?;
            if *kind == SeriesKind::Product {
                plain(names, body, "the factor of a product over a range")?;
            }
            quantity(names, body)?
        }
        Kind::Compare(_, left, right) => {
            alike(names, "compare", [&**left, &**right].into_iter())?;
            return Ok(Type::Condition);
        }
        Kind::All(parts) | Kind::Any(parts) => {
            parts.iter().try_for_each(|part| condition(names, part))?;
            return Ok(Type::Condition);
        }
        Kind::Not(inner) => {
            condition(names, inner)?;
            return Ok(Type::Condition);
        }
    };
    Ok(Type::Quantity(unit))
}

fn product(names: &impl Names, factors: &[(Factor, Expr)]) -> Checked<Unit> {
    factors.iter().try_fold(Unit::one(), |unit, (factor, expr)| {
        let other = quantity(names, expr)?;
        let combined = match factor {
            Factor::Times => unit.times(&other),
            Factor::Over => unit.over(&other),
        };
        combined.ok_or((expr.at, Problem::UnitPower))
    })
}

fn power(names: &impl Names, base: &Expr, exponent: &Expr) -> Checked<Unit> {
    plain(names, exponent, "an exponent")?;
    let unit = quantity(names, base)?;
    if unit.is_one() {
        return Ok(unit);
    }
    let power = eval::constant(exponent).and_then(|power| unit.to_power(power));
    power.ok_or_else(|| (exponent.at, Problem::Exponent { base: unit.to_string() }))
}

fn call(names: &impl Names, function: Function, arguments: &[Expr]) -> Checked<Unit> {
    match function {
        Function::Min => Ok(alike(names, "take the least of", arguments.iter())?.unwrap_or_default()),
        Function::Max => Ok(alike(names, "take the greatest of", arguments.iter())?.unwrap_or_default()),
        Function::Abs | Function::Floor | Function::Ceil => quantity(names, &arguments[0]),
        Function::Sqrt => {
            let unit = quantity(names, &arguments[0])?;
            unit.to_power(0.5).ok_or_else(|| (arguments[0].at, Problem::Exponent { base: unit.to_string() }))
        }
        Function::Log
        | Function::Log2
        | Function::Log10
        | Function::Log1p
        | Function::Exp
        | Function::Expm1
        | Function::Lgamma => {
            plain(names, &arguments[0], "the argument of a logarithm, an exponential or lgamma")?;
            Ok(Unit::one())
        }
    }
}
