//! From the text of a plan file to a checked plan, with line and field of whatever is wrong.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use memvirt_machine::Mode;

use super::axis::{self, Axis};
use super::point::Point;
use super::value::Value;
use super::{AxisValues, Grid, Plan, PlanError};

/// What is wrong, and where in the text.
struct Wrong {
    at: usize,
    field: String,
    message: String,
}

type Checked<T> = Result<T, Wrong>;
type Field<'a> = Spanned<DeValue<'a>>;

fn wrong<T>(at: Range<usize>, field: impl Into<String>, message: impl Into<String>) -> Checked<T> {
    Err(Wrong { at: at.start, field: field.into(), message: message.into() })
}

pub(super) fn parse(file: &str, text: &str) -> Result<Plan, PlanError> {
    let found = match DeTable::parse(text) {
        Ok(root) => plan(root.get_ref()),
        Err(error) => wrong(error.span().unwrap_or(0..0), "", error.message()),
    };
    found.map_err(|Wrong { at, field, message }| {
        let line = 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
        // Messages of the TOML parser span lines; ours are one sentence.
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        PlanError::Field { file: file.to_owned(), line, field, message }
    })
}

fn plan(root: &DeTable<'_>) -> Checked<Plan> {
    const FIELDS: &str = "name, title, about, [[grid]]";
    for (key, _) in root {
        if !["name", "title", "about", "grid"].contains(&key.get_ref().as_ref()) {
            return wrong(key.span(), key.get_ref().as_ref(), format!("unknown field; accepted: {FIELDS}"));
        }
    }
    let (name, at) = text(root, "name")?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return wrong(at, "name", "expected 1 to 64 lower-case letters, digits and `-`");
    }
    let (title, about) = (text(root, "title")?.0, text(root, "about")?.0);
    let Some(list) = root.get("grid") else {
        return wrong(0..0, "grid", "missing: a plan has one table `[[grid]]` at least");
    };
    let DeValue::Array(tables) = list.get_ref() else {
        return wrong(list.span(), "grid", "expected tables, each opened by a line `[[grid]]`");
    };
    let (mut full, mut quick, mut shorter) = (Vec::new(), Vec::new(), false);
    for (i, table) in tables.iter().enumerate() {
        let (long, short) = grid(table, &format!("grid[{i}]"))?;
        shorter |= short.is_some();
        quick.push(short.unwrap_or_else(|| long.clone()));
        full.push(long);
    }
    let points: usize = full.iter().map(|grid| grid.points.len()).sum();
    if points == 0 || points > Plan::MAX_POINTS {
        return wrong(list.span(), "grid", format!("{points} runs in all; expected 1 to {}", Plan::MAX_POINTS));
    }
    Ok(Plan { name, title, about, full, quick: shorter.then_some(quick) })
}

/// A string field, and where it stands.
fn text(root: &DeTable<'_>, field: &str) -> Checked<(String, Range<usize>)> {
    match root.get(field) {
        None => wrong(0..0, field, "missing: expected a text"),
        Some(value) => match value.get_ref().as_str() {
            Some(text) => Ok((text.split_whitespace().collect::<Vec<_>>().join(" "), value.span())),
            None => wrong(value.span(), field, "expected a text"),
        },
    }
}

/// A grid and its quick form.
fn grid(table: &Field<'_>, name: &str) -> Checked<(Grid, Option<Grid>)> {
    let DeValue::Table(fields) = table.get_ref() else {
        return wrong(table.span(), name, "expected a table, opened by a line `[[grid]]`");
    };
    let axes = axes(fields, name, true)?;
    let whole = |axes: &[Placed], at: Range<usize>| {
        let plain = axes.iter().map(|placed| placed.axis.clone()).collect();
        Grid::of(plain).map_err(|(field, message)| {
            let at = axes.iter().find(|placed| placed.axis.name == field).map_or(at.start, |placed| placed.at);
            Wrong { at, field: format!("{name}.{field}"), message }
        })
    };
    let full = whole(&axes, table.span())?;
    let Some(quick) = fields.get("quick") else { return Ok((full, None)) };
    let DeValue::Table(shorter) = quick.get_ref() else {
        return wrong(quick.span(), format!("{name}.quick"), "expected a table of axes");
    };
    let shorter = self::axes(shorter, &format!("{name}.quick"), false)?;
    let kept = axes.into_iter().filter(|placed| !shorter.iter().any(|short| short.axis.name == placed.axis.name));
    let quick_axes: Vec<_> = kept.chain(shorter.iter().cloned()).collect();
    Ok((full, Some(whole(&quick_axes, quick.span())?)))
}

/// An axis and where it stands.
#[derive(Clone)]
struct Placed {
    axis: AxisValues,
    at: usize,
}

