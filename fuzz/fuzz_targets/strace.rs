//! The text of `strace -f`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memvirt_trace::Format;

fuzz_target!(|data: &[u8]| {
    let first = "7 1795353082.714527 execve(\"/bin/x\", [...], 0x7ffd /* 3 vars */) = 0\n";
    memvirt_fuzz::read_as(Format::Strace, first, data);
});
