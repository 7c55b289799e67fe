//! Runs a built-in workload under three regimes and writes a report:
//! `cargo run -p memvirt-lab --example report -- DIR`.

use std::path::Path;

use memvirt_lab::{Experiment, Input, Overrides, write_report};
use memvirt_machine::{MachineSpec, Measure, RegimeKind};
use memvirt_workload::Workload;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let experiment = Experiment {
        input: Input::Workload(Box::new(Workload::find("fork-and-exit")?.scaled(0.1)?)),
        regimes: vec![RegimeKind::Native, RegimeKind::ShadowWriteProtect, RegimeKind::NestedEpt],
        overrides: Overrides { kpti: Some(true), ..Overrides::default() },
        measure: Measure::default(),
        machine: MachineSpec::load(MachineSpec::DEFAULT)?,
        seed: 1,
        check: false,
        threads: None,
        command: "cargo run -p memvirt-lab --example report".into(),
    };
    let done = experiment.run(&|_| {})?;
    for result in &done.comparison.results {
        println!("{}: {} exits, {} cycles", result.regime, result.total_exits(), result.cycles.total);
    }
    match std::env::args().nth(1) {
        Some(dir) => write_report(Path::new(&dir), &done.comparison)?,
        None => println!("give a folder to write the report into"),
    }
    Ok(())
}
