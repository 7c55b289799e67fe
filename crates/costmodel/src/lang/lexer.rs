//! Text to words, by nom. Each alternative is decided by its first character: linear time.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_while, take_while1};
use nom::character::complete::{char, multispace1, none_of, not_line_ending, one_of, satisfy};
use nom::combinator::{map, opt, recognize, value};
use nom::multi::{fold_many0, many0_count};
use nom::sequence::{pair, preceded, terminated};
use nom::{IResult, Parser};

use super::ast::Place;
use super::error::Problem;

/// The longest text that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// A word and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word<'a> {
    pub(crate) at: Place,
    pub(crate) token: Token<'a>,
}

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Name(&'a str),
    Number { text: &'a str, value: f64 },
    Text(String),
    Mark(&'static str),
    End,
}

impl Token<'_> {
    /// For errors.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Name(name) => format!("`{}`", name.chars().take(40).collect::<String>()),
            Self::Number { text, .. } => format!("`{}`", text.chars().take(40).collect::<String>()),
            Self::Text(_) => "a string".to_owned(),
            Self::Mark(mark) => format!("`{mark}`"),
            Self::End => "the end of the file".to_owned(),
        }
    }
}

/// All words of a text, [`Token::End`] last.
pub(crate) fn words(text: &str) -> Result<Vec<Word<'_>>, (Place, Problem)> {
    if text.len() > MAX_FILE_BYTES {
        return Err((Place(0), Problem::TooLong));
    }
    let mut words = Vec::new();
    let mut rest = skip_blank(text);
    loop {
        let at = Place(text.len() - rest.len());
        let Some(first) = rest.chars().next() else {
            words.push(Word { at, token: Token::End });
            return Ok(words);
        };
        let (after, token) = word(rest, first).map_err(|problem| (at, problem))?;
        words.push(Word { at, token });
        rest = skip_blank(after);
    }
}

/// What follows blanks and comments.
fn skip_blank(text: &str) -> &str {
    let comment = preceded(char('#'), not_line_ending);
    let blank: IResult<_, _> = many0_count(alt((value((), multispace1), value((), comment)))).parse(text);
    blank.map_or(text, |(rest, _)| rest)
}

fn word(text: &str, first: char) -> Result<(&str, Token<'_>), Problem> {
    match first {
        '0'..='9' => number(text),
        '"' => string(text).map_err(|_| Problem::OpenString),
        'a'..='z' | 'A'..='Z' | '_' => name(text).map_err(|_| Problem::Character(first)),
        _ => mark(text).map_err(|_| Problem::Character(first)),
    }
}

fn name(text: &str) -> IResult<&str, Token<'_>> {
    map(take_while1(|c: char| c.is_ascii_alphanumeric() || c == '_'), Token::Name).parse(text)
}

/// Digits with `_`, a fraction, an exponent. A fraction needs a digit, so that `0..5` is a range.
fn number(text: &str) -> Result<(&str, Token<'_>), Problem> {
    let digit = |text| satisfy(|c: char| c.is_ascii_digit()).parse(text);
    let digits = |text| recognize(pair(digit, take_while(|c: char| c.is_ascii_digit() || c == '_'))).parse(text);
    let fraction = pair(char('.'), digits);
    let exponent = (one_of("eE"), opt(one_of("+-")), digits);
    let parsed: IResult<_, _> = recognize((digits, opt(fraction), opt(exponent))).parse(text);
    let (rest, literal) = parsed.map_err(|_| Problem::Number(String::new()))?;
    let tail: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').take(20).collect();
    let value: f64 = literal.replace('_', "").parse().unwrap_or(f64::INFINITY);
    if !tail.is_empty() || !value.is_finite() {
        return Err(Problem::Number(literal.chars().take(40).collect::<String>() + &tail));
    }
    Ok((rest, Token::Number { text: literal, value }))
}

/// `"..."`, several lines if need be; `\"` and `\\` stand for `"` and `\`.
fn string(text: &str) -> IResult<&str, Token<'_>> {
    let escaped = preceded(char('\\'), one_of("\"\\"));
    let body = fold_many0(alt((escaped, none_of("\""))), String::new, |mut text, c| {
        text.push(c);
        text
    });
    map(terminated(preceded(char('"'), body), char('"')), Token::Text).parse(text)
}

fn mark(text: &str) -> IResult<&str, Token<'_>> {
    // Longer marks first.
    let two = alt((value("..", tag("..")), value("<=", tag("<=")), value(">=", tag(">=")), value("==", tag("=="))));
    let more = alt((value("!=", tag("!=")), value("<", tag("<")), value(">", tag(">")), value("=", tag("="))));
    let arithmetic = alt((
        value("+", tag("+")),
        value("-", tag("-")),
        value("*", tag("*")),
        value("/", tag("/")),
        value("^", tag("^")),
    ));
    let rest = alt((
        value("(", tag("(")),
        value(")", tag(")")),
        value("[", tag("[")),
        value("]", tag("]")),
        value(",", tag(",")),
        value(":", tag(":")),
    ));
    map(alt((two, more, arithmetic, rest)), Token::Mark).parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        words(text).unwrap().into_iter().map(|word| word.token).collect()
    }

    #[test]
    fn a_range_is_no_fraction() {
        let number = |text, value| Token::Number { text, value };
        assert_eq!(tokens("0..5"), [number("0", 0.0), Token::Mark(".."), number("5", 5.0), Token::End]);
        assert_eq!(tokens("4_096 1.5e-3"), [number("4_096", 4096.0), number("1.5e-3", 0.0015), Token::End]);
    }

    #[test]
    fn strings_have_escapes_and_comments_end_with_the_line() {
        let text = "\"a \\\"b\\\" \\\\\" # \"no string\n x";
        assert_eq!(tokens(text), [Token::Text("a \"b\" \\".to_owned()), Token::Name("x"), Token::End]);
    }

    #[test]
    fn what_is_no_word_is_an_error_where_it_stands() {
        assert_eq!(words("a ; b"), Err((Place(2), Problem::Character(';'))));
        assert_eq!(words("a \u{e9}"), Err((Place(2), Problem::Character('\u{e9}'))));
        assert_eq!(words("\"abc"), Err((Place(0), Problem::OpenString)));
        assert_eq!(words("1 3x"), Err((Place(2), Problem::Number("3x".to_owned()))));
        assert_eq!(words("1e999"), Err((Place(0), Problem::Number("1e999".to_owned()))));
    }
}
