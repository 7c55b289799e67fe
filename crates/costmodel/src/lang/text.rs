//! A model as text: what it says in one canonical form, which reads back as the same model.

use std::fmt::{self, Write as _};

use super::ast::{Expr, Factor, Kind, Sign};
use super::model::{Model, Prior, Range, Value, ValueKind};

/// How tightly a formula holds together; a part that holds less tightly than its place demands stands in parentheses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tightness {
    Conditional,
    Any,
    All,
    Claim,
    Sum,
    Product,
    Signed,
    Power,
    Atom,
}

impl Expr {
    pub(crate) fn tightness(&self) -> Tightness {
        match &self.kind {
            Kind::If(..) => Tightness::Conditional,
            Kind::Any(_) => Tightness::Any,
            Kind::All(_) => Tightness::All,
            Kind::Not(_) | Kind::Compare(..) => Tightness::Claim,
            Kind::Sum(_) => Tightness::Sum,
            Kind::Product(_) => Tightness::Product,
            Kind::Negative(_) => Tightness::Signed,
            Kind::Power(..) => Tightness::Power,
            Kind::Number { .. } | Kind::Name { .. } | Kind::Call(..) | Kind::Series { .. } => Tightness::Atom,
        }
    }

    /// The formula as a model file writes it.
    #[must_use]
    pub fn text(&self) -> String {
        self.within(Tightness::Conditional)
    }

    fn within(&self, place: Tightness) -> String {
        let text = self.bare();
        if self.tightness() < place { format!("({text})") } else { text }
    }

    fn bare(&self) -> String {
        match &self.kind {
            Kind::Number { text, unit: None, .. } => text.clone(),
            Kind::Number { text, unit: Some(unit), .. } => format!("{text} [{}]", unit.text),
            Kind::Name { name, .. } => name.clone(),
            Kind::Sum(terms) => {
                let mark = |sign: &Sign| if *sign == Sign::Plus { " + " } else { " - " };
                chain(terms.iter().map(|(sign, term)| (mark(sign), term.within(Tightness::Product))))
            }
            Kind::Product(factors) => {
                let mark = |factor: &Factor| if *factor == Factor::Times { " * " } else { " / " };
                chain(factors.iter().map(|(factor, expr)| (mark(factor), expr.within(Tightness::Signed))))
            }
            Kind::Negative(inner) => format!("-{}", inner.within(Tightness::Signed)),
            Kind::Power(base, exponent) => {
                format!("{}^{}", base.within(Tightness::Atom), exponent.within(Tightness::Signed))
            }
            Kind::Call(function, arguments) => {
                let arguments: Vec<_> = arguments.iter().map(Self::text).collect();
                format!("{}({})", function.word(), arguments.join(", "))
            }
            Kind::If(holds, then, otherwise) => {
                format!("if {} then {} else {}", holds.text(), then.text(), otherwise.text())
            }
            Kind::Series { kind, variable, from, to, body } => {
                format!("{}({variable} in {}..{} : {})", kind.word(), from.text(), to.text(), body.text())
            }
            Kind::Compare(comparison, left, right) => {
                let (left, right) = (left.within(Tightness::Sum), right.within(Tightness::Sum));
                format!("{left} {} {right}", comparison.word())
            }
            Kind::All(parts) => chain(parts.iter().map(|part| (" and ", part.within(Tightness::Claim)))),
            Kind::Any(parts) => chain(parts.iter().map(|part| (" or ", part.within(Tightness::All)))),
            Kind::Not(inner) => format!("not {}", inner.within(Tightness::Claim)),
        }
    }
}

/// Parts with the marks between them; the mark before the first is left out.
fn chain<'a>(parts: impl Iterator<Item = (&'a str, String)>) -> String {
    parts.enumerate().map(|(i, (mark, part))| if i == 0 { part } else { format!("{mark}{part}") }).collect()
}

impl Model {
    /// The whole model in canonical form. Reading it back gives a model that renders the same and computes the same.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (word, content) in
            [("model", &self.name), ("title", &self.title), ("about", &self.about), ("source", &self.source)]
        {
            if !content.is_empty() {
                let _ = writeln!(text, "{word} {}", quoted(content));
            }
        }
        for (name, doc) in self.units.declared() {
            let _ = writeln!(text, "unit {name}{}", trailing(doc));
        }
        for input in &self.inputs {
            let (unit, origin) = (&input.unit.text, input.origin.word());
            let _ = writeln!(
                text,
                "input {} : {unit} from {origin}{}{}",
                input.name,
                bounds(input.range),
                trailing(&input.doc)
            );
        }
        for param in &self.params {
            let (name, unit, value) = (&param.name, &param.unit.text, param.value);
            let (bounds, prior, doc) = (bounds(param.range), prior(param.prior), trailing(&param.doc));
            let _ = writeln!(text, "param {name} : {unit} = {value}{bounds}{prior}{doc}");
        }
        for required in &self.requirements {
            let _ = writeln!(text, "require {}{}", required.condition.text(), trailing(&required.doc));
        }
        for value in &self.values {
            let _ = writeln!(text, "{}{}", value.text(), trailing(&value.doc));
        }
        text
    }
}

impl Value {
    /// The formula with its name, as a model file writes it.
    #[must_use]
    pub fn text(&self) -> String {
        let word = if self.kind == ValueKind::Let { "let" } else { "output" };
        let unit = if self.declared { format!(" : {}", self.unit.text) } else { String::new() };
        format!("{word} {}{unit} = {}", self.name, self.formula.text())
    }
}

fn bounds(range: Range) -> String {
    if range == Range::ALL { String::new() } else { format!(" in {range}") }
}

/// As a file writes it: `fixed`, `normal(3, 0.5)`.
impl fmt::Display for Prior {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Fixed => f.write_str("fixed"),
            Self::Normal { mean, sd } => write!(f, "normal({mean}, {sd})"),
            Self::LogNormal { median, factor } => write!(f, "lognormal({median}, {factor})"),
        }
    }
}

fn prior(prior: Prior) -> String {
    if prior == Prior::Uniform { String::new() } else { format!(" prior {prior}") }
}

fn trailing(doc: &str) -> String {
    if doc.is_empty() { String::new() } else { format!(" {}", quoted(doc)) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
