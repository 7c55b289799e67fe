//! What is seen of a walk, and how it is written down.

use memvirt_addr::{Addr, Gva, Level, Space};
use memvirt_nested::{CacheHit, Dimension, Probe, Reference, SecondStage, Update};
use memvirt_pagetable::{Entry, Format};
use serde::Serialize;

/// One memory reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalkReference {
    /// Its number, from 1.
    pub step: usize,
    /// `guest`, `shadow` or `nested`: whose table was read.
    pub dimension: &'static str,
    /// What the reference is for: the entry itself, or the guest entry or data whose address is being translated.
    pub serves: String,
    /// The level of the entry; 1 is the lowest.
    pub level: u8,
    /// The name of the table.
    pub table: &'static str,
    /// The index of the entry in its table.
    pub index: usize,
    /// The guest-physical address of a guest entry, or the one that a nested entry helps to translate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_physical: Option<String>,
    /// Where the entry lies in the machine's memory.
    pub address: String,
    /// Its raw bits.
    pub entry: String,
    /// What it says.
    pub says: String,
}

/// A hit in a walk cache, which saved references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalkHit {
    /// The step of the next reference.
    pub before_step: usize,
    /// The cache: `guest PDE`, `nested PDPTE`, `nested TLB`, ...
    pub cache: String,
    /// What the walk was looking for, as [`WalkReference::serves`].
    pub serves: String,
}

/// A walk that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordedWalk {
    /// `memvirt/walk/1`.
    pub schema: &'static str,
    /// `native`, `shadow`, `nested`, `flat`, `agile:` with the number of levels nested, `direct-segment` (with `:guest`, `:dual`) or
    /// `register-walk`.
    pub regime: &'static str,
    /// Levels of the guest's (or shadow) tables that a walk reads; 0 where the guest does not page.
    pub guest_levels: u8,
    /// Levels of the nested tables that a walk reads; 1 for a flat table or an array of leaf tables, 0 without any.
    pub host_levels: u8,
    /// The guest's page.
    pub guest_page: &'static str,
    /// The host's page.
    pub host_page: &'static str,
    /// `off`, `cold` or `warm`.
    pub caches: &'static str,
    /// The machine whose caches they are, where there are any and whoever asked has named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The address that was walked for.
    pub guest_virtual: String,
    /// Where it lies in the machine's memory.
    pub host_physical: String,
    /// References made.
    pub total: usize,
    /// Locked updates of accessed and dirty bits beside them.
    pub updates: usize,
    /// References that the last load of CR3 made instead of the walk: PAE.
    pub at_cr3_load: usize,
    /// The references in order.
    pub references: Vec<WalkReference>,
    /// What walk caches saved, in order.
    pub cache_hits: Vec<WalkHit>,
}

/// Hears a walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    events: Vec<Event>,
    pub(super) updates: usize,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Reference(Reference),
    Hit(CacheHit),
}

impl Probe for Log {
    fn reference(&mut self, reference: &Reference) {
        self.events.push(Event::Reference(*reference));
    }

    fn update(&mut self, _: &Update) {
        self.updates += 1;
    }

    fn cached(&mut self, hit: CacheHit) {
        self.events.push(Event::Hit(hit));
    }
}

impl Log {
    /// The references that were heard.
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.events.iter().filter_map(|event| match event {
            Event::Reference(reference) => Some(reference),
            Event::Hit(_) => None,
        })
    }

    /// The hits, each with what the walk was looking for then.
    pub(super) fn hits(&self) -> Vec<WalkHit> {
        let mut hits = Vec::new();
        for (i, event) in self.events.iter().enumerate() {
            let Event::Hit(hit) = event else { continue };
            let read = self.events[..i].iter().filter(|event| matches!(event, Event::Reference(_))).count();
            let next = self.events[i + 1..].iter().find_map(|event| match event {
                Event::Reference(reference) => Some(reference),
                Event::Hit(_) => None,
            });
            let (cache, sought) = match hit {
                CacheHit::Walk(dimension, level) => {
                    (format!("{} {}", dimension_name(*dimension), entry_name(*level)), sought(next))
                }
                // Where the nested TLB knows the page of a guest table, the guest's entry is read next; another hit in
                // between, or the end, means that it was the data's page.
                CacheHit::NestedTlb => {
                    let at_once = next.filter(|_| matches!(self.events.get(i + 1), Some(Event::Reference(_))));
                    ("nested TLB".to_owned(), sought(at_once))
                }
            };
            hits.push(WalkHit { before_step: read + 1, cache, serves: sought });
        }
        hits
    }
}

