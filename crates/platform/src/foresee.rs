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
use crate::notes::{Notebook, Notes};
use crate::uppers::{Upper, upper};

/// How many accesses are looked at together.
pub const AHEAD: usize = 16;
/// How many accesses a regime is shown, where it is shown more than one: of those beyond [`AHEAD`] it may fetch what their walks
/// will read into the caches of the computer that simulates.
pub const SHOWN: usize = 2 * AHEAD;
const _: () = assert!(AHEAD <= THROUGH);

/// The answers for the next accesses: walks that would only read, what they give and what they cost.
#[derive(Debug)]
pub struct Foresight {
    ready: [Ready; AHEAD],
    /// Guest, shadow and nested references and their sum in 16 bits each, the sum on top.
    refs: [u64; AHEAD],
    /// What is known already of the accesses asked about, and of how many; and of how many of those asked about next.
    above: [Upper; AHEAD],
    known: usize,
    left: usize,
    /// What is noted of upper tables: of those that hardware walks for guest-virtual addresses, and of nested tables.
    books: (Notebook<1>, Notebook<3>, Notebook<1>),
}

impl Default for Foresight {
    fn default() -> Self {
        Self {
            ready: [Ready::NONE; AHEAD],
            refs: [0; AHEAD],
            above: [Upper::default(); AHEAD],
            known: 0,
            left: 0,
            books: Default::default(),
        }
    }
}

impl Foresight {
    /// Notes of a regime with two dimensions, by region of 2 MiB: three words of guest-virtual ones and one of guest-physical
    /// ones. They hold until a table may have changed.
    pub fn notes(&mut self) -> (Notes<'_, 3>, Notes<'_, 1>) {
        (self.books.1.open(), self.books.2.open())
    }

    fn forget_notes(&mut self) {
        self.books.0.forget();
        self.books.1.forget();
        self.books.2.forget();
    }

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
#[derive(Debug, Default)]
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
        self.found.ready[..shown.len().min(AHEAD)].fill(Ready::NONE);
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
        for (i, refs) in used.iter().take(through.done).enumerate() {
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
        self.found.forget_notes();
    }

    /// A run begins: of what was seen in others nothing holds.
    pub(crate) fn begin(&mut self) {
        self.forget();
        (self.last_miss, self.first, self.seen, self.pause) = (0, 0, 0, 0);
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

pub(crate) const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
pub(crate) const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
pub(crate) const NX: u64 = 1 << 63;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Reads the last entry of a walk: the leaf, where the walk for `acc` would only read and ends at a 4 KiB page.
#[inline(always)]
fn read_leaf<S: Space>(upper: Upper, regs: &Regs, mem: &PhysMem<HostPhys>, acc: Acc) -> Option<PlainLeaf<S>> {
    let leaf = mem.read_place(upper.leaf(acc));
    let needed = PRESENT | Guest4::RAW_ACCESSED;
    let perms = upper.perms().and(leaf_permissions(leaf));
    let plain = upper.is_plain() && leaf & needed == needed;
    // What registers beside the entries permit is left to the careful walk.
    let permitted = perms.permit(acc) && (!regs.smep || regs.permits_plainly(perms, acc));
    let frame = Frame::new((leaf & ADDRESS) >> 12);
    (plain && permitted).then_some(PlainLeaf { frame, perms, global: leaf & GLOBAL != 0 })
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
    let mut notes = found.books.0.open();
    for (above, acc) in found.above.iter_mut().zip(ahead).skip(found.known) {
        *above = upper(&mut notes, root, mem, *acc);
    }
    let mut here = [Upper::default(); AHEAD];
    here[..ahead.len()].copy_from_slice(&found.above[..ahead.len()]);
    for (above, acc) in found.above.iter_mut().zip(later) {
        *above = upper(&mut notes, root, mem, *acc);
        mem.fetch(above.leaf(*acc));
    }
    found.left = later.len().min(AHEAD);
    for (i, (acc, above)) in ahead.iter().zip(here).enumerate() {
        if let Some(entry) = read_leaf(above, regs, mem.memory(), *acc).and_then(|leaf| ready(*acc, leaf)) {
            found.tell(i, entry, refs);
        }
    }
}

/// What a leaf permits by itself: to write only where it is dirty.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "one bit each")]
pub(crate) const fn leaf_permissions(leaf: u64) -> Perms {
    const { assert!(Perms::USER.bits() == 1 && Perms::WRITE.bits() == 2 && Perms::EXEC.bits() == 4) };
    Perms::from_bits((leaf >> 2 & 1 | leaf & leaf >> 5 & 2 | (!leaf >> 63) << 2) as u8)
}
