//! System calls that change an address space, as operations: the same for every recording that names them.
//!
//! Numbers and flags are those of Linux on x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`, mmap(2), mremap(2), brk(2),
//! madvise(2)).

use std::collections::BTreeMap;

use memvirt_addr::{Gva, PageSize};
use memvirt_ops::process::{Backing, FileId, Op, Prot, Range, Sharing};

pub(crate) const OPEN: u32 = 2;
pub(crate) const CLOSE: u32 = 3;
pub(crate) const MMAP: u32 = 9;
pub(crate) const MPROTECT: u32 = 10;
pub(crate) const MUNMAP: u32 = 11;
pub(crate) const BRK: u32 = 12;
pub(crate) const MREMAP: u32 = 25;
pub(crate) const MADVISE: u32 = 28;
pub(crate) const CLONE: u32 = 56;
pub(crate) const FORK: u32 = 57;
pub(crate) const VFORK: u32 = 58;
pub(crate) const EXECVE: u32 = 59;
pub(crate) const EXIT: u32 = 60;
pub(crate) const WAIT4: u32 = 61;
pub(crate) const EXIT_GROUP: u32 = 231;
pub(crate) const OPENAT: u32 = 257;
pub(crate) const EXECVEAT: u32 = 322;
pub(crate) const CLONE3: u32 = 435;

pub(crate) const CLONE_VFORK: u64 = 0x4000;
pub(crate) const CLONE_THREAD: u64 = 0x1_0000;

const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MAP_TYPE: u64 = 0xf;
const MAP_PRIVATE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;
const MADV_DONTNEED: u64 = 4;

/// Files that are remembered as open at most.
const MAX_OPEN: usize = 4096;

/// A call whose range is none.
pub(crate) const BAD_RANGE: &str = "a range of addresses that exists";

/// What is known of the open files of a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    open: BTreeMap<u64, FileId>,
}

impl Files {
    /// A file was opened under this descriptor.
    pub(crate) fn opened(&mut self, descriptor: u64, file: FileId) {
        if self.open.len() < MAX_OPEN {
            self.open.insert(descriptor, file);
        }
    }

    /// The descriptor is free again.
    pub(crate) fn closed(&mut self, descriptor: u64) {
        self.open.remove(&descriptor);
    }

    /// The file behind a descriptor. One whose path nobody said has a number by itself: mapped parts of one descriptor
    /// belong together as long as the recording does not say otherwise.
    fn behind(&self, descriptor: u64) -> FileId {
        self.open.get(&descriptor).copied().unwrap_or_else(|| file_named(&descriptor.to_le_bytes()))
    }
}

/// A number for a file by its path: the same in every process.
pub(crate) fn file_named(path: &[u8]) -> FileId {
    FileId(crc32fast::hash(path))
}

/// What a call that succeeded with `result` does; `Ok(None)`: nothing to the address space.
///
/// # Errors
///
/// What was expected where the range is impossible.
pub(crate) fn lower(number: u32, arguments: &[u64; 6], result: u64, files: &Files) -> Result<Option<Op>, &'static str> {
    let [first, second, third, fourth, fifth, sixth] = *arguments;
    let op = match number {
        MMAP => range(result, second).map(|range| mapped(range, prot(third), fourth, fifth, sixth, files)),
        MUNMAP => range(first, second).map(|range| Op::Munmap { range }),
        // Lengths of zero are permitted here, and do nothing.
        MPROTECT | MADVISE if second == 0 => return Ok(None),
        MPROTECT => range(first, second).map(|range| Op::Mprotect { range, prot: prot(third) }),
        MADVISE if third == MADV_DONTNEED => range(first, second).map(|range| Op::Discard { range }),
        BRK => Gva::try_new(result).ok().filter(|end| end.as_u64() < 1 << 56).map(|end| Op::Brk { end }),
        MREMAP => remap(result, first, second, third),
        _ => return Ok(None),
    };
    op.map(Some).ok_or(BAD_RANGE)
}

fn mapped(range: Range, prot: Prot, flags: u64, descriptor: u64, offset: u64, files: &Files) -> Op {
    let private = flags & MAP_TYPE == MAP_PRIVATE;
    match (private, flags & MAP_ANONYMOUS != 0) {
        (true, true) => Op::Mmap { range, prot, backing: Backing::AnonymousPrivate },
        (false, true) => Op::Mmap { range, prot, backing: Backing::AnonymousShared },
        (private, false) => Op::MapFile {
            range,
            prot,
            sharing: if private { Sharing::Private } else { Sharing::Shared },
            file: files.behind(descriptor),
            first_page: offset >> PageSize::Size4K.shift(),
        },
    }
}

fn remap(new: u64, old: u64, old_bytes: u64, new_bytes: u64) -> Option<Op> {
    // Old size zero: a second mapping of the same pages.
    let from = if old_bytes == 0 { Range { start: Gva::try_new(old).ok()?, bytes: 0 } } else { range(old, old_bytes)? };
    Some(Op::Mremap { from, to: range(new, new_bytes)? })
}

/// The permissions that bits of mmap and mprotect name.
pub(crate) const fn prot(bits: u64) -> Prot {
    Prot { read: bits & PROT_READ != 0, write: bits & PROT_WRITE != 0, execute: bits & PROT_EXEC != 0 }
}

/// The range, where it has bytes and its last one is a canonical address above its first.
pub(crate) fn range(start: u64, bytes: u64) -> Option<Range> {
    let first = Gva::try_new(start).ok()?;
    first.checked_add(bytes.checked_sub(1)?)?;
    Some(Range { start: first, bytes })
}

/// A call that changes areas, as a system call like any other.
pub(crate) const fn as_plain_call(op: Op) -> Op {
    match op {
        Op::Mmap { .. } | Op::MapFile { .. } => Op::Syscall { number: MMAP },
        Op::Mprotect { .. } => Op::Syscall { number: MPROTECT },
        Op::Munmap { .. } => Op::Syscall { number: MUNMAP },
        Op::Mremap { .. } => Op::Syscall { number: MREMAP },
        Op::Brk { .. } => Op::Syscall { number: BRK },
        Op::Discard { .. } => Op::Syscall { number: MADVISE },
        other => other,
    }
}
