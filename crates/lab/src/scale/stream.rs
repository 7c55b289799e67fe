//! What runs on one vCPU.

use std::convert::Infallible;

use memvirt_ops::process::{Batch, Source};
use memvirt_smp::{Rotation, Tenant, Thread, ThreadError};
use memvirt_workload::Generator;

/// Instances in turn, or one thread.
pub(super) enum Stream {
    Tenants(Box<Rotation<Tenant<Generator>>>),
    Thread(Box<Thread<Generator>>),
}

impl Source for Stream {
    type Error = ThreadError<Infallible>;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        match self {
            Self::Tenants(tenants) => tenants.next_batch(batch).map_err(|never| match never {}),
            Self::Thread(thread) => thread.next_batch(batch),
        }
    }
}
