//! Texts of strace and perf of one program, joined: parts between zeros, the first strace's, up to two of perf's.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use memvirt_ops::process::Batch;
use memvirt_trace::{Pair, Step};

/// What shows the formats, so that what follows is read as them.
const FIRST: [&str; 3] = [
    "7 execve(\"/bin/x\", [], 0x7 /* 1 var */) = 0\n",
    "x 9/9 1.5: page-faults:u: 7f0000001000 7f0000001000\n",
    "x 9 [000] 1.5: sched:sched_process_exec: filename=/bin/x pid=9 old_pid=9\n",
];

fuzz_target!(|data: &[u8]| {
    let folder = memvirt_fuzz::scratch().join("pair");
    let _ = fs::remove_dir_all(&folder);
    let _ = fs::create_dir_all(&folder);
    for (number, (first, part)) in FIRST.iter().zip(data.split(|byte| *byte == 0)).enumerate() {
        let _ = fs::write(folder.join(format!("{number}.txt")), [first.as_bytes(), part].concat());
    }
    let name = folder.display().to_string();
    let pair = match Pair::open(&folder) {
        Ok(pair) => pair,
        Err(error) => return assert!(error.to_string().contains(&name), "{error}"),
    };
    for text in pair.fault_texts() {
        let mut joined = match pair.join(&text.name) {
            Ok(joined) => joined,
            Err(error) => return assert!(error.to_string().contains(&name), "{error}"),
        };
        let found = joined.found;
        assert!(found.unplaced <= found.faults && found.elsewhere <= found.mappings, "{found:?}");
        let mut accesses = 0;
        let _ = memvirt_fuzz::drain(&mut joined, |batch: &Batch| accesses += batch.run.len());
        let Ok(replay) = pair.replay(&text.name) else { panic!("what can be joined can be replayed") };
        let mut replayed = 0;
        for step in &replay.steps {
            let cpu = match step {
                Step::Run { cpu, batch } => {
                    replayed += batch.run.len();
                    *cpu
                }
                Step::Turn(turn) => turn.cpu,
            };
            assert!(cpu < replay.cpus, "CPU {cpu} of {}", replay.cpus);
        }
        // Whatever the schedule, everything is played, once.
        let is_whole = replay.steps.len() < memvirt_fuzz::MOST_BATCHES;
        assert!(!is_whole || replayed >= accesses, "{replayed} of {accesses}");
    }
});
