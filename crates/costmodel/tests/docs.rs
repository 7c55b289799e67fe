//! The worked example of docs/models.md, word for word.
#![expect(clippy::unwrap_used, reason = "a test: an example that cannot be read is a failure")]

use std::fs;
use std::path::Path;

use memvirt_costmodel::Model;

/// The block of the page that follows `<!-- example: name -->`.
fn example(page: &str, name: &str) -> String {
    let (_, after) = page.split_once(&format!("<!-- example: {name} -->\n```text\n")).unwrap();
    after.split_once("```").unwrap().0.to_owned()
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md")).unwrap()
}

#[test]
fn the_worked_example_works() {
    let page = page();
    let text = example(&page, "file");
    let model = Model::parse("fault-time.model", &text).unwrap();
    let results = model.at(&[("faults", 1000.0), ("clock", 2500.0)]).unwrap();
    assert!((results[0] - 3000.0).abs() < 1e-9 && (results[1] - 4980.0).abs() < 1e-9, "{results:?}");
    let check = example(&page, "check");
    let outputs: Vec<_> = model.outputs().map(|output| format!("{} [{}]", output.name, output.unit.text)).collect();
    assert!(check.contains(&format!("gives {};", outputs.join(", "))), "{check}");
    let wrong = text.replace("exits * exit_cost / clock", "exits / clock");
    assert_ne!(wrong, text);
    let error = Model::parse("fault-time.model", &wrong).unwrap_err().to_string();
    assert_eq!(error, example(&page, "error").trim());
}

#[test]
fn the_page_lists_every_function_and_base_unit() {
    use memvirt_costmodel::lang::{Origin, Units, ast::Function};
    let page = page();
    for function in Function::ALL {
        assert!(page.contains(&format!("`{}", function.word())), "{}", function.word());
    }
    for unit in Units::default().names() {
        assert!(page.split(|c: char| !c.is_alphanumeric()).any(|word| word == unit), "{unit}");
    }
    for origin in Origin::ALL {
        assert!(page.contains(&format!("| `{}` |", origin.word())), "{}", origin.word());
    }
}
