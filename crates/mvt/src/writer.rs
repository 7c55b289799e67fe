//! Writing a file: [`Writer`].

use std::collections::BTreeMap;
use std::io::{self, Write};

use memvirt_ops::process::{Batch, Op, ProcessId};

use crate::block::{Builder, storable};
use crate::error::MvtError;
use crate::format::{Header, Order};
use crate::index::{self, BlockInfo};

/// The compression level: beyond it a second of processor time saves less than a hundredth of the file.
const LEVEL: i32 = 9;

/// What a finished file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Processes.
    pub processes: u64,
    /// Batches.
    pub batches: u64,
    /// Accesses.
    pub accesses: u64,
    /// Instructions.
    pub instructions: u64,
}

/// Writes batches as a file, block by block. Memory: one open block for each process that has not ended.
pub struct Writer<W: Write> {
    output: W,
    name: String,
    header: Header,
    open: BTreeMap<ProcessId, Builder>,
    blocks: Vec<BlockInfo>,
    offset: u64,
    compressor: zstd::bulk::Compressor<'static>,
    sums: Written,
}

impl<W: Write> Writer<W> {
    /// A file with this header on `output`, which messages call `name`.
    ///
    /// # Errors
    ///
    /// Where the header cannot be written.
    pub fn new(output: W, name: impl Into<String>, header: Header) -> Result<Self, MvtError> {
        let name = name.into();
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(|source| failed(&name, source))?;
        let (open, blocks, sums) = (BTreeMap::new(), Vec::new(), Written::default());
        let mut writer = Self { output, name, header, open, blocks, offset: 0, compressor, sums };
        let bytes = writer.header.to_bytes();
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Adds the next batch of a process. Where the order is [`Order::Recorded`] all batches go to
    /// [`ProcessId::FIRST`]: they say themselves who is current.
    ///
    /// # Errors
    ///
    /// [`MvtError::Unstorable`] for what is no batch of a process, [`MvtError::Io`] where it cannot be written.
    pub fn batch(&mut self, process: ProcessId, batch: &Batch) -> Result<(), MvtError> {
        storable(batch).map_err(MvtError::Unstorable)?;
        let (order, shift) = (self.header.order, self.header.density.shift());
        if order == Order::Recorded && process != ProcessId::FIRST {
            return Err(MvtError::Unstorable("it has a recorded order and comes from several processes"));
        }
        let builder = self.open.entry(process).or_insert_with(|| Builder::new(process, shift));
        builder.add(batch);
        if order == Order::Free && matches!(batch.then, Some(Op::Exit)) {
            return self.close(process, true);
        }
        if builder.is_full() { self.close(process, false) } else { Ok(()) }
    }

    fn close(&mut self, process: ProcessId, last: bool) -> Result<(), MvtError> {
        let Some(builder) = self.open.get_mut(&process) else { return Ok(()) };
        let closed = builder.close(last, &mut self.compressor);
        let (head, packed) = closed.map_err(|source| failed(&self.name, source))?;
        let block = BlockInfo::new(&head, self.offset);
        self.put(&head.to_bytes())?;
        self.put(&packed)?;
        self.blocks.push(block);
        if last {
            self.open.remove(&process);
            self.sums.processes += 1;
        }
        self.sums.batches += u64::from(block.batches);
        self.sums.accesses += block.accesses;
        self.sums.instructions = self.sums.instructions.saturating_add(block.instructions);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), MvtError> {
        self.output.write_all(bytes).map_err(|source| failed(&self.name, source))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Closes all blocks, writes the index, and gives the output back.
    ///
    /// # Errors
    ///
    /// Where that cannot be written.
    pub fn finish(mut self) -> Result<(Written, W), MvtError> {
        while let Some(process) = self.open.keys().next().copied() {
            self.close(process, true)?;
        }
        let pack = |plain: &[u8]| zstd::bulk::compress(plain, LEVEL).unwrap_or_default();
        let index = index::to_bytes(&self.blocks, self.offset, pack);
        self.put(&index)?;
        self.output.flush().map_err(|source| failed(&self.name, source))?;
        let sums = Written { bytes: self.offset, blocks: self.blocks.len() as u64, ..self.sums };
        Ok((sums, self.output))
    }
}

fn failed(name: &str, source: io::Error) -> MvtError {
    MvtError::Io { name: name.to_owned(), what: "write", source }
}
