//! The rows of a CSV file as inputs and observations of a model.

use std::collections::BTreeMap;

use csv::StringRecord;
use memvirt_costmodel::fit::{Data, relative_error};

use super::{CalibrateError, Calibration, Taken, Worst};

/// Columns that an error lists at most: tables of plans have two hundred.
const SHOWN: usize = 12;

/// What a table gives.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) data: Data,
    pub(super) taken: Vec<Taken>,
    /// The group of each row, where there are any.
    pub(super) group: Vec<usize>,
    pub(super) left_out: usize,
    lines: Vec<u64>,
}

/// Whether a column's name is a name of the model: names of models are letters, digits and `_`, columns of plans have dots.
pub(super) fn alike(name: &str, column: &str) -> bool {
    let same = |(a, b): (char, char)| a == b || (a == '_' && !b.is_ascii_alphanumeric());
    name.chars().count() == column.chars().count() && name.chars().zip(column.chars()).all(same)
}

/// The columns of a table.
struct Columns<'a> {
    of: &'a Calibration<'a>,
    names: StringRecord,
}

impl Columns<'_> {
    fn find(&self, column: &str, role: impl Fn() -> String) -> Result<usize, CalibrateError> {
        let exact = self.names.iter().position(|name| name == column);
        exact.or_else(|| self.names.iter().position(|name| alike(column, name))).ok_or_else(|| CalibrateError::Column {
            file: self.of.table.to_owned(),
            column: column.to_owned(),
            role: role(),
            known: self.known(column),
        })
    }

    /// Columns that may have been meant.
    fn known(&self, column: &str) -> String {
        let plain = |name: &str| name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let (wanted, all) = (plain(column), || self.names.iter());
        let near: Vec<_> =
            all().filter(|name| plain(name).contains(&wanted) || wanted.contains(&plain(name))).collect();
        if !near.is_empty() {
            return format!("near it: {}", near.into_iter().take(SHOWN).collect::<Vec<_>>().join(", "));
        }
        let more = self.names.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("there are {}{more}", all().take(SHOWN).collect::<Vec<_>>().join(", "))
    }
}

impl Rows {
    pub(super) fn read(of: &Calibration<'_>) -> Result<Self, CalibrateError> {
        let file = || of.table.to_owned();
        let known = || of.model.inputs().iter().map(|input| input.name.clone()).collect::<Vec<_>>();
        if let Some((name, _)) = of.columns.iter().find(|(name, _)| !known().contains(name)) {
            return Err(CalibrateError::Input { name: name.clone(), known: known() });
        }
        let again =
            |(i, (name, _)): &(usize, &(String, String))| of.columns[..*i].iter().any(|(early, _)| early == name);
        if let Some((_, (name, column))) = of.columns.iter().enumerate().find(again) {
            let first = of.columns.iter().find(|(early, _)| early == name).map_or("", |(_, column)| column);
            return Err(CalibrateError::InputTwice {
                name: name.clone(),
                first: first.to_owned(),
                second: column.clone(),
            });
        }
        let input = memvirt_textfile::open(of.table).map_err(|source| CalibrateError::Read { file: file(), source })?;
        // A blank beside a heading is not seen; a name with one would not be found.
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(std::io::BufReader::new(input));
        let names = reader.headers().map_err(|error| broken(of, &error))?.clone();
        if names.is_empty() {
            return Err(CalibrateError::Empty { file: file() });
        }
        let columns = Columns { of, names };
        let inputs = columns.inputs()?;
        let observed = columns.find(of.observed, || "--observed names it".to_owned())?;
        let conditions: Result<Vec<_>, _> = of
            .conditions
            .iter()
            .map(|(column, value)| Ok((columns.find(column, || "--where names it".to_owned())?, value.as_str())))
            .collect();
        let (conditions, group) =
            (conditions?, of.group.map(|name| columns.find(name, || "--group names it".to_owned())).transpose()?);
        let mut rows = Self { taken: columns.taken(&inputs), ..Self::default() };
        let mut groups = BTreeMap::new();
        for record in reader.records() {
            let record = record.map_err(|error| broken(of, &error))?;
            if !conditions.iter().all(|(column, value)| record.get(*column) == Some(value)) {
                rows.left_out += 1;
                continue;
            }
            let line = record.position().map_or(0, csv::Position::line);
            let number = |column: usize| columns.number(&record, line, column);
            let point: Result<Vec<f64>, _> = inputs.iter().map(|column| number(*column)).collect();
            rows.data.push(point?, number(observed)?);
            rows.lines.push(line);
            if let Some(column) = group {
                let next = groups.len();
                rows.group.push(*groups.entry(record[column].to_owned()).or_insert(next));
            }
        }
        Ok(rows)
    }

