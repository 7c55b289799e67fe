//! Planted parameters are found again; whatever is wrong with a table is named with its place and the mend.

use std::fs;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::*;

const MODEL: &str = "model \"mine\" title \"t\" source \"s\"
input faults : faults from native in 0..1e9
input walk_refs : references from native in 0..
param per_fault : cycles/faults = 1000 in 0..10000
param per_ref : cycles/references = 10 in 0..500
param known : cycles = 5000 in 0.. prior fixed
output cycles : cycles = known + per_fault * faults + per_ref * walk_refs
output ignored : cycles = known";

/// 60 rows by `per_fault` = 2,500 and `per_ref` = 34, give or take `noise`; every third is of another regime, by other figures.
fn table(noise: f64) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut text = "regime,workload,faults,walk.refs,cycles\n".to_owned();
    for i in 0..60 {
        let (faults, refs) = (random.random_range(1..2000), random.random_range(1000..90_000));
        let other = i % 3 == 0;
        let exact = if other { 7e9 } else { 5000.0 + 2500.0 * f64::from(faults) + 34.0 * f64::from(refs) };
        let cycles = exact * (1.0 + noise * random.random_range(-1.0..1.0));
        let regime = if other { "nested" } else { "shadow:kvm" };
        text += &format!("{regime},w{},{faults},{refs},{cycles}\n", i % 7);
    }
    text
}

