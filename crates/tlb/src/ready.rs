//! The path of misses: [`Tlb::through`], for streams that miss often and whose walks are known ahead.
//!
//! Who simulates a long run of accesses may know the outcome of the walks to come, because he made several of them together
//! ([`Ready`]). Then hits and fills need not come back to him one by one. In the usual case all entries are of 4 KiB pages, the
//! first level has four ways and the sets are full; that case has a loop of its own, in which nothing depends on the page but
//! data. Where anything is different the loop stops, or the operations of `tlb` take its place; so this path changes the time,
//! never a result.

use core::hint::select_unpredictable;

use memvirt_addr::{Acc, Hfn, PageSize};

use crate::array::{WIDE, signature, ways_signed};
use crate::entry::{Data, Entry, Key, Packed, Perms, denied_to};
use crate::geometry::{GigabytePages, Inclusion, Sizes};
use crate::order::{Kind, last_of, to_front};
use crate::tag::Tag;
use crate::tlb::Tlb;

/// The most accesses that [`Tlb::through`] looks at.
pub const THROUGH: usize = 64;

/// A translation that waits for the miss that asks for it, in the form in which the TLB keeps it.
#[derive(Clone, Copy, Default)]
pub struct Ready(Packed);

impl Ready {
    /// Nothing.
    pub const NONE: Self = Self(Packed::NONE);

    /// An entry for the process of `tag`.
    #[must_use]
    #[inline]
    pub fn new(tag: Tag, entry: &Entry) -> Self {
        Self(Packed::new(tag.vpid(), tag.pcid(), entry))
    }

    /// The entry for the 4 KiB page of `acc`, which lies in `frame`: [`Ready::new`] at the cost of a few operations.
    #[must_use]
    #[inline(always)]
    pub fn small(tag: Tag, acc: Acc, frame: Hfn, perms: Perms, global: bool) -> Self {
        Self(Packed::small((tag.vpid(), tag.pcid()), acc, frame, perms, global))
    }

    /// Whether there is an entry.
    #[must_use]
    #[inline]
    pub const fn is_some(self) -> bool {
        self.0.key.0 != 0
    }

    #[inline]
    pub(crate) const fn packed(self) -> Packed {
        self.0
    }

    /// The entry.
    #[must_use]
    pub fn entry(self) -> Option<Entry> {
        self.is_some().then(|| self.0.entry())
    }
}

impl core::fmt::Debug for Ready {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.entry().fmt(f)
    }
}

/// What [`Tlb::through`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Through {
    /// The accesses that are over.
    pub done: usize,
    /// A bit for each of them that missed and was filled.
    pub filled: u64,
}

/// Both levels in the usual case.
struct Usual<'a> {
    l1: &'a mut [[Packed; 4]],
    stamps: &'a mut [[u64; 4]],
    l2: &'a mut [[Packed; WIDE]],
    signatures: &'a mut [[u8; WIDE]],
    lists: &'a mut [u64],
    l1_mask: u64,
    l2_mask: u64,
    ways: usize,
    /// Every slot holds an entry of a 4 KiB page of both dimensions: so will it, whatever goes.
    full: bool,
    pcid: u16,
    /// What the process's own entries of such pages have in their data, frame and permissions apart.
    plain: u64,
}

/// What several accesses came to.
#[derive(Clone, Copy, Default)]
struct Steps {
    /// How many are over.
    done: usize,
    /// How many of them hit in the first level.
    l1_hits: u64,
    /// A bit for each that was filled.
    filled: u64,
}

