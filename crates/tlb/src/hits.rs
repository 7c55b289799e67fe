//! The hot path: [`Tlb::hits`], which runs over accesses that hit in the first level at the cost of a few loads each.
//!
//! A run is looked up in the front of the array that hit last. Whatever does not hit there takes the full lookup of `tlb`,
//! which finds everything there is to find; so this path changes the time, never a result.

use memvirt_addr::{Acc, PageSize};

use crate::array::L1_SLOTS;
use crate::entry::{Key, Packed, denied_to};
use crate::front::LINES;
use crate::order::Kind;
use crate::tag::Tag;
use crate::tlb::Tlb;

/// Accesses looked up one by one before whole blocks: after a miss, often the next miss is near.
const CAREFUL: usize = 8;
/// Accesses whose keys are computed together. That loop is vectorized and reads the run ahead of the lookups, which
/// matters where the run itself comes from memory.
const BLOCK: usize = 32;

/// How the first level notes a use, known to the compiler in the hot path.
trait Use {
    fn note(state: &mut [u64; L1_SLOTS], slot: usize, ways: usize, now: u64);
}

/// LRU: a time stamp.
enum Stamp {}
/// FIFO and random: nothing to note.
enum Nothing {}
/// Tree PLRU: bits on a path.
enum Tree {}

impl Use for Stamp {
    #[inline]
    fn note(state: &mut [u64; L1_SLOTS], slot: usize, _ways: usize, now: u64) {
        state[slot] = now;
    }
}

impl Use for Nothing {
    #[inline]
    fn note(_state: &mut [u64; L1_SLOTS], _slot: usize, _ways: usize, _now: u64) {}
}

impl Use for Tree {
    #[inline]
    fn note(state: &mut [u64; L1_SLOTS], slot: usize, ways: usize, _now: u64) {
        let (set, way) = (slot >> ways.trailing_zeros(), slot & (ways - 1));
        let word = &mut state[set % L1_SLOTS];
        *word = crate::order::point_away(*word, ways, way);
    }
}

/// The parts of one first-level array that the hot path reads, and what is fixed over a run.
struct View<'a> {
    front: &'a [u16; LINES],
    slots: &'a [Packed],
    state: &'a mut [u64; L1_SLOTS],
    ways: usize,
    context: u64,
    now: u64,
}

impl View<'_> {
    /// Whether an access hits in the front; if so, notes the use.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of lines")]
    fn hit<U: Use, const SHIFT: u32>(&mut self, key: u64, denied_to: u64) -> bool {
        let line = Key(key).number_of::<SHIFT>() as usize % LINES;
        let slot = usize::from(self.front[line]);
        let Some(held) = self.slots.get(slot) else { return false };
        if held.key.0 != key || held.data.0 & denied_to != 0 {
            return false;
        }
        self.now += 1;
        U::note(self.state, slot % L1_SLOTS, self.ways, self.now);
        true
    }

    /// Runs over the leading hits.
    #[inline]
    fn run<U: Use, const SHIFT: u32>(&mut self, run: &[Acc]) {
        let context = self.context;
        let (head, tail) = run.split_at(run.len().min(CAREFUL));
        let (blocks, rest) = tail.as_chunks::<BLOCK>();
        if !self.one_by_one::<U, SHIFT>(head) {
            return;
        }
        for block in blocks {
            let keys = block.map(|acc| Key::page_part::<SHIFT>(acc.page_bits(0)) | context);
            let denials = block.map(denied_to);
            for (key, denied) in keys.iter().zip(&denials) {
                if !self.hit::<U, SHIFT>(*key, *denied) {
                    return;
                }
            }
        }
        self.one_by_one::<U, SHIFT>(rest);
    }

    /// Runs over the leading hits; whether that was all.
    #[inline]
    fn one_by_one<U: Use, const SHIFT: u32>(&mut self, run: &[Acc]) -> bool {
        let context = self.context;
        run.iter().all(|acc| {
            let key = Key::page_part::<SHIFT>(acc.page_bits(0)) | context;
            self.hit::<U, SHIFT>(key, denied_to(*acc))
        })
    }
}

impl Tlb {
    /// Looks up the accesses of `run` in order while they hit, and returns how many did: `run.len()`, or the index of
    /// the first that missed.
    ///
    /// The miss is counted here, and completed by the caller's walk and [`Tlb::fill`]: go on with the access after it.
    ///
    /// The order of use, the counts and the contents are those of one [`Tlb::lookup`] for each access.
    pub fn hits(&mut self, tag: Tag, run: &[Acc]) -> usize {
        self.look_as(tag);
        match self.l1.arrays.first().map(|array| (array.order.kind, array.order.hits_count)) {
            Some((Kind::Stamps, true)) => self.hits_noting::<Stamp>(tag, run),
            Some((Kind::Tree, _)) => self.hits_noting::<Tree>(tag, run),
            _ => self.hits_noting::<Nothing>(tag, run),
        }
    }

    fn hits_noting<U: Use>(&mut self, tag: Tag, run: &[Acc]) -> usize {
        let mut done = 0;
        loop {
            // After a miss often comes the next, which the quick way would only try in vain.
            if !core::mem::take(&mut self.missed) {
                done += self.quick_hits::<U>(tag, &run[done..]);
            }
            let Some(acc) = run.get(done) else { return done };
            if self.lookup_packed(tag, *acc).is_none() {
                return done;
            }
            done += 1;
        }
    }

    /// The leading accesses that hit in the first-level array of the likely size, through its front.
    #[inline]
    fn quick_hits<U: Use>(&mut self, tag: Tag, run: &[Acc]) -> usize {
        let (size, clock) = (self.likely, self.clock);
        let Some(mut view) = self.view(tag, size) else { return 0 };
        match size {
            PageSize::Size4K => view.run::<U, 12>(run),
            PageSize::Size2M => view.run::<U, 21>(run),
            PageSize::Size1G => view.run::<U, 30>(run),
        }
        let now = view.now;
        self.clock = now;
        self.stats.l1_hits += now - clock;
        #[expect(clippy::cast_possible_truncation, reason = "at most run.len()")]
        {
            (now - clock) as usize
        }
    }

    #[inline]
    fn view(&mut self, tag: Tag, size: PageSize) -> Option<View<'_>> {
        let now = self.clock;
        let array = self.l1.array_of_mut(size)?;
        Some(View {
            front: &array.front.as_ref()?.slots,
            slots: &array.slots,
            state: array.order.state.first_chunk_mut()?,
            ways: array.ways,
            context: Key::context(tag.vpid(), size),
            now,
        })
    }
}
