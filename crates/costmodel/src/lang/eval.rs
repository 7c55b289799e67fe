//! Evaluating a model at a point.
//!
//! The elementary functions are libm's, so that every computer gives the same bits.

use super::ast::{Comparison, Expr, Factor, Function, Kind, SeriesKind, Sign, Slot};
use super::blame::{self, Blame, blame};
use super::error::EvalError;
use super::model::{Model, Range, Requirement, ValueKind};

/// The most terms of one sum.
pub const MAX_TERMS: u32 = 1_000_000;
/// The most operations of one evaluation; nested sums multiply.
pub const MAX_STEPS: u32 = 20_000_000;

/// What stops an evaluation.
pub(crate) enum Stop<'m> {
    Terms {
        from: f64,
        to: f64,
    },
    Steps,
    /// A comparison, and the side of it that is not a number: it is neither true nor false.
    Undecided {
        comparison: &'m Expr,
        side: &'m Expr,
    },
    /// A name where there are none.
    Name,
}

/// The values of names.
pub(crate) struct Scope<'a> {
    pub(crate) inputs: &'a [f64],
    pub(crate) params: &'a [f64],
    pub(crate) values: Vec<f64>,
    pub(crate) indices: Vec<f64>,
    steps: u32,
}

impl Model {
    /// Evaluates at a point: one value for each of [`inputs`](Self::inputs) and [`params`](Self::params). The results are
    /// those of [`outputs`](Self::outputs). Everything is in the units that the file declares.
    ///
    /// # Errors
    ///
    /// Where there are too many or too few values, one lies outside its bounds, a sum has no end, a result is no number,
    /// or a comparison has a side that is none.
    pub fn evaluate(&self, inputs: &[f64], params: &[f64]) -> Result<Vec<f64>, EvalError> {
        self.admit("inputs", inputs, self.inputs.iter().map(|input| (input.name.as_str(), input.range)))?;
        self.admit("parameters", params, self.params.iter().map(|param| (param.name.as_str(), param.range)))?;
        let inputs: Vec<f64> = inputs.iter().zip(&self.inputs).map(|(x, input)| x * input.unit.scale).collect();
        let params: Vec<f64> = params.iter().zip(&self.params).map(|(x, param)| x * param.unit.scale).collect();
        let mut scope = Scope { inputs: &inputs, params: &params, values: Vec::new(), indices: Vec::new(), steps: 0 };
        self.insist(&mut scope)?;
        for value in &self.values {
            let result = scope.number(&value.formula).map_err(|stop| self.stopped(stop, &mut scope))?;
            scope.values.push(result);
        }
        let outputs = self.values.iter().zip(&scope.values).filter(|(value, _)| value.kind == ValueKind::Output);
        let results: Vec<f64> = outputs.map(|(value, result)| result / value.unit.scale).collect();
        match blame(self, &mut scope) {
            Some(Blame { name, value, why }) => {
                Err(EvalError::NotFinite { model: self.name.clone(), name, value, why })
            }
            None => Ok(results),
        }
    }

    fn admit<'a>(
        &self,
        what: &'static str,
        values: &[f64],
        bounds: impl ExactSizeIterator<Item = (&'a str, Range)>,
    ) -> Result<(), EvalError> {
        let model = || self.name.clone();
        let (expected, found) = (bounds.len(), values.len());
        if expected != found {
            return Err(EvalError::Count { model: model(), what, expected, found });
        }
        for (value, (name, range)) in values.iter().zip(bounds) {
            if !value.is_finite() {
                return Err(EvalError::NoNumber { model: model(), name: name.to_owned(), value: *value });
            }
            if !range.contains(*value) {
                let plain = range.to_string();
                let range = plain.strip_prefix("whole ").map_or(plain.clone(), |r| format!("the whole numbers {r}"));
                let name = name.to_owned();
                return Err(EvalError::OutOfRange { model: model(), name, value: *value, range });
            }
        }
        Ok(())
    }

    /// Refuses a point at which a requirement does not hold.
    fn insist(&self, scope: &mut Scope<'_>) -> Result<(), EvalError> {
        for Requirement { condition, doc } in &self.requirements {
            if !scope.holds(condition).map_err(|stop| self.stopped(stop, scope))? {
                let mut why = blame::shown(self, scope, condition).join(", ");
                if !doc.is_empty() {
                    why += ": ";
                    why += doc;
                }
                return Err(EvalError::Required { model: self.name.clone(), condition: condition.text(), why });
            }
        }
        Ok(())
    }

    fn stopped(&self, stop: Stop<'_>, scope: &mut Scope<'_>) -> EvalError {
        let model = self.name.clone();
        match stop {
            Stop::Terms { from, to } => EvalError::Terms { model, from, to },
            Stop::Undecided { comparison, side } => {
                EvalError::Undecided { model, condition: comparison.text(), why: blame::undecided(self, scope, side) }
            }
            Stop::Steps | Stop::Name => EvalError::TooManySteps { model },
        }
    }
}

/// The value of a formula without names.
pub(crate) fn constant(expr: &Expr) -> Option<f64> {
    let mut scope = Scope { inputs: &[], params: &[], values: Vec::new(), indices: Vec::new(), steps: 0 };
    scope.number(expr).ok()
}

