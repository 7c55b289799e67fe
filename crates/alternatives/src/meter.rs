//! What a walk costs: every reference and every locked update, counted and shown to a [`Probe`].

use memvirt_addr::{Gpa, Hpa, Level};
use memvirt_platform::{Counters, WalkRefs};

use memvirt_platform::{Dimension, Probe, Reference, Update};

/// Counts a walk and shows it to a probe.
#[derive(Debug)]
pub struct Meter<'p, P> {
    probe: &'p mut P,
    /// The references so far.
    pub refs: WalkRefs,
    /// The locked updates so far.
    pub ad_updates: u64,
    /// Those of them that went to entries of the host.
    pub ad_updates_host: u64,
}

impl<'p, P: Probe> Meter<'p, P> {
    /// A meter that has counted nothing.
    #[must_use]
    pub fn new(probe: &'p mut P) -> Self {
        Self { probe, refs: WalkRefs::default(), ad_updates: 0, ad_updates_host: 0 }
    }

    /// One reference.
    #[inline]
    pub fn reference(&mut self, reference: &Reference) {
        match reference.dimension {
            Dimension::Guest => self.refs.guest += 1,
            Dimension::Shadow => self.refs.shadow += 1,
            Dimension::Host => self.refs.host += 1,
        }
        self.probe.reference(reference);
    }

    /// One reference to a host entry of `level` that helps to translate `gpa`.
    #[inline]
    pub(crate) fn host(&mut self, serves: Option<Level>, level: Level, entry_at: Hpa, gpa: Gpa, raw: u64) {
        self.reference(&Reference { dimension: Dimension::Host, guest_level: serves, level, entry_at, gpa, raw });
    }

    /// One locked update.
    pub fn update(&mut self, dimension: Dimension, level: Level, entry_at: Hpa, set: u64) {
        self.ad_updates += 1;
        self.ad_updates_host += u64::from(dimension == Dimension::Host);
        self.probe.update(&Update { dimension, level, entry_at, set });
    }

    /// Enters one hardware walk in the ledger's sums.
    pub fn enter(&self, counters: &mut Counters) {
        counters.add_walk(self.refs, self.ad_updates, self.ad_updates_host);
    }
}
