//! A block: batches of one process, compressed, behind a head that says what is in it.
//!
//! A block needs nothing before it to be read. Its head and its contents have a checksum each.

use memvirt_addr::Privilege;
use memvirt_ops::process::{Batch, ProcessId};

use crate::codec::{Decoder, Encoder, Wrong};
use crate::ops::{put_op, take_op};
use crate::varint::{put, take};

/// The bytes of a head.
pub(crate) const HEAD_BYTES: usize = 48;
pub(crate) const BLOCK_MAGIC: [u8; 4] = *b"BLK1";
/// No block holds more than this, compressed or not.
pub(crate) const MAX_BYTES: u32 = 16 << 20;
/// A block is closed once it holds so many bytes before compression.
const FULL_BYTES: usize = 2 << 20;
/// The bit beside the number of batches that marks the last block of a process.
const LAST: u32 = 1 << 31;

/// What a block's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) process: ProcessId,
    /// The number of the block within its process.
    pub(crate) number: u32,
    /// Whether nothing of the process follows.
    pub(crate) last: bool,
    pub(crate) batches: u32,
    pub(crate) accesses: u64,
    pub(crate) instructions: u64,
    /// Bytes of the contents before compression.
    pub(crate) plain_bytes: u32,
    /// Bytes of the contents in the file.
    pub(crate) packed_bytes: u32,
    /// The checksum of the contents in the file.
    pub(crate) packed_sum: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Head {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = BLOCK_MAGIC.to_vec();
        bytes.extend(self.process.0.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend((self.batches | if self.last { LAST } else { 0 }).to_le_bytes());
        bytes.extend(self.accesses.to_le_bytes());
        bytes.extend(self.instructions.to_le_bytes());
        for number in [self.plain_bytes, self.packed_bytes, self.packed_sum] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        debug_assert!(bytes.len() == HEAD_BYTES, "a head has its length");
        bytes
    }

    /// `None` where the bytes are no head, or a damaged one.
    pub(crate) fn parse(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let (fields, sum) = bytes.split_at(HEAD_BYTES - 4);
        if bytes[..4] != BLOCK_MAGIC || sum != crc32fast::hash(fields).to_le_bytes() {
            return None;
        }
        let head = Self {
            process: ProcessId(u32_at(bytes, 4)?),
            number: u32_at(bytes, 8)?,
            last: u32_at(bytes, 12)? & LAST != 0,
            batches: u32_at(bytes, 12)? & !LAST,
            accesses: u64_at(bytes, 16)?,
            instructions: u64_at(bytes, 24)?,
            plain_bytes: u32_at(bytes, 32)?,
            packed_bytes: u32_at(bytes, 36)?,
            packed_sum: u32_at(bytes, 40)?,
        };
        (head.plain_bytes <= MAX_BYTES && head.packed_bytes <= MAX_BYTES).then_some(head)
    }
}

/// A block being filled.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    encoder: Encoder,
    batches: Vec<u8>,
    head: Head,
}

impl Builder {
    pub(crate) fn new(process: ProcessId, shift: u32) -> Self {
        let head = Head {
            process,
            number: 0,
            last: false,
            batches: 0,
            accesses: 0,
            instructions: 0,
            plain_bytes: 0,
            packed_bytes: 0,
            packed_sum: 0,
        };
        Self { encoder: Encoder::new(shift), batches: Vec::new(), head }
    }

    pub(crate) fn add(&mut self, batch: &Batch) {
        put(&mut self.batches, batch.run.len() as u64);
        put(&mut self.batches, batch.instructions);
        put_op(&mut self.batches, batch.then.as_ref());
        self.encoder.add(&batch.run);
        self.head.batches += 1;
        self.head.accesses += batch.run.len() as u64;
        self.head.instructions = self.head.instructions.saturating_add(batch.instructions);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.batches.len() + self.encoder.tokens.len() + self.encoder.units.len() >= FULL_BYTES
    }

