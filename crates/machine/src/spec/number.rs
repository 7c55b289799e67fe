//! Numbers and texts of a machine file, refused with what is accepted where they are out of range.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A whole number from `MIN` to `MAX`.
pub(super) fn whole<'de, D, T, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    deserializer.deserialize_i64(Whole::<T, MIN, MAX>(PhantomData))
}

struct Whole<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Visitor<'_> for Whole<T, MIN, MAX> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {MIN} to {MAX}")
    }

    fn visit_i64<E: Error>(self, found: i64) -> Result<T, E> {
        let fits = u64::try_from(found).ok().filter(|n| (MIN..=MAX).contains(n)).and_then(|n| T::try_from(n).ok());
        fits.ok_or_else(|| E::invalid_value(Unexpected::Signed(found), &self))
    }

    fn visit_u64<E: Error>(self, found: u64) -> Result<T, E> {
        let fits = Some(found).filter(|n| (MIN..=MAX).contains(n)).and_then(|n| T::try_from(n).ok());
        fits.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(found), &self))
    }
}

/// A name or a line for people: something, and nothing that a terminal or a plot would choke on.
pub(super) fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(D::Error::custom("it is empty; give one line of text"));
    }
    if let Some(found) = text.chars().find(|c| c.is_control()) {
        return Err(D::Error::custom(format!(
            "it holds the control character {}; give one line of text",
            found.escape_default()
        )));
    }
    Ok(text)
}

/// An error's text with what it quotes of the file cut to a readable length: numbers and names may be as long as files.
pub(super) fn shortened(message: &str) -> String {
    const WORD: usize = 60;
    let short = |word: &str| {
        let mut kept: String = word.chars().take(WORD).flat_map(|c| c.escape_debug()).collect();
        if word.chars().nth(WORD).is_some() {
            kept += "...";
            // The closing quote is behind what was cut.
            kept.extend(word.chars().last().filter(|last| matches!(last, '`' | '"')));
        }
        kept
    };
    let words = message.split_inclusive(' ').map(|word| {
        let (word, space) = word.strip_suffix(' ').map_or((word, ""), |word| (word, " "));
        if word.chars().nth(WORD).is_some() { short(word) + space } else { format!("{word}{space}") }
    });
    words.collect()
}

/// A text that says something.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(D::Error::custom("it is empty; name a manual, a paper or a measurement, or say `estimate`"));
    }
    Ok(text)
}
