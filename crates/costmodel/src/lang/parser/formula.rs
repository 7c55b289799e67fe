//! Formulas.
//!
//! ```text
//! formula    = both { "or" both }                   both  = claim { "and" claim }
//! claim      = "not" claim | total [COMPARISON total]
//! total      = term { ("+" | "-") term }            term  = signed { ("*" | "/") signed }
//! signed     = "-" signed | power                   power = atom ["^" signed]
//! atom       = NUMBER ["[" unit "]"] | NAME | "(" formula ")" | FUNCTION "(" formula { "," formula } ")"
//!            | ("sum" | "product") "(" NAME "in" formula ".." formula ":" formula ")"
//!            | "if" formula "then" formula "else" formula
//! ```

use super::super::ast::{Comparison, Expr, Factor, Function, Kind, Place, SeriesKind, Sign};
use super::super::error::Problem;
use super::super::lexer::Token;
use super::super::words::{nearest, short};
use super::{MAX_DEPTH, Parsed, Parser, RESERVED};

impl<'a> Parser<'a> {
    pub(super) fn formula(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            let at = parser.at();
            let mut parts = vec![parser.both()?];
            while parser.skip_word("or") {
                parts.push(parser.both()?);
            }
            Ok(chain(at, parts, Kind::Any))
        })
    }

    /// Everything that may hold itself again goes through here.
    fn deeper(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<Expr>) -> Parsed<Expr> {
        if self.depth == MAX_DEPTH {
            return Err((self.at(), Problem::TooDeep));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn both(&mut self) -> Parsed<Expr> {
        let at = self.at();
        let mut parts = vec![self.claim()?];
        while self.skip_word("and") {
            parts.push(self.claim()?);
        }
        Ok(chain(at, parts, Kind::All))
    }

    fn claim(&mut self) -> Parsed<Expr> {
        let at = self.at();
        if self.skip_word("not") {
            let inner = self.deeper(Self::claim)?;
            return Ok(Expr { at, kind: Kind::Not(Box::new(inner)) });
        }
        let left = self.total()?;
        let Some(comparison) = Comparison::ALL.iter().find(|comparison| self.is_mark(comparison.word())) else {
            return Ok(left);
        };
        self.advance();
        let right = self.total()?;
        Ok(Expr { at, kind: Kind::Compare(*comparison, Box::new(left), Box::new(right)) })
    }

    fn total(&mut self) -> Parsed<Expr> {
        let at = self.at();
        let mut terms = vec![(Sign::Plus, self.term()?)];
        loop {
            let sign = match self.peek() {
                Token::Mark("+") => Sign::Plus,
                Token::Mark("-") => Sign::Minus,
                _ => return Ok(single(at, terms, Kind::Sum)),
            };
            self.advance();
            terms.push((sign, self.term()?));
        }
    }

    fn term(&mut self) -> Parsed<Expr> {
        let at = self.at();
        let mut factors = vec![(Factor::Times, self.signed()?)];
        loop {
            let factor = match self.peek() {
                Token::Mark("*") => Factor::Times,
                Token::Mark("/") => Factor::Over,
                _ => return Ok(single(at, factors, Kind::Product)),
            };
            self.advance();
            factors.push((factor, self.signed()?));
        }
    }

    fn signed(&mut self) -> Parsed<Expr> {
        let at = self.at();
        if self.skip_mark("-") {
            let inner = self.deeper(Self::signed)?;
            return Ok(Expr { at, kind: Kind::Negative(Box::new(inner)) });
        }
        let base = self.atom()?;
        if !self.skip_mark("^") {
            return Ok(base);
        }
        let exponent = self.deeper(Self::signed)?;
        Ok(Expr { at, kind: Kind::Power(Box::new(base), Box::new(exponent)) })
    }

    fn atom(&mut self) -> Parsed<Expr> {
        let at = self.at();
        match self.peek() {
            Token::Number { text, value } => {
                self.advance();
                self.number(at, text, *value)
            }
            Token::Mark("(") => {
                self.advance();
                let inner = self.formula()?;
                self.expect_mark(")", "`)` or an operator")?;
                Ok(inner)
            }
            Token::Name("if") => self.conditional(),
            Token::Name("sum") => self.series(SeriesKind::Sum),
            Token::Name("product") => self.series(SeriesKind::Product),
            Token::Name(name) => match Function::ALL.iter().find(|function| function.word() == *name) {
                Some(function) => self.call(*function),
                None => self.name(name),
            },
            _ => self.unexpected("a number, a name or `(`"),
        }
    }

    fn number(&mut self, at: Place, text: &str, value: f64) -> Parsed<Expr> {
        let unit = if self.skip_mark("[") {
            let unit = self.unit()?;
            self.expect_mark("]", "`]`")?;
            Some(unit)
        } else {
            None
        };
        Ok(Expr { at, kind: Kind::Number { text: text.to_owned(), value, unit } })
    }

    fn name(&mut self, name: &'a str) -> Parsed<Expr> {
        let at = self.at();
        if RESERVED.contains(&name) {
            return self.unexpected("a number, a name or `(`");
        }
        let Some(slot) = self.slot(name) else {
            let functions = Function::ALL.iter().map(|function| function.word());
            let hint = nearest(name, self.names().chain(functions));
            return Err((at, Problem::UnknownName { name: short(name), hint }));
        };
        self.advance();
        Ok(Expr { at, kind: Kind::Name { name: name.to_owned(), slot } })
    }

    fn call(&mut self, function: Function) -> Parsed<Expr> {
        let at = self.advance().at;
        self.expect_mark("(", "`(` and the function's arguments")?;
        let mut arguments = vec![self.formula()?];
        while self.skip_mark(",") {
            arguments.push(self.formula()?);
        }
        self.expect_mark(")", "`)`, `,` or an operator")?;
        let several = matches!(function, Function::Min | Function::Max);
        if several == (arguments.len() > 1) {
            return Ok(Expr { at, kind: Kind::Call(function, arguments) });
        }
        let takes = if several { "two or more" } else { "one" };
        Err((at, Problem::Arguments { name: function.word(), takes, found: arguments.len() }))
    }

    fn series(&mut self, kind: SeriesKind) -> Parsed<Expr> {
        let at = self.advance().at;
        self.expect_mark("(", "`(`, as in `sum(i in 1..n : i^2)`")?;
        let (_, variable) = self.fresh_name()?;
        self.expect_word("in", "`in` and a range, as in `sum(i in 1..n : i^2)`")?;
        let from = self.formula()?;
        self.expect_mark("..", "`..` and the range's end, or an operator")?;
        let to = self.formula()?;
        self.expect_mark(":", "`:` and the term, or an operator")?;
        self.indices.push(variable);
        let body = self.formula();
        self.indices.pop();
        let (from, to, body) = (Box::new(from), Box::new(to), Box::new(body?));
        self.expect_mark(")", "`)` or an operator")?;
        Ok(Expr { at, kind: Kind::Series { kind, variable: variable.to_owned(), from, to, body } })
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let at = self.advance().at;
        let holds = self.formula()?;
        self.expect_word("then", "`then` or an operator")?;
        let then = self.formula()?;
        self.expect_word("else", "`else` or an operator")?;
        let otherwise = self.formula()?;
        Ok(Expr { at, kind: Kind::If(Box::new(holds), Box::new(then), Box::new(otherwise)) })
    }
}

fn chain(at: Place, mut parts: Vec<Expr>, kind: fn(Vec<Expr>) -> Kind) -> Expr {
    if parts.len() == 1 { parts.remove(0) } else { Expr { at, kind: kind(parts) } }
}

fn single<T>(at: Place, mut parts: Vec<(T, Expr)>, kind: fn(Vec<(T, Expr)>) -> Kind) -> Expr {
    if parts.len() == 1 { parts.remove(0).1 } else { Expr { at, kind: kind(parts) } }
}