fn axes(fields: &DeTable<'_>, name: &str, quick: bool) -> Checked<Vec<Placed>> {
    let mut axes = Vec::new();
    for (key, value) in fields {
        let axis = key.get_ref().as_ref();
        let path = format!("{name}.{axis}");
        match axis {
            "quick" if quick => {}
            "set" => set(value, "set", &path, &mut axes)?,
            _ if Axis::find(axis).is_none() => {
                return wrong(key.span(), path, format!("unknown axis; accepted: {}", axis::names()));
            }
            _ => axes.push(placed(axis, value, &path)?),
        }
    }
    Ok(axes)
}

/// Fields of the generator: a table of them by path, dots within names or between tables.
fn set(value: &Field<'_>, prefix: &str, path: &str, axes: &mut Vec<Placed>) -> Checked<()> {
    let DeValue::Table(fields) = value.get_ref() else {
        if prefix == "set" {
            return wrong(
                value.span(),
                path,
                "expected a table of fields of the generator, as in `\"body.0.touch.count\" = [10, 100]`",
            );
        }
        axes.push(placed(prefix, value, path)?);
        return Ok(());
    };
    fields.iter().try_for_each(|(key, value)| {
        set(value, &format!("{prefix}.{}", key.get_ref()), &format!("{path}.{}", key.get_ref()), axes)
    })
}

fn placed(axis: &str, value: &Field<'_>, path: &str) -> Checked<Placed> {
    let one = |value: &Field<'_>| match (Value::of(value.get_ref()), value.get_ref()) {
        (Some(value), _) => Ok(value),
        (None, DeValue::Integer(n)) => {
            wrong(value.span(), path, format!("`{}`: expected a whole number up to {}", n.as_str(), i64::MAX))
        }
        (None, _) => wrong(value.span(), path, "expected a text, a number, true or false, or a list of them"),
    };
    let values = match value.get_ref() {
        DeValue::Array(list) if list.is_empty() => {
            return wrong(value.span(), path, "an empty list; expected one value at least");
        }
        DeValue::Array(list) => {
            let (mut values, mut seen) = (Vec::new(), BTreeSet::new());
            for element in list {
                let found = one(element)?;
                // What is wrong with an element is told at its line.
                check(axis, &found).or_else(|message| wrong(element.span(), path, message))?;
                if let Some(again) = every(axis, &found).iter().find(|value| !seen.insert(meaning(axis, value))) {
                    return wrong(element.span(), path, format!("`{again}` is there already; leave it out here"));
                }
                values.push(found);
            }
            values
        }
        _ => {
            let found = one(value)?;
            check(axis, &found).or_else(|message| wrong(value.span(), path, message))?;
            vec![found]
        }
    };
    Ok(Placed { axis: AxisValues::new(axis, values), at: value.span().start })
}

/// Whether an axis takes a value at all.
fn check(axis: &str, value: &Value) -> Result<(), String> {
    match Axis::find(axis) {
        Some(_) if axis == "workload" && value.text() == Some(ALL_WORKLOADS) => Ok(()),
        Some(axis) => axis.set(&mut Point::default(), value),
        None => Ok(()),
    }
}

/// What a value sets, so that `1` and `1.0`, or `on` and `true`, are found to be one.
fn meaning(axis: &str, value: &Value) -> String {
    let mut point = Point::default();
    match Axis::find(axis) {
        // What `declared` means depends on the workload.
        Some(found) if axis != "steady" && found.set(&mut point, value).is_ok() => format!("{point:?}"),
        _ => value.to_string(),
    }
}

/// The values that a value stands for.
fn every(axis: &str, value: &Value) -> Vec<Value> {
    if axis == "workload" && value.text() == Some(ALL_WORKLOADS) {
        memvirt_workload::Workload::builtin().map(|builtin| Value::Text(builtin.name.to_owned())).collect()
    } else {
        vec![value.clone()]
    }
}

/// Stands for every built-in workload.
const ALL_WORKLOADS: &str = "all";

impl AxisValues {
    pub(super) fn new(name: &str, raw: Vec<Value>) -> Self {
        let raw: Vec<Value> = raw.iter().flat_map(|value| every(name, value)).collect();
        Self { name: name.to_owned(), values: raw.iter().map(ToString::to_string).collect(), raw }
    }

    fn apply(&self, point: &mut Point, value: &Value) -> Result<(), String> {
        match (Axis::find(&self.name), self.name.strip_prefix("set.")) {
            (Some(axis), _) => axis.set(point, value),
            (None, Some(path)) => {
                point.set.push((path.to_owned(), value.to_string()));
                Ok(())
            }
            (None, None) => Err(format!("unknown axis; accepted: {}", axis::names())),
        }
    }