/// What a walk is looking for when it makes this reference next.
fn sought(next: Option<&Reference>) -> String {
    next.map_or_else(|| "data".to_owned(), serves)
}

/// What a reference is for.
pub(super) fn serves(reference: &Reference) -> String {
    match (reference.dimension, reference.guest_level) {
        (Dimension::Shadow, _) | (Dimension::Guest, None) => entry_name(reference.level).to_owned(),
        (_, Some(level)) => format!("guest {}", entry_name(level)),
        (Dimension::Host, None) => "data".to_owned(),
    }
}

/// How entries of a walk's tables are read.
pub(super) struct Formats<G, H>(core::marker::PhantomData<(G, H)>);

impl<G: Format, H: SecondStage> Formats<G, H> {
    /// The rows of a walk over tables of these formats.
    pub(super) fn rows(log: &Log, gva: Gva) -> Vec<WalkReference> {
        log.references().enumerate().map(|(i, reference)| Self::row(i + 1, reference, gva)).collect()
    }

    fn row(step: usize, reference: &Reference, gva: Gva) -> WalkReference {
        let Reference { dimension, level, entry_at, gpa, raw: bits, .. } = *reference;
        let (index, says) = match dimension {
            Dimension::Guest | Dimension::Shadow => {
                (G::index(G::input(gva.as_u64()), level), says(&G::decode(bits, level)))
            }
            Dimension::Host => (H::index(gpa, level), says(&H::decode(bits, level))),
        };
        WalkReference {
            step,
            dimension: dimension_name(dimension),
            serves: serves(reference),
            level: level.number(),
            table: table_name(level),
            index,
            guest_physical: (dimension != Dimension::Shadow).then(|| hex(gpa)),
            address: hex(entry_at),
            entry: raw(bits),
            says,
        }
    }
}

/// The name of a dimension.
pub(super) const fn dimension_name(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Guest => "guest",
        Dimension::Shadow => "shadow",
        Dimension::Host => "nested",
    }
}

/// The name of a table of a level.
pub(super) const fn table_name(level: Level) -> &'static str {
    match level {
        Level::L5 => "PML5",
        Level::L4 => "PML4",
        Level::L3 => "PDPT",
        Level::L2 => "PD",
        Level::L1 => "PT",
    }
}

/// The name of an entry of a level.
pub(super) const fn entry_name(level: Level) -> &'static str {
    match level {
        Level::L5 => "PML5E",
        Level::L4 => "PML4E",
        Level::L3 => "PDPTE",
        Level::L2 => "PDE",
        Level::L1 => "PTE",
    }
}

/// An address as it is written down.
pub(super) fn hex<S: Space>(at: Addr<S>) -> String {
    format!("{:#x}", at.as_u64())
}

/// An entry's bits as they are written down.
pub(super) fn raw(bits: u64) -> String {
    format!("{bits:#018x}")
}

/// What an entry says.
pub(super) fn says<S: Space>(entry: &Entry<S>) -> String {
    match entry {
        Entry::Table { next, .. } => format!("table at {}", hex(next.base())),
        Entry::Leaf { frame, size, .. } => format!("{size} page at {}", hex(frame.base())),
        Entry::Absent => "nothing".to_owned(),
        Entry::Reserved => "reserved bits".to_owned(),
    }
}