impl Scope<'_> {
    fn step(&mut self) -> Result<(), Stop<'static>> {
        self.steps += 1;
        if self.steps > MAX_STEPS { Err(Stop::Steps) } else { Ok(()) }
    }

    pub(crate) fn number<'m>(&mut self, expr: &'m Expr) -> Result<f64, Stop<'m>> {
        self.step()?;
        Ok(match &expr.kind {
            Kind::Number { value, unit, .. } => value * unit.as_ref().map_or(1.0, |unit| unit.scale),
            Kind::Name { slot, .. } => self.named(*slot)?,
            Kind::Sum(terms) => {
                let mut total = 0.0;
                for (sign, term) in terms {
                    let term = self.number(term)?;
                    total += if *sign == Sign::Plus { term } else { -term };
                }
                total
            }
            Kind::Product(factors) => {
                let mut product = 1.0;
                for (factor, expr) in factors {
                    let value = self.number(expr)?;
                    product = if *factor == Factor::Times { product * value } else { product / value };
                }
                product
            }
            Kind::Negative(inner) => -self.number(inner)?,
            Kind::Power(base, exponent) => libm::pow(self.number(base)?, self.number(exponent)?),
            Kind::Call(function, arguments) => self.call(*function, arguments)?,
            Kind::If(holds, then, otherwise) => {
                if self.holds(holds)? {
                    self.number(then)?
                } else {
                    self.number(otherwise)?
                }
            }
            Kind::Series { kind, from, to, body, .. } => self.series(*kind, from, to, body)?,
            // The unit check leaves no condition where a quantity is wanted.
            Kind::Compare(..) | Kind::All(_) | Kind::Any(_) | Kind::Not(_) => f64::from(self.holds(expr)?),
        })
    }

    fn named(&self, slot: Slot) -> Result<f64, Stop<'static>> {
        let value = match slot {
            Slot::Input(i) => self.inputs.get(i),
            Slot::Param(i) => self.params.get(i),
            Slot::Value(i) => self.values.get(i),
            Slot::Index(i) => self.indices.get(i),
        };
        value.copied().ok_or(Stop::Name)
    }

    fn call<'m>(&mut self, function: Function, arguments: &'m [Expr]) -> Result<f64, Stop<'m>> {
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(self.number(argument)?);
        }
        let x = values[0];
        Ok(match function {
            Function::Min => values.into_iter().fold(f64::INFINITY, |a, b| if b < a || b.is_nan() { b } else { a }),
            Function::Max => values.into_iter().fold(f64::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a }),
            Function::Log => libm::log(x),
            Function::Log2 => libm::log2(x),
            Function::Log10 => libm::log10(x),
            Function::Log1p => libm::log1p(x),
            Function::Exp => libm::exp(x),
            Function::Expm1 => libm::expm1(x),
            Function::Sqrt => libm::sqrt(x),
            Function::Abs => x.abs(),
            Function::Floor => x.floor(),
            Function::Ceil => x.ceil(),
            Function::Lgamma => libm::lgamma(x),
        })
    }

    fn series<'m>(&mut self, kind: SeriesKind, from: &'m Expr, to: &'m Expr, body: &'m Expr) -> Result<f64, Stop<'m>> {
        let (from, to) = (self.number(from)?, self.number(to)?);
        let whole = |x: f64| x.abs() < 9e15 && (x - x.round()).abs() < 1e-9;
        if !whole(from) || !whole(to) || to - from >= f64::from(MAX_TERMS) {
            return Err(Stop::Terms { from, to });
        }
        let (mut index, to) = (from.round(), to.round());
        let mut total = if kind == SeriesKind::Sum { 0.0 } else { 1.0 };
        self.indices.push(index);
        let depth = self.indices.len() - 1;
        while index <= to {
            self.indices[depth] = index;
            let term = self.number(body)?;
            total = if kind == SeriesKind::Sum { total + term } else { total * term };
            index += 1.0;
        }
        self.indices.pop();
        Ok(total)
    }

    pub(crate) fn holds<'m>(&mut self, expr: &'m Expr) -> Result<bool, Stop<'m>> {
        self.step()?;
        Ok(match &expr.kind {
            Kind::Compare(comparison, left, right) => {
                let (a, b) = (self.number(left)?, self.number(right)?);
                if let Some((side, _)) = [(left, a), (right, b)].into_iter().find(|(_, value)| value.is_nan()) {
                    return Err(Stop::Undecided { comparison: expr, side });
                }
                compare(*comparison, a, b)
            }
            Kind::All(parts) => {
                for part in parts {
                    if !self.holds(part)? {
                        return Ok(false);
                    }
                }
                true
            }
            Kind::Any(parts) => {
                for part in parts {
                    if self.holds(part)? {
                        return Ok(true);
                    }
                }
                false
            }
            Kind::Not(inner) => !self.holds(inner)?,
            _ => self.number(expr)? > 0.0,
        })
    }
}

#[expect(clippy::float_cmp, reason = "`==` in a model means what it means everywhere: the very same number")]
fn compare(comparison: Comparison, left: f64, right: f64) -> bool {
    match comparison {
        Comparison::Less => left < right,
        Comparison::AtMost => left <= right,
        Comparison::Greater => left > right,
        Comparison::AtLeast => left >= right,
        Comparison::Equal => left == right,
        Comparison::Different => left != right,
    }
}
