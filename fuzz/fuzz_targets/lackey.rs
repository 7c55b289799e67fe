//! A Valgrind lackey log, read from memory: batches, counted mistakes, or an error that names it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_trace::LackeyReader;

fuzz_target!(|data: &[u8]| {
    let mut reader = LackeyReader::new(data, "fuzz.lackey");
    if let Some(error) = memvirt_fuzz::drain(&mut reader, |_| {}) {
        assert!(error.to_string().contains("fuzz.lackey"), "{error}");
    }
    let tally = reader.tally();
    assert!(tally.malformed <= tally.lines);
});
