//! ChampSim traces: a record of 64 bytes an instruction.
//!
//! A record holds the instruction pointer, whether the instruction is a branch and was taken, up to two registers written and
//! four read, up to two addresses stored to and four loaded from (0: none); little-endian. It becomes a fetch, the loads, the
//! stores; sizes are not in it. A trace has no header: it is recognized by records that can be instructions. Source:
//! ChampSim, `inc/trace_instruction.h` (`input_instr`).

use std::io::{self, Read};

use memvirt_addr::{Acc, AccessKind, Gva};
use memvirt_ops::process::{Batch, Source};

use crate::error::TraceError;
use crate::input::{Compression, Input, Progress};
use crate::lackey::{Kind, Tally};

/// Bytes of a record.
pub(crate) const RECORD: usize = 64;
const DESTINATIONS: std::ops::Range<usize> = 16..32;
const SOURCES: std::ops::Range<usize> = 32..64;
/// Accesses of one record at most.
const MOST: usize = 7;

fn address(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn is_record(record: &[u8; RECORD]) -> bool {
    let user = |address: u64| address < 1 << 56;
    let pointer = address(record);
    pointer != 0
        && user(pointer)
        && record[8] < 2
        && record[9] < 2
        && (record[9] == 0 || record[8] == 1)
        && record[DESTINATIONS.start..].chunks_exact(8).all(|at| user(address(at)))
}

/// Whether a file that begins so is a ChampSim trace.
pub(crate) fn is_trace(head: &[u8]) -> bool {
    const LOOKED_AT: usize = 64;
    let (records, _) = head.as_chunks::<RECORD>();
    // Text and zeros have no records that look like these.
    !records.is_empty() && records.iter().take(LOOKED_AT).all(is_record)
}

/// A streaming reader.
pub(crate) struct ChampSimReader<R: Read> {
    name: String,
    input: Input<R>,
    tally: Tally,
    finished: bool,
}

impl<R: Read> ChampSimReader<R> {
    pub(crate) fn new(input: R, name: String, progress: Progress) -> Self {
        let tally = Tally { processes: 1, ..Tally::default() };
        Self { name, input: Input::new(input, progress), tally, finished: false }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn progress(&self) -> Progress {
        self.input.progress()
    }

    pub(crate) fn compression(&self) -> Compression {
        self.input.compression()
    }

    /// Fills `records`; returns how many bytes there were.
    fn read(&mut self, records: &mut [u8]) -> Result<usize, TraceError> {
        let mut got = 0;
        while got < records.len() {
            match self.input.read(&mut records[got..]) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if got >= RECORD => break,
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(got)
    }

    fn failed(&mut self, source: io::Error) -> TraceError {
        self.finished = true;
        let (name, line, compression) = (self.name.clone(), self.tally.lines, self.compression());
        if source.kind() == io::ErrorKind::UnexpectedEof && compression != Compression::Plain {
            TraceError::Truncated { name, compression, line }
        } else {
            TraceError::Read { name, line, source }
        }
    }

    fn record(&mut self, record: &[u8; RECORD], batch: &mut Batch) {
        self.tally.lines += 1;
        self.tally.raw_bytes += RECORD as u64;
        if !is_record(record) {
            self.tally.malformed(&self.name, "a record of an instruction", &record[..16]);
            return;
        }
        let mut add = |address: u64, kind, counted| {
            batch.run.push(Acc::user(Gva::new_truncate(address), kind));
            self.tally.access(counted);
        };
        add(address(record), AccessKind::Fetch, Kind::Fetch);
        for (range, kind, counted) in
            [(SOURCES, AccessKind::Read, Kind::Load), (DESTINATIONS, AccessKind::Write, Kind::Store)]
        {
            record[range].chunks_exact(8).map(address).filter(|at| *at != 0).for_each(|at| add(at, kind, counted));
        }
        batch.instructions += 1;
    }
}

impl<R: Read> Source for ChampSimReader<R> {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        batch.clear();
        let mut records = [0; RECORD * (Batch::CAPACITY / MOST)];
        while batch.is_empty() && !self.finished {
            let got = self.read(&mut records)?;
            let (whole, rest) = records[..got].as_chunks::<RECORD>();
            for record in whole {
                self.record(record, batch);
            }
            if !rest.is_empty() {
                self.tally.malformed(&self.name, "64 bytes of a record", rest);
            }
            self.finished = got < records.len() && whole.is_empty();
        }
        Ok(!batch.is_empty())
    }
}
