//! What is in a trace, in one pass: [`TraceInfo`], the data behind `memvirt trace info`.

use std::collections::BTreeMap;
use std::io::Read;

use memvirt_addr::{Acc, AccessKind, Gva, Vpn};
use memvirt_ops::process::{Batch, Source};

use crate::error::TraceError;
use crate::format::Format;
use crate::input::Compression;
use crate::interleave::Repairs;
use crate::lackey::{LackeyReader, Tally};
use crate::recording::Recording;

/// A half-open range of addresses of which pages were touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AddressRange {
    /// The first address, the start of a 4 KiB page.
    pub start: u64,
    /// The address after the last page.
    pub end: u64,
    /// 4 KiB pages touched in it.
    pub pages: u64,
}

/// Which 4 KiB pages a run of accesses touches, and how.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// By page number: bits as numbered by [`AccessKind`].
    pages: BTreeMap<u64, u8>,
    /// The page last touched by each kind, which is nearly always the page touched next.
    last: [Option<Vpn>; 3],
}

impl Footprint {
    /// Adds accesses.
    pub fn add(&mut self, run: &[Acc]) {
        for &access in run {
            let (page, kind) = (access.gva().frame(), access.kind() as usize);
            if self.last[kind] != Some(page) {
                self.last[kind] = Some(page);
                *self.pages.entry(page.number()).or_default() |= 1 << kind;
            }
        }
    }

    /// Distinct pages touched by accesses of `kind`.
    #[must_use]
    pub fn pages_of(&self, kind: AccessKind) -> u64 {
        self.pages.values().filter(|&bits| bits & (1 << kind as u8) != 0).count() as u64
    }

    /// Distinct pages touched.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// The ranges that were touched, in order. Pages less than `gap_pages` apart stand in one range.
    #[must_use]
    pub fn ranges(&self, gap_pages: u64) -> Vec<AddressRange> {
        let mut ranges: Vec<(u64, u64, u64)> = Vec::new();
        for &page in self.pages.keys() {
            match ranges.last_mut() {
                Some((_, last, pages)) if page - *last <= gap_pages => (*last, *pages) = (page, *pages + 1),
                _ => ranges.push((page, page, 1)),
            }
        }
        let base = |page: u64| Vpn::new(page).base();
        let end = |page: u64| Gva::as_u64(base(page)).wrapping_add(4096);
        ranges
            .into_iter()
            .map(|(first, last, pages)| AddressRange { start: base(first).as_u64(), end: end(last), pages })
            .collect()
    }
}

/// A summary of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TraceInfo {
    /// The name of the trace.
    pub name: String,
    /// What it was recorded with.
    pub format: Format,
    /// How it is compressed.
    pub compression: Compression,
    /// What is kept of addresses, in a trace of memvirt's own.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub density: Option<&'static str>,
    /// What had to be decided to put processes in order.
    pub repairs: Repairs,
    /// Files beside the recording that are no part of it.
    pub left_out: Vec<String>,
    /// Bytes of the file, as it is compressed.
    pub file_bytes: u64,
    /// Counts of what its lines say.
    pub tally: Tally,
    /// Instructions delivered: one for each fetch of a log or an instruction trace; of perf's text the nanoseconds between two
    /// events of a task; 0 of strace's.
    pub instructions: u64,
    /// Accesses delivered: a modify is two, an access over several pages one for each.
    pub accesses: u64,
    /// Operations delivered between the accesses.
    pub operations: u64,
    /// Distinct 4 KiB pages touched.
    pub pages: u64,
    /// Those that instructions were fetched from.
    pub pages_fetched: u64,
    /// Those that were read.
    pub pages_read: u64,
    /// Those that were written.
    pub pages_written: u64,
    /// Where they lie; pages less than 2 MiB apart (the reach of one page table) stand in one range.
    pub ranges: Vec<AddressRange>,
    /// Why the trace ends early, where it does; everything above holds for what comes before.
    pub broken_off: Option<String>,
}

impl TraceInfo {
    /// Pages less than this far apart stand in one of [`TraceInfo::ranges`].
    pub const GAP_PAGES: u64 = 512;

    /// Reads a trace to its end. Memory is proportional to the pages it touches.
    ///
    /// # Errors
    ///
    /// Where the input is no log. A log that breaks off is summarized as far as it goes, see [`TraceInfo::broken_off`].
    pub fn read<R: Read>(reader: &mut LackeyReader<R>) -> Result<Self, TraceError> {
        let pass = pass(reader)?;
        Ok(Self {
            format: Format::Lackey,
            compression: reader.compression(),
            file_bytes: reader.progress().bytes(),
            tally: reader.tally().clone(),
            ..pass.into_info(reader.name().to_owned())
        })
    }

    /// The same for any recording.
    ///
    /// # Errors
    ///
    /// As for [`TraceInfo::read`].
    pub fn of(recording: &mut Recording) -> Result<Self, TraceError> {
        let pass = pass(recording)?;
        let (left_out, cut) = recording.left_out();
        let info = pass.into_info(recording.name().to_owned());
        Ok(Self {
            format: recording.format(),
            compression: recording.compression(),
            density: recording.header().map(|header| header.density.name()),
            repairs: recording.repairs(),
            left_out,
            file_bytes: recording.file_bytes().unwrap_or_else(|| recording.progress().bytes()),
            tally: recording.tally(),
            broken_off: info.broken_off.or(cut),
            ..info
        })
    }
}

/// What one pass over a stream finds.
#[derive(Default)]
struct Pass {
    footprint: Footprint,
    instructions: u64,
    accesses: u64,
    operations: u64,
    broken_off: Option<String>,
}

fn pass(source: &mut impl Source<Error = TraceError>) -> Result<Pass, TraceError> {
    let mut pass = Pass::default();
    let mut batch = Batch::default();
    loop {
        match source.next_batch(&mut batch) {
            Ok(true) => {}
            Ok(false) => return Ok(pass),
            Err(error) if pass.accesses + pass.operations > 0 => {
                pass.broken_off = Some(error.to_string());
                return Ok(pass);
            }
            Err(error) => return Err(error),
        }
        pass.footprint.add(&batch.run);
        pass.instructions = pass.instructions.saturating_add(batch.instructions);
        pass.accesses += batch.run.len() as u64;
        pass.operations += u64::from(batch.then.is_some());
    }
}

impl Pass {
    fn into_info(self, name: String) -> TraceInfo {
        TraceInfo {
            name,
            format: Format::Lackey,
            compression: Compression::Plain,
            density: None,
            repairs: Repairs::default(),
            left_out: Vec::new(),
            file_bytes: 0,
            tally: Tally::default(),
            instructions: self.instructions,
            accesses: self.accesses,
            operations: self.operations,
            pages: self.footprint.pages(),
            pages_fetched: self.footprint.pages_of(AccessKind::Fetch),
            pages_read: self.footprint.pages_of(AccessKind::Read),
            pages_written: self.footprint.pages_of(AccessKind::Write),
            ranges: self.footprint.ranges(TraceInfo::GAP_PAGES),
            broken_off: self.broken_off,
        }
    }
}
