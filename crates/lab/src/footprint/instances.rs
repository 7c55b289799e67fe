//! Several instances of a workload that has no number of processes of its own: they live beside each other in one guest and take turns
//! on its CPU, as `scale` deals them to one vCPU.
//!
//! The first process forks one for each further instance before anything is mapped, so that each has an address space of its own from
//! the start. An instance that is over keeps its memory: the bytes at the end are those of all.

use std::convert::Infallible;

use memvirt_ops::process::{Batch, Op, ProcessId, Source};
use memvirt_smp::{Rotation, Tenant};
use memvirt_workload::Generator;

use crate::scale::QUANTUM;

/// The stream of a row.
#[derive(Clone, Debug)]
pub(super) enum Stream {
    /// The workload as it is.
    One(Box<Generator>),
    /// So many of them.
    Many(Box<Instances>),
}

impl Stream {
    /// `count` instances; `generator` makes the one with a number.
    pub(super) fn of<E>(count: u32, generator: impl Fn(u32) -> Result<Generator, E>) -> Result<Self, E> {
        if count < 2 {
            return Ok(Self::One(Box::new(generator(0)?)));
        }
        let tenant = |number| Ok(Tenant::new(generator(number)?, number, count));
        let tenants = (0..count).map(tenant).collect::<Result<Vec<_>, E>>()?;
        let rotation = Rotation::new(tenants.into_iter().map(|tenant| (tenant.clone(), tenant.first())), QUANTUM);
        Ok(Self::Many(Box::new(Instances { forked: 1, count, rotation })))
    }
}

impl Source for Stream {
    type Error = Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Infallible> {
        match self {
            Self::One(generator) => generator.next_batch(batch),
            Self::Many(instances) => instances.next_batch(batch),
        }
    }
}

/// Instances in turn, once they have been forked.
#[derive(Clone, Debug)]
pub(super) struct Instances {
    forked: u32,
    count: u32,
    rotation: Rotation<Tenant<Generator>>,
}

impl Source for Instances {
    type Error = Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Infallible> {
        if self.forked == self.count {
            return self.rotation.next_batch(batch);
        }
        batch.clear();
        batch.then = Some(Op::Fork { child: ProcessId(self.forked) });
        self.forked += 1;
        Ok(true)
    }
}
