//! Walks made before they are needed: several at a time, level by level.
//!
//! Tables are larger than the caches of the computer that simulates. Walks made one after the other wait for its memory one
//! after the other; made side by side they wait together. So while misses are frequent the engine asks a regime for the walks
//! of the accesses that come next ([`Regime::foresee`](crate::Regime::foresee)). It may answer for those that would do nothing
//! but read: no bit to be set, no fault, no exit. Such an answer holds until something else happens than such walks, TLB fills
//! and TLB hits; then all that is left is thrown away. What is counted, and when, does not depend on it.

use memvirt_addr::{Acc, Addr, Frame, Level, Space};
use memvirt_pagetable::{Attrs, Format, Guest4};
use memvirt_tlb::Entry;

use crate::cpu::Regs;
use crate::ledger::WalkRefs;

/// How many accesses are looked at together.
pub const AHEAD: usize = 16;

/// A walk that would only read: what it gives, and what it costs.
#[derive(Clone, Copy, Debug)]
pub struct Foreseen {
    /// The translation.
    pub entry: Entry,
    /// The references.
    pub refs: WalkRefs,
}

/// The answers for the next accesses, `None` where a walk has to be made.
pub type Foresight = [Option<Foreseen>; AHEAD];

/// Decides when to look ahead, and keeps what was seen.
pub(crate) struct Lookout {
    last_miss: usize,
    /// The index of the first access looked at, and of the first that was not.
    first: usize,
    seen: usize,
    found: Foresight,
    /// How many misses to let pass: what was looked at last had to be walked carefully all the same.
    pause: u32,
}

/// Misses that pass after a look in vain, as where a program touches its memory for the first time.
const PAUSE: u32 = 8;

impl Default for Lookout {
    fn default() -> Self {
        Self { last_miss: 0, first: 0, seen: 0, found: [None; AHEAD], pause: 0 }
    }
}

impl Lookout {
    /// What is known of the walk for the access at `at`, which missed. Where nobody has looked at it yet, `look` is asked about
    /// it, and where misses are frequent about those after it too.
    #[inline]
    pub(crate) fn at_miss(
        &mut self,
        run: &[Acc],
        at: usize,
        look: impl FnOnce(&[Acc], &mut Foresight),
    ) -> Option<Foreseen> {
        let frequent = at - self.last_miss < AHEAD;
        self.last_miss = at;
        if at < self.seen {
            return self.found.get(at - self.first).copied().flatten();
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        (self.first, self.seen) = (at, run.len().min(at + if frequent { AHEAD } else { 1 }));
        let ahead = &run[at..self.seen];
        self.found[..ahead.len()].fill(None);
        look(ahead, &mut self.found);
        if self.found[0].is_none() {
            self.pause = PAUSE;
        }
        self.found[0]
    }

    /// Something happened that what was seen may depend on.
    pub(crate) fn forget(&mut self) {
        self.seen = self.first;
    }
}

/// The end of a walk of four-level tables that only read, at a 4 KiB page.
#[derive(Clone, Copy, Debug)]
pub struct PlainLeaf<S: Space> {
    /// The frame.
    pub frame: Frame<S>,
    /// The permissions of all four entries, ANDed; they permit the access.
    pub perms: Attrs,
    /// Whether the leaf is dirty.
    pub dirty: bool,
    /// Whether the leaf has the G bit.
    pub global: bool,
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Walks the four-level x86-64 tables under `root` for all of `ahead`, and tells of those whose walk would only read and that
/// end at a 4 KiB page: entries present and accessed, for a store also dirty, the access permitted. Works on raw bits, which
/// [`Format::decode`] gives a meaning one by one.
#[inline]
pub fn plain_walks<S: Space>(
    root: Frame<S>,
    regs: &Regs,
    ahead: &[Acc],
    read: impl Fn(Addr<S>) -> u64,
    found: impl FnMut(usize, PlainLeaf<S>),
) {
    const { assert!(Guest4::RAW_WRITE == WRITE) };
    if ahead.len() == 1 {
        side_by_side::<1, S>(root, regs, ahead, read, found);
    } else {
        side_by_side::<AHEAD, S>(root, regs, ahead, read, found);
    }
}

/// The walks of at most `N` accesses.
#[inline]
fn side_by_side<const N: usize, S: Space>(
    root: Frame<S>,
    regs: &Regs,
    ahead: &[Acc],
    read: impl Fn(Addr<S>) -> u64,
    mut found: impl FnMut(usize, PlainLeaf<S>),
) {
    let mut tables = [root; N];
    let (mut all, mut any, mut leaves) = ([u64::MAX; N], [0; N], [0; N]);
    for level in [Level::L4, Level::L3, Level::L2] {
        for (i, acc) in ahead.iter().enumerate().take(N) {
            let raw = read(tables[i].entry(acc.gva().index(level)));
            all[i] &= raw;
            any[i] |= raw;
            tables[i] = Frame::new((raw & ADDRESS) >> 12);
        }
    }
    for (i, acc) in ahead.iter().enumerate().take(N) {
        leaves[i] = read(tables[i].entry(acc.gva().index(Level::L1)));
    }
    for (i, acc) in ahead.iter().enumerate().take(N) {
        let (leaf, upper) = (leaves[i], any[i]);
        let all = all[i] & leaf;
        let needed = PRESENT | Guest4::RAW_ACCESSED;
        let dirty = leaf & Guest4::RAW_DIRTY != 0;
        if all & needed != needed || upper & LARGE != 0 || (acc.is_write() && !dirty) {
            continue;
        }
        let perms = permissions(all, upper | leaf);
        if regs.permits(perms, *acc) {
            let frame = Frame::new((leaf & ADDRESS) >> 12);
            found(i, PlainLeaf { frame, perms, dirty, global: leaf & GLOBAL != 0 });
        }
    }
}

#[inline]
fn permissions(all: u64, any: u64) -> Attrs {
    let mut perms = Attrs::READ;
    perms.set(Attrs::WRITE, all & WRITE != 0);
    perms.set(Attrs::USER, all & USER != 0);
    perms.set(Attrs::EXEC, any & NO_EXECUTE == 0);
    perms
}
