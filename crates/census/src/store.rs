//! [`Store`]: a store as the policies see it that judge by the instruction whether a page is still a table.

use memvirt_addr::Gva;
use memvirt_ops::arch::StoreOp;

/// A store as the guest's kernel made it; a process' stores have nothing but an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store<'a> {
    pub(crate) op: Option<&'a StoreOp>,
    pub(crate) gva: Gva,
    pub(crate) ip: Gva,
}

impl Store<'_> {
    /// How many bytes it touches.
    pub(crate) const fn bytes(&self) -> u64 {
        match self.op {
            Some(StoreOp::Mov { width, .. }) => width.bytes(),
            Some(StoreOp::Vector) => 16,
            _ => 8,
        }
    }
}
