//! What a two-dimensional walk does to memory, one item at a time: references and locked updates.
//!
//! A [`Probe`] sees each of them in order; [`Counts`] are their sums. Who prices them lives elsewhere.

use memvirt_addr::{Gpa, Hpa, Level};

/// Which tables a reference read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// The guest's tables.
    Guest,
    /// The nested tables.
    Host,
}

/// One memory reference of a two-dimensional walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Which tables were read.
    pub dimension: Dimension,
    /// The guest level that this reference serves: of the entry itself, or of the table whose address a host walk
    /// translates. `None` for the walk that translates the data's address.
    pub guest_level: Option<Level>,
    /// The level of the entry.
    pub level: Level,
    /// Where the entry lies in host memory.
    pub entry_at: Hpa,
    /// The guest-physical address: of the guest's entry, or the one being translated.
    pub gpa: Gpa,
    /// The raw bits read.
    pub raw: u64,
}

/// One locked update of an entry: hardware sets accessed or dirty bits that were clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Whose entry it is.
    pub dimension: Dimension,
    /// The level of the entry.
    pub level: Level,
    /// Where the entry lies in host memory.
    pub entry_at: Hpa,
    /// The raw bits that were set.
    pub set: u64,
}

/// Sees every reference and update of a walk. `()` sees nothing and costs nothing.
pub trait Probe {
    /// Called once for each reference, in order.
    fn reference(&mut self, reference: &Reference);

    /// Called once for each locked update, in order among the references.
    #[inline]
    fn update(&mut self, update: &Update) {
        let _ = update;
    }
}

impl Probe for () {
    #[inline]
    fn reference(&mut self, _: &Reference) {}
}

impl Probe for Vec<Reference> {
    fn reference(&mut self, reference: &Reference) {
        self.push(*reference);
    }
}

/// What a walk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// References to guest entries.
    pub guest: u64,
    /// References to nested entries.
    pub host: u64,
    /// Locked updates that set accessed or dirty bits, in guest and nested entries together.
    pub ad_updates: u64,
    /// Those of them that went to nested entries.
    pub ad_updates_nested: u64,
}
