//! Where the blocks are: the index at the end of a file, and how it is found again where it is missing.

use std::io::{Read, Seek, SeekFrom};

use memvirt_ops::process::ProcessId;

use crate::block::{BLOCK_MAGIC, HEAD_BYTES, Head, MAX_BYTES};
use crate::error::Damage;
use crate::format::MAGIC;
use crate::varint::{put, take, take32};

pub(crate) const INDEX_MAGIC: [u8; 4] = *b"IDX1";
const END_MAGIC: [u8; 4] = *b"MVTE";
/// The index's head: magic, bytes before and after compression, checksum of the latter.
const INDEX_HEAD: usize = 16;
/// The last bytes: where the index begins, a checksum of that, magic.
pub(crate) const FOOTER_BYTES: usize = 16;

/// One block, as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Where its head begins in the file.
    pub offset: u64,
    /// Bytes of head and contents.
    pub bytes: u64,
    /// Whose batches it holds.
    pub process: ProcessId,
    /// Its number within the process.
    pub number: u32,
    /// Whether nothing of the process follows.
    pub last: bool,
    /// Batches in it.
    pub batches: u32,
    /// Accesses in it.
    pub accesses: u64,
    /// Instructions in it.
    pub instructions: u64,
}

impl BlockInfo {
    pub(crate) fn new(head: &Head, offset: u64) -> Self {
        Self {
            offset,
            bytes: HEAD_BYTES as u64 + u64::from(head.packed_bytes),
            process: head.process,
            number: head.number,
            last: head.last,
            batches: head.batches,
            accesses: head.accesses,
            instructions: head.instructions,
        }
    }
}

/// The index and the footer behind it, as bytes; the index begins at `offset` in the file.
pub(crate) fn to_bytes(blocks: &[BlockInfo], offset: u64, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut before = 0;
    put(&mut plain, blocks.len() as u64);
    for block in blocks {
        put(&mut plain, block.offset - before);
        before = block.offset;
        put(&mut plain, block.bytes);
        put(&mut plain, block.process.0.into());
        put(&mut plain, u64::from(block.number) << 1 | u64::from(block.last));
        put(&mut plain, block.batches.into());
        put(&mut plain, block.accesses);
        put(&mut plain, block.instructions);
    }
    let packed = compress(&plain);
    let mut bytes = INDEX_MAGIC.to_vec();
    for number in [plain.len(), packed.len()] {
        bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }
    bytes.extend(crc32fast::hash(&packed).to_le_bytes());
    bytes.extend(packed);
    bytes.extend(offset.to_le_bytes());
    bytes.extend(crc32fast::hash(&offset.to_le_bytes()).to_le_bytes());
    bytes.extend(END_MAGIC);
    bytes
}

fn entries(mut plain: &[u8]) -> Option<Vec<BlockInfo>> {
    let count = usize::try_from(take(&mut plain)?).ok()?;
    let mut blocks = Vec::with_capacity(count.min(plain.len()));
    let mut offset = 0u64;
    for _ in 0..count {
        offset = offset.checked_add(take(&mut plain)?)?;
        let (bytes, process) = (take(&mut plain)?, ProcessId(take32(&mut plain)?));
        let number = take(&mut plain)?;
        blocks.push(BlockInfo {
            offset,
            bytes,
            process,
            number: u32::try_from(number >> 1).ok()?,
            last: number & 1 != 0,
            batches: take32(&mut plain)?,
            accesses: take(&mut plain)?,
            instructions: take(&mut plain)?,
        });
    }
    plain.is_empty().then_some(blocks)
}

fn read_array<const N: usize>(input: &mut impl Read) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Where the footer at `at` says that the index begins; `None` where there is no footer, or a damaged one.
fn footer_at(input: &mut (impl Read + Seek), at: u64) -> Option<u64> {
    input.seek(SeekFrom::Start(at)).ok()?;
    let footer: [u8; FOOTER_BYTES] = read_array(input)?;
    let (offset, sum) = (&footer[..8], &footer[8..12]);
    let whole = footer[12..] == END_MAGIC && sum == crc32fast::hash(offset).to_le_bytes();
    whole.then_some(u64::from_le_bytes(*offset.first_chunk()?))
}

/// An index' head.
struct IndexHead {
    plain_bytes: u32,
    packed_bytes: u32,
    packed_sum: u32,
    /// Where the index ends in the file.
    end: u64,
}

