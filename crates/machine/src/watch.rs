//! [`Watch`]: who looks at a run between its batches, and must not slow it down.
//!
//! A batch is some thousands of accesses. The series of a footprint over time is gathered here; what is looked at is never changed
//! and never counted.

use memvirt_guest::Guest;
use memvirt_platform::{Counters, Platform};

/// Looks at a run.
pub trait Watch {
    /// Called after each batch of accesses, and after the operation that ends it.
    fn look(&mut self, guest: &Guest, platform: &dyn Platform, counters: &Counters);

    /// Called once, where the run has ended.
    fn end(&mut self, guest: &Guest, platform: &dyn Platform, counters: &Counters) {
        let _ = (guest, platform, counters);
    }
}

/// Nobody looks.
impl Watch for () {
    fn look(&mut self, _: &Guest, _: &dyn Platform, _: &Counters) {}
}
