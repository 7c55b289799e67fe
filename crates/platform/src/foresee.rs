//! Walks made before they are needed: several at a time, level by level.
//!
//! Tables are larger than the caches of the computer that simulates. Walks made one after the other wait for its memory one
//! after the other; made side by side they wait together. So while misses are frequent the engine asks a regime for the walks
//! of the accesses that come next ([`Regime::foresee`](crate::Regime::foresee)). It may answer for those that would do nothing
//! but read: no bit to be set, no fault, no exit. Such an answer holds until something else happens than such walks, TLB fills
//! and TLB hits; then all that is left is thrown away. What is counted, and when, does not depend on it.

use memvirt_addr::{Acc, Frame, Hfn, HostPhys, Space};
use memvirt_pagetable::{Format, Guest4, PhysMem};
use memvirt_tlb::{Perms, Ready, THROUGH, Tag, Through};

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
    /// What is known already of the accesses asked about, and of how many; and of how many of those asked about next.
    above: [Above; AHEAD],
    known: usize,
    left: usize,
}

impl Default for Foresight {
    fn default() -> Self {
        Self { ready: [Ready::NONE; AHEAD], refs: [0; AHEAD], above: [Above::default(); AHEAD], known: 0, left: 0 }
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
        self.found.known = if at == self.seen { core::mem::take(&mut self.found.left) } else { 0 };
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
        self.found.left = 0;
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
    /// What is ready for the process of `tag` and its access `acc`, where the page lies in the host frame `frame`.
    #[must_use]
    #[inline(always)]
    pub fn ready(&self, tag: Tag, acc: Acc, frame: Hfn, global: bool) -> Ready {
        Ready::small(tag, acc, frame, self.perms, global)
    }
}

/// The tables of a walk that only reads: words in the host's memory.
pub trait Tables<S: Space> {
    /// Where entry `index` (modulo 512) of `table` lies in the host's memory: one of its places.
    fn place(&self, table: Frame<S>, index: u64) -> usize;

    /// The host's memory.
    fn memory(&self) -> &PhysMem<HostPhys>;

    /// Brings the entry at a place into the caches of the computer that simulates, without waiting for it.
    #[inline]
    fn fetch(&self, place: usize) {
        prefetch_index(self.memory().stored(), place);
    }
}

impl Tables<HostPhys> for PhysMem<HostPhys> {
    #[inline]
    fn place(&self, table: Hfn, index: u64) -> usize {
        Self::place(self, table, index)
    }

    #[inline]
    fn memory(&self) -> &Self {
        self
    }
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A walk that has come to its last table.
#[derive(Clone, Copy, Debug, Default)]
struct Above {
    /// Where the entry to be read there lies.
    leaf: usize,
    /// The bits that all entries above have, and those that one of them has.
    all: u64,
    any: u64,
}

impl Above {
    #[inline(always)]
    fn of<S: Space>(root: Frame<S>, mem: &impl Tables<S>, acc: Acc) -> Self {
        let words = mem.memory();
        let (mut table, mut all, mut any) = (root, u64::MAX, 0);
        for shift in [39, 30, 21] {
            let raw = words.read_place(mem.place(table, acc.page_bits(shift)));
            all &= raw;
            any |= raw;
            table = Frame::new((raw & ADDRESS) >> 12);
        }
        Self { leaf: mem.place(table, acc.page_bits(12)), all, any }
    }

    /// Reads the last entry: the leaf, where the walk for `acc` would only read and ends at a 4 KiB page.
    #[inline(always)]
    fn leaf<S: Space>(self, regs: &Regs, mem: &PhysMem<HostPhys>, acc: Acc) -> Option<PlainLeaf<S>> {
        let leaf = mem.read_place(self.leaf);
        let all = self.all & leaf;
        let needed = PRESENT | Guest4::RAW_ACCESSED;
        let perms = permissions(all, self.any | leaf, leaf);
        let plain = all & needed == needed && self.any & LARGE == 0;
        // What registers beside the entries permit is left to the careful walk.
        let permitted = perms.permit(acc) && (!regs.smep || regs.permits_plainly(perms, acc));
        let frame = Frame::new((leaf & ADDRESS) >> 12);
        (plain && permitted).then_some(PlainLeaf { frame, perms, global: leaf & GLOBAL != 0 })
    }
}

/// Walks the four-level x86-64 tables under `root` for all of `ahead`, and tells what `ready` makes of those whose walk, of
/// `refs` references, would only read and that end at a 4 KiB page: entries present and accessed, for a store also dirty, the
/// access permitted. Works on raw bits, which [`Format::decode`] gives a meaning one by one.
///
/// Upper entries are few and mostly at hand. The entries of last tables are what has to be waited for: those of the accesses
/// beyond [`AHEAD`] are fetched, and found at hand by the next call.
#[inline]
pub fn plain_walks<S: Space>(
    root: Frame<S>,
    regs: &Regs,
    ahead: &[Acc],
    mem: &impl Tables<S>,
    (found, refs): (&mut Foresight, WalkRefs),
    ready: impl Fn(Acc, PlainLeaf<S>) -> Option<Ready>,
) {
    const { assert!(Guest4::RAW_WRITE == WRITE) };
    let (ahead, later) = ahead.split_at(ahead.len().min(AHEAD));
    for (above, acc) in found.above.iter_mut().zip(ahead).skip(found.known) {
        *above = Above::of(root, mem, *acc);
    }
    found.left = later.len().min(AHEAD);
    for (i, acc) in ahead.iter().enumerate() {
        let here = found.above[i];
        if let Some(acc) = later.get(i) {
            let above = Above::of(root, mem, *acc);
            mem.fetch(above.leaf);
            found.above[i] = above;
        }
        if let Some(entry) = here.leaf(regs, mem.memory(), *acc).and_then(|leaf| ready(*acc, leaf)) {
            found.tell(i, entry, refs);
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
