//! What a view of the guest's tables may look at beside an access.

use memvirt_addr::Gpa;

/// The guest as it is now.
pub(crate) struct Around<'a> {
    /// The guest's memory.
    pub(crate) peek: &'a dyn Fn(Gpa) -> u64,
}
