//! Machine files: what is accepted has a geometry, what is not is named with its line, in few words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_machine::MachineSpec;

fuzz_target!(|text: &str| match MachineSpec::parse("fuzz.toml", text) {
    Ok(machine) => {
        machine.geometry().and(machine.mmu_geometry()).expect("a machine that is accepted can be built");
        machine.cache_hierarchy().expect("and its caches");
    }
    Err(error) => {
        let error = error.to_string();
        assert!(error.starts_with("machine file fuzz.toml: line "), "{error}");
    }
});
