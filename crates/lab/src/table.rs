//! The results as one flat table: a row per regime, the names of JSON fields joined by dots as columns.

use memvirt_platform::ExitReason;
use serde_json::Value;

use crate::comparison::Comparison;
use crate::error::LabError;

/// The order of a result's parts. What a result holds beside them stands at the end, by name.
const ORDER: [&str; 18] = [
    "regime",
    "outcome",
    "switches",
    "accesses",
    "tlb",
    "tlb_flushes",
    "walks",
    "walk_refs",
    "ad_updates",
    "ad_updates_nested",
    "walk_caches",
    "exits",
    "guest_page_faults",
    "table_bytes",
    "stale",
    "cycles",
    "work",
    "guest",
];

impl Comparison {
    /// The results as CSV (RFC 4180, lines ended by a newline): a header, then a row per regime. Lists (the items of the
    /// cycle account) are left out; every exit reason has its column, whether it occurs or not.
    ///
    /// # Errors
    ///
    /// Never in practice: every part serializes.
    pub fn to_csv(&self) -> Result<String, LabError> {
        let rows = self.results.iter().map(|result| Ok(columns(self, &serde_json::to_value(result)?)));
        let rows = rows.collect::<Result<Vec<_>, LabError>>()?;
        let mut text = String::new();
        if let Some(first) = rows.first() {
            csv_line(&mut text, first.iter().map(|(name, _)| name.as_str()));
        }
        for row in &rows {
            csv_line(&mut text, row.iter().map(|(_, value)| value.as_str()));
        }
        Ok(text)
    }
}

fn columns(comparison: &Comparison, result: &Value) -> Vec<(String, String)> {
    let mut columns = vec![
        ("workload".to_owned(), comparison.workload.name().to_owned()),
        ("machine".to_owned(), comparison.machine.name.clone()),
        ("seed".to_owned(), comparison.seed.to_string()),
    ];
    columns.extend(result_columns(result));
    columns
}

/// A result's fields as cells, in the order of tables.
pub(crate) fn result_columns(result: &Value) -> Vec<(String, String)> {
    let mut columns = Vec::new();
    let Value::Object(parts) = result else { return columns };
    let known = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
    let mut names: Vec<&String> = parts.keys().collect();
    names.sort_by_key(|name| (known(name), name.as_str()));
    for name in names {
        if name == "exits" {
            exits(&parts[name], &mut columns);
        } else {
            flatten(name, &parts[name], &mut columns);
        }
    }
    columns
}

fn exits(counts: &Value, columns: &mut Vec<(String, String)>) {
    let keys = ExitReason::ALL.iter().map(|reason| reason.key()).chain(["total"]);
    columns.extend(keys.map(|key| (format!("exits.{key}"), scalar(counts.get(key).unwrap_or(&Value::from(0))))));
}

fn flatten(name: &str, value: &Value, columns: &mut Vec<(String, String)>) {
    match value {
        Value::Object(parts) => {
            let mut parts: Vec<_> = parts.iter().collect();
            parts.sort_by_key(|(key, _)| key.as_str());
            parts.into_iter().for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, columns));
        }
        Value::Array(_) => {}
        value => columns.push((name.to_owned(), scalar(value))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Appends one line of CSV; cells are quoted where they must be.
pub(crate) fn csv_line(text: &mut String, cells: impl Iterator<Item = impl AsRef<str>>) {
    for (i, cell) in cells.enumerate() {
        let cell = cell.as_ref();
        if i > 0 {
            text.push(',');
        }
        if cell.contains([',', '"', '\n', '\r']) {
            text.push('"');
            text.push_str(&cell.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(cell);
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::csv_line;

    #[test]
    fn cells_with_commas_and_quotes_are_quoted() {
        let mut text = String::new();
        csv_line(&mut text, ["plain", "a,b", "say \"x\""].into_iter());
        assert_eq!(text, "plain,\"a,b\",\"say \"\"x\"\"\"\n");
    }
}
