//! What a process does: the vocabulary of workload generators and trace readers.
//!
//! Memory accesses come in runs ([`Batch::run`]), because everything downstream is fastest on slices; whatever is not an
//! access ends a run ([`Batch::then`]). A stream belongs to one *current* process at a time; [`Op::Switch`] changes it.
//! The first process ([`ProcessId::FIRST`]) exists and is current when a stream starts.

use alloc::vec::Vec;

use memvirt_addr::{Acc, Gva};

use crate::arch::Trap;

/// The number of a guest process within one stream, given by the stream itself and never reused in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

impl ProcessId {
    /// The process that a stream starts with.
    pub const FIRST: Self = Self(0);

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What a memory area permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prot {
    /// Loads are permitted.
    pub read: bool,
    /// Stores are permitted (x86: implies loads).
    pub write: bool,
    /// Instruction fetches are permitted.
    pub execute: bool,
}

impl Prot {
    /// Nothing is permitted.
    pub const NONE: Self = Self { read: false, write: false, execute: false };
    /// Loads only.
    pub const R: Self = Self { read: true, write: false, execute: false };
    /// Loads and stores.
    pub const RW: Self = Self { read: true, write: true, execute: false };
    /// Loads and fetches.
    pub const RX: Self = Self { read: true, write: false, execute: true };
    /// Everything.
    pub const RWX: Self = Self { read: true, write: true, execute: true };
}

/// Where the contents of an area come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// Zero-filled memory, private to the process and copied on write after a fork.
    AnonymousPrivate,
    /// Zero-filled memory that stays shared over a fork.
    AnonymousShared,
    /// Pages of a file, private: reads share the file's page, the first write copies it.
    FilePrivate,
    /// Pages of a file, shared: writes go to the file's page.
    FileShared,
}

/// A file or a shared-memory object, by the number that the stream gives it: mappings with the same number show the same
/// pages, in every process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// Whether stores to a mapped file are seen by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// `MAP_PRIVATE`: the first store to a page copies it.
    Private,
    /// `MAP_SHARED`: stores go to the file's page.
    Shared,
}

/// The loadable parts of a program file in the order of today's linkers, in 4 KiB pages: read-only data, text, constants,
/// then writable data that the file fills, then data that begins as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segments {
    /// The file.
    pub file: FileId,
    /// Where its first page is mapped.
    pub start: Gva,
    /// Headers, symbols, relocations.
    pub headers: u16,
    /// Code.
    pub text: u16,
    /// Read-only data.
    pub constants: u16,
    /// Writable data from the file; what is made read-only after relocation is part of it.
    pub data: u16,
    /// Anonymous pages after them.
    pub zeros: u16,
}

impl Segments {
    /// Pages from the first to the last.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.headers as u64 + self.text as u64 + self.constants as u64 + self.data as u64 + self.zeros as u64
    }
}

/// What `execve` maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    /// The program.
    pub program: Segments,
    /// The dynamic linker, for programs that have one.
    pub interpreter: Option<Segments>,
    /// The first address after the stack.
    pub stack_top: Gva,
    /// How far the stack may grow, in pages (Linux: 8 MiB).
    pub stack_pages: u32,
    /// Pages that arguments and environment fill, at least 1.
    pub argument_pages: u16,
    /// Where the kernel's page of code for user mode (vdso) and its data lie.
    pub vdso: Gva,
}

/// Which way a system call moves data between the kernel and the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transfer {
    /// The kernel reads the process' memory (`write`).
    FromUser,
    /// The kernel stores to the process' memory (`read`).
    ToUser,
}

/// A half-open range of virtual addresses, `start..start + bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first address.
    pub start: Gva,
    /// The length in bytes; rounded up to whole 4 KiB pages by whoever applies it.
    pub bytes: u64,
}

