//! Prints what the first batches of a workload do: `cargo run --example stream -- fork-and-exit 7`.

use std::process::ExitCode;

use memvirt_ops::process::{Batch, Source};
use memvirt_workload::{Workload, WorkloadError};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let workload = arguments.next().unwrap_or_else(|| "churn".into());
    let seed = arguments.next().and_then(|seed| seed.to_str()?.parse().ok()).unwrap_or(1);
    match Workload::resolve(&workload) {
        Ok(workload) => {
            show(&workload, seed);
            ExitCode::SUCCESS
        }
        Err(error) => {
            explain(&error);
            ExitCode::from(2)
        }
    }
}

fn show(workload: &Workload, seed: u64) {
    println!("{} (seed {seed}): {:?}", workload.title(), workload.facts());
    let (mut stream, mut batch) = (workload.generator(seed), Batch::default());
    for _ in 0..20 {
        if stream.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
            println!("{} accesses from {:?}, then {:?}", batch.run.len(), batch.run.first(), batch.then);
        }
    }
}

fn explain(error: &WorkloadError) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    eprintln!("{error}{}", cause.unwrap_or_default());
}
