//! The walk of agile paging by switch level, beside that of a flat nested table.

use memvirt_addr::{Gva, PageSize};
use memvirt_alternatives::{Design, WalkOf, cold_walk};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for lowest in 0..=4 {
        show(Design::Agile(lowest))?;
    }
    show(Design::Flat)
}

fn show(design: Design) -> Result<(), Box<dyn std::error::Error>> {
    let page = PageSize::Size4K;
    let of = WalkOf { design, guest_levels: 4, guest_page: page, host_page: page, address: Gva::new(0x7f12_3456_7abc) };
    let walk = cold_walk(&of)?;
    let steps = walk.references.iter().map(|seen| format!("{:?} {}", seen.dimension, seen.level.number()));
    println!("{design:?}: {} references: {}", walk.references.len(), steps.collect::<Vec<_>>().join(", "));
    Ok(())
}
