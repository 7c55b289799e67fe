//! Walks made before they are needed: several at a time, level by level.
//!
//! Tables are larger than the caches of the computer that simulates. Walks made one after the other wait for its memory one
//! after the other; made side by side they wait together. So while misses are frequent the engine asks a regime for the walks
//! of the accesses that come next ([`Regime::foresee`](crate::Regime::foresee)). It may answer for those that would do nothing
//! but read: no bit to be set, no fault, no exit. Such an answer holds until something else happens than such walks, TLB fills
//! and TLB hits; then all that is left is thrown away. What is counted, and when, does not depend on it.

use memvirt_addr::{Acc, Addr, Frame, Hfn, Level, PageSize, Space};
use memvirt_pagetable::{Format, Guest4, PhysMem};
use memvirt_tlb::{Entry, Perms, Ready, THROUGH, Through};

use prefetch_index::prefetch_index;

use crate::cpu::Regs;
use crate::ledger::{Counters, WalkRefs};

/// How many accesses are looked at together.
pub const AHEAD: usize = 16;
/// How many accesses a regime is shown, where it is shown more than one: of those beyond [`AHEAD`] it may fetch what their walks
/// will read into the caches of the computer that simulates.
pub const SHOWN: usize = 2 * AHEAD;
const _: () = assert!(AHEAD <= THROUGH);

/// The answers for the next accesses: walks that would only read, what they give and what they cost.
#[derive(Clone, Copy, Debug)]
pub struct Foresight {
    ready: [Ready; AHEAD],
    /// Guest, shadow and nested references and their sum in 16 bits each, the sum on top.
    refs: [u64; AHEAD],
}

impl Default for Foresight {
    fn default() -> Self {
        Self { ready: [Ready::NONE; AHEAD], refs: [0; AHEAD] }
    }
}

impl Foresight {
    /// Says what the walk for access `i` would give, and its references.
    #[inline]
    pub fn tell(&mut self, i: usize, ready: Ready, refs: WalkRefs) {
        if let (Some(slot), Some(cost)) = (self.ready.get_mut(i), self.refs.get_mut(i)) {
            *slot = ready;
            *cost = refs.total() << 48 | refs.host << 32 | refs.shadow << 16 | refs.guest;
        }
    }
}

/// Decides when to look ahead, and keeps what was seen.
#[derive(Default)]
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

/// So many misses among [`AHEAD`] accesses that the next as many are looked at before one of them misses.
const MANY: u32 = 2;

impl Lookout {
    /// What is known of the walk for the access at `at`, which missed. Where nobody has looked at it yet, `look` is asked about
    /// it, and where misses are frequent about those after it too.
    #[inline]
    pub(crate) fn at_miss(&mut self, run: &[Acc], at: usize, look: impl FnOnce(&[Acc], &mut Foresight)) -> Ready {
        let frequent = at - self.last_miss < AHEAD;
        self.last_miss = at;
        if at < self.seen {
            return self.from(at).first().copied().unwrap_or_default();
        }
        if self.pause > 0 {
            self.pause -= 1;
            return Ready::NONE;
        }
        self.look(&run[..run.len().min(at + if frequent { SHOWN } else { 1 })], at, look);
        if !self.found.ready[0].is_some() {
            self.pause = PAUSE;
        }
        self.found.ready[0]
    }

    /// Asks about the accesses of `run` from `at` to its end.
    #[inline]
    pub(crate) fn look(&mut self, run: &[Acc], at: usize, look: impl FnOnce(&[Acc], &mut Foresight)) {
        let shown = &run[at..run.len().min(at + SHOWN)];
        (self.first, self.seen) = (at, at + shown.len().min(AHEAD));
        self.found.ready = [Ready::NONE; AHEAD];
        look(shown, &mut self.found);
    }

    /// Where what was seen ends.
    pub(crate) const fn seen(&self) -> usize {
        self.seen
    }

    /// What was seen, from the access at `at` on.
    #[inline]
    pub(crate) fn from(&self, at: usize) -> &[Ready] {
        self.found.ready[..self.seen - self.first].get(at - self.first..).unwrap_or(&[])
    }

    /// Enters the walks of accesses from `at` on that were used. Returns whether they were many.
    #[inline]
    pub(crate) fn count(&mut self, at: usize, through: Through, counters: &mut Counters) -> bool {
        let walks = through.filled.count_ones();
        let used = self.found.refs.get(at - self.first..).unwrap_or(&[]);
        let (mut sum, mut most) = (0, 0);
        for (i, refs) in used.iter().enumerate() {
            let refs = refs & (through.filled >> i & 1).wrapping_neg();
            sum += refs;
            most = refs.max(most);
        }
        let refs = WalkRefs { guest: sum & 0xffff, shadow: sum >> 16 & 0xffff, host: sum >> 32 & 0xffff };
        counters.add_walks(walks.into(), refs, most >> 48);
        if walks > 0 {
            self.last_miss = at + 63 - through.filled.leading_zeros() as usize;
        }
        walks >= MANY
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
    /// What may be cached of the permissions of all four entries: writing only where the leaf is dirty. They permit the access.
    pub perms: Perms,
    /// Whether the leaf has the G bit.
    pub global: bool,
}

impl<S: Space> PlainLeaf<S> {
    /// The TLB entry for the access `acc`, where the page lies in the host frame `frame`.
    #[must_use]
    #[inline]
    pub const fn entry(&self, acc: Acc, frame: Hfn, global: bool) -> Entry {
        let entry = Entry::new(acc.gva().frame(), frame, PageSize::Size4K, self.perms);
        if global { entry.with_global() } else { entry }
    }
}

/// The tables of a walk that only reads.
pub trait Tables<S: Space> {
    /// The entry at `at`.
    fn entry(&self, at: Addr<S>) -> u64;

