//! One page walk, reference by reference: real tables are built in simulated memory, and hardware's walkers read them.
//!
//! With `g` guest levels and `h` nested ones, large pages counted, a cold walk in two dimensions makes (g+1)(h+1)-1 references
//! (Bhargava et al., ASPLOS 2008). Nothing here uses that formula: what is reported is what was read. With walk caches, those
//! of `memvirt-platform` stand between the walker and memory, in the shape of a machine.
//!
//! **PAE.** A load of CR3 reads the four PDPTEs into registers (Intel SDM volume 3, section 4.4.1; AMD alike outside of virtual
//! machines), so a walk reads two levels. Under EPT the load goes through the nested tables (sections 28.2.1 and 28.2.3.2);
//! its references are reported apart. Under NPT there are no such registers: walks read the PDPTE as any other entry (APM
//! volume 2, section 15.25.10).

mod alternatives;
mod build;
mod one;
mod record;
mod spec;
pub mod svg;
mod two;

use memvirt_addr::{GuestPhys, GuestVirt, HostPhys};
use memvirt_nested::Dimension;
use memvirt_pagetable::{Ept, Format, LongMode, Pae};

pub use record::{RecordedWalk, WalkHit, WalkReference};
pub use spec::{CacheState, GuestPaging, HostLevels, NestedFormat, Segments, Tables, WalkSpec};

use crate::error::LabError;
use record::Log;

/// Entries of a PAE root.
const PDPTES: usize = 4;

/// Whether the root of a format is four registers.
fn is_pae<F: Format>() -> bool {
    F::NAME == <Pae as Format>::NAME
}

/// Builds the tables and walks them.
///
/// # Errors
///
/// [`LabError::Walk`] for an address that the tables cannot translate, or a page that they do not have.
pub fn record_walk(spec: &WalkSpec) -> Result<RecordedWalk, LabError> {
    type Npt<const N: u8> = LongMode<N, GuestPhys, HostPhys>;
    type Shadow<const N: u8> = LongMode<N, GuestVirt, HostPhys>;

    let smaller = spec.guest_page.min(spec.host_page);
    let (guest, shadow) = (Dimension::Guest, Dimension::Shadow);
    match spec.tables {
        Tables::Native(GuestPaging::Four) => one::one_dimension::<LongMode<4>>(spec, guest, spec.guest_page),
        Tables::Native(GuestPaging::Five) => one::one_dimension::<LongMode<5>>(spec, guest, spec.guest_page),
        Tables::Native(GuestPaging::Pae) => one::one_dimension::<Pae>(spec, guest, spec.guest_page),
        Tables::Shadow(GuestPaging::Four) => one::one_dimension::<Shadow<4>>(spec, shadow, smaller),
        Tables::Shadow(GuestPaging::Five) => one::one_dimension::<Shadow<5>>(spec, shadow, smaller),
        Tables::Shadow(GuestPaging::Pae) => one::one_dimension::<Pae<GuestVirt, HostPhys>>(spec, shadow, smaller),
        Tables::Nested { guest, host, format } => match (format, host) {
            (NestedFormat::Ept, HostLevels::Four) => two::nested::<Ept<4>>(spec, guest, format),
            (NestedFormat::Ept, HostLevels::Five) => two::nested::<Ept<5>>(spec, guest, format),
            (NestedFormat::Npt, HostLevels::Four) => two::nested::<Npt<4>>(spec, guest, format),
            (NestedFormat::Npt, HostLevels::Five) => two::nested::<Npt<5>>(spec, guest, format),
        },
        Tables::Flat(GuestPaging::Four) => alternatives::flat::<LongMode<4>>(spec),
        Tables::Flat(GuestPaging::Five) => alternatives::flat::<LongMode<5>>(spec),
        Tables::Flat(GuestPaging::Pae) => Err(LabError::Walk(
            "flat nested tables are modelled under guests of 4 or 5 levels; give --guest 4".to_owned(),
        )),
        Tables::Agile(nested) => alternatives::agile(spec, nested),
        Tables::DirectSegment(segments) => alternatives::direct_segment(spec, segments),
        Tables::Register => alternatives::register(spec),
    }
}

fn made(
    spec: &WalkSpec,
    regime: &'static str,
    (guest_levels, host_levels): (u8, u8),
    (guest_virtual, host_physical): (String, String),
    log: &Log,
    references: Vec<WalkReference>,
    at_cr3_load: usize,
) -> RecordedWalk {
    RecordedWalk {
        schema: "memvirt/walk/1",
        regime,
        guest_levels,
        host_levels,
        guest_page: spec.guest_page.name(),
        host_page: spec.host_page.name(),
        caches: spec.caches.name(),
        machine: None,
        guest_virtual,
        host_physical,
        total: references.len(),
        updates: log.updates,
        at_cr3_load,
        references,
        cache_hits: log.hits(),
    }
}

#[cfg(test)]
mod tests;
