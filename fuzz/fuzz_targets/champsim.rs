//! ChampSim's records of 64 bytes: those at first make the format, what follows may be anything.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| memvirt_fuzz::read_file(data));