    /// Brings the entry at `at` into the caches of the computer that simulates, without waiting for it. Changes nothing.
    fn fetch(&self, at: Addr<S>) {
        let _ = at;
    }
}

impl<S: Space> Tables<S> for PhysMem<S> {
    #[inline]
    fn entry(&self, at: Addr<S>) -> u64 {
        self.read(at)
    }

    #[inline]
    fn fetch(&self, at: Addr<S>) {
        prefetch_index(self.whole(at.frame()), (at.as_u64() >> 3 & 511) as usize);
    }
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Walks the four-level x86-64 tables under `root` for all of `ahead`, and tells of those whose walk would only read and that
/// end at a 4 KiB page: entries present and accessed, for a store also dirty, the access permitted. Works on raw bits, which
/// [`Format::decode`] gives a meaning one by one. For accesses beyond [`AHEAD`] the last entry is fetched.
#[inline]
pub fn plain_walks<S: Space>(
    root: Frame<S>,
    regs: &Regs,
    ahead: &[Acc],
    mem: &impl Tables<S>,
    found: impl FnMut(usize, PlainLeaf<S>),
) {
    const { assert!(Guest4::RAW_WRITE == WRITE) };
    let (ahead, later) = ahead.split_at(ahead.len().min(AHEAD));
    for acc in later {
        mem.fetch(last_table(root, mem, *acc).0);
    }
    if ahead.len() == 1 {
        side_by_side::<1, S>(root, regs, ahead, mem, found);
    } else {
        side_by_side::<AHEAD, S>(root, regs, ahead, mem, found);
    }
}

/// Where the leaf of an access lies, the bits that all entries above it have, and the bits that one of them has.
#[inline(always)]
fn last_table<S: Space>(root: Frame<S>, mem: &impl Tables<S>, acc: Acc) -> (Addr<S>, u64, u64) {
    let (mut table, mut all, mut any) = (root, u64::MAX, 0);
    for level in [Level::L4, Level::L3, Level::L2] {
        let raw = mem.entry(table.entry(acc.gva().index(level)));
        all &= raw;
        any |= raw;
        table = Frame::new((raw & ADDRESS) >> 12);
    }
    (table.entry(acc.gva().index(Level::L1)), all, any)
}

/// The walks of at most `N` accesses. Upper entries are few and mostly at hand: each walk goes down to its last table by itself.
/// The entries there are what has to be waited for: they are read one after the other, with nothing between.
#[inline]
fn side_by_side<const N: usize, S: Space>(
    root: Frame<S>,
    regs: &Regs,
    ahead: &[Acc],
    mem: &impl Tables<S>,
    mut found: impl FnMut(usize, PlainLeaf<S>),
) {
    let ahead = &ahead[..ahead.len().min(N)];
    let (mut at, mut all, mut any, mut leaves) = ([Addr::ZERO; N], [0; N], [0; N], [0; N]);
    for (i, acc) in ahead.iter().enumerate() {
        (at[i], all[i], any[i]) = last_table(root, mem, *acc);
    }
    for i in 0..ahead.len() {
        leaves[i] = mem.entry(at[i]);
    }
    let user_pages_fetch = !regs.smep;
    for (i, acc) in ahead.iter().enumerate() {
        let (leaf, upper) = (leaves[i], any[i]);
        let all = all[i] & leaf;
        let needed = PRESENT | Guest4::RAW_ACCESSED;
        let perms = permissions(all, upper | leaf, leaf);
        let plain = all & needed == needed && upper & LARGE == 0;
        // What registers beside the entries permit is left to the careful walk.
        if plain && perms.contains(Perms::needed_by(*acc)) && (user_pages_fetch || regs.permits_plainly(perms, *acc)) {
            let frame = Frame::new((leaf & ADDRESS) >> 12);
            found(i, PlainLeaf { frame, perms, global: leaf & GLOBAL != 0 });
        }
    }
}

/// What entries permit whose bits are `all` set, whose bits `any` are set in one of them, and of which `leaf` is the last.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "one bit each")]
const fn permissions(all: u64, any: u64, leaf: u64) -> Perms {
    const { assert!(Perms::USER.bits() == 1 && Perms::WRITE.bits() == 2 && Perms::EXEC.bits() == 4) };
    let user = all >> 2 & 1;
    let write = all & leaf >> 5 & 2;
    let exec = !any >> 63;
    Perms::from_bits((user | write | exec << 2) as u8)
}
