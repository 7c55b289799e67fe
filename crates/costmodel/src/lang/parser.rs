//! Words to a model: one pass, one word of look-ahead, no backtracking.
//!
//! ```text
//! file       = { statement }
//! statement  = "model" STRING | "title" STRING | "about" STRING | "source" STRING | "unit" NAME [STRING]
//!            | "input" NAME ":" unit "from" ORIGIN ["in" range] [STRING]
//!            | "param" NAME ":" unit "=" figure ["in" range] ["prior" prior] [STRING]
//!            | "require" condition [STRING]
//!            | "let" NAME [":" unit] "=" formula [STRING]
//!            | "output" NAME ":" unit "=" formula [STRING]
//! unit       = power { ("*" | "/") power }          power = "1" | NAME ["^" ["-"] DIGITS]
//! range      = ["whole"] [figure] ".." [figure]     figure = ["-"] NUMBER
//! prior      = "fixed" | "uniform" | "normal" "(" figure "," figure ")" | "lognormal" "(" figure "," figure ")"
//! ```
//!
//! Formulas are read by `formula`. Names are resolved and units checked as soon as a statement ends, so the first error of a
//! file is the one reported.

mod formula;
mod units;

use std::collections::BTreeMap;

use super::ast::{Function, Place, Slot};
use super::check::{self, Names};
use super::error::Problem;
use super::lexer::{Token, Word, words};
use super::model::{Input, Model, Origin, Param, Prior, Range, Requirement, Value, ValueKind};
use super::unit::{Scaled, Unit, Units};
use super::words::short;

/// How deep parentheses, calls, conditionals, powers and signs may be nested.
pub const MAX_DEPTH: usize = 64;

type Parsed<T> = Result<T, (Place, Problem)>;

/// Words that no name may be.
const RESERVED: &[&str] = &[
    "model", "title", "about", "source", "unit", "input", "param", "require", "let", "output", "from", "in", "prior",
    "if", "then", "else", "and", "or", "not", "sum", "product",
];

pub(crate) fn parse(text: &str) -> Parsed<Model> {
    let words = words(text)?;
    let mut parser =
        Parser { words: &words, next: 0, depth: 0, indices: Vec::new(), slots: BTreeMap::new(), model: empty() };
    parser.file()?;
    Ok(parser.model)
}

fn empty() -> Model {
    let text = String::new;
    Model {
        name: text(),
        title: text(),
        about: text(),
        source: text(),
        units: Units::default(),
        inputs: Vec::new(),
        params: Vec::new(),
        requirements: Vec::new(),
        values: Vec::new(),
    }
}

struct Parser<'a> {
    /// [`Token::End`] last.
    words: &'a [Word<'a>],
    next: usize,
    depth: usize,
    /// Variables of the sums around.
    indices: Vec<&'a str>,
    /// Where the values of the other names are found.
    slots: BTreeMap<&'a str, Slot>,
    model: Model,
}

impl Names for Model {
    fn unit_of(&self, slot: Slot) -> Unit {
        match slot {
            Slot::Input(i) => self.inputs[i].unit.unit.clone(),
            Slot::Param(i) => self.params[i].unit.unit.clone(),
            Slot::Value(i) => self.values[i].unit.unit.clone(),
            Slot::Index(_) => Unit::one(),
        }
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a Token<'a> {
        &self.words[self.next].token
    }

    fn at(&self) -> Place {
        self.words[self.next].at
    }

    fn advance(&mut self) -> &'a Word<'a> {
        let word = &self.words[self.next];
        // The last word is the end, which is never passed.
        self.next = (self.next + 1).min(self.words.len() - 1);
        word
    }

    fn unexpected<T>(&self, expected: &'static str) -> Parsed<T> {
        Err((self.at(), Problem::Unexpected { expected, found: self.peek().describe() }))
    }

