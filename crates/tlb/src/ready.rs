//! The path of misses: [`Tlb::through`], for streams that miss often and whose walks are known ahead.
//!
//! Who simulates a long run of accesses may know the outcome of the walks to come, because he made several of them together
//! ([`Ready`]). Then hits and fills need not come back to him one by one. In the usual case all entries are of 4 KiB pages, the
//! first level has four ways and the sets are full; that case has a loop of its own, in which nothing depends on the page but
//! data. Where anything is different the loop stops, or the operations of `tlb` take its place; so this path changes the time,
//! never a result.

use memvirt_addr::{Acc, PageSize};

use crate::array::{L1_SLOTS, equal_bytes, signature};
use crate::entry::{Entry, Key, Packed, denied_to};
use crate::front::Front;
use crate::geometry::{GigabytePages, Inclusion, Sizes};
use crate::order::{Kind, last_to_front, to_front};
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
    stamps: &'a mut [[u64; 4]; L1_SLOTS / 4],
    front: &'a mut Front,
    l2: &'a mut [Packed],
    ways: usize,
    signatures: &'a mut [[u64; 2]],
    lists: &'a mut [u64],
    l1_mask: u64,
    l2_mask: u64,
}

/// What one access came to.
enum Step {
    L1,
    L2,
    Filled,
    /// Nothing was done: the access is an unusual case.
    Unusual,
}

impl Usual<'_> {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "numbers of sets")]
    fn step(&mut self, key: Key, denied: u64, pcid: u16, ready: &Packed, now: u64) -> Option<Step> {
        let number = key.number_of::<12>();
        let (set1, set2) = ((number & self.l1_mask) as usize, (number & self.l2_mask) as usize);
        let (slots, stamps) = (self.l1.get_mut(set1)?, self.stamps.get_mut(set1)?);
        let permits = |held: &Packed| held.data.visible_to(pcid) && held.data.0 & denied == 0;
        let found = (0..4).fold(0u32, |found, way| found | u32::from(slots[way].key == key) << way);
        if found != 0 {
            let way = found.trailing_zeros() as usize % 4;
            if !permits(&slots[way]) {
                return None;
            }
            stamps[way] = now;
            return Some(Step::L1);
        }
        let way1 = oldest(stamps);
        let victim = slots[way1];
        let (signatures, list) = (self.signatures.get_mut(set2)?, self.lists.get_mut(set2)?);
        let sets = self.l2.get_mut(set2 * self.ways..(set2 + 1) * self.ways)?;
        let (step, new) = if let Some(way) = way_of(signatures, sets, key) {
            let held = sets[way];
            if !permits(&held) || !victim.kin(&held) {
                return None;
            }
            *list = to_front(*list, way as u64);
            (Step::L2, held)
        } else {
            let (moved, way) = last_to_front(*list, self.ways);
            let slot = sets.get_mut(way)?;
            // An empty slot is no entry's kin, nor is nothing that of a live one.
            if ready.key != key || ready.data.is_global() || !victim.kin(ready) || !slot.kin(ready) {
                return None;
            }
            *list = moved;
            *slot = *ready;
            let byte = 0xff << (8 * (way % 8));
            let word = &mut signatures[way / 8 % 2];
            *word = *word & !byte | signature(key) & byte;
            (Step::Filled, *ready)
        };
        slots[way1] = new;
        stamps[way1] = now;
        self.front.remove(victim.key);
        Some(step)
    }
}

/// The way with the least stamp, the first of equals: stamp and way in one number.
#[inline(always)]
fn oldest(stamps: &[u64; 4]) -> usize {
    let [a, b, c, d] = *stamps;
    ((a * 4).min(b * 4 + 1).min((c * 4 + 2).min(d * 4 + 3)) % 4) as usize
}

#[inline(always)]
fn way_of(signatures: &[u64; 2], slots: &[Packed], key: Key) -> Option<usize> {
    let wanted = signature(key);
    let (low, high) = (equal_bytes(signatures[0], wanted), equal_bytes(signatures[1], wanted));
    if low | high == 0 {
        return None;
    }
    // Bits 7, 15 and so on mark ways 0 to 7 and bits 0, 8 and so on ways 8 to 15.
    let mut candidates = low | high >> 7;
    while candidates != 0 {
        let bit = candidates.trailing_zeros() as usize;
        let way = bit / 8 + 8 * usize::from(bit.is_multiple_of(8));
        if slots.get(way).is_some_and(|slot| slot.key == key) {
            return Some(way);
        }
        candidates &= candidates - 1;
    }
    None
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
        let (mut now, mut stats) = (self.clock, self.stats);
        let mut usual = self.usual()?;
        let (context, pcid) = (Key::context(tag.vpid(), PageSize::Size4K), tag.pcid());
        let (mut filled, mut last) = (0u64, Step::Unusual);
        let mut done = 0;
        for (i, (acc, Ready(ready))) in run.iter().zip(ready).take(THROUGH).enumerate() {
            let key = Key(Key::page_part::<12>(acc.page_bits(0)) | context);
            let Some(step) = usual.step(key, denied_to(*acc), pcid, ready, now + 1) else { break };
            now += 1;
            done = i + 1;
            filled |= u64::from(matches!(step, Step::Filled)) << i;
            stats.l1_hits += u64::from(matches!(step, Step::L1));
            last = step;
        }
        let (fills, hits) = (u64::from(filled.count_ones()), now - self.clock);
        stats.misses += fills;
        stats.l2_evictions += fills;
        let l1_hits = stats.l1_hits - self.stats.l1_hits;
        stats.l2_hits += hits - l1_hits - fills;
        stats.l1_evictions += hits - l1_hits;
        (self.clock, self.stats) = (now, stats);
        self.missed = matches!(last, Step::Filled);
        if done > 0 {
            self.likely = PageSize::Size4K;
        }
        self.small.forget_to_note(fills > 0);
        Some(Through { done, filled })
    }

    #[inline]
    fn usual(&mut self) -> Option<Usual<'_>> {
        let small = Sizes::only(PageSize::Size4K);
        if self.l1.maybe_live != small || self.l2.maybe_live != small || self.inclusion != Inclusion::NonInclusive {
            return None;
        }
        let (l1, l2) = (self.l1.array_of_mut(PageSize::Size4K)?, self.l2.array_of_mut(PageSize::Size4K)?);
        let lru = l1.order.hits_count && l2.order.hits_count;
        if l1.ways != 4 || l1.order.kind != Kind::Stamps || l2.order.kind != Kind::List || l2.words != 2 || !lru {
            return None;
        }
        let (l1_mask, l2_mask, ways) = (l1.set_mask, l2.set_mask, l2.ways);
        Some(Usual {
            l1: l1.slots.as_chunks_mut().0,
            stamps: l1.order.state.as_chunks_mut().0.first_chunk_mut()?,
            front: l1.front.as_mut()?,
            l2: &mut l2.slots,
            ways,
            signatures: l2.signatures.as_chunks_mut().0,
            lists: &mut l2.order.state,
            l1_mask,
            l2_mask,
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
