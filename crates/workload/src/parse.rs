//! From the text of a workload file to its parts, with the line and field of whatever is wrong.
//!
//! The document is parsed once into a table with the position of each key and value; the typed structs are read from it, and
//! errors, also those that concern several fields, are traced back to a line.

use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::error::WorkloadError;
use crate::guest::GuestSwitches;
use crate::measured::Measured;
use crate::spec::Spec;
use crate::text::{Name, Prose, Title};

/// The parts of a workload file.
pub(crate) struct Parts {
    pub(crate) header: Header,
    pub(crate) spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) name: Name,
    pub(crate) title: Title,
    pub(crate) about: Prose,
    pub(crate) source: Prose,
    /// Its presence only: the kind decides how it is read.
    #[serde(rename = "generator")]
    _generator: IgnoredAny,
    #[serde(default)]
    pub(crate) measure: Measured,
    #[serde(default)]
    pub(crate) guest: GuestSwitches,
}

/// Reads the text of a workload file; `file` is its name in errors.
pub(crate) fn parse(file: &str, text: &str) -> Result<Parts, WorkloadError> {
    let document = Document { file, text };
    let root = DeTable::parse(text).map_err(|error| document.invalid(error.span(), None, error.message()))?;
    let header = Header::deserialize(Deserializer::from(root.clone())).map_err(|e| document.refused(&root, "", &e))?;
    let spec = document.spec(&root)?;
    spec.check().map_err(|error| {
        let path = format!("generator.{}", error.field);
        let span = span_of(root.get_ref(), &path);
        document.invalid(span, Some(path), &error.message)
    })?;
    Ok(Parts { header, spec })
}

struct Document<'a> {
    file: &'a str,
    text: &'a str,
}

impl<'a> Document<'a> {
    fn spec(&self, root: &Spanned<DeTable<'a>>) -> Result<Spec, WorkloadError> {
        let kinds = Spec::KINDS.map(|kind| format!("\"{kind}\"")).join(", ");
        let wrong = |span, field: &str, message: String| Err(self.invalid(span, Some(field.into()), &message));
        let Some(value) = root.get_ref().get("generator") else {
            return wrong(None, "generator", "missing table".into());
        };
        let DeValue::Table(table) = value.get_ref() else {
            return wrong(Some(value.span()), "generator", "expected a table, opened by a line `[generator]`".into());
        };
        let Some(kind) = table.get("kind") else {
            return wrong(Some(value.span()), "generator", format!("missing field `kind`, expected one of {kinds}"));
        };
        let mut fields = table.clone();
        fields.remove("kind");
        let fields = Deserializer::from(Spanned::new(value.span(), fields));
        let Some(found) = kind.get_ref().as_str() else {
            return wrong(Some(kind.span()), "generator.kind", format!("expected a string, one of {kinds}"));
        };
        let spec = match found {
            "sequential" => Deserialize::deserialize(fields).map(Spec::Sequential),
            "uniform" => Deserialize::deserialize(fields).map(Spec::Uniform),
            "zipf" => Deserialize::deserialize(fields).map(Spec::Zipf),
            "pointer-chase" => Deserialize::deserialize(fields).map(Spec::PointerChase),
            "touch-and-free" => Deserialize::deserialize(fields).map(Spec::TouchAndFree),
            "fork-and-exit" => Deserialize::deserialize(fields).map(Spec::ForkAndExit),
            "churn" => Deserialize::deserialize(fields).map(Spec::Churn),
            "residents" => Deserialize::deserialize(fields).map(Spec::Residents),
            "script" => Deserialize::deserialize(fields).map(Spec::Script),
            _ => {
                let message = format!("unknown kind \"{found}\", expected one of {kinds}");
                return wrong(Some(kind.span()), "generator.kind", message);
            }
        };
        spec.map_err(|error| self.refused(root, "generator", &error))
    }

    /// An error of the typed reading, traced to the field that holds its position.
    fn refused(&self, root: &Spanned<DeTable<'_>>, table: &str, error: &toml::de::Error) -> WorkloadError {
        let at = error.span().and_then(|span| field_at(root.get_ref(), span.start));
        let field = match at {
            // A missing field is reported at its table; the document's own has no name and starts with any field.
            Some(_) if table.is_empty() && error.message().starts_with("missing field") => String::new(),
            Some(at) => at,
            None => table.to_owned(),
        };
        self.invalid(error.span(), Some(field), error.message())
    }

    fn invalid(&self, span: Option<Range<usize>>, field: Option<String>, message: &str) -> WorkloadError {
        let start = span.map_or(0, |span| span.start).min(self.text.len());
        let line = 1 + self.text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
        // Messages of the TOML parser span lines; ours are one sentence.
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        WorkloadError::Invalid { file: self.file.to_owned(), line, field: field.unwrap_or_default(), message }
    }
}

/// The path of the innermost field whose key or value holds the byte at `offset`.
fn field_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let inner = match value.get_ref() {
            DeValue::Table(table) => field_at(table, offset),
            _ => None,
        };
        if let Some(inner) = inner {
            return Some(format!("{}.{inner}", key.get_ref()));
        }
        let holds = |span: Range<usize>| span.contains(&offset);
        (holds(key.span()) || holds(value.span())).then(|| key.get_ref().to_string())
    })
}

/// Where the field at a path of names joined by dots stands; the nearest enclosing table where it is missing.
fn span_of(table: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let (key, value) = table.get_key_value(name)?;
    match value.get_ref() {
        DeValue::Table(table) if !rest.is_empty() => span_of(table, rest).or(Some(key.span())),
        _ => Some(key.span()),
    }
}
