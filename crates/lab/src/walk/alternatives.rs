//! Walks of the literature's alternatives: a flat nested table, agile paging, direct segments, registers that name leaf tables.
//! Their tables are built and walked by `memvirt-alternatives`; here they are written down.

use std::sync::{Arc, Mutex, PoisonError};

use memvirt_addr::{GuestPhys, GuestVirt, Gva, Hpa, Level};
use memvirt_alternatives::{Design, NoWalk, WalkOf, cached_walk, cold_walk};
use memvirt_nested::{CacheHit, Dimension, Probe, Reference, Update};
use memvirt_pagetable::{Entry, Ept4, Format, Guest4, Shadow4};
use memvirt_platform::MmuGeometry;
use memvirt_shadow::store::SWITCH;

use super::build::address;
use super::made;
use super::record::{Log, RecordedWalk, WalkReference, dimension_name, hex, raw, says, serves, table_name};
use super::spec::{CacheState, Segments, WalkSpec};
use crate::error::LabError;

/// A flat nested table under a guest of 4 or 5 levels.
pub(super) fn flat<G: Format<In = GuestVirt, Out = GuestPhys>>(spec: &WalkSpec) -> Result<RecordedWalk, LabError> {
    record::<G>(spec, Design::Flat, "flat", (G::ROOT.number(), 1))
}

/// Direct segments under a guest of 4 levels.
pub(super) fn direct_segment(spec: &WalkSpec, segments: Segments) -> Result<RecordedWalk, LabError> {
    let (design, name, levels) = match segments {
        Segments::Vmm => (Design::VmmDirect, "direct-segment", (4, 0)),
        Segments::Guest => (Design::GuestDirect, "direct-segment:guest", (0, 4)),
        Segments::Dual => (Design::DualDirect, "direct-segment:dual", (0, 0)),
    };
    record::<Guest4>(spec, design, name, levels)
}

/// Registers, loaded, under a guest of 4 levels: of each dimension the leaf is read.
pub(super) fn register(spec: &WalkSpec) -> Result<RecordedWalk, LabError> {
    record::<Guest4>(spec, Design::Register, "register-walk", (1, 1))
}

/// Agile paging with the `nested` lowest levels walked in two dimensions.
pub(super) fn agile(spec: &WalkSpec, nested: u8) -> Result<RecordedWalk, LabError> {
    const NAMES: [&str; 5] = ["agile:0", "agile:1", "agile:2", "agile:3", "agile:4"];
    let Some(name) = NAMES.get(usize::from(nested)) else {
        return Err(LabError::Walk(format!(
            "agile:{nested} nests more levels than there are; accepted: agile:0 to agile:4"
        )));
    };
    record::<Guest4>(spec, Design::Agile(nested), name, (4, if nested == 0 { 0 } else { 4 }))
}

/// The walk of a design; `levels` are those of guest and host tables that it reads.
fn record<G>(spec: &WalkSpec, design: Design, name: &'static str, levels: (u8, u8)) -> Result<RecordedWalk, LabError>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
{
    let gva = address::<G>(spec)?;
    let WalkSpec { guest_page, host_page, .. } = *spec;
    let of = WalkOf { design, guest_levels: G::ROOT.number(), guest_page, host_page, address: gva };
    let (log, reached) = match spec.caches {
        CacheState::Off => cold(&of)?,
        CacheState::Cold(geometry) => cached(&of, &geometry, 0)?,
        CacheState::Warm(geometry) => cached(&of, &geometry, 1)?,
    };
    let rows = log.references().enumerate().map(|(i, reference)| row::<G>(i + 1, reference, gva, design)).collect();
    Ok(made(spec, name, levels, (hex(gva), hex(reached)), &log, rows, 0))
}

fn no_walk(error: NoWalk) -> LabError {
    LabError::Walk(error.to_string())
}

fn cold(of: &WalkOf) -> Result<(Log, Hpa), LabError> {
    let recorded = cold_walk(of).map_err(no_walk)?;
    let mut log = Log::default();
    recorded.references.iter().for_each(|reference| log.reference(reference));
    Ok((log, recorded.reached))
}

/// The CPU keeps who listens; what was heard is read here.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Log>>);

impl Shared {
    fn with(&self, hear: impl FnOnce(&mut Log)) {
        hear(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Probe for Shared {
    fn reference(&mut self, reference: &Reference) {
        self.with(|log| log.reference(reference));
    }

    fn update(&mut self, update: &Update) {
        self.with(|log| log.update(update));
    }

    fn cached(&mut self, hit: CacheHit) {
        self.with(|log| log.cached(hit));
    }
}

fn cached(of: &WalkOf, geometry: &MmuGeometry, earlier: u32) -> Result<(Log, Hpa), LabError> {
    let heard = Shared::default();
    let reached = cached_walk(of, geometry, earlier, Box::new(heard.clone())).map_err(no_walk)?;
    let mut log = Log::default();
    heard.with(|heard| log = std::mem::take(heard));
    Ok((log, reached))
}

fn row<G>(step: usize, reference: &Reference, gva: Gva, design: Design) -> WalkReference
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
{
    let Reference { dimension, level, entry_at, gpa, raw: bits, .. } = *reference;
    let (table, index, says) = match (dimension, design) {
        (Dimension::Guest, _) => (table_name(level), G::index(gva, level), says(&G::decode(bits, level))),
        (Dimension::Shadow, _) => (table_name(level), G::index(gva, level), shadow_says(bits, level)),
        // One array for the whole of guest memory: its index is the frame's number.
        (Dimension::Host, Design::Flat) => {
            let index = usize::try_from(gpa.frame().number()).unwrap_or(usize::MAX);
            ("flat", index, says(&Ept4::decode(bits, Level::L1)))
        }
        (Dimension::Host, _) => (table_name(level), Ept4::index(gpa, level), says(&Ept4::decode(bits, level))),
    };
    WalkReference {
        step,
        dimension: dimension_name(dimension),
        serves: serves(reference),
        level: level.number(),
        table,
        index,
        guest_physical: (dimension != Dimension::Shadow).then(|| hex(gpa)),
        address: hex(entry_at),
        entry: raw(bits),
        says,
    }
}

/// A shadow entry with the switching bit leads into a guest table.
fn shadow_says(bits: u64, level: Level) -> String {
    match Shadow4::decode(bits, level) {
        Entry::Table { next, attrs } if attrs.contains(SWITCH) => format!("guest table at {}", hex(next.base())),
        entry => says(&entry),
    }
}