    pub(super) fn groups(&self) -> usize {
        self.group.iter().max().map_or(0, |most| most + 1)
    }

    /// That the model has a value for every row, before a fit is tried: bounds of inputs, divisions by zero.
    pub(super) fn evaluate(&self, of: &Calibration<'_>) -> Result<(), CalibrateError> {
        let params = of.model.predicted();
        self.data.inputs.iter().zip(&self.lines).try_for_each(|(inputs, line)| {
            match of.model.evaluate(inputs, &params) {
                Ok(_) => Ok(()),
                Err(source) => Err(CalibrateError::Row { file: of.table.to_owned(), line: *line, source }),
            }
        })
    }

    pub(super) fn worst(&self, predicted: &[f64]) -> Option<Worst> {
        let error = |i: &usize| relative_error(self.data.observed[*i], predicted[*i]);
        let i = (0..self.data.len()).max_by(|a, b| error(a).total_cmp(&error(b)))?;
        Some(Worst { line: self.lines[i], observed: self.data.observed[i], predicted: predicted[i] })
    }
}

impl Columns<'_> {
    fn inputs(&self) -> Result<Vec<usize>, CalibrateError> {
        let one = |name: &str| {
            let given = self.of.columns.iter().find(|(input, _)| input == name);
            let column = given.map_or(name, |(_, column)| column);
            self.find(column, || format!("for the input `{name}`; --column {name}=COLUMN names another"))
        };
        let found: Result<Vec<usize>, _> = self.of.model.inputs().iter().map(|input| one(&input.name)).collect();
        if let Some((_, name)) =
            self.names.iter().enumerate().find(|(i, name)| self.names.iter().take(*i).any(|n| n == *name))
        {
            return Err(CalibrateError::Twice { file: self.of.table.to_owned(), column: name.to_owned() });
        }
        found
    }

    fn taken(&self, inputs: &[usize]) -> Vec<Taken> {
        let each = self.of.model.inputs().iter().zip(inputs);
        each.map(|(input, column)| Taken { input: input.name.clone(), column: self.names[*column].to_owned() })
            .collect()
    }

    fn number(&self, record: &StringRecord, line: u64, column: usize) -> Result<f64, CalibrateError> {
        let cell = &record[column];
        cell.trim().parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| CalibrateError::Cell {
            file: self.of.table.to_owned(),
            line,
            column: self.names[column].to_owned(),
            cell: cell.chars().take(40).collect(),
        })
    }
}

/// A line that is no CSV.
fn broken(of: &Calibration<'_>, error: &csv::Error) -> CalibrateError {
    let line = error.position().map_or(1, csv::Position::line);
    let problem = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!(
                "{len} cell(s), but the first line names {expected_len} columns: a comma or a quote is missing, or too many"
            )
        }
        csv::ErrorKind::Utf8 { .. } => "it is no UTF-8 text: save the table as UTF-8".to_owned(),
        _ => error.to_string(),
    };
    CalibrateError::Csv { file: of.table.to_owned(), line, problem }
}