impl Usual<'_> {
    /// One access. What is not usual (an entry of another size, one that denies the access, a global one to be filled) changes
    /// nothing and is left to others. `FULL` where all sets are: then less can be strange, and global entries of the second level
    /// are left to others too.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "numbers of sets")]
    fn step<const FULL: bool>(
        &mut self,
        key: Key,
        denied: u64,
        ready: &Packed,
        now: u64,
        steps: &mut Steps,
    ) -> Option<()> {
        let number = key.number_of::<12>();
        let (set1, set2) = ((number & self.l1_mask) as usize, (number & self.l2_mask) as usize);
        let (slots, stamps) = (self.l1.get_mut(set1)?, self.stamps.get_mut(set1)?);
        let found = (0..4).fold(0u32, |found, way| found | u32::from(slots[way].key == key) << way);
        if found != 0 {
            let way = found.trailing_zeros() as usize % 4;
            if slots[way].data.refusal(self.pcid, denied) != 0 {
                return None;
            }
            stamps[way] = now;
            steps.l1_hits += 1;
            return Some(());
        }
        let way1 = oldest(stamps);
        let (signatures, list) = (self.signatures.get_mut(set2)?, self.lists.get_mut(set2)?);
        let set = self.l2.get_mut(set2)?;
        // Hit or miss is often beyond prediction: both go the same way, with other data.
        let mark = signature(key);
        let (hit, held_in) = way_of(signatures, mark, set, key);
        let way2 = select_unpredictable(hit, held_in, last_of(*list, self.ways)) % WIDE;
        let slot = &mut set[way2];
        let new = select_unpredictable(hit, *slot, *ready);
        let strange = if FULL {
            new.data.strangeness(self.plain, denied)
        } else {
            // An empty slot is no entry's kin, nor is nothing that of a live one. A global entry is filled with more care.
            let global = select_unpredictable(hit, 0, new.data.0 & Data::GLOBAL);
            new.strangeness(&slots[way1], slot) | new.data.refusal(self.pcid, denied) | global
        };
        if strange | (new.key.0 ^ key.0) != 0 {
            return None;
        }
        *list = to_front(*list, way2 as u64);
        *slot = new;
        signatures[way2] = mark;
        slots[way1] = new;
        stamps[way1] = now;
        steps.filled |= u64::from(!hit) << steps.done;
        Some(())
    }

    /// The accesses of `run` in order, until one is not usual.
    #[inline(always)]
    fn steps<const FULL: bool>(&mut self, context: u64, clock: u64, run: &[Acc], ready: &[Ready]) -> Steps {
        let mut steps = Steps::default();
        // One length for both, and one counter for all.
        let many = run.len().min(ready.len()).min(THROUGH);
        let (run, ready) = (&run[..many], &ready[..many]);
        while steps.done < many {
            let (acc, Ready(ready)) = (run[steps.done], &ready[steps.done]);
            let key = Key(Key::page_part::<12>(acc.page_bits(0)) | context);
            let now = clock + 1 + steps.done as u64;
            if self.step::<FULL>(key, denied_to(acc), ready, now, &mut steps).is_none() {
                break;
            }
            steps.done += 1;
        }
        steps
    }
}

/// The way with the least stamp, the first of equals: stamp and way in one number.
#[inline(always)]
fn oldest(stamps: &[u64; 4]) -> usize {
    let [a, b, c, d] = *stamps;
    ((a * 4).min(b * 4 + 1).min((c * 4 + 2).min(d * 4 + 3)) % 4) as usize
}

/// Whether a set holds a key, and in which way; without a branch on that, as it is hard to predict.
#[inline(always)]
fn way_of(signatures: &[u8; WIDE], wanted: u8, slots: &[Packed; WIDE], key: Key) -> (bool, usize) {
    let candidates = ways_signed(signatures, wanted);
    if candidates & candidates.wrapping_sub(1) != 0 {
        return way_among(candidates, slots, key);
    }
    // Where there is no candidate any way is tried, and in vain.
    let way = candidates.trailing_zeros() as usize % WIDE;
    (slots[way].key == key, way)
}

/// The same among several candidates.
#[cold]
#[inline(never)]
fn way_among(candidates: u32, slots: &[Packed; WIDE], key: Key) -> (bool, usize) {
    let way = slots.iter().zip(0..).position(|(slot, way): (_, u32)| candidates >> way & 1 != 0 && slot.key == key);
    (way.is_some(), way.unwrap_or(0))
}

