//! One row of a footprint: a run, its bytes over time, at their peak and by process.
//!
//! Every figure is counted in the tables of the run. The series costs a look between batches; who owns which table is found at the
//! end of the run, and where the peak lay before it, in a second run of the same stream up to there.

use std::convert::Infallible;

use memvirt_machine::{Guest, Outcome, Setup, Watch, run_watched};
use memvirt_ops::VmId;
use memvirt_ops::process::{Batch, Source};
use memvirt_platform::{Attribution, Counters, ExitReason, Platform, ShadowSum};
use serde::Serialize;

use crate::error::LabError;

/// Bytes of page tables and of what is kept beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// The guest's own tables, its kernel's included.
    pub guest: u64,
    /// Shadow tables.
    pub shadow: u64,
    /// Nested tables.
    pub nested: u64,
    /// The reverse map.
    pub reverse_map: u64,
    /// What else the hypervisor keeps: headers, shadowed translations, the memory slot's other records, the hash.
    pub records: u64,
}

impl Bytes {
    /// All.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.guest + self.virtualization()
    }

    /// All but the guest's own.
    #[must_use]
    pub const fn virtualization(&self) -> u64 {
        self.shadow + self.nested + self.reverse_map + self.records
    }

    /// Guest tables, shadow tables, nested tables, reverse map, records.
    #[must_use]
    pub const fn kinds(&self) -> [u64; 5] {
        [self.guest, self.shadow, self.nested, self.reverse_map, self.records]
    }

    fn now(guest: &Guest, platform: &dyn Platform) -> Self {
        let below = platform.table_bytes();
        Self {
            guest: guest.table_bytes(),
            shadow: below.shadow,
            nested: below.nested,
            reverse_map: below.reverse_map,
            records: below.metadata - below.reverse_map,
        }
    }
}

/// One look at a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Accesses of processes so far.
    pub accesses: u64,
    /// Hidden faults so far.
    pub hidden_faults: u64,
    /// What there is.
    #[serde(flatten)]
    pub bytes: Bytes,
}

/// What one process' address space takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessBytes {
    /// Its number.
    pub process: u32,
    /// Its page tables in the guest, roots included.
    pub guest: u64,
    /// Shadow pages that serve it and no other, with their headers and translations.
    pub shadow: u64,
}

/// Whose tables they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Owners {
    /// By process.
    pub processes: Vec<ProcessBytes>,
    /// Tables of the guest's kernel, which all processes share.
    pub kernel: u64,
    /// Shadow pages that serve several processes, with their headers and translations.
    pub shadow_shared: u64,
    /// Shadow pages that serve nobody now: those of ended processes, of the kernel's own root, and what is kept to be found again.
    pub shadow_unowned: u64,
}

impl Owners {
    fn now(guest: &Guest, platform: &dyn Platform) -> Self {
        let tables = guest.tables_by_process(platform);
        let Attribution { roots, shared, detached } = platform.attribution(VmId::FIRST).unwrap_or_default();
        let all = roots.iter().map(|root| root.sum.bytes).sum::<u64>();
        let below = |root| {
            let at = roots.binary_search_by_key(&root, |entry| entry.root).ok();
            at.map_or(ShadowSum::default(), |at| roots[at].sum).bytes
        };
        let processes: Vec<_> = tables
            .iter()
            .map(|process| ProcessBytes {
                process: process.process.number(),
                guest: process.tables * 4096,
                shadow: below(process.root) + process.user_root.map_or(0, below),
            })
            .collect();
        let owned = |of: fn(&ProcessBytes) -> u64| processes.iter().map(of).sum::<u64>();
        Self {
            kernel: guest.table_bytes() - owned(|process| process.guest),
            shadow_shared: shared.bytes,
            shadow_unowned: detached.bytes + all - owned(|process| process.shadow),
            processes,
        }
    }
}

/// What a run took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// How it ended.
    pub outcome: Outcome,
    /// At the end.
    pub end: Bytes,
    /// Where the sum of all was largest.
    pub peak: Sample,
    /// Whose the tables at the peak were.
    pub owners: Owners,
    /// Frames of the guest's data at most.
    pub data_frames: u64,
    /// Page faults that the guest saw.
    pub guest_faults: u64,
    /// Hidden faults.
    pub hidden_faults: u64,
    /// Bytes over time: at most [`SAMPLES`] looks, evenly apart, and the last.
    pub series: Vec<Sample>,
}

