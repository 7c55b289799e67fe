//! Cost model files: what is not one is named with line and column, and never takes the stack; what is one reads back from its own text,
//! and gives numbers or an error at any point.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_costmodel::Model;

fuzz_target!(|text: &str| {
    match Model::parse("fuzz.model", text) {
        Err(error) => assert!(error.to_string().contains("fuzz.model"), "{error}"),
        Ok(model) => {
            let text = model.text();
            let back = Model::parse("back.model", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(back.text(), text);
            for x in [1.0, -1.0, 0.0] {
                if let Ok(results) = model.evaluate(&vec![x; model.inputs().len()], &model.predicted()) {
                    assert!(results.iter().all(|result| result.is_finite()), "{results:?}\n{text}");
                }
            }
        }
    }
});
