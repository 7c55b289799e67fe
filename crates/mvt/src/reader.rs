//! Reading a file: [`Mvt`], and a stream for each process, [`ProcessReader`].

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memvirt_ops::process::{Batch, ProcessId, Source};

use crate::block::{Contents, HEAD_BYTES, Head};
use crate::error::{Damage, MvtError};
use crate::format::Header;
use crate::index::{self, BlockInfo};

/// An opened file. Clones share it.
#[derive(Debug)]
pub struct Mvt<R> {
    shared: Arc<Shared<R>>,
}

impl<R> Clone for Mvt<R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<R> {
    name: String,
    input: Mutex<R>,
    size: u64,
    header: Header,
    blocks: Vec<BlockInfo>,
    damage: Option<Damage>,
    read: Arc<AtomicU64>,
}

impl Mvt<File> {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// [`MvtError`], where it cannot be opened or is none. A file that is damaged further on can be opened, see
    /// [`Mvt::damage`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MvtError> {
        let name = path.as_ref().display().to_string();
        let file = File::open(&path).map_err(|source| MvtError::Io { name: name.clone(), what: "open", source })?;
        Self::new(file, name)
    }
}

impl<R: Read + Seek> Mvt<R> {
    /// A file in any input that can be searched.
    ///
    /// # Errors
    ///
    /// As for [`Mvt::open`].
    pub fn new(mut input: R, name: impl Into<String>) -> Result<Self, MvtError> {
        let name = name.into();
        let io = |source| MvtError::Io { name: name.clone(), what: "read", source };
        let size = input.seek(SeekFrom::End(0)).map_err(io)?;
        input.seek(SeekFrom::Start(0)).map_err(io)?;
        let (header, start) = Header::read(&mut input, &name)?;
        let (blocks, damage) = match index::read(&mut input, size) {
            Some(blocks) => {
                let damage = index::disorder(&blocks, size);
                (blocks, damage)
            }
            None => {
                let (blocks, damage) = index::scan(&mut input, start, size);
                (blocks, Some(damage))
            }
        };
        let shared = Shared { name, input: Mutex::new(input), size, header, blocks, damage, read: Arc::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The name given when it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What the file says of itself.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.shared.header
    }

    /// Its blocks, in the order of the file.
    #[must_use]
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.shared.blocks
    }

    /// What is known to be broken before any block was read: a file that is cut off, or a bad index.
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        self.shared.damage.as_ref()
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.size
    }

    /// Bytes of the blocks that were read so far, by all streams together; for a look from another thread.
    #[must_use]
    pub fn bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.read)
    }

    /// The processes that have blocks, in order of their numbers.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessId> {
        let mut all: Vec<_> = self.shared.blocks.iter().map(|block| block.process).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The stream of one process; empty where it has no blocks.
    #[must_use]
    pub fn process(&self, process: ProcessId) -> ProcessReader<R> {
        let blocks: Vec<_> = self.shared.blocks.iter().filter(|block| block.process == process).copied().collect();
        ProcessReader { mvt: self.clone(), blocks, next: 0, contents: None, finished: false }
    }

    fn damaged(&self, damage: Damage) -> MvtError {
        MvtError::Damaged { name: self.shared.name.clone(), damage }
    }

    /// Reads and unpacks one block, and checks it against the index.
    pub(crate) fn contents(&self, block: &BlockInfo) -> Result<Contents, MvtError> {
        let wrong = |what: &str| self.damaged(Damage { offset: block.offset, what: format!("a block: {what}") });
        let length = usize::try_from(block.bytes).map_err(|_| wrong("it is longer than any"))?;
        if block.bytes > self.shared.size || length < HEAD_BYTES {
            return Err(wrong("it is not in the file"));
        }
        let mut bytes = vec![0; length];
        {
            let mut input = self.shared.input.lock().unwrap_or_else(PoisonError::into_inner);
            let read = input.seek(SeekFrom::Start(block.offset)).and_then(|_| input.read_exact(&mut bytes));
            read.map_err(|source| MvtError::Io { name: self.shared.name.clone(), what: "read", source })?;
        }
        let (head, packed) = bytes.split_first_chunk().ok_or_else(|| wrong("it is not in the file"))?;
        let head = Head::parse(head).ok_or_else(|| wrong("its head is damaged"))?;
        if BlockInfo::new(&head, block.offset) != *block {
            return Err(wrong("its head and the index disagree"));
        }
        let contents = Contents::unpack(&head, packed, self.shared.header.density.shift()).map_err(wrong)?;
        self.shared.read.fetch_add(block.bytes, Ordering::Relaxed);
        Ok(contents)
    }
}

/// The stream of one process, block by block.
///
/// A stream that the file does not hold to its end gives what there is, and then [`MvtError::Damaged`].
#[derive(Debug)]
pub struct ProcessReader<R> {
    mvt: Mvt<R>,
    blocks: Vec<BlockInfo>,
    next: usize,
    contents: Option<Contents>,
    finished: bool,
}

impl<R: Read + Seek> ProcessReader<R> {
    fn advance(&mut self, batch: &mut Batch) -> Result<bool, MvtError> {
        loop {
            if let Some(contents) = &mut self.contents {
                let block = self.blocks[self.next - 1];
                match contents.next(batch) {
                    Ok(true) => return Ok(true),
                    Ok(false) => self.contents = None,
                    Err(what) => {
                        batch.clear();
                        let damage = Damage { offset: block.offset, what: format!("a block: {what}") };
                        return Err(self.mvt.damaged(damage));
                    }
                }
            }
            match self.blocks.get(self.next) {
                Some(block) => {
                    self.next += 1;
                    self.contents = Some(self.mvt.contents(block)?);
                }
                None => return self.end(),
            }
        }
    }

    /// There is no further block: whether that is in order.
    fn end(&self) -> Result<bool, MvtError> {
        let whole = self.blocks.last().is_some_and(|block| block.last);
        match self.mvt.damage() {
            Some(damage) if !whole => Err(self.mvt.damaged(damage.clone())),
            _ => Ok(false),
        }
    }
}

impl<R: Read + Seek> Source for ProcessReader<R> {
    type Error = MvtError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, MvtError> {
        batch.clear();
        if self.finished {
            return Ok(false);
        }
        let more = self.advance(batch);
        self.finished = !matches!(more, Ok(true));
        more
    }
}
