//! The text of `perf script`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_trace::Format;

fuzz_target!(|data: &[u8]| {
    let first = "             gcc 7 [000]  3219.506763:    sched:sched_process_exec: filename=/bin/x pid=7 old_pid=7\n";
    memvirt_fuzz::read_as(Format::Perf, first, data);
});