impl Tlb {
    /// Looks up the accesses of `run` in order, at most [`THROUGH`], and completes those that miss with what is `ready` for them,
    /// one for each access. Stops at the first that is left to [`Tlb::hits`]: for want of an entry, say.
    ///
    /// Order of use, counts and contents are those of one [`Tlb::lookup`] for each access, and one [`Tlb::fill`] for each miss.
    pub fn through(&mut self, tag: Tag, run: &[Acc], ready: &[Ready]) -> Through {
        self.look_as(tag);
        let through = self.usual_through(tag, run, ready).unwrap_or_default();
        if through.done > 0 { through } else { self.careful_through(tag, run, ready) }
    }

    /// The same in the usual case, where it is given.
    fn usual_through(&mut self, tag: Tag, run: &[Acc], ready: &[Ready]) -> Option<Through> {
        let (clock, context) = (self.clock, Key::context(tag.vpid(), PageSize::Size4K));
        let mut usual = self.usual(tag.pcid())?;
        let full = usual.full;
        let steps = if full {
            usual.steps::<true>(context, clock, run, ready)
        } else {
            usual.steps::<false>(context, clock, run, ready)
        };
        let Steps { done, filled, l1_hits } = steps;
        let (accesses, fills) = (done as u64, u64::from(filled.count_ones()));
        self.stats.l1_hits += l1_hits;
        self.stats.l1_evictions += accesses - l1_hits;
        self.stats.l2_hits += accesses - l1_hits - fills;
        self.stats.misses += fills;
        self.stats.l2_evictions += fills;
        self.clock += accesses;
        if done > 0 {
            self.missed = filled >> (done - 1) != 0;
            self.likely = PageSize::Size4K;
        }
        self.small.forget_to_note(fills > 0);
        // Where all entries are whole, so are those that took their places.
        if !full {
            for (at, Ready(ready)) in ready.iter().enumerate().take(done) {
                if filled >> at & 1 != 0 {
                    self.pieces.note(ready);
                }
            }
        }
        Some(Through { done, filled })
    }

    #[inline]
    fn usual(&mut self, pcid: u16) -> Option<Usual<'_>> {
        let small = Sizes::only(PageSize::Size4K);
        if self.l1.maybe_live != small || self.l2.maybe_live != small || self.inclusion != Inclusion::NonInclusive {
            return None;
        }
        let (l1, l2) = (self.l1.array_of_mut(PageSize::Size4K)?, self.l2.array_of_mut(PageSize::Size4K)?);
        let lru = l1.order.hits_count && l2.order.hits_count;
        if l1.ways != 4 || l1.order.kind != Kind::Stamps || l2.order.kind != Kind::List || l2.signed != WIDE || !lru {
            return None;
        }
        let (l1_mask, l2_mask, ways) = (l1.set_mask, l2.set_mask, l2.ways);
        let full = l1.is_full_of_small() && l2.is_full_of_small();
        // One length for each level spares three checks an access.
        let (first, second) = (l1.slots.as_chunks_mut().0, l2.slots.as_chunks_mut().0);
        let (sets1, sets2) = (first.len(), second.len());
        Some(Usual {
            l1: first,
            stamps: l1.order.state.as_chunks_mut().0.get_mut(..sets1)?,
            l2: second,
            signatures: l2.signatures.as_chunks_mut().0.get_mut(..sets2)?,
            lists: l2.order.state.get_mut(..sets2)?,
            l1_mask,
            l2_mask,
            ways,
            full,
            pcid,
            plain: Data::plain(pcid),
        })
    }

    /// The same in any case, by the operations that other modules have.
    #[cold]
    fn careful_through(&mut self, tag: Tag, run: &[Acc], ready: &[Ready]) -> Through {
        let mut through = Through::default();
        for (i, (acc, Ready(ready))) in run.iter().zip(ready).take(THROUGH).enumerate() {
            let covers = ready.key == Key::new(tag.vpid(), ready.key.size(), acc.page_bits(12));
            if !covers || (ready.key.size() == PageSize::Size1G && self.gigabyte == GigabytePages::Split) {
                break;
            }
            if self.lookup_packed(tag, *acc).is_none() {
                self.fill_packed(tag, ready);
                through.filled |= 1 << i;
            }
            through.done = i + 1;
        }
        through
    }
}