fn run(csv: &str, change: impl Fn(&mut Calibration<'_>)) -> Result<Calibrated, String> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("runs.csv");
    fs::write(&file, csv).unwrap();
    let model = Model::parse("mine.model", MODEL).unwrap();
    let columns = [("walk_refs".to_owned(), "walk.refs".to_owned())];
    let conditions = [("regime".to_owned(), "shadow:kvm".to_owned())];
    let mut calibration = Calibration {
        model: &model,
        table: &file,
        observed: "cycles",
        output: None,
        columns: &columns,
        conditions: &conditions,
        group: None,
        options: Options::default(),
    };
    change(&mut calibration);
    calibration.run().map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

#[test]
fn planted_parameters_are_found_in_noisy_rows_and_lie_within_their_intervals() {
    let found = run(&table(0.02), |_| {}).unwrap();
    assert_eq!((found.rows, found.left_out, found.folds, found.output.as_str()), (40, 20, 5, "cycles"));
    let assessment = &found.assessment;
    for (param, planted) in assessment.params.iter().zip([2500.0, 34.0]) {
        assert!((param.fitted / planted - 1.0).abs() < 0.01, "{param:?}");
        let interval = param.interval.unwrap();
        assert!(interval.contains(planted) && interval.high - interval.low < 0.05 * planted, "{param:?}");
        assert!(interval.low < interval.high && !param.at_bound, "{param:?}");
    }
    assert!(assessment.params[2].interval.is_none() && (assessment.params[2].fitted - 5000.0).abs() < 1e-9);
    // The noise is uniform within 2 %; the file's own values are far off.
    assert!(assessment.fitted.r_squared > 0.999 && assessment.fitted.max_relative < 0.025, "{:?}", assessment.fitted);
    assert!(assessment.cross_validated.max_relative >= assessment.fitted.max_relative * 0.9);
    assert!(assessment.mechanism.max_relative > 0.3, "{:?}", assessment.mechanism);
    let worst = found.worst.unwrap();
    assert!(worst.line >= 2 && (worst.observed / worst.predicted - 1.0).abs() < 0.03, "{worst:?}");
}

#[test]
fn a_bound_is_kept_and_said() {
    let model = MODEL.replace("= 1000 in 0..10000", "= 1000 in 0..2000");
    let model = Model::parse("mine.model", &model).unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("runs.csv");
    fs::write(&file, table(0.0)).unwrap();
    let conditions = [("regime".to_owned(), "shadow:kvm".to_owned())];
    let calibration = Calibration {
        model: &model,
        table: &file,
        observed: "cycles",
        output: Some("cycles"),
        columns: &[],
        conditions: &conditions,
        group: Some("workload"),
        options: Options { resamples: 20, ..Options::default() },
    };
    // `walk_refs` is found in the column `walk.refs` unasked.
    let found = calibration.run().unwrap();
    assert_eq!(found.inputs[1], Taken { input: "walk_refs".to_owned(), column: "walk.refs".to_owned() });
    let params = &found.assessment.params;
    assert!(params[0].at_bound && (params[0].fitted - 2000.0).abs() < 1.0, "{params:?}");
    assert!(!params[1].at_bound, "{params:?}");
}

#[test]
fn a_parameter_on_which_no_row_depends_is_named() {
    let still: String = table(0.0)
        .lines()
        .map(|line| {
            let mut cells: Vec<_> = line.split(',').collect();
            if cells[3] != "walk.refs" {
                cells[3] = "0";
            }
            cells.join(",") + "\n"
        })
        .collect();
    assert_eq!(run(&still, |_| {}).unwrap().idle, ["per_ref"]);
    assert!(run(&table(0.0), |_| {}).unwrap().idle.is_empty());
}

/// A table of 20 rows of `x` and `y`.
fn pairs(each: impl Fn(u32) -> (f64, f64)) -> String {
    let rows = (0..20).map(each).map(|(x, y)| format!("{x},{y}\n"));
    "x,y\n".to_owned() + &rows.collect::<String>()
}

fn calibrated(body: &str, csv: &str, noise: Option<f64>) -> Calibrated {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("runs.csv");
    fs::write(&file, csv).unwrap();
    let text = format!("model \"m\" title \"t\" source \"s\" input x : 1 from run {body}");
    let model = Model::parse("m.model", &text).unwrap();
    Calibration {
        model: &model,
        table: &file,
        observed: "y",
        output: Some("y"),
        columns: &[],
        conditions: &[],
        group: None,
        options: Options { resamples: 20, noise, ..Options::default() },
    }
    .run()
    .unwrap()
}

#[test]
fn parameters_that_the_rows_cannot_tell_apart_are_named_and_have_no_interval() {
    let line = pairs(|i| (f64::from(i), 2.0 + 3.0 * f64::from(i)));
    let through_0 = pairs(|i| (f64::from(i) + 1.0, 3.0 * (f64::from(i) + 1.0)));
    let free = "param p : 1 = 1 param q : 1 = 1 in 0.. ";
    for (body, csv, tied) in [
        // Any p + q = 5; any p * q = 3; the same seen on other rows is determined.
        (format!("{free} output y : 1 = p * x + q"), pairs(|_| (1.0, 5.0)), &[&["p", "q"][..]][..]),
        (format!("{free} output y : 1 = p * x + q"), line.clone(), &[]),
        (format!("{free} output y : 1 = p * q * x"), through_0.clone(), &[&["p", "q"]]),
        (format!("{free} output y : 1 = x^p * 3^q"), through_0.clone(), &[]),
        // A third that is determined, though small beside the rest; one that is fixed.
        (format!("{free} param r : 1 = 1 output y : 1 = p * x + q * x + 0.001 * r"), line.clone(), &[&["p", "q"]]),
        ("param p : 1 = 1 param q : 1 = 1 prior fixed output y : 1 = p * x + q * x".to_owned(), through_0.clone(), &[]),
        // Two pairs, and three of which two directions are free.
        (
            format!("{free} param r : 1 = 1 param s : 1 = 4 output y : 1 = (p + r) * x + q + s"),
            line.clone(),
            &[&["p", "r"], &["q", "s"]],
        ),
        (format!("{free} param r : 1 = 1 output y : 1 = x * (p + q + r)"), through_0.clone(), &[&["p", "q", "r"]]),
    ] {
        let found = calibrated(&body, &csv, None);
        assert_eq!(found.tied, tied, "{body}");
        for param in &found.assessment.params {
            let none = tied.iter().any(|group| group.contains(&param.name.as_str()));
            assert!(
                param.interval.is_none() == (none || body.contains(&format!("{} : 1 = 1 prior fixed", param.name)))
            );
        }
        assert!(found.idle.is_empty() && found.assessment.fitted.max_relative < 1e-6, "{body}");
    }
    // A prior that pulls determines; on an output that does not ask for it a parameter is idle.
    let pulled = "param p : 1 = 1 prior normal(2, 0.1) param q : 1 = 1 output y : 1 = p * x + q";
    let found = calibrated(pulled, &pairs(|_| (1.0, 5.0)), Some(0.02));
    assert!(found.tied.is_empty() && (found.assessment.params[1].fitted - 3.0).abs() < 1e-6, "{found:?}");
    let two = "param p : 1 = 1 param q : 1 = 1 output y : 1 = p * x output z : 1 = q * x";
    let found = calibrated(two, &through_0, None);
    assert_eq!((found.idle, found.tied.len()), (vec!["q".to_owned()], 0));
    assert!(found.assessment.params[1].interval.is_none());
}

#[test]
fn what_is_wrong_with_a_table_is_named_with_its_place_and_the_mend() {
    let good = table(0.0);
    for (csv, says) in [
        (
            good.replace("faults", "falts"),
            "runs.csv:1: there is no column `faults` (for the input `faults`; --column faults=COLUMN names another); there are regime,",
        ),
        (good.replacen("shadow:kvm,w1,", "shadow:kvm,w1,x", 1), "runs.csv:3: column `faults` holds `x"),
        (good.replacen("shadow:kvm,w1,", "shadow:kvm,w1,-", 1), "runs.csv:3: mine: faults = -"),
        (
            good.replacen("shadow:kvm,w1,", "shadow:kvm,w1,1,", 1),
            "runs.csv:3: 6 cell(s), but the first line names 5 columns",
        ),
        (
            good.lines().take(4).map(|line| line.to_owned() + "\n").collect(),
            "runs.csv: 2 row(s) in 2 part(s) cannot determine 2 parameter(s) (per_fault, per_ref): at least 3 rows",
        ),
        (good.replace("workload", "cycles"), "two columns are called `cycles`: rename one"),
        (String::new(), "runs.csv: the table is empty: its first line must name the columns"),
        ("\n\n".to_owned(), "runs.csv: the table is empty"),
        (good.lines().take(1).collect(), "runs.csv: 0 row(s)"),
    ] {
        let said = run(&csv, |_| {}).unwrap_err();
        let csv = csv.lines().take(3).collect::<Vec<_>>();
        assert!(said.contains(says), "of {csv:?}\n  said: {said}\n  expected: {says}");
    }
    // Blanks beside headings are not seen.
    assert!(run(&good.replacen("faults,walk.refs", " faults,walk.refs\t", 1), |_| {}).is_ok());
    let said = run(&good, |c| (c.observed, c.output) = ("cycle", Some("cycles"))).unwrap_err();
    assert!(said.contains("no column `cycle` (--observed names it); near it: cycles"), "{said}");
    let said = run(&good, |c| (c.observed, c.output) = ("cycles", Some("cycl"))).unwrap_err();
    assert!(
        said.contains("mine has no output `cycl`; name one of its outputs with --output: cycles, ignored"),
        "{said}"
    );
    let said = run(&good.replace("nested", "shadow:kvm"), |c| c.conditions = &[]).unwrap();
    assert_eq!((said.rows, said.left_out), (60, 0));
    let said = run(&good.replace("shadow:kvm", "native"), |_| {}).unwrap_err();
    assert!(said.contains("0 row(s)") && said.contains("widen --where"), "{said}");
    let unknown = [("wlk_refs".to_owned(), "walk.refs".to_owned())];
    let model = Model::parse("mine.model", MODEL).unwrap();
    let calibration = Calibration {
        model: &model,
        table: Path::new("none.csv"),
        observed: "cycles",
        output: None,
        columns: &unknown,
        conditions: &[],
        group: None,
        options: Options::default(),
    };
    let said = calibration.run().unwrap_err().to_string();
    assert!(
        said.contains("--column wlk_refs: the model has no input of this name; it has faults, walk_refs"),
        "{said}"
    );
    let twice = ["walk.refs", "faults"].map(|column| ("walk_refs".to_owned(), column.to_owned()));
    let said = Calibration { columns: &twice, ..calibration.clone() }.run().unwrap_err().to_string();
    assert_eq!(said, "--column names two columns for the input `walk_refs`, `walk.refs` and `faults`: leave one out");
    let said = Calibration { columns: &[], ..calibration }.run().unwrap_err().to_string();
    assert!(said.starts_with("cannot read the table none.csv: "), "{said}");
}
