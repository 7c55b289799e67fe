//! Workload files: what is accepted runs, what is not is named with its line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_workload::Workload;

fuzz_target!(|text: &str| match Workload::parse("fuzz.toml", text) {
    Ok(workload) => {
        let never = memvirt_fuzz::drain(&mut workload.generator(7), |_| {});
        assert!(never.is_none());
    }
    Err(error) => assert!(error.to_string().contains("fuzz.toml"), "{error}"),
});
