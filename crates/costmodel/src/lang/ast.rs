//! The formula of a model as a tree.
//!
//! Chains of one operator are one node, so the depth of a tree is the depth of its parentheses, which the parser bounds: no
//! recursion over a tree can overflow the stack.

use super::unit::Scaled;

/// A place in the text: bytes from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(pub usize);

/// Where the value of a name is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// An input, by its position.
    Input(usize),
    /// A parameter, by its position.
    Param(usize),
    /// A `let` or an output, by its position among both.
    Value(usize),
    /// The variable of a sum, by the number of sums around it.
    Index(usize),
}

/// A formula.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// Where it begins.
    pub at: Place,
    /// What it is.
    pub kind: Kind,
}

impl Expr {
    /// Adds the inputs, parameters and named formulas in it, each once.
    pub(crate) fn names<'m>(&'m self, names: &mut Vec<(&'m str, Slot)>) {
        match &self.kind {
            Kind::Name { name, slot } => {
                if !names.iter().any(|(known, _)| known == name) && !matches!(slot, Slot::Index(_)) {
                    names.push((name, *slot));
                }
            }
            Kind::Number { .. } => {}
            Kind::Sum(terms) => terms.iter().for_each(|(_, term)| term.names(names)),
            Kind::Product(factors) => factors.iter().for_each(|(_, factor)| factor.names(names)),
            Kind::Negative(inner) | Kind::Not(inner) => inner.names(names),
            Kind::Power(left, right) | Kind::Compare(_, left, right) => {
                left.names(names);
                right.names(names);
            }
            Kind::Call(_, parts) | Kind::All(parts) | Kind::Any(parts) => {
                parts.iter().for_each(|part| part.names(names));
            }
            Kind::If(holds, then, otherwise) => [holds, then, otherwise].into_iter().for_each(|part| part.names(names)),
            Kind::Series { from, to, body, .. } => [from, to, body].into_iter().for_each(|part| part.names(names)),
        }
    }
}

/// What a formula is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A number, with its unit where it has one.
    Number {
        /// As it was written.
        text: String,
        /// Its value, in the unit it was written in.
        value: f64,
        /// Its unit.
        unit: Option<Scaled>,
    },
    /// A name.
    Name {
        /// The name.
        name: String,
        /// Where its value is found.
        slot: Slot,
    },
    /// Terms added and subtracted; two at least.
    Sum(Vec<(Sign, Expr)>),
    /// Factors multiplied and divided by; two at least.
    Product(Vec<(Factor, Expr)>),
    /// The negative.
    Negative(Box<Expr>),
    /// The first to the power of the second.
    Power(Box<Expr>, Box<Expr>),
    /// A function of its arguments.
    Call(Function, Vec<Expr>),
    /// The second where the first holds, the third where it does not.
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// A sum or product over a range of whole numbers, both ends included.
    Series {
        /// Sum or product.
        kind: SeriesKind,
        /// The variable.
        variable: String,
        /// Where it begins.
        from: Box<Expr>,
        /// Where it ends.
        to: Box<Expr>,
        /// The term.
        body: Box<Expr>,
    },
    /// A comparison.
    Compare(Comparison, Box<Expr>, Box<Expr>),
    /// Whether all hold; two at least.
    All(Vec<Expr>),
    /// Whether one holds; two at least.
    Any(Vec<Expr>),
    /// Whether it does not hold.
    Not(Box<Expr>),
}

/// What is done with a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Added.
    Plus,
    /// Subtracted.
    Minus,
}

/// What is done with a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// Multiplied.
    Times,
    /// Divided by.
    Over,
}

/// Sum or product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesKind {
    /// The terms are added.
    Sum,
    /// The terms are multiplied.
    Product,
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As it is written.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

words! {
    /// A function.
    Function {
        /// The least of two or more.
        Min = "min",
        /// The greatest of two or more.
        Max = "max",
        /// The natural logarithm.
        Log = "log",
        /// The logarithm to base 2.
        Log2 = "log2",
        /// The logarithm to base 10.
        Log10 = "log10",
        /// The natural logarithm of 1 + x, exact for small x.
        Log1p = "log1p",
        /// e to a power.
        Exp = "exp",
        /// e to a power, less 1, exact for small powers.
        Expm1 = "expm1",
        /// The square root.
        Sqrt = "sqrt",
        /// The size without the sign.
        Abs = "abs",
        /// The next whole number below, in base units.
        Floor = "floor",
        /// The next whole number above, in base units.
        Ceil = "ceil",
        /// The natural logarithm of the gamma function: lgamma(n + 1) = log(n!).
        Lgamma = "lgamma",
    }
}

words! {
    /// A comparison.
    Comparison {
        /// Less.
        Less = "<",
        /// Less or equal.
        AtMost = "<=",
        /// Greater.
        Greater = ">",
        /// Greater or equal.
        AtLeast = ">=",
        /// Equal.
        Equal = "==",
        /// Different.
        Different = "!=",
    }
}

impl SeriesKind {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Product => "product",
        }
    }
}
