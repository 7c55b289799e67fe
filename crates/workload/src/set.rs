//! One field of a workload at another value: what grids of runs vary.
//!
//! A field is named by its path from the generator's table, as in `exponent` or `body.0.touch.count` (elements of lists by their
//! number, from 0). The workload is written out, the field replaced, and the text read as any workload file is: what a file may
//! not hold cannot be set either.

use toml::{Table, Value};

use crate::error::WorkloadError;
use crate::parse;
use crate::workload::Workload;

impl Workload {
    /// The same workload with the field at `path` (from the `[generator]` table) set to `value`, written as in a file; what is no
    /// number and neither `true` nor `false` needs no quotes.
    ///
    /// ```
    /// use memvirt_workload::Workload;
    ///
    /// let zipf = Workload::find("zipf")?.with_field("exponent", "0.5")?.with_field("footprint", "64MiB")?;
    /// assert_eq!(zipf.facts().footprint_bytes, 64 << 20);
    /// # Ok::<(), memvirt_workload::WorkloadError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Set`] where there is no such field, or it does not take the value.
    pub fn with_field(self, path: &str, value: &str) -> Result<Self, WorkloadError> {
        let name = self.name().to_owned();
        let refused = |message| WorkloadError::Set { name: name.clone(), path: path.to_owned(), message };
        let mut file = Table::try_from(&self).map_err(|error| refused(error.to_string()))?;
        file.remove("loaded");
        let generator = file.get_mut("generator").ok_or_else(|| refused("the workload has no generator".to_owned()))?;
        place(generator, path).map_err(refused)?.set(scalar(value)).map_err(refused)?;
        let text = toml::to_string(&file).map_err(|error| refused(error.to_string()))?;
        match parse::parse(&name, &text) {
            Ok(parts) => {
                let mut workload = Self::of(parts);
                if self.is_loaded() {
                    workload.mark_loaded();
                }
                Ok(workload)
            }
            Err(WorkloadError::Invalid { message, .. }) => Err(refused(message)),
            Err(error) => Err(error),
        }
    }
}

/// A value as in a file, or bare text.
fn scalar(text: &str) -> Value {
    let text = text.trim();
    let digits = text.replace('_', "");
    let number = digits.parse().map(Value::Integer).ok();
    let number = number.or_else(|| digits.parse::<f64>().ok().filter(|x| x.is_finite()).map(Value::Float));
    match (number, text) {
        (Some(number), _) => number,
        (None, "true") => Value::Boolean(true),
        (None, "false") => Value::Boolean(false),
        (None, text) => Value::String(text.trim_matches('"').to_owned()),
    }
}

/// Where a value goes.
enum Place<'a> {
    Of(&'a mut Value),
    /// A field that the table does not hold yet; whether it may is for the reader to say.
    New(&'a mut Table, String),
}

impl Place<'_> {
    fn set(self, value: Value) -> Result<(), String> {
        match self {
            Self::New(table, name) => {
                table.insert(name, value);
            }
            Self::Of(Value::Table(table)) => return Err(format!("is a table; its fields: {}", names(table))),
            Self::Of(Value::Array(list)) => {
                return Err(format!("is a list of {}; one of them is named by its number, from 0", list.len()));
            }
            // Shares and exponents are written `1.0`, and said `1`.
            Self::Of(place @ Value::Float(_)) => {
                #[expect(clippy::cast_precision_loss, reason = "fields with fractions are small")]
                let fraction = |n: i64| Value::Float(n as f64);
                *place = value.as_integer().map_or(value, fraction);
            }
            Self::Of(place) => *place = value,
        }
        Ok(())
    }
}

fn names(table: &Table) -> String {
    table.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn place<'a>(root: &'a mut Value, path: &str) -> Result<Place<'a>, String> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let inner = match root {
        Value::Table(table) => {
            let missing = format!("there is no `{first}`; there are: {}", names(table));
            match rest {
                None if first == "kind" => return Err("a generator of another kind is another workload".to_owned()),
                None if !table.contains_key(first) => return Ok(Place::New(table, first.to_owned())),
                _ => table.get_mut(first).ok_or(missing)?,
            }
        }
        Value::Array(list) => {
            let missing = format!("there is no element {first}; there are {}, counted from 0", list.len());
            first.parse().ok().and_then(|i: usize| list.get_mut(i)).ok_or(missing)?
        }
        _ => return Err(format!("`{first}` would be part of a plain value")),
    };
    match rest {
        None => Ok(Place::Of(inner)),
        Some(rest) => place(inner, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    fn refused(workload: &str, path: &str, value: &str) -> String {
        Workload::find(workload).unwrap().with_field(path, value).unwrap_err().to_string()
    }

    #[test]
    fn fields_are_found_in_tables_and_lists() {
        let workload = Workload::find("two-rates").unwrap();
        let set = workload.clone().with_field("body.0.touch.count", "7").unwrap();
        let set = set.with_field("areas.far.size", "1MiB").unwrap().with_field("iterations", "3").unwrap();
        let Spec::Script(script) = set.spec() else { panic!("{set:?}") };
        assert_eq!((script.iterations.get(), script.areas["far"].size.bytes()), (3, 1 << 20));
        assert_ne!(set.facts().accesses, workload.facts().accesses);
        // Setting what a field holds already changes nothing.
        let same = workload.clone().with_field("iterations", &iterations(&workload)).unwrap();
        assert_eq!(same, workload);
    }

    fn iterations(workload: &Workload) -> String {
        let Spec::Script(script) = workload.spec() else { panic!("{workload:?}") };
        script.iterations.get().to_string()
    }

    #[test]
    fn every_built_in_workload_survives_being_written_out() {
        for builtin in Workload::builtin() {
            let workload = builtin.workload().unwrap();
            let per_access = workload.spec().instructions_per_access().get().to_string();
            assert_eq!(workload.clone().with_field("instructions_per_access", &per_access).unwrap(), workload);
        }
    }

    #[test]
    fn whole_numbers_do_for_fractions() {
        let zipf = Workload::find("zipf").unwrap().with_field("exponent", "1").unwrap();
        assert!(matches!(zipf.spec(), Spec::Zipf(zipf) if (zipf.exponent.get() - 1.0).abs() < 1e-12));
    }

    #[test]
    fn what_a_file_may_not_hold_is_refused() {
        for (path, value, says) in [
            ("footprint", "1Mi", "footprint"),
            ("footprints", "1MiB", "unknown field `footprints`, expected"),
            ("exponent", "11", "exponent"),
            ("exponent.x", "1", "`x` would be part of a plain value"),
            ("kind", "uniform", "another workload"),
            ("a.b", "1", "there is no `a`; there are: "),
        ] {
            let error = refused("zipf", path, value);
            assert!(error.starts_with(&format!("cannot set `{path}` of workload `zipf`: ")), "{error}");
            assert!(error.contains(says), "{error}");
        }
        assert!(refused("two-rates", "body", "1").contains("is a list of"), "{}", refused("two-rates", "body", "1"));
        assert!(refused("two-rates", "body.9", "1").contains("there is no element 9"));
    }
}
