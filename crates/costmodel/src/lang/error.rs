//! What can be wrong with a model file, and with evaluating a model.

use std::io;
use std::path::PathBuf;

use super::lexer::MAX_FILE_BYTES;
use super::parser::MAX_DEPTH;

/// A model that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot read model file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no text, or too long for a model.
    #[error("{} is not a model file: {reason}", path.display())]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The text is no model.
    #[error("{file}:{line}:{column}: {problem}")]
    Invalid {
        /// The file, as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The character in the line, from 1.
        column: usize,
        /// What is wrong, and what is accepted.
        problem: Box<Problem>,
    },
    /// No built-in model has this name.
    #[error("no cost model is called `{name}`; the known ones: {}; a file is given by its path, with a `/` or ending in `.model`", known.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names of all built-in models.
        known: Vec<&'static str>,
    },
}

/// What is wrong at one place of a model file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A character that no word begins with.
    #[error(
        "unexpected character {0:?}: outside strings and comments a model is written in ASCII words, numbers and operators"
    )]
    Character(char),
    /// A string without end.
    #[error("this string has no end: close it with `\"`")]
    OpenString,
    /// A number that is none, or too large.
    #[error("`{0}` is no number: write digits, as in 4096, 4_096, 0.5 or 1e9; a product needs its `*`")]
    Number(String),
    /// Another word was expected.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What would be accepted.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// Too deep.
    #[error("nested deeper than {MAX_DEPTH} levels: name a part of the formula with `let`")]
    TooDeep,
    /// Too long.
    #[error("longer than {MAX_FILE_BYTES} bytes")]
    TooLong,
    /// A name that was not declared above.
    #[error("`{name}` is not declared above{}", hint.as_ref().map_or_else(String::new, |hint| format!("; did you mean `{hint}`?")))]
    UnknownName {
        /// The name.
        name: String,
        /// The most similar name in scope.
        hint: Option<String>,
    },
    /// A name that is taken.
    #[error("`{0}` is already taken: choose another name")]
    Taken(String),
    /// A unit that does not exist.
    #[error("unknown unit `{name}`{}; declare a unit of your own with `unit {name}`", hint.as_ref().map_or_else(String::new, |hint| format!(": did you mean `{hint}`?")))]
    UnknownUnit {
        /// The unit.
        name: String,
        /// The most similar unit.
        hint: Option<String>,
    },
    /// The power of a unit is absurd.
    #[error("a unit to such a power: powers lie within -99 and 99")]
    UnitPower,
    /// Two quantities of different units where they must be alike.
    #[error("cannot {action} `{left}` and `{right}`: give one of them the other's unit, as by a factor in `{factor}`")]
    Units {
        /// What was to be done with them.
        action: &'static str,
        /// The unit on the left.
        left: String,
        /// The unit on the right.
        right: String,
        /// The unit of a factor that would turn the right one into the left one.
        factor: String,
    },
    /// A declared unit and the formula's.
    #[error("`{name}` is declared in `{declared}`, but its formula gives `{found}`")]
    Declared {
        /// The name that is declared.
        name: String,
        /// Its unit.
        declared: String,
        /// The formula's unit.
        found: String,
    },
    /// A quantity with a unit where only a plain number makes sense.
    #[error("{place} must be a plain number, but this is `{found}`: divide by a quantity of the same unit")]
    NotPlain {
        /// Where.
        place: &'static str,
        /// The unit that it has.
        found: String,
    },
    /// A quantity with a unit raised to a power that is not known.
    #[error(
        "`{base}` can only be raised to a constant power in twelfths, as in x^2 or x^0.5: its unit would be unknown"
    )]
    Exponent {
        /// The unit of the base.
        base: String,
    },
    /// A condition where a quantity is wanted, or the other way round.
    #[error("expected {expected}, found {found}")]
    Kind {
        /// `a quantity` or `a condition`.
        expected: &'static str,
        /// The other one.
        found: &'static str,
    },
    /// A function with the wrong number of arguments.
    #[error("`{name}` takes {takes}, not {found} argument(s)")]
    Arguments {
        /// The function.
        name: &'static str,
        /// How many it takes.
        takes: &'static str,
        /// How many it got.
        found: usize,
    },
    /// A range or an initial value that makes no sense.
    #[error("{0}")]
    Range(&'static str),
    /// A requirement that speaks of what is no input.
    #[error("a requirement speaks of inputs; `{name}` is {what}")]
    NotAnInput {
        /// The name.
        name: String,
        /// What it is instead.
        what: &'static str,
    },
    /// Something is missing from the file as a whole.
    #[error("{0}")]
    Incomplete(&'static str),
}

/// A model that cannot be evaluated at a point.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// An input is missing.
    #[error("{model}: the input `{name}` is missing")]
    Missing {
        /// The model.
        model: String,
        /// The input.
        name: String,
    },
    /// A name that is no input or parameter of the model.
    #[error("{model} has no input or parameter `{name}`; it has {}", known.join(", "))]
    Unknown {
        /// The model.
        model: String,
        /// The name.
        name: String,
        /// The names it has.
        known: Vec<String>,
    },
    /// The wrong number of values.
    #[error("{model} takes {expected} {what}, not {found}")]
    Count {
        /// The model.
        model: String,
        /// `inputs` or `parameters`.
        what: &'static str,
        /// How many it takes.
        expected: usize,
        /// How many it got.
        found: usize,
    },
    /// A value outside its bounds.
    #[error("{model}: {name} = {} lies outside {range}", few_digits(*value))]
    OutOfRange {
        /// The model.
        model: String,
        /// The input or parameter.
        name: String,
        /// Its value.
        value: f64,
        /// The bounds.
        range: String,
    },
    /// Inputs that do not go together.
    #[error("{model} requires {condition}, but {why}")]
    Required {
        /// The model.
        model: String,
        /// What it requires, as a file writes it.
        condition: String,
        /// The inputs' values, and what the file says of the condition.
        why: String,
    },
    /// A result that is no number.
    #[error("{model}: `{name}` is {value} at this point: {why}")]
    NotFinite {
        /// The model.
        model: String,
        /// The output, or the formula it goes back to.
        name: String,
        /// Infinity or not a number.
        value: f64,
        /// The part of the formula that is at fault, the values of the names in it, and what it does with them.
        why: String,
    },
    /// A comparison that is neither true nor false: a side of it is not a number.
    #[error("{model}: whether {condition} cannot be said at this point: {why}")]
    Undecided {
        /// The model.
        model: String,
        /// The comparison, as a file writes it.
        condition: String,
        /// The part of it that is at fault, the values of the names in it, and what it does with them.
        why: String,
    },
    /// A value that is infinite or no number at all.
    #[error("{model}: the value of `{name}` is {value}, not a finite number: give one below 1.8e308")]
    NoNumber {
        /// The model.
        model: String,
        /// The input or parameter.
        name: String,
        /// Infinity or not a number.
        value: f64,
    },
    /// The bounds of a sum are no whole numbers, or there are too many terms.
    #[error(
        "{model}: a sum or product from {from} to {to}: its bounds must be whole numbers with at most {} terms",
        super::MAX_TERMS
    )]
    Terms {
        /// The model.
        model: String,
        /// The lower bound.
        from: f64,
        /// The upper bound.
        to: f64,
    },
    /// The evaluation takes too long.
    #[error("{model}: more than {} steps for one evaluation: shorten its sums", super::MAX_STEPS)]
    TooManySteps {
        /// The model.
        model: String,
    },
}

/// A value as it was written, or with an exponent where it has very many digits.
#[must_use]
pub fn few_digits(value: f64) -> String {
    if value == 0.0 || (1e-6..1e15).contains(&value.abs()) { value.to_string() } else { format!("{value:e}") }
}