    /// Closes the block: its head and contents. The next one begins.
    pub(crate) fn close(
        &mut self,
        last: bool,
        compressor: &mut zstd::bulk::Compressor<'_>,
    ) -> std::io::Result<(Head, Vec<u8>)> {
        let mut plain = Vec::new();
        put(&mut plain, self.batches.len() as u64);
        put(&mut plain, self.encoder.tokens.len() as u64);
        for column in [&self.batches, &self.encoder.tokens, &self.encoder.units] {
            plain.extend(column);
        }
        let packed = compressor.compress(&plain)?;
        let bytes = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let head = Head {
            last,
            plain_bytes: bytes(plain.len()),
            packed_bytes: bytes(packed.len()),
            packed_sum: crc32fast::hash(&packed),
            ..self.head
        };
        self.head = Head { number: head.number + 1, batches: 0, accesses: 0, instructions: 0, ..self.head };
        self.batches.clear();
        self.encoder.restart();
        Ok((head, packed))
    }
}

/// A block being read.
#[derive(Debug)]
pub(crate) struct Contents {
    plain: Vec<u8>,
    /// Where the columns that are left begin.
    batches: std::ops::Range<usize>,
    tokens: std::ops::Range<usize>,
    units: usize,
    decoder: Decoder,
}

impl Contents {
    /// Decompresses the contents of a block.
    pub(crate) fn unpack(head: &Head, packed: &[u8], shift: u32) -> Result<Self, Wrong> {
        const COLUMNS: Wrong = "its columns do not fit into it";
        if crc32fast::hash(packed) != head.packed_sum {
            return Err("the checksum of its contents is wrong");
        }
        let plain =
            zstd::bulk::decompress(packed, head.plain_bytes as usize).map_err(|_| "it cannot be decompressed")?;
        if plain.len() != head.plain_bytes as usize {
            return Err("it decompresses to another length");
        }
        let mut rest = &plain[..];
        let mut length = || usize::try_from(take(&mut rest)?).ok();
        let (batches, tokens) = (length().ok_or(COLUMNS)?, length().ok_or(COLUMNS)?);
        let start = plain.len() - rest.len();
        let middle = start.checked_add(batches).ok_or(COLUMNS)?;
        let units = middle.checked_add(tokens).filter(|end| *end <= plain.len()).ok_or(COLUMNS)?;
        Ok(Self { batches: start..middle, tokens: middle..units, units, plain, decoder: Decoder::new(shift) })
    }

    /// Fills `batch` with the next one; `false` at the end of the block.
    pub(crate) fn next(&mut self, batch: &mut Batch) -> Result<bool, Wrong> {
        const SHORT: Wrong = "a batch that ends too early";
        let mut batches = &self.plain[self.batches.clone()];
        if batches.is_empty() {
            let left = self.tokens.len() + self.plain.len() - self.units;
            return if left == 0 { Ok(false) } else { Err("accesses that belong to no batch") };
        }
        let count = take(&mut batches).ok_or(SHORT)?;
        let count = usize::try_from(count).ok().filter(|n| *n <= Batch::CAPACITY).ok_or("a batch larger than any")?;
        batch.instructions = take(&mut batches).ok_or(SHORT)?;
        batch.then = take_op(&mut batches).ok_or("an operation that there is not")?;
        self.batches.start = self.batches.end - batches.len();
        let (mut tokens, mut units) = (&self.plain[self.tokens.clone()], &self.plain[self.units..]);
        self.decoder.take(count, &mut tokens, &mut units, &mut batch.run)?;
        (self.tokens.start, self.units) = (self.tokens.end - tokens.len(), self.plain.len() - units.len());
        Ok(true)
    }
}

/// Whether a batch can be stored.
pub(crate) fn storable(batch: &Batch) -> Result<(), &'static str> {
    if batch.run.len() > Batch::CAPACITY {
        return Err("a batch holds more accesses than one may");
    }
    if batch.run.iter().any(|access| access.privilege() != Privilege::User) {
        return Err("it holds an access of the kernel, and streams are of processes");
    }
    Ok(())
}