    /// Where the axis stands in the order of axes: fields of the generator beside the workload.
    fn rank(&self) -> usize {
        let of = |name: &str| axis::ALL.iter().position(|axis| axis.name == name).unwrap_or(axis::ALL.len());
        if self.name.starts_with("set.") { of("scale") * 2 - 1 } else { of(&self.name) * 2 }
    }
}

impl Grid {
    /// Every combination of the axes; the axis that is at fault, and why, where there is none.
    pub(super) fn of(mut axes: Vec<AxisValues>) -> Result<Self, (String, String)> {
        axes.sort_by(|a, b| (a.rank(), &a.name).cmp(&(b.rank(), &b.name)));
        let has = |name: &str| axes.iter().any(|axis| axis.name == name);
        let refuse = |axis: &str, message: &str| Err((axis.to_owned(), message.to_owned()));
        if !has("regime") {
            return refuse("regime", "missing: expected names of `memvirt regimes`");
        }
        match (has("workload"), has("trace")) {
            (false, false) => {
                return refuse("workload", "missing: expected workloads (\"all\" for every built-in one), or `trace`");
            }
            (true, true) => return refuse("trace", "a grid has workloads or traces; two grids hold both"),
            _ => {}
        }
        let of_traces = ["memory_calls", "quantum"];
        let of_workloads =
            |name: &str| ["scale", "footprint", "steady", "sharing"].contains(&name) || name.starts_with("set.");
        for axis in &axes {
            if has("workload") && of_traces.contains(&axis.name.as_str()) {
                return refuse(&axis.name, "for grids of traces only");
            }
            if has("trace") && of_workloads(&axis.name) {
                return refuse(&axis.name, "for grids of workloads only");
            }
        }
        let points = combine(&axes)?;
        let any = |is: fn(&Point) -> bool| points.iter().any(is);
        if any(|point| point.vcpus.count > 1 && point.trace.is_some()) {
            return refuse("vcpus", "a recording runs on one vCPU");
        }
        if any(|point| point.vcpus.count > 1 && point.measure.mode == Mode::Cycles) {
            return refuse(
                "vcpus",
                "several vCPUs are simulated in mode \"counts\"; another grid holds mode \"cycles\"",
            );
        }
        if has("steady") && has("warm_up") {
            return refuse("warm_up", "`steady` says itself how long it warms up; two grids hold both");
        }
        let missing = points.iter().filter_map(|point| point.trace.as_ref()).find(|path| !Path::new(path).exists());
        if let Some(path) = missing {
            let message = format!(
                "`{path}`: there is no such recording; a path is relative to the folder in which the plan is shown and run"
            );
            return Err(("trace".to_owned(), message));
        }
        Ok(Self { axes, points })
    }
}

fn combine(axes: &[AxisValues]) -> Result<Vec<Point>, (String, String)> {
    let count = axes.iter().try_fold(1usize, |product, axis| product.checked_mul(axis.raw.len()));
    if count.is_none_or(|count| count > Plan::MAX_POINTS) {
        // Whoever varies most can give most.
        let longest = axes.iter().max_by_key(|axis| axis.raw.len());
        let (name, values) = longest.map_or((String::new(), 0), |axis| (axis.name.clone(), axis.raw.len()));
        let message = format!(
            "more than {} combinations in a grid, {values} values of this axis among them; give fewer, or make two plans",
            Plan::MAX_POINTS
        );
        return Err((name, message));
    }
    let mut points = vec![Point::default()];
    for axis in axes {
        let mut next = Vec::with_capacity(points.len() * axis.raw.len());
        for point in &points {
            for value in &axis.raw {
                let mut point = point.clone();
                axis.apply(&mut point, value).map_err(|message| (axis.name.clone(), message))?;
                next.push(point);
            }
        }
        points = next;
    }
    check_workloads(axes, &points)?;
    Ok(points)
}

/// Whether every workload can be made as its point says, before anything runs.
fn check_workloads(axes: &[AxisValues], points: &[Point]) -> Result<(), (String, String)> {
    let mut seen = BTreeSet::new();
    for point in points.iter().filter(|point| point.workload.is_some()) {
        let (scale, footprint) = (point.scale.map(f64::to_bits), point.footprint);
        if !seen.insert((&point.workload, &point.set, scale, footprint)) {
            continue;
        }
        if let Err(error) = point.experiment() {
            let message = error.to_string();
            let at_fault = |axis: &&AxisValues| match axis.name.strip_prefix("set.") {
                Some(path) => message.contains(&format!("`{path}`")),
                None => {
                    (axis.name == "scale" && message.contains("scale"))
                        || (axis.name == "footprint" && message.contains("bytes"))
                }
            };
            let axis = axes.iter().find(at_fault).map_or("workload", |axis| axis.name.as_str());
            return Err((axis.to_owned(), message));
        }
    }
    Ok(())
}
