//! Units as a file writes them: its own declarations, and products of powers.

use super::super::error::Problem;
use super::super::lexer::Token;
use super::super::unit::Scaled;
use super::super::words::{nearest, short};
use super::{Parsed, Parser, RESERVED};

/// How many units a file may declare.
const MAX_UNITS: usize = 64;

impl Parser<'_> {
    pub(super) fn unit_statement(&mut self) -> Parsed<()> {
        self.advance();
        let at = self.at();
        let Token::Name(name) = self.peek() else { return self.unexpected("a name") };
        if self.model.units.find(name).is_some() || RESERVED.contains(name) {
            return Err((at, Problem::Taken(short(name))));
        }
        if self.model.units.declared().count() == MAX_UNITS {
            return Err((at, Problem::Incomplete("a file declares at most 64 units")));
        }
        self.advance();
        let doc = self.doc();
        self.model.units.declare((*name).to_owned(), doc);
        Ok(())
    }

    pub(super) fn unit(&mut self) -> Parsed<Scaled> {
        let mut scaled = self.unit_power()?;
        loop {
            let over = self.is_mark("/");
            if !over && !self.is_mark("*") {
                return Ok(scaled);
            }
            let at = self.advance().at;
            let next = self.unit_power()?;
            let combined = if over { scaled.unit.over(&next.unit) } else { scaled.unit.times(&next.unit) };
            scaled.unit = combined.ok_or((at, Problem::UnitPower))?;
            scaled.scale = if over { scaled.scale / next.scale } else { scaled.scale * next.scale };
            scaled.text += if over { "/" } else { "*" };
            scaled.text += &next.text;
            if !(scaled.scale.is_normal()) {
                return Err((at, Problem::UnitPower));
            }
        }
    }

    fn unit_power(&mut self) -> Parsed<Scaled> {
        let at = self.at();
        let name = match self.peek() {
            Token::Number { text: "1", .. } => {
                self.advance();
                return Ok(Scaled::one());
            }
            Token::Name(name) if !RESERVED.contains(name) => *name,
            _ => return self.unexpected("a unit, as in cycles, bytes/pages or 1"),
        };
        self.advance();
        let Some((unit, scale)) = self.model.units.find(name) else {
            let hint = nearest(name, self.model.units.names());
            return Err((at, Problem::UnknownUnit { name: short(name), hint }));
        };
        if !self.skip_mark("^") {
            return Ok(Scaled { unit, scale, text: name.to_owned() });
        }
        let negative = self.skip_mark("-");
        let power = match self.peek() {
            Token::Number { text, .. } => text.parse::<i32>().map_err(|_| (self.at(), Problem::UnitPower))?,
            _ => return self.unexpected("a whole number"),
        };
        self.advance();
        let power = if negative { -power } else { power };
        let unit = unit.to_power(f64::from(power)).ok_or((at, Problem::UnitPower))?;
        Ok(Scaled { unit, scale: libm::pow(scale, f64::from(power)), text: format!("{name}^{power}") })
    }
}
