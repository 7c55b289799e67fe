//! One page fault of a nested guest under each arrangement, with 2 to 5 levels of tables; every step for 2 levels of one.

use memvirt_nestedvirt::Arrangement;
use memvirt_nestedvirt::scenario::{Spec, one_fault};

fn main() -> Result<(), &'static str> {
    for arrangement in Arrangement::ALL {
        for levels in 2..=5 {
            let fault = one_fault(&Spec::published(arrangement, levels)).ok_or("the host is too small")?;
            let counts = fault.counts;
            println!("{:14} {levels} {:3} {:3}", arrangement.name(), counts.world_switches(), counts.l0_exits());
        }
    }
    let fault = one_fault(&Spec::published(Arrangement::EptOnEpt, 2)).ok_or("the host is too small")?;
    for step in &fault.steps {
        println!("{} {}", step.who, step.what);
    }
    Ok(())
}
