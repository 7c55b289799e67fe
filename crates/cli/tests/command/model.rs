//! `memvirt model`: cost models from outside.

use std::fs;
use std::path::Path;

use crate::{memvirt, memvirt_in};

/// The block of docs/models.md that follows `<!-- example: name -->`.
fn example(name: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, after) = page.split_once(&format!("<!-- example: {name} -->\n```text\n")).unwrap();
    after.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_example_of_the_manual_prints_what_the_manual_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fault-time.model");
    fs::write(&file, example("file")).unwrap();
    let checked = memvirt_in(folder.path(), ["model", "check", "fault-time.model"]);
    assert_eq!((checked.status, checked.stdout), (0, example("check")), "{}", checked.stderr);
    let evaluated = memvirt_in(folder.path(), ["model", "eval", "fault-time.model", "faults=1000", "clock=2500"]);
    assert_eq!((evaluated.status, evaluated.stdout), (0, example("eval")), "{}", evaluated.stderr);
    fs::write(&file, example("file").replace("exits * exit_cost / clock", "exits / clock")).unwrap();
    let refused = memvirt_in(folder.path(), ["model", "check", "fault-time.model"]);
    assert_eq!(refused.only_error(), format!("memvirt: error: {}", example("error").trim()));
}

#[test]
fn every_listed_model_is_shown_in_every_form_from_any_folder() {
    let all = memvirt_in(Path::new("/"), ["model", "list", "--format", "json"]).json();
    let list = memvirt("model list").stdout;
    assert!(all.as_array().unwrap().len() >= 21);
    for model in all.as_array().unwrap() {
        let name = model["name"].as_str().unwrap();
        assert!(list.contains(name), "{name}");
        let shown = memvirt_in(Path::new("/"), ["model", "show", name]);
        assert!(shown.status == 0 && shown.stdout.starts_with(&format!("{name}: ")), "{}", shown.stderr);
        assert!(shown.stdout.contains("source: "), "{name}");
        assert_eq!(
            shown.stdout.contains("an identity: it takes counters"),
            model["identity"].as_bool().unwrap(),
            "{name}"
        );
        let latex = memvirt(&format!("model show {name} --format latex"));
        assert!(latex.stdout.contains("\\begin{align*}") && latex.stdout.contains("&="), "{name}");
        assert_eq!(memvirt(&format!("model show {name} --format json")).json(), *model, "{name}");
    }
}

#[test]
fn a_cold_walk_is_24_references() {
    let point = "guest_levels=4 guest_leaf=1 host_levels=4 host_leaf=1";
    let json = memvirt(&format!("model eval walk-cold {point} --format json")).json();
    assert_eq!(json["refs"], 24.0);
    assert!(memvirt(&format!("model eval walk-cold {point}")).stdout.contains("24"));
}

#[test]
fn what_is_wrong_with_a_model_or_a_point_is_said_in_one_line() {
    for (args, words) in [
        ("model show walk-hot", "no cost model is called `walk-hot`; the known ones: "),
        ("model check no/such.model", "cannot read model file no/such.model"),
        ("model eval walk-cold", "the input `guest_levels` is missing"),
        ("model eval scaling-usl vcpus=8 contenton=1", "has no input or parameter `contenton`; it has vcpus"),
        ("model eval scaling-usl vcpus=0", "vcpus = 0 lies outside the whole numbers 1..1024"),
        ("model eval scaling-usl vcpus=2.5", "vcpus = 2.5 lies outside the whole numbers 1..1024"),
        ("model eval scaling-usl vcpus=2 vcpus=3", "vcpus is given twice"),
    ] {
        let ran = memvirt(args);
        assert!(ran.only_error().contains(words), "{args}: {}", ran.stderr);
    }
    let ran = memvirt("model eval scaling-usl vcpus=1e400");
    assert!(ran.status == 2 && ran.stderr.contains("the value of `vcpus` is not a finite number"), "{}", ran.stderr);
    let ran = memvirt("model eval scaling-usl vcpus");
    assert!(ran.status == 2 && ran.stderr.contains("expected NAME=VALUE"), "{}", ran.stderr);
}

#[test]
fn a_comparison_with_what_is_no_number_and_a_requirement_that_fails_say_the_values_with_their_units() {
    let folder = tempfile::tempdir().unwrap();
    let head = "model \"m\" title \"t\" source \"s\"\ninput a : KiB from config\ninput b : bytes from config\n";
    for (body, says) in [
        ("require a <= b\noutput y : 1 = 1", "m requires a <= b, but a = 1 KiB, b = 1000 bytes"),
        (
            "output y : 1 = if log((b - a) / a) > 0 then 1 else 2",
            "whether log((b - a) / a) > 0 cannot be said at this point: `log((b - a) / a)` with b = 1000 bytes, a = 1 KiB is the logarithm",
        ),
    ] {
        fs::write(folder.path().join("m.model"), format!("{head}{body}\n")).unwrap();
        let ran = memvirt_in(folder.path(), ["model", "eval", "m.model", "a=1", "b=1000"]);
        assert!(ran.only_error().contains(says), "{}", ran.stderr);
    }
}

/// Half a minute of runs would otherwise come first.
#[test]
fn a_file_in_the_place_of_the_folder_is_seen_before_anything_is_fitted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("taken"), "").unwrap();
    let started = std::time::Instant::now();
    let ran = memvirt_in(folder.path(), ["model", "fit", "--out", "taken"]);
    assert!(ran.only_error().contains("cannot make the folder taken: it is a file"), "{}", ran.stderr);
    assert!(started.elapsed().as_secs() < 10);
}
