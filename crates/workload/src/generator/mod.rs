//! The generators: [`Generator`] turns a checked [`Spec`] and a seed into a stream of batches.
//!
//! Four kinds access one area in a steady pattern (`steady`, with `walk`, `zipf` and `chase`); three change page tables
//! (`touch`, `fork`, `churn`); `residents` are many processes that stay; a `script`, with `reach`, does what its file says step by step. The kind is dispatched once per batch; below that everything is monomorphic. All
//! randomness comes from one ChaCha8 stream, so the same seed gives the same bytes on every machine.

mod chase;
mod churn;
mod draw;
mod fork;
mod reach;
mod residents;
mod script;
mod steady;
mod touch;
mod walk;
mod zipf;

use std::convert::Infallible;

use memvirt_ops::process::{Batch, Source};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::measured::loaded;
use crate::spec::{Spec, SpecError};

/// A stream of what one workload does: mappings first, then accesses and operations.
///
/// ```
/// use memvirt_ops::process::{Batch, Source};
/// use memvirt_workload::Workload;
///
/// let mut generator = Workload::find("touch-and-free")?.generator(1);
/// let (mut batch, mut accesses) = (Batch::default(), 0);
/// while generator.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
///     accesses += batch.run.len();
/// }
/// assert!(accesses > 0);
/// # Ok::<(), memvirt_workload::WorkloadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Generator(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Sequential(steady::Steady<walk::Sequential>),
    Uniform(steady::Steady<walk::Uniform>),
    Zipf(steady::Steady<zipf::Zipf>),
    PointerChase(steady::Steady<chase::Chase>),
    TouchAndFree(touch::TouchAndFree),
    ForkAndExit(fork::ForkAndExit),
    Churn(churn::Churn),
    Residents(residents::Residents),
    Script(script::Run),
}

impl Generator {
    /// A generator with these parameters. The same seed gives the same stream.
    ///
    /// # Errors
    ///
    /// What [`Spec::check`] finds.
    pub fn new(spec: &Spec, seed: u64) -> Result<Self, SpecError> {
        spec.check()?;
        Ok(Self::of_checked(spec, seed))
    }

    pub(crate) fn of_checked(spec: &Spec, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self(match spec {
            Spec::Sequential(s) => Kind::Sequential(walk::Sequential::steady(s, rng)),
            Spec::Uniform(s) => Kind::Uniform(walk::Uniform::steady(s, rng)),
            Spec::Zipf(s) => {
                let pattern = zipf::Zipf::new(s, &mut rng);
                Kind::Zipf(steady::Steady::new(
                    s.base,
                    s.footprint,
                    s.accesses,
                    s.instructions_per_access,
                    pattern,
                    rng,
                ))
            }
            Spec::PointerChase(s) => {
                let pattern = chase::Chase::new(s, &mut rng);
                let (base, footprint, ipa) = (s.base, s.footprint, s.instructions_per_access);
                Kind::PointerChase(steady::Steady::new(base, footprint, s.accesses, ipa, pattern, rng))
            }
            Spec::TouchAndFree(s) => Kind::TouchAndFree(touch::TouchAndFree::new(*s, rng)),
            Spec::ForkAndExit(s) => Kind::ForkAndExit(fork::ForkAndExit::new(*s, rng)),
            Spec::Churn(s) => Kind::Churn(churn::Churn::new(*s, rng)),
            Spec::Residents(s) => Kind::Residents(residents::Residents::new(*s, rng)),
            Spec::Script(s) => Kind::Script(script::Run::new(s, rng)),
        })
    }
}

impl Generator {
    /// A generator that loads what it maps before all else.
    pub(crate) fn loading(spec: &Spec, seed: u64) -> Self {
        if let Spec::Script(script) = spec {
            return Self(Kind::Script(script::Run::new(&loaded(script), ChaCha8Rng::seed_from_u64(seed))));
        }
        let mut generator = Self::of_checked(spec, seed);
        match &mut generator.0 {
            Kind::Sequential(g) => g.load(),
            Kind::Uniform(g) => g.load(),
            Kind::Zipf(g) => g.load(),
            Kind::PointerChase(g) => g.load(),
            _ => {}
        }
        generator
    }
}

impl Source for Generator {
    type Error = Infallible;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Infallible> {
        batch.clear();
        match &mut self.0 {
            Kind::Sequential(g) => g.fill(batch),
            Kind::Uniform(g) => g.fill(batch),
            Kind::Zipf(g) => g.fill(batch),
            Kind::PointerChase(g) => g.fill(batch),
            Kind::TouchAndFree(g) => g.fill(batch),
            Kind::ForkAndExit(g) => g.fill(batch),
            Kind::Churn(g) => g.fill(batch),
            Kind::Residents(g) => g.fill(batch),
            Kind::Script(g) => g.fill(batch),
        }
        Ok(!batch.is_empty())
    }
}