/// The head of the index that begins at `offset`; `None` where there is none, or one that cannot be.
fn index_head(input: &mut (impl Read + Seek), offset: u64) -> Option<IndexHead> {
    input.seek(SeekFrom::Start(offset)).ok()?;
    let head: [u8; INDEX_HEAD] = read_array(input)?;
    let (plain_bytes, packed_bytes, packed_sum) = (number(&head, 4)?, number(&head, 8)?, number(&head, 12)?);
    let end = offset.checked_add(INDEX_HEAD as u64 + u64::from(packed_bytes))?;
    let possible = head[..4] == INDEX_MAGIC && plain_bytes <= MAX_BYTES && packed_bytes <= MAX_BYTES;
    possible.then_some(IndexHead { plain_bytes, packed_bytes, packed_sum, end })
}

/// The index that begins at `offset`, and where it ends; `None` where there is none, or a damaged one.
fn index_at(input: &mut (impl Read + Seek), offset: u64, size: u64) -> Option<(Vec<BlockInfo>, u64)> {
    let head = index_head(input, offset).filter(|head| head.end <= size)?;
    let mut packed = vec![0; head.packed_bytes as usize];
    input.read_exact(&mut packed).ok()?;
    if crc32fast::hash(&packed) != head.packed_sum {
        return None;
    }
    let blocks = entries(&zstd::bulk::decompress(&packed, head.plain_bytes as usize).ok()?)?;
    Some((blocks, head.end))
}

/// Reads the index of a whole file of `size` bytes; `None` where there is none, or a damaged one, or where it is not the last
/// of the file: then the footer is that of something appended.
pub(crate) fn read(input: &mut (impl Read + Seek), size: u64) -> Option<Vec<BlockInfo>> {
    let footer = size.checked_sub(FOOTER_BYTES as u64)?;
    let offset = footer_at(input, footer)?;
    let (blocks, end) = index_at(input, offset, size)?;
    (end == footer).then_some(blocks)
}

/// What is wrong with the index at `offset`, which did not do for the whole file, and where.
fn index_damage(input: &mut (impl Read + Seek), offset: u64, size: u64) -> Damage {
    let damage = |offset, what: String| Damage { offset, what };
    let Some((_, end)) = index_at(input, offset, size) else {
        let cut = size - offset < INDEX_HEAD as u64 || index_head(input, offset).is_some_and(|head| head.end > size);
        let what = if cut { "the file ends within its index: it is cut off" } else { "its index is damaged" };
        return damage(offset, what.to_owned());
    };
    let after = end + FOOTER_BYTES as u64;
    if after > size {
        return damage(end, "the file ends within its footer: it is cut off".to_owned());
    }
    if footer_at(input, end) != Some(offset) {
        return damage(end, "its footer is damaged".to_owned());
    }
    let next = input.seek(SeekFrom::Start(after)).ok().and_then(|_| read_array(input));
    let what = if next == Some(MAGIC) { "another .mvt trace is appended to it" } else { "something is appended to it" };
    damage(after, format!("the trace ends here and {} bytes follow: {what}", size - after))
}

/// Finds the blocks one after the other, as far as they are whole, and says where and why that ends.
pub(crate) fn scan(input: &mut (impl Read + Seek), mut offset: u64, size: u64) -> (Vec<BlockInfo>, Damage) {
    let mut blocks = Vec::new();
    let what = loop {
        if offset >= size {
            break "the file ends without its index: it is cut off";
        }
        if input.seek(SeekFrom::Start(offset)).is_err() {
            break "it cannot be read here";
        }
        let first: Option<[u8; 4]> = read_array(input);
        if first == Some(INDEX_MAGIC) {
            return (blocks, index_damage(input, offset, size));
        }
        let head = input.seek(SeekFrom::Start(offset)).ok().and_then(|_| read_array::<HEAD_BYTES>(input));
        let Some(head) = head else { break "the file ends within a block or its index: it is cut off" };
        let Some(head) = Head::parse(&head) else {
            break if head[..4] == BLOCK_MAGIC { "the head of a block is damaged" } else { "no block stands here" };
        };
        let block = BlockInfo::new(&head, offset);
        if offset + block.bytes > size {
            break "the file ends within a block: it is cut off";
        }
        offset += block.bytes;
        blocks.push(block);
    };
    (blocks, Damage { offset, what: what.to_owned() })
}

/// What is wrong with the blocks as a whole: those of each process must be numbered through and end with the last.
pub(crate) fn disorder(blocks: &[BlockInfo], size: u64) -> Option<Damage> {
    let mut next = std::collections::BTreeMap::new();
    for block in blocks {
        let wrong = |what: &str| Some(Damage { offset: block.offset, what: what.to_owned() });
        if block.offset.checked_add(block.bytes).is_none_or(|end| end > size) || block.bytes < HEAD_BYTES as u64 {
            return wrong("the index names a block that is not in the file");
        }
        let expected = next.entry(block.process).or_insert(Some(0));
        if *expected != Some(block.number) {
            return wrong("blocks of a process are missing or out of order");
        }
        *expected = if block.last { None } else { Some(block.number + 1) };
    }
    None
}
