//! `memvirt model calibrate`: the example of docs/models.md from the plan to the fit, and what is refused.

use std::fs;
use std::path::Path;

use crate::memvirt_in;

/// The block of the page that follows `<!-- example: name -->`.
fn example(name: &str) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md")).unwrap();
    let (_, after) = page.split_once(&format!("<!-- example: {name} -->\n```text\n")).unwrap();
    after.split_once("```").unwrap().0.to_owned()
}

/// The prices of the machine that ran the plan are found again from its table.
#[test]
fn the_example_goes_from_a_plan_to_the_prices_of_its_machine() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("translation.model"), example("translation")).unwrap();
    let ran = memvirt_in(folder.path(), ["plan", "run", "smoke", "--out", "results"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let words = "model calibrate translation.model --data results/smoke.csv --observed cycles.translation \
                 --where mode=counts";
    let with = |more: &str| memvirt_in(folder.path(), format!("{words} {more}").split_whitespace());
    // What is left of an exact fit is rounding, and differs between processors.
    let shown = with("").stdout;
    let lines = |text: &str| text.lines().map(str::to_owned).filter(|line| !line.contains("e-8")).collect::<Vec<_>>();
    assert_eq!(lines(&shown), lines(&example("calibrated")));
    assert_eq!(shown.lines().count(), example("calibrated").lines().count());
    let found = with("--format json").json();
    assert!(found["rows"].as_u64().unwrap() >= 20 && found["left_out"].as_u64().unwrap() > 0, "{found}");
    let machine = memvirt_in(folder.path(), ["machines", "skylake-sp", "--format", "json"]).json();
    let params = found["assessment"]["params"].as_array().unwrap();
    for (param, price) in params.iter().zip(["l2_tlb_hit", "guest_reference", "host_reference", "ad_update"]) {
        let planted = machine["translation"][price]["value"].as_f64().unwrap();
        let fitted = param["fitted"].as_f64().unwrap();
        assert!((fitted / planted - 1.0).abs() < 1e-3, "{price}: {planted}, fitted {fitted}");
        assert_eq!(param["at_bound"], false);
    }
    let unseen = found["assessment"]["cross_validated"]["max_relative"].as_f64().unwrap();
    assert!(unseen < 1e-3, "{unseen}");
    let shown = with("--where regime=native");
    assert!(shown.status == 0 && shown.stdout.contains("no row depends on it"), "{}{}", shown.stdout, shown.stderr);
    let grouped = with("--where regime=native --group workload");
    assert!(grouped.only_error().contains("cannot determine 4 parameter(s)"), "{}", grouped.stderr);
    let lines = with("--format csv").stdout;
    assert!(lines.starts_with("kind,name,unit,value,low,high,note\nparameter,per_hit,cycles/hits,"), "{lines}");
    assert_eq!(lines.lines().count(), 1 + 4 + 3 * 4);
    assert_eq!(with("--seed 3").stdout, with("--seed 3").stdout);
}

#[test]
fn what_cannot_be_fitted_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let page = "model \"m\" title \"t\" source \"s\"\ninput x : 1 from native\nparam a : 1 = 1\noutput y : 1 = a * x\n";
    fs::write(folder.path().join("m.model"), page).unwrap();
    fs::write(folder.path().join("t.csv"), "x,y,kind\n1,2,a\n2,abc,b\n3,6,a\n").unwrap();
    for (more, says) in [
        ("--observed z", "t.csv:1: there is no column `z` (--observed names it)"),
        (
            "--observed y",
            "t.csv:3: column `y` holds `abc`, not a finite number: correct it, or leave such rows out with --where",
        ),
        ("--observed y --where kind=b --where x=1", "t.csv: 0 row(s)"),
        ("--observed y --column q=x", "--column q: the model has no input of this name; it has x"),
        ("--observed y --column x=w", "there is no column `w` (for the input `x`; --column x=COLUMN names another)"),
        ("--observed y --output z", "m has no output `z`"),
        ("--observed y --column x=x --column x=y", "--column names two columns for the input `x`, `x` and `y`"),
    ] {
        let words = format!("model calibrate m.model --data t.csv {more}");
        let ran = memvirt_in(folder.path(), words.split(' '));
        assert!(ran.only_error().contains(says), "{more}: {}", ran.stderr);
    }
    for (more, says) in [
        ("--noise -1", "'-1' for '--noise <SHARE>': expected a share above 0 and up to 10"),
        ("--seed -1", "'-1' for '--seed <N>': expected a whole number from 0 to 18446744073709551615"),
        ("--folds -1", "-1 is not a whole number from 2 to 10000"),
        ("--resamples -1", "-1 is not a whole number from 20 to 100000"),
    ] {
        let words = format!("model calibrate m.model --data t.csv --observed y {more}");
        let ran = memvirt_in(folder.path(), words.split(' '));
        assert!(ran.status == 2 && ran.stderr.contains(says), "{more}: {}", ran.stderr);
    }
    let ran = memvirt_in(folder.path(), "model calibrate m.model --data t.csv --observed y --where kind=a".split(' '));
    assert!(ran.status == 0 && ran.stdout.contains("1 left out by --where"), "{}{}", ran.stdout, ran.stderr);
}

/// Any p + q = 5 fits; two rows tell them apart. Both sorts of output say it, and neither shows an interval.
#[test]
fn parameters_that_the_rows_cannot_tell_apart_are_said_to_be_undetermined() {
    let folder = tempfile::tempdir().unwrap();
    let page = "model \"m\" title \"t\" source \"s\"\ninput x : 1 from native\nparam p : 1 = 1\nparam q : 1 = 1\n\
                param big : 1 = 1 in -1e300..1e300 prior fixed\noutput y : 1 = p * x + q + 0 * big\n";
    fs::write(folder.path().join("m.model"), page).unwrap();
    fs::write(folder.path().join("same.csv"), format!("x ,y\n{}", "1,5\n".repeat(20))).unwrap();
    fs::write(folder.path().join("other.csv"), format!("x,y\n2,8\n{}", "1,5\n4,14\n".repeat(9))).unwrap();
    let run = |table: &str, form: &str| {
        let words = format!("model calibrate m.model --data {table} --observed y --resamples 20 --format {form}");
        let ran = memvirt_in(folder.path(), words.split(' '));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran
    };
    let shown = run("same.csv", "table").stdout;
    for (name, other) in [("p", "q"), ("q", "p")] {
        let line = shown.lines().find(|line| line.starts_with(&format!(" {name} "))).unwrap();
        assert!(line.ends_with(&format!("not determined: only together with {other}")), "{shown}");
        // The name, two values, the unit, the bounds; then the remark of six words.
        assert_eq!(line.split_whitespace().count(), 5 + 6, "{line}");
    }
    assert!(shown.contains("-1e300..1e300"), "{shown}");
    let lines = run("same.csv", "csv").stdout;
    assert!(lines.lines().any(|line| line.starts_with("parameter,p,1,") && line.ends_with(",,,not determined: only together with q")));
    let json = run("same.csv", "json").json();
    assert_eq!(json["tied"], serde_json::json!([["p", "q"]]));
    assert!(json["assessment"]["params"][0]["interval"].is_null(), "{json}");
    let told = run("other.csv", "json").json();
    assert_eq!(told["tied"], serde_json::json!([]));
    assert!((told["assessment"]["params"][0]["interval"]["low"].as_f64().unwrap() - 3.0).abs() < 1e-6, "{told}");
    assert!(!run("other.csv", "table").stdout.contains("determined"));
}
