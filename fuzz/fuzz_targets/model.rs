//! Cost model files: what is not one is named with line and column, and never takes the stack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_costmodel::Model;

fuzz_target!(|text: &str| {
    if let Err(error) = Model::parse("fuzz.model", text) {
        assert!(error.to_string().contains("fuzz.model"), "{error}");
    }
});
