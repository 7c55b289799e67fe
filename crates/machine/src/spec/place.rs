//! Where in a machine file something stands: the line of a field, the field at a place.
//!
//! A field is named as in `walk_caches.guest[0].ways`.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The field.
    pub(super) field: String,
    /// What is wrong, and what is accepted.
    pub(super) reason: String,
}

impl Problem {
    pub(super) fn new(field: impl Into<String>, reason: impl ToString) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }
}

/// The line at a byte of the text, from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The line of a field, or of the nearest table around it that is written down; 1 where the text cannot be read.
pub(super) fn line_of(text: &str, field: &str) -> usize {
    let Ok(root) = DeTable::parse(text) else { return 1 };
    let mut at = 0;
    visit(root.get_ref(), "", &mut |name, place| {
        if field.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])) {
            at = place.start;
        }
    });
    line_at(text, at)
}

/// The innermost field that stands at a byte of the text.
pub(super) fn field_at(text: &str, at: usize) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let mut found = None;
    visit(root.get_ref(), "", &mut |name, place| {
        if place.contains(&at) {
            found = Some(name.to_owned());
        }
    });
    found
}

type Place = std::ops::Range<usize>;

/// Calls `see` with every key and every element of an array, the outer ones first.
fn visit(table: &DeTable<'_>, prefix: &str, see: &mut dyn FnMut(&str, Place)) {
    for (key, value) in table {
        let dot = if prefix.is_empty() { "" } else { "." };
        let name = format!("{prefix}{dot}{}", key.get_ref());
        see(&name, value.span());
        see(&name, key.span());
        visit_value(value, &name, see);
    }
}

fn visit_value(value: &Spanned<DeValue<'_>>, name: &str, see: &mut dyn FnMut(&str, Place)) {
    match value.get_ref() {
        DeValue::Table(table) => visit(table, name, see),
        DeValue::Array(elements) => {
            for (i, element) in elements.iter().enumerate() {
                let name = format!("{name}[{i}]");
                see(&name, element.span());
                visit_value(element, &name, see);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n[b]\nc = [\n  { d = 2 },\n  { d = 3, e = \"x\" },\n]\n";

    #[test]
    fn lines_and_fields_find_each_other() {
        assert_eq!(line_of(TEXT, "a"), 1);
        assert_eq!(line_of(TEXT, "b"), 2);
        assert_eq!(line_of(TEXT, "b.c"), 3);
        assert_eq!(line_of(TEXT, "b.c[1].e"), 5);
        assert_eq!(line_of(TEXT, "b.c[0].not_there"), 4);
        for (needle, field) in [("1", "a"), ("2 }", "b.c[0].d"), ("e =", "b.c[1].e"), ("\"x\"", "b.c[1].e")] {
            assert_eq!(field_at(TEXT, TEXT.find(needle).unwrap()).as_deref(), Some(field));
        }
    }
}