/// Looks that a series keeps.
pub const SAMPLES: usize = 96;

/// What gathers them.
#[derive(Debug)]
struct Gatherer {
    looks: u64,
    every: u64,
    series: Vec<Sample>,
    peak: Option<(u64, Sample)>,
    last: Option<Sample>,
    /// Asked whose the tables are at this look, rather than at the end.
    wanted: Option<u64>,
    owners: Owners,
}

impl Gatherer {
    const fn new(wanted: Option<u64>) -> Self {
        let owners = Owners { processes: Vec::new(), kernel: 0, shadow_shared: 0, shadow_unowned: 0 };
        Self { looks: 0, every: 1, series: Vec::new(), peak: None, last: None, wanted, owners }
    }

    fn sample(guest: &Guest, platform: &dyn Platform, counters: &Counters) -> Sample {
        Sample {
            accesses: guest.stats().user_accesses,
            hidden_faults: counters.exits_for(ExitReason::HiddenFault),
            bytes: Bytes::now(guest, platform),
        }
    }

    /// Keeps every so many looks; where they become too many, every second of them and half as many from then on.
    fn keep(&mut self, sample: Sample) {
        if !self.looks.is_multiple_of(self.every) {
            return;
        }
        if self.series.len() == SAMPLES {
            let mut index = 0;
            self.series.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
            if !self.looks.is_multiple_of(self.every) {
                return;
            }
        }
        self.series.push(sample);
    }
}

impl Watch for Gatherer {
    fn look(&mut self, guest: &Guest, platform: &dyn Platform, counters: &Counters) {
        let sample = Self::sample(guest, platform, counters);
        if self.wanted == Some(self.looks) {
            self.owners = Owners::now(guest, platform);
        }
        if self.peak.is_none_or(|(_, peak)| sample.bytes.total() > peak.bytes.total()) {
            self.peak = Some((self.looks, sample));
        }
        self.keep(sample);
        self.looks += 1;
    }

    fn end(&mut self, guest: &Guest, platform: &dyn Platform, counters: &Counters) {
        self.last = Some(Self::sample(guest, platform, counters));
        if self.wanted.is_none() {
            self.owners = Owners::now(guest, platform);
        }
    }
}

/// Ends a stream after so many batches: nothing is to be seen after them.
struct Until<S> {
    source: S,
    batches: u64,
}

impl<S: Source> Source for Until<S> {
    type Error = S::Error;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, S::Error> {
        if self.batches == 0 {
            batch.clear();
            return Ok(false);
        }
        self.batches -= 1;
        self.source.next_batch(batch)
    }
}

/// Runs the stream that `open` gives, and once more where its peak lay before its end.
pub(super) fn measure<S: Source<Error = Infallible>>(
    setup: &Setup,
    open: impl Fn() -> S,
) -> Result<Measured, LabError> {
    let mut gatherer = Gatherer::new(None);
    let result = run_watched(setup, &mut open(), &mut |_| {}, &mut gatherer)?.result;
    // A run that did not begin has nothing.
    let nothing = Sample { accesses: 0, hidden_faults: 0, bytes: Bytes::default() };
    let last = gatherer.last.unwrap_or(nothing);
    let (at, peak) = gatherer.peak.unwrap_or((0, nothing));
    let mut owners = gatherer.owners;
    let at_end = peak.bytes.total() <= last.bytes.total();
    if !at_end {
        let mut again = Gatherer::new(Some(at));
        // Two looks for each batch.
        let mut source = Until { source: open(), batches: at / 2 + 1 };
        run_watched(setup, &mut source, &mut |_| {}, &mut again)?;
        owners = again.owners;
    }
    let mut series = gatherer.series;
    if series.last() != Some(&last) {
        series.push(last);
    }
    Ok(Measured {
        outcome: result.outcome,
        end: last.bytes,
        peak: if at_end { last } else { peak },
        owners,
        data_frames: result.guest.peak_data_frames,
        guest_faults: result.guest_page_faults,
        hidden_faults: last.hidden_faults,
        series,
    })
}