/// What a process does besides accessing memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Makes a memory area. Whatever the range held before is unmapped first (`MAP_FIXED`).
    Mmap {
        /// The addresses.
        range: Range,
        /// What the area permits.
        prot: Prot,
        /// Where its contents come from.
        backing: Backing,
    },
    /// Makes an area that shows pages of a file. Whatever the range held before is unmapped first.
    MapFile {
        /// The addresses.
        range: Range,
        /// What the area permits.
        prot: Prot,
        /// Where stores go.
        sharing: Sharing,
        /// The file.
        file: FileId,
        /// The page of the file that the first page shows.
        first_page: u64,
    },
    /// Removes all areas (or parts of areas) in the range.
    Munmap {
        /// The addresses.
        range: Range,
    },
    /// Changes the permissions of all areas (or parts of areas) in the range.
    Mprotect {
        /// The addresses.
        range: Range,
        /// What they permit from now on.
        prot: Prot,
    },
    /// Moves areas to other addresses, with the pages in them (`mremap`), and makes them longer or shorter there. Whatever the
    /// new range held is unmapped first; where both ranges start at the same address the area grows or shrinks in place.
    Mremap {
        /// Where it lies now.
        from: Range,
        /// Where it is to lie.
        to: Range,
    },
    /// Moves the end of the heap (`brk`). The first one of an address space says where its heap begins.
    Brk {
        /// The end.
        end: Gva,
    },
    /// Forgets the pages of a range and keeps its areas (`MADV_DONTNEED`): private pages read as before the first store.
    Discard {
        /// The addresses.
        range: Range,
    },
    /// Makes a copy-on-write child of the current process. The parent stays current.
    Fork {
        /// The number of the child; new in this stream.
        child: ProcessId,
    },
    /// Makes a child that runs in the current process' address space until it calls exec or exits (`vfork`, `posix_spawn`).
    /// The parent stays current; it does not access memory before then.
    Vfork {
        /// The number of the child; new in this stream.
        child: ProcessId,
    },
    /// Replaces the current process' address space by an empty one.
    Exec,
    /// Replaces the current process' address space by that of a program: its segments, its dynamic linker's, a stack with the
    /// arguments in it, the kernel's page for user mode.
    Load {
        /// The program.
        image: Image,
    },
    /// Ends the current process. A [`Op::Switch`] must follow before the next access.
    Exit,
    /// A wait for a child that returns, as the child has ended before in this stream.
    Wait {
        /// The child. `None` in the stream of a single process where its recording does not say which child ended: whoever
        /// puts the streams in order knows.
        child: Option<ProcessId>,
    },
    /// Another thread of the current process goes on: the kernel's scheduler runs, the address space stays.
    Handoff {
        /// The number of the thread within its process, as the recording gives it.
        thread: u32,
    },
    /// Makes another process current.
    Switch {
        /// The process to run.
        to: ProcessId,
    },
    /// Any other system call: the process enters the kernel and comes back.
    Syscall {
        /// The system call's number (Linux x86-64), for statistics.
        number: u32,
    },
    /// A system call that moves data between the kernel and the process.
    Copy {
        /// The system call's number.
        number: u32,
        /// Which way.
        transfer: Transfer,
        /// The process' buffer.
        range: Range,
    },
    /// A device interrupts: the kernel is entered and left again, and no system call was made.
    Interrupt,
    /// The process or the kernel for it executes an instruction that leaves every virtual machine, so many times.
    Trap {
        /// The instruction.
        trap: Trap,
        /// How often.
        times: u32,
    },
}

/// A run of accesses by the current process, and what ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Accesses in program order. None crosses a 4 KiB page: whoever makes the batch splits those that do.
    pub run: Vec<Acc>,
    /// Instructions that the process executed over this run.
    pub instructions: u64,
    /// What the process does after the run.
    pub then: Option<Op>,
}

impl Batch {
    /// How many accesses a source puts into a batch at most.
    pub const CAPACITY: usize = 4096;

    /// Empties the batch; its buffer is kept.
    pub fn clear(&mut self) {
        self.run.clear();
        self.instructions = 0;
        self.then = None;
    }

    /// Whether nothing happens in the batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.run.is_empty() && self.instructions == 0 && self.then.is_none()
    }
}

/// A stream of batches: a workload generator or a trace reader.
pub trait Source {
    /// What can go wrong while reading; [`core::convert::Infallible`] for generators.
    type Error;

    /// Clears `batch` and fills it with what comes next. Returns `false`, with an empty batch, at the end of the stream.
    ///
    /// # Errors
    ///
    /// Where the underlying input cannot be read further. What was delivered before stays valid.
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error>;
}

impl<S: Source + ?Sized> Source for &mut S {
    type Error = S::Error;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        (**self).next_batch(batch)
    }
}
