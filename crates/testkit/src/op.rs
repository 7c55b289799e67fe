//! The recorded guest's addresses and what it can be told to do. Source: the set-up that is described beside the recordings.

use memvirt_addr::Gpa;
use memvirt_ops::arch::{Control, Cr3, GfnRange, StoreOp, Width};

/// Entry bit: present.
pub const P: u64 = 0x1;
/// Entry bit: writable.
pub const W: u64 = 0x2;
/// Entry bit: user.
pub const U: u64 = 0x4;
/// Entry bit: accessed.
pub const A: u64 = 0x20;
/// Entry bit: dirty.
pub const D: u64 = 0x40;
/// Entry bit: a large page.
pub const S: u64 = 0x80;
/// The flags of a kernel page in use.
pub const PWAD: u64 = P | W | A | D;
/// The flags of a table, or of a clean user page.
pub const PWUA: u64 = P | W | U | A;
/// The flags of a user page in use.
pub const PWUAD: u64 = PWAD | U;

/// The first root table, current at the start.
pub const PML4A: u64 = 0x1_0000;
/// The second root table.
pub const PML4B: u64 = 0x2_0000;
/// The test tables under [`PML4A`].
pub const PDPT_A: u64 = 0x10_0000;
/// See [`PDPT_A`].
pub const PD_A: u64 = 0x10_1000;
/// See [`PDPT_A`].
pub const PT_A: u64 = 0x10_2000;
/// The second leaf table under [`PD_A`].
pub const PT_A1: u64 = 0x10_3000;
/// The test tables under [`PML4B`].
pub const PDPT_B: u64 = 0x11_0000;
/// See [`PDPT_B`].
pub const PD_B: u64 = 0x11_1000;
/// See [`PDPT_B`].
pub const PT_B: u64 = 0x11_2000;
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
pub(crate) const FRAMES: u64 = 0x800_0000 >> 12;
pub(crate) const RESIDENT: u64 = 0x400_0000 >> 12;

/// The test page `n`.
#[must_use]
pub const fn v(n: u64) -> u64 {
    0x80_0000_0000 + (n << 12)
}

/// The data frame `n`.
#[must_use]
pub const fn f(n: u64) -> u64 {
    0x40_0000 + (n << 12)
}

/// The address of entry `i` of a table, in guest memory.
#[must_use]
pub const fn e(table: u64, i: u64) -> u64 {
    table + 8 * i
}

/// The alias in the direct map through which the guest reaches a physical address.
#[must_use]
pub const fn dm(at: u64) -> u64 {
    DIRECT_MAP + at
}

/// What the guest is told to do.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Loads from `n` pages in a row.
    Rds(u64, u64),
    /// Stores of 1 to `n` pages in a row.
    Wrs(u64, u64),
    /// One store.
    Wr(u64, StoreOp),
    /// `n` stores to entries in a row; the value grows by a page after each unless it is 0.
    Ptes(u64, u64, u64),
    /// INVLPG of `n` pages in a row.
    Invlpgs(u64, u64),
    /// Any privileged operation.
    Do(Control),
}

/// One load.
#[must_use]
pub const fn rd(at: u64) -> Op {
    Op::Rds(at, 1)
}

/// A plain store.
#[must_use]
pub const fn mov(width: Width, value: u64) -> StoreOp {
    StoreOp::Mov { width, value }
}

/// One 8-byte store.
#[must_use]
pub const fn wr(at: u64, value: u64) -> Op {
    Op::Wr(at, mov(Width::B8, value))
}

/// A store to entry `i` of a table through its alias.
#[must_use]
pub const fn pte(table: u64, i: u64, value: u64) -> Op {
    wr(dm(e(table, i)), value)
}

/// Stores to `n` entries of a table from `i` on.
#[must_use]
pub const fn ptes(table: u64, i: u64, value: u64, n: u64) -> Op {
    Op::Ptes(dm(e(table, i)), value, n)
}

/// Clears bits of an entry with a locked AND.
#[must_use]
pub const fn clr(table: u64, i: u64, bits: u64) -> Op {
    Op::Wr(dm(e(table, i)), StoreOp::And { mask: !bits })
}

/// `rep stosq` from the start of a table.
#[must_use]
pub const fn stos(table: u64, value: u64, count: u16) -> Op {
    Op::Wr(dm(table), StoreOp::RepStos { value, count })
}

/// A 16-byte vector store.
#[must_use]
pub const fn movups(table: u64, i: u64) -> Op {
    Op::Wr(dm(e(table, i)), StoreOp::Vector)
}

/// INVLPG of one page.
#[must_use]
pub const fn invlpg(at: u64) -> Op {
    Op::Invlpgs(at, 1)
}

/// A CR3 load that flushes.
#[must_use]
pub const fn cr3(root: u64) -> Op {
    Op::Do(Control::Cr3(Cr3::flushing(Gpa::new(root))))
}

/// The CR3 load itself.
#[must_use]
pub const fn cr3_load(root: u64) -> Control {
    Control::Cr3(Cr3::flushing(Gpa::new(root)))
}

/// The frames of `bytes` bytes from `at` on.
#[must_use]
pub fn frames(at: u64, bytes: u64) -> GfnRange {
    GfnRange { start: Gpa::new(at).frame(), frames: bytes >> 12 }
}
