//! The results of an experiment, and what they say about each other.

use memvirt_machine::{FrameOrder, MachineSpec, Outcome, RunResult};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::error::LabError;
use crate::input::Described;

/// The results of one experiment, in the stable form of `docs/results.md`. Holds neither times nor dates nor absolute paths:
/// the same seed gives the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The command that makes these results.
    pub command: String,
    /// The seed of generators.
    pub seed: u64,
    /// What was run.
    pub workload: Described,
    /// The machine that priced.
    pub machine: MachineSpec,
    /// What each regime did, in the order asked for.
    pub results: Vec<RunResult>,
}

impl Serialize for Comparison {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Comparison", 6)?;
        object.serialize_field("schema", Self::SCHEMA)?;
        object.serialize_field("command", &self.command)?;
        object.serialize_field("seed", &self.seed)?;
        object.serialize_field("workload", &self.workload)?;
        object.serialize_field("machine", &self.machine)?;
        object.serialize_field("results", &self.results)?;
        object.end()
    }
}

/// How much faster nested paging is: T_shadow / T_nested - 1.
#[derive(Clone, Copy, Debug)]
pub struct Benefit<'a> {
    /// The run with shadow paging.
    pub shadow: &'a RunResult,
    /// The run with nested paging.
    pub nested: &'a RunResult,
}

impl Benefit<'_> {
    /// The benefit as a fraction; 0.2 is a fifth faster, negative where shadow paging wins.
    #[must_use]
    pub fn value(&self) -> f64 {
        ratio(self.shadow.cycles.total, self.nested.cycles.total) - 1.0
    }
}

impl Comparison {
    /// The value of `schema`.
    pub const SCHEMA: &'static str = "memvirt/compare/1";

    /// The results as JSON, for people to read too, with a newline at the end.
    ///
    /// # Errors
    ///
    /// Never in practice: every part serializes.
    pub fn to_json(&self) -> Result<String, LabError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The native run, where there is one that came to its end.
    #[must_use]
    pub fn native(&self) -> Option<&RunResult> {
        self.results.iter().find(|result| result.regime.name() == "native")
    }

    /// How many times longer than native a run took, where both ran the same stream to the same point.
    #[must_use]
    pub fn slowdown(&self, result: &RunResult) -> Option<f64> {
        let native = self.native().filter(|native| comparable(native, result))?;
        Some(ratio(result.cycles.total, native.cycles.total))
    }

    /// The benefit of each nested regime over each shadow regime.
    pub fn benefits(&self) -> impl Iterator<Item = Benefit<'_>> {
        let kind = |prefix: &'static str| {
            self.results.iter().filter(move |result| result.regime.name().split(':').next() == Some(prefix))
        };
        kind("shadow")
            .flat_map(move |shadow| kind("nested").map(move |nested| Benefit { shadow, nested }))
            .filter(|benefit| comparable(benefit.shadow, benefit.nested))
    }

    /// The switches of the runs, in words; they are the same for all.
    #[must_use]
    pub fn switches(&self) -> String {
        let Some(first) = self.results.first() else { return String::new() };
        let on = |switch| if switch { "on" } else { "off" };
        let (guest, host) = (&first.switches.guest, &first.switches.host);
        let measure = &first.switches.measure;
        let mut extra = format!(", mode {}", first.mode);
        if host.walk_caches {
            extra += ", walk caches on";
        }
        if measure.walkers.get() > 1 {
            extra += &format!(", {} walkers", measure.walkers);
        }
        if host.host_frames != FrameOrder::Contiguous {
            extra += &format!(", host frames {}", host.host_frames);
        }
        if measure.prefault {
            extra += ", prefaulted";
        }
        if measure.warm_up_accesses > 0 {
            extra += &format!(", warm-up of {} accesses", crate::text::count(measure.warm_up_accesses));
        }
        format!(
            "guest pages {}, host pages {}, direct map {}, KPTI {}, PCID {}, tags {}, EPT A/D {}, memory {}, {} vCPU{extra}",
            guest.guest_page,
            host.host_page,
            guest.direct_map_page,
            on(guest.kpti),
            on(guest.pcid),
            on(host.tags),
            on(host.ept_ad),
            crate::text::bytes(guest.memory_bytes),
            first.switches.vcpus
        )
    }

    /// Broken translations over all runs.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.results.iter().map(|result| result.stale.broken).sum()
    }

    /// Runs in which the guest did something else than in the first one of the same guest although both came to their end. (A
    /// regime may ask for another guest: [`RegimeKind::asks_of`](memvirt_machine::RegimeKind::asks_of).)
    pub fn strays(&self) -> impl Iterator<Item = &RunResult> {
        // Several vCPUs interrupt each other as simulated time has it, which differs between regimes.
        let alone = |result: &&RunResult| result.outcome == Outcome::Completed && result.smp.is_none();
        let completed = move || self.results.iter().filter(alone);
        completed().filter(move |result| {
            let first = completed().find(|first| first.switches.guest == result.switches.guest);
            first.is_some_and(|first| first.guest != result.guest)
        })
    }
}

/// Whether two runs did the same work, so that their times can be compared.
fn comparable(a: &RunResult, b: &RunResult) -> bool {
    a.outcome == b.outcome && a.guest.user_accesses == b.guest.user_accesses && a.switches == b.switches
}

/// A quotient for people; 0 over 0 is 1.
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub(crate) fn ratio(a: u64, b: u64) -> f64 {
    if a == b { 1.0 } else { a as f64 / b as f64 }
}
