//! A cost model from a text, fitted to runs: what the mechanism says and what the data say, side by side.

use memvirt_costmodel::Model;
use memvirt_costmodel::fit::{Data, Options, assess};

const TEXT: &str = r#"
model "faults"
title "VM exits of a guest that faults and switches"
source "an example"
input faults   : faults   from native in 0..
input switches : switches from native in 0..
param per_fault  : exits/faults   = 3 in 0..10 "fault, store, retry"
param per_switch : exits/switches = 1 in 0..10 "CR3 load"
output exits : exits = per_fault * faults + per_switch * switches
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::parse("faults.model", TEXT)?;
    let mut data = Data::default();
    for run in 1..=20u32 {
        let (faults, switches) = (f64::from(run) * 100.0, f64::from(run % 7) * 50.0);
        let wobble = 1.0 + 0.01 * f64::from(run % 3);
        data.push(vec![faults, switches], (2.0 * faults + switches) * wobble);
    }
    let found = assess(&model, "exits", &data, None, &Options::default())?;
    for param in &found.params {
        let interval = param.interval.map_or_else(String::new, |i| format!(" ({:.2} to {:.2})", i.low, i.high));
        println!("{:10} predicted {:.2}, fitted {:.2}{interval}", param.name, param.predicted, param.fitted);
    }
    println!("largest error: predicted {:.1} %", 100.0 * found.mechanism.max_relative);
    println!("               fitted    {:.1} %", 100.0 * found.fitted.max_relative);
    println!("               unseen    {:.1} %", 100.0 * found.cross_validated.max_relative);
    Ok(())
}
