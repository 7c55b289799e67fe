//! The checked texts of a workload file: what ends up in tables, legends and file names, and so must fit there.

use crate::field::{Field, deserialize_field};

/// A key: usable in file names and on the command line without quotes.
pub(crate) struct Name(pub(crate) String);

/// One line.
pub(crate) struct Title(pub(crate) String);

/// Some sentences.
pub(crate) struct Prose(pub(crate) String);

impl Field for Name {
    const EXPECTED: &'static str = "a name of 1 to 64 lower-case letters, digits and `-`";

    fn from_text(value: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ((1..=64).contains(&value.len()) && value.chars().all(fits)).then(|| Self(value.to_owned()))
    }
}

impl Field for Title {
    const EXPECTED: &'static str = "one line of 1 to 80 characters";

    fn from_text(value: &str) -> Option<Self> {
        let fits = !value.trim().is_empty() && value.chars().count() <= 80 && !value.contains(char::is_control);
        fits.then(|| Self(value.to_owned()))
    }
}

impl Field for Prose {
    const EXPECTED: &'static str = "a text of 1 to 2000 characters without control characters other than line ends";

    fn from_text(value: &str) -> Option<Self> {
        let plain = |c: char| !c.is_control() || c == '\n' || c == '\r';
        let fits = !value.trim().is_empty() && value.chars().count() <= 2000 && value.chars().all(plain);
        fits.then(|| Self(value.split_whitespace().collect::<Vec<_>>().join(" ")))
    }
}

deserialize_field!(Name, Title, Prose);
