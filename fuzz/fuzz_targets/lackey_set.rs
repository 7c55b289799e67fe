//! Logs of several processes: a tar archive, or, where the first byte is a zero, a directory with a log for each part of the
//! rest between zeros.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;

/// Logs in a directory at most.
const MOST: usize = 4;

fuzz_target!(|data: &[u8]| {
    let Some(logs) = data.strip_prefix(&[0]) else { return memvirt_fuzz::read_file(data) };
    let folder = memvirt_fuzz::scratch().join("logs");
    let _ = fs::remove_dir_all(&folder);
    let _ = fs::create_dir_all(&folder);
    for (pid, log) in (1..).zip(logs.split(|byte| *byte == 0).take(MOST)) {
        let _ = fs::write(folder.join(format!("fuzz.{pid}.1.log")), log);
    }
    let _ = memvirt_fuzz::read(&folder);
});
