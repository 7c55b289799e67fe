//! From when on a workload is measured: the `measure` field of a workload file, and the stream that leads there.
//!
//! A benchmark of memory allocates and fills its data first and starts its clock then; a benchmark of allocation starts its clock
//! at once. A workload that is measured in its steady state first stores to every page of what its setup maps (it *loads*), then
//! runs a quarter of its accesses, and counts from there. Loading goes the way of any access, so that every table below the guest
//! fills as its mechanism fills it.

use memvirt_ops::process::Batch;
use serde::{Deserialize, Serialize};

use crate::facts::Facts;
use crate::script::{AreaKind, Pattern, Script, Step, Touch};
use crate::spec::Spec;
use crate::units::{Count, Share};
use crate::workload::Workload;

/// From when on a workload is measured by those who use it as a benchmark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// From its first access on: its first touches, mappings and forks are its point.
    #[default]
    FromStart,
    /// In its steady state: what it maps has been loaded, and caches have seen a part of its accesses.
    Steady,
}

impl Measured {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromStart => "from-start",
            Self::Steady => "steady",
        }
    }
}

/// A workload that loads what it maps, and how many accesses go by before it is steady.
#[derive(Clone, Debug, PartialEq)]
pub struct Steady {
    /// The workload, with its loading.
    pub workload: Workload,
    /// Accesses before counting begins: those of its setup and its loading, and a quarter of the others.
    pub warm_up_accesses: u64,
}

/// One in so many of its accesses warms a steady workload up.
const WARM_UP_SHARE: u64 = 4;

impl Steady {
    pub(crate) fn of(mut workload: Workload) -> Self {
        let plain = workload.facts().accesses.value();
        let setup = match workload.spec() {
            Spec::Script(script) => Facts::setup_accesses(script),
            _ => 0,
        };
        workload.mark_loaded();
        let loading = loading_accesses(workload.spec());
        Self { workload, warm_up_accesses: setup + loading + plain.saturating_sub(setup) / WARM_UP_SHARE }
    }
}

/// Accesses that loading adds to a workload.
pub(crate) fn loading_accesses(spec: &Spec) -> u64 {
    match spec {
        Spec::Sequential(s) => s.footprint.pages(),
        Spec::Uniform(s) => s.footprint.pages(),
        Spec::Zipf(s) => s.footprint.pages(),
        Spec::PointerChase(s) => s.footprint.pages(),
        Spec::Script(script) => loads(script).map(|touch| touch.count.get()).sum(),
        Spec::TouchAndFree(_) | Spec::ForkAndExit(_) | Spec::Churn(_) | Spec::Residents(_) => 0,
    }
}

/// The script with one store to each page of each area of memory that its setup maps, after its setup.
pub(crate) fn loaded(script: &Script) -> Script {
    let mut script = script.clone();
    let loads: Vec<_> = loads(&script).map(Step::Touch).collect();
    script.setup.extend(loads);
    script
}

fn loads(script: &Script) -> impl Iterator<Item = Touch> + '_ {
    let mapped = script.setup.iter().filter_map(|step| if let Step::Map(area) = step { Some(area) } else { None });
    mapped.filter_map(|name| {
        let area = script.areas.get(name)?;
        let memory = matches!(area.of, AreaKind::Anonymous | AreaKind::Shared);
        let count = Count::try_new(area.size.pages()).ok().filter(|_| memory)?;
        let (area, pattern, write_share) = (name.clone(), Pattern::Pages, Share::ONE);
        Some(Touch { area, count, pattern, write_share, fetch: false, pages: None })
    })
}

/// Pages of one area that are still to be loaded, in order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loading {
    pub(crate) next: u64,
    pub(crate) left: u64,
}

impl Loading {
    /// Fills the batch with the next stores; `false` where nothing is left.
    pub(crate) fn fill(&mut self, batch: &mut Batch, instructions_per_access: u64) -> bool {
        let count = self.left.min(Batch::CAPACITY as u64);
        let page = |i| memvirt_addr::Gva::new_truncate(self.next + (i << 12));
        batch.run.extend((0..count).map(|i| memvirt_addr::Acc::user(page(i), memvirt_addr::AccessKind::Write)));
        batch.instructions += count * instructions_per_access;
        self.next += count << 12;
        self.left -= count;
        count > 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use memvirt_ops::process::Source;

    use super::*;

    /// The pages stored to before the warm-up's end, and the accesses of the whole stream.
    fn run(steady: &Steady) -> (BTreeSet<u64>, u64, u64) {
        let (mut stream, mut batch) = (steady.workload.generator(1), Batch::default());
        let (mut pages, mut before, mut all) = (BTreeSet::new(), 0, 0);
        while stream.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
            if all < steady.warm_up_accesses {
                pages.extend(batch.run.iter().filter(|acc| acc.is_write()).map(|acc| acc.gva().as_u64() >> 12));
                before = all + batch.run.len() as u64;
            }
            all += batch.run.len() as u64;
        }
        (pages, before, all)
    }

    #[test]
    fn every_page_is_stored_to_before_counting_begins() {
        for name in ["gups", "zipf", "pointer-chase", "graph", "compute", "stream"] {
            let workload = Workload::find(name).unwrap().scaled(0.05).unwrap();
            let plain = workload.facts().accesses.value();
            let footprint = workload.facts().footprint_bytes >> 12;
            let steady = workload.steady();
            assert_eq!(steady.workload.facts().accesses.value(), plain + footprint, "{name}");
            let (pages, before, all) = run(&steady);
            assert!(pages.len() as u64 >= footprint, "{name}: {} of {footprint}", pages.len());
            assert!(before < steady.warm_up_accesses + Batch::CAPACITY as u64, "{name}");
            assert!(all - before > plain / 2, "{name}: {before} of {all} warm up, {plain} without loading");
        }
    }

    #[test]
    fn after_loading_comes_what_comes_without() {
        for name in ["zipf", "graph"] {
            let workload = Workload::find(name).unwrap().scaled(0.05).unwrap();
            let accesses = |workload: &Workload| {
                let (mut stream, mut batch, mut all) = (workload.generator(7), Batch::default(), Vec::new());
                while stream.next_batch(&mut batch).unwrap_or_else(|never| match never {}) {
                    all.extend_from_slice(&batch.run);
                }
                all
            };
            let plain = accesses(&workload);
            let loaded = accesses(&workload.steady().workload);
            assert!(loaded.ends_with(&plain), "{name}");
        }
    }

    #[test]
    fn a_field_set_later_leaves_the_loading() {
        let loaded = Workload::find("gups").unwrap().steady().workload.with_field("footprint", "1MiB").unwrap();
        assert!(loaded.is_loaded());
        assert_eq!(loaded.facts().accesses.value(), 1_000_256);
    }

    #[test]
    fn files_say_how_they_are_measured() {
        assert_eq!(Workload::find("gups").unwrap().measured(), Measured::Steady);
        assert_eq!(Workload::find("fork").unwrap().measured(), Measured::FromStart);
    }
}