    fn is_mark(&self, mark: &str) -> bool {
        matches!(self.peek(), Token::Mark(found) if *found == mark)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if *found == word)
    }

    fn skip_mark(&mut self, mark: &str) -> bool {
        let found = self.is_mark(mark);
        if found {
            self.advance();
        }
        found
    }

    fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn expect_mark(&mut self, mark: &str, expected: &'static str) -> Parsed<()> {
        if self.skip_mark(mark) { Ok(()) } else { self.unexpected(expected) }
    }

    fn expect_word(&mut self, word: &str, expected: &'static str) -> Parsed<()> {
        if self.skip_word(word) { Ok(()) } else { self.unexpected(expected) }
    }

    fn file(&mut self) -> Parsed<()> {
        while *self.peek() != Token::End {
            self.statement()?;
        }
        let model = &self.model;
        let wanting = [
            (model.name.is_empty(), "the model has no name: begin the file with `model \"name\"`"),
            (model.title.is_empty(), "the model has no title: add `title \"what it predicts\"`"),
            (model.source.is_empty(), "the model names no source: add `source \"paper or reasoning\"`"),
            (model.outputs().next().is_none(), "the model has no output: add `output name : unit = formula`"),
        ];
        match wanting.iter().find(|(wanting, _)| *wanting) {
            Some((_, what)) => Err((self.at(), Problem::Incomplete(what))),
            None => Ok(()),
        }
    }

    fn statement(&mut self) -> Parsed<()> {
        const STATEMENTS: &str =
            "a statement (model, title, about, source, unit, input, param, require, let or output) or an operator";
        let Token::Name(word) = self.peek() else { return self.unexpected(STATEMENTS) };
        match *word {
            "model" => self.heading(|model| &mut model.name, "`model` stands once in a file"),
            "title" => self.heading(|model| &mut model.title, "`title` stands once in a file"),
            "about" => self.heading(|model| &mut model.about, "`about` stands once in a file"),
            "source" => self.heading(|model| &mut model.source, "`source` stands once in a file"),
            "unit" => self.unit_statement(),
            "input" => self.input(),
            "param" => self.param(),
            "require" => self.requirement(),
            "let" => self.value(ValueKind::Let),
            "output" => self.value(ValueKind::Output),
            _ => self.unexpected(STATEMENTS),
        }
    }

    fn heading(&mut self, field: fn(&mut Model) -> &mut String, once: &'static str) -> Parsed<()> {
        let at = self.advance().at;
        let Token::Text(text) = self.peek() else { return self.unexpected("a string in quotes") };
        if text.trim().is_empty() {
            return self.unexpected("a string that is not empty");
        }
        self.advance();
        let field = field(&mut self.model);
        if !field.is_empty() {
            return Err((at, Problem::Incomplete(once)));
        }
        text.trim().clone_into(field);
        Ok(())
    }

    fn doc(&mut self) -> String {
        if let Token::Text(text) = self.peek() {
            self.advance();
            return text.clone();
        }
        String::new()
    }

    /// A name that is free.
    fn fresh_name(&mut self) -> Parsed<(Place, &'a str)> {
        let at = self.at();
        let Token::Name(name) = self.peek() else { return self.unexpected("a name") };
        let reserved = RESERVED.contains(name) || Function::ALL.iter().any(|function| function.word() == *name);
        if reserved || self.slot(name).is_some() {
            return Err((at, Problem::Taken(short(name))));
        }
        self.advance();
        Ok((at, name))
    }

    fn slot(&self, name: &str) -> Option<Slot> {
        let index = self.indices.iter().rposition(|index| *index == name).map(Slot::Index);
        index.or_else(|| self.slots.get(name).copied())
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().chain(&self.indices).copied()
    }

    fn figure(&mut self) -> Parsed<f64> {
        let negative = self.skip_mark("-");
        let Token::Number { value, .. } = self.peek() else { return self.unexpected("a number") };
        self.advance();
        Ok(if negative { -value } else { *value })
    }

    fn range(&mut self) -> Parsed<Range> {
        let at = self.at();
        let whole = self.skip_word("whole");
        let least = if self.is_mark("..") { f64::NEG_INFINITY } else { self.figure()? };
        self.expect_mark("..", "`..`, as in `0..100` or `1..`")?;
        let bounded = self.is_mark("-") || matches!(self.peek(), Token::Number { .. });
        let most = if bounded { self.figure()? } else { f64::INFINITY };
        if least > most {
            return Err((at, Problem::Range("a range begins with its lower bound")));
        }
        if whole && least.ceil() > most.floor() {
            return Err((at, Problem::Range("there is no whole number in this range")));
        }
        Ok(Range { least, most, whole })
    }

    fn input(&mut self) -> Parsed<()> {
        self.advance();
        let (_, name) = self.fresh_name()?;
        self.expect_mark(":", "`:` and the input's unit")?;
        let unit = self.unit()?;
        self.expect_word("from", "`from` and the input's origin: config, machine, stream, native, one_vcpu or run")?;
        let origin = Origin::ALL.iter().find(|origin| self.is_word(origin.word()));
        let Some(origin) = origin else {
            return self.unexpected("the input's origin: config, machine, stream, native, one_vcpu or run");
        };
        self.advance();
        let range = if self.skip_word("in") { self.range()? } else { Range::ALL };
        let doc = self.doc();
        self.slots.insert(name, Slot::Input(self.model.inputs.len()));
        self.model.inputs.push(Input { name: name.to_owned(), unit, origin: *origin, range, doc });
        Ok(())
    }

    fn param(&mut self) -> Parsed<()> {
        self.advance();
        let (_, name) = self.fresh_name()?;
        self.expect_mark(":", "`:` and the parameter's unit")?;
        let unit = self.unit()?;
        self.expect_mark("=", "`=` and the value that the mechanism predicts, or where a fit begins")?;
        let at = self.at();
        let value = self.figure()?;
        let range = if self.skip_word("in") { self.range()? } else { Range::ALL };
        if !range.contains(value) {
            return Err((at, Problem::Range("the value lies outside the bounds")));
        }
        let prior = if self.skip_word("prior") { self.prior()? } else { Prior::Uniform };
        let doc = self.doc();
        self.slots.insert(name, Slot::Param(self.model.params.len()));
        self.model.params.push(Param { name: name.to_owned(), unit, value, range, prior, doc });
        Ok(())
    }

    fn requirement(&mut self) -> Parsed<()> {
        self.advance();
        let condition = self.formula()?;
        check::condition(&self.model, &condition)?;
        let mut names = Vec::new();
        condition.names(&mut names);
        if names.is_empty() {
            return Err((condition.at, Problem::Range("a requirement speaks of inputs; this one names none")));
        }
        for (name, slot) in names {
            let what = match slot {
                Slot::Param(_) => "a parameter",
                Slot::Value(i) if self.model.values[i].kind == ValueKind::Output => "an output",
                Slot::Value(_) => "a `let`",
                Slot::Input(_) | Slot::Index(_) => continue,
            };
            return Err((condition.at, Problem::NotAnInput { name: short(name), what }));
        }
        let doc = self.doc();
        self.model.requirements.push(Requirement { condition, doc });
        Ok(())
    }

    fn prior(&mut self) -> Parsed<Prior> {
        let at = self.at();
        if self.skip_word("fixed") {
            return Ok(Prior::Fixed);
        }
        if self.skip_word("uniform") {
            return Ok(Prior::Uniform);
        }
        if self.skip_word("normal") {
            let (mean, sd) = self.pair()?;
            let prior = Prior::Normal { mean, sd };
            let sound = sd > 0.0;
            return sound.then_some(prior).ok_or((at, Problem::Range("a standard deviation is above 0")));
        }
        if self.skip_word("lognormal") {
            let (median, factor) = self.pair()?;
            let prior = Prior::LogNormal { median, factor };
            let sound = median > 0.0 && factor > 1.0;
            return sound
                .then_some(prior)
                .ok_or((at, Problem::Range("a lognormal prior has a median above 0 and a factor above 1")));
        }
        self.unexpected("a prior: fixed, uniform, normal(mean, sd) or lognormal(median, factor)")
    }

    fn pair(&mut self) -> Parsed<(f64, f64)> {
        self.expect_mark("(", "`(`")?;
        let first = self.figure()?;
        self.expect_mark(",", "`,`")?;
        let second = self.figure()?;
        self.expect_mark(")", "`)`")?;
        Ok((first, second))
    }

    fn value(&mut self, kind: ValueKind) -> Parsed<()> {
        self.advance();
        let (at, name) = self.fresh_name()?;
        let declared = if kind == ValueKind::Output || self.is_mark(":") {
            self.expect_mark(":", "`:` and the output's unit")?;
            Some(self.unit()?)
        } else {
            None
        };
        self.expect_mark("=", "`=` and a formula")?;
        let formula = self.formula()?;
        let found = check::quantity(&self.model, &formula)?;
        if let Some(declared) = declared.as_ref().filter(|declared| declared.unit != found) {
            let (name, declared) = (short(name), declared.unit.to_string());
            return Err((at, Problem::Declared { name, declared, found: found.to_string() }));
        }
        let (is_declared, text) = (declared.is_some(), found.to_string());
        let unit = declared.unwrap_or(Scaled { unit: found, scale: 1.0, text });
        let doc = self.doc();
        self.slots.insert(name, Slot::Value(self.model.values.len()));
        self.model.values.push(Value { kind, name: name.to_owned(), unit, declared: is_declared, formula, doc });
        Ok(())
    }
}
