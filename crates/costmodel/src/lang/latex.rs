//! A model's formulas in LaTeX.

use super::ast::{Comparison, Expr, Factor, Function, Kind, SeriesKind, Sign};
use super::model::{Model, Requirement, Value, ValueKind};
use super::text::Tightness;
use super::unit::Scaled;

impl Model {
    /// The formulas as an `align*` environment of amsmath, a line for each `let` and output.
    #[must_use]
    pub fn latex(&self) -> String {
        let required = |required: &Requirement| format!("  &\\text{{where }} {}", required.condition.latex());
        let required = self.requirements.iter().map(required);
        let lines: Vec<_> = self.values.iter().map(|value| format!("  {}", value.latex())).chain(required).collect();
        format!(
            "% {}: {}\n\\begin{{align*}}\n{}\n\\end{{align*}}\n",
            self.name,
            one_line(&self.title),
            lines.join(" \\\\\n")
        )
    }
}

/// A comment in LaTeX ends with its line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Value {
    /// Name and formula, aligned at the equals sign; an output is followed by its unit.
    #[must_use]
    pub fn latex(&self) -> String {
        let unit = if self.kind == ValueKind::Output && !(self.unit.unit.is_one()) {
            format!(" \\quad [{}]", unit(&self.unit))
        } else {
            String::new()
        };
        format!("{} &= {}{unit}", name(&self.name), self.formula.latex())
    }
}

impl Expr {
    /// The formula in LaTeX's mathematical mode.
    #[must_use]
    pub fn latex(&self) -> String {
        match &self.kind {
            Kind::Number { text, unit: literal, .. } => number(text, literal.as_ref()),
            Kind::Name { name: text, .. } => name(text),
            Kind::Sum(terms) => {
                let mark = |sign: &Sign| if *sign == Sign::Plus { " + " } else { " - " };
                let mut text = terms[0].1.latex_within(Tightness::Product);
                for (sign, term) in &terms[1..] {
                    text += mark(sign);
                    text += &term.latex_within(Tightness::Product);
                }
                text
            }
            Kind::Product(factors) => product(factors),
            Kind::Negative(inner) => format!("-{}", inner.latex_within(Tightness::Signed)),
            Kind::Power(base, exponent) => {
                format!("{{{}}}^{{{}}}", base.latex_within(Tightness::Atom), exponent.latex())
            }
            Kind::Call(function, arguments) => call(*function, arguments),
            Kind::If(holds, then, otherwise) => format!(
                "\\begin{{cases}} {} & \\text{{if }} {} \\\\ {} & \\text{{otherwise}} \\end{{cases}}",
                then.latex(),
                holds.latex(),
                otherwise.latex()
            ),
            Kind::Series { kind, variable, from, to, body } => {
                let sign = if *kind == SeriesKind::Sum { "sum" } else { "prod" };
                let body = body.latex_within(Tightness::Product);
                format!("\\{sign}_{{{}={}}}^{{{}}} {body}", name(variable), from.latex(), to.latex())
            }
            Kind::Compare(comparison, left, right) => {
                let (left, right) = (left.latex_within(Tightness::Sum), right.latex_within(Tightness::Sum));
                format!("{left} {} {right}", relation(*comparison))
            }
            Kind::All(parts) => junction(parts, " \\land ", Tightness::Claim),
            Kind::Any(parts) => junction(parts, " \\lor ", Tightness::All),
            Kind::Not(inner) => format!("\\lnot {}", inner.latex_within(Tightness::Atom)),
        }
    }

    fn latex_within(&self, place: Tightness) -> String {
        // A sum sign reaches as far to the right as a product does, and `exp(x) - 1` is a difference.
        let tightness = match &self.kind {
            Kind::Series { .. } => Tightness::Sum,
            Kind::Call(Function::Expm1, _) => Tightness::Sum,
            Kind::Number { unit: Some(_), .. } => Tightness::Product,
            _ => self.tightness(),
        };
        let text = self.latex();
        if tightness < place { format!("\\left({text}\\right)") } else { text }
    }
}

/// Divisors go below a fraction bar.
fn product(factors: &[(Factor, Expr)]) -> String {
    let side = |wanted: Factor| {
        let side: Vec<_> = factors.iter().filter(|(factor, _)| *factor == wanted).map(|(_, expr)| expr).collect();
        match side.as_slice() {
            [single] if factors.len() > 1 && factors.iter().any(|(factor, _)| *factor == Factor::Over) => {
                single.latex()
            }
            many => many.iter().map(|expr| expr.latex_within(Tightness::Product)).collect::<Vec<_>>().join(" \\cdot "),
        }
    };
    let (above, below) = (side(Factor::Times), side(Factor::Over));
    if below.is_empty() { above } else { format!("\\frac{{{above}}}{{{below}}}") }
}

fn call(function: Function, arguments: &[Expr]) -> String {
    let list = arguments.iter().map(Expr::latex).collect::<Vec<_>>().join(", ");
    match function {
        Function::Sqrt => format!("\\sqrt{{{list}}}"),
        Function::Abs => format!("\\left|{list}\\right|"),
        Function::Floor => format!("\\left\\lfloor {list} \\right\\rfloor"),
        Function::Ceil => format!("\\left\\lceil {list} \\right\\rceil"),
        Function::Log2 => format!("\\log_2\\left({list}\\right)"),
        Function::Log10 => format!("\\log_{{10}}\\left({list}\\right)"),
        Function::Log => format!("\\ln\\left({list}\\right)"),
        Function::Log1p => format!("\\ln\\left(1 + {list}\\right)"),
        Function::Exp => format!("\\exp\\left({list}\\right)"),
        Function::Expm1 => format!("\\exp\\left({list}\\right) - 1"),
        Function::Lgamma => format!("\\ln\\Gamma\\left({list}\\right)"),
        Function::Min => format!("\\min\\left({list}\\right)"),
        Function::Max => format!("\\max\\left({list}\\right)"),
    }
}

fn junction(parts: &[Expr], mark: &str, place: Tightness) -> String {
    parts.iter().map(|part| part.latex_within(place)).collect::<Vec<_>>().join(mark)
}

fn relation(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Less => "<",
        Comparison::AtMost => "\\le",
        Comparison::Greater => ">",
        Comparison::AtLeast => "\\ge",
        Comparison::Equal => "=",
        Comparison::Different => "\\ne",
    }
}

fn number(text: &str, literal: Option<&Scaled>) -> String {
    let digits = text.replace('_', "");
    let digits = match digits.split_once(['e', 'E']) {
        Some((mantissa, power)) => format!("{mantissa} \\times 10^{{{}}}", power.trim_start_matches('+')),
        None => digits,
    };
    match literal {
        Some(literal) => format!("{digits}\\,{}", unit(literal)),
        None => digits,
    }
}

fn unit(unit: &Scaled) -> String {
    // Units are ASCII words, digits and `*/^-`; `*` and `_` need a word of LaTeX's.
    let mut text = String::from("\\mathrm{");
    let mut power = false;
    for c in unit.text.chars() {
        if power && !(c == '-' || c.is_ascii_digit()) {
            text.push('}');
            power = false;
        }
        match c {
            '*' => text += " \\cdot ",
            '_' => text += "\\_",
            '^' => {
                text += "^{";
                power = true;
            }
            c => text.push(c),
        }
    }
    if power {
        text.push('}');
    }
    text + "}"
}

fn name(name: &str) -> String {
    if name.len() == 1 { name.to_owned() } else { format!("\\mathit{{{}}}", name.replace('_', "\\_")) }
}
