//! What hardware's walks do, one item at a time: references to table entries, locked updates, hits in the walk caches.
//!
//! Every walker (the bare machine's, that of shadow tables, the two-dimensional one) tells a [`Probe`] each of them in order.
//! Whoever draws a walk, or prices its references by the cache line they read, listens here; `()` sees nothing and costs
//! nothing. The sums are in [`Counters`](crate::Counters), whoever listens.

use memvirt_addr::{Gpa, Hpa, Level};

/// Which tables a reference read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// The guest's tables; on the bare machine the operating system's.
    Guest,
    /// Shadow tables.
    Shadow,
    /// The nested tables.
    Host,
}

/// One memory reference of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Which tables were read.
    pub dimension: Dimension,
    /// The guest level that this reference serves: of the entry itself, or of the table whose address a host walk
    /// translates. `None` for the walk that translates the data's address, and for shadow tables.
    pub guest_level: Option<Level>,
    /// The level of the entry.
    pub level: Level,
    /// Where the entry lies in host memory.
    pub entry_at: Hpa,
    /// The guest-physical address: of the guest's entry, or the one being translated. 0 for shadow tables, which the guest
    /// does not have.
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

/// A cache that saved a walk references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheHit {
    /// The paging-structure cache of these tables: it held an entry of this level, and the walk goes on below.
    Walk(Dimension, Level),
    /// The nested TLB held a whole guest-physical page.
    NestedTlb,
}

/// Sees every reference, update and cache hit of a walk. `()` sees nothing and costs nothing.
pub trait Probe {
    /// Called once for each reference, in order.
    fn reference(&mut self, reference: &Reference);

    /// Called once for each locked update, in order among the references.
    #[inline]
    fn update(&mut self, update: &Update) {
        let _ = update;
    }

    /// Called once for each hit in a walk cache, in order among the references. (A cache that was looked at and held nothing
    /// costs hardware no time of its own: it is read while the walk's first reference is under way.)
    #[inline]
    fn cached(&mut self, hit: CacheHit) {
        let _ = hit;
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

impl<P: Probe + ?Sized> Probe for Option<Box<P>> {
    fn reference(&mut self, reference: &Reference) {
        if let Some(probe) = self {
            probe.reference(reference);
        }
    }

    fn update(&mut self, update: &Update) {
        if let Some(probe) = self {
            probe.update(update);
        }
    }

    fn cached(&mut self, hit: CacheHit) {
        if let Some(probe) = self {
            probe.cached(hit);
        }
    }
}
