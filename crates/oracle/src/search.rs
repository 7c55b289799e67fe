//! Every translation that hardware may hold: the search over the history of the entries.
//!
//! A translation is cached when the leaf is read; the upper entries it went through may have come from paging-structure
//! caches, each read at an earlier instant and not flushed until the next lower one was read. So a walk is a chain of
//! instants, root first, and each level contributes *facts*: "an entry that points to this table, with these permissions,
//! could be in the cache from here to there". Facts of one level follow from those above and the values that the words
//! between had. Source: Intel SDM volume 3, sections 4.10.2 (TLBs) and 4.10.3 (paging-structure caches).

use memvirt_addr::{Gfn, GuestPhys, GuestVirt, Gva, Level, PageSize};
use memvirt_ops::arch::Pcid;
use memvirt_pagetable::{Attrs, Entry, Format};

use crate::flushes::Flushes;
use crate::history::{Piece, Tick, Words};
use crate::oracle::View;

/// What a walk of the guest's tables gives for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest frame of exactly the address walked.
    pub frame: Gfn,
    /// The size of the page that the frame is part of.
    pub size: PageSize,
    /// The permissions of all entries, ANDed.
    pub perms: Attrs,
    /// Whether the leaf is global.
    pub global: bool,
}

impl Translation {
    pub(crate) fn of(gva: Gva, frame: Gfn, size: PageSize, perms: Attrs, leaf: Attrs) -> Self {
        Self {
            frame: frame.offset(gva.page_offset(size) >> 12),
            size,
            perms: perms & leaf & Attrs::PERMISSIONS,
            global: leaf.contains(Attrs::GLOBAL),
        }
    }
}

/// A table that a walk could have gone on with, from one instant to another.
#[derive(Clone, Copy, Debug)]
struct Fact {
    table: Gfn,
    perms: Attrs,
    from: Tick,
    to: Tick,
}

/// Where a search looks.
pub(crate) struct Search<'a> {
    pub(crate) words: &'a Words,
    pub(crate) flushes: &'a Flushes,
    pub(crate) view: &'a View<'a>,
    pub(crate) gva: Gva,
}

impl Search<'_> {
    /// The translations that may be cached under `pcid` now. Where `pge` is on, global ones may come from any PCID; they are
    /// looked for once `globals` says that there are any, and it is set when one is found.
    pub(crate) fn run<F>(&self, pcid: Pcid, pge: bool, globals: &mut bool) -> Vec<Translation>
    where
        F: Format<In = GuestVirt, Out = GuestPhys>,
    {
        let (flushes, gva) = (self.flushes, self.gva);
        let mut found = Vec::new();
        let since = flushes.last(pcid, gva, PageSize::Size4K);
        for (translation, until) in self.descend::<F>(pcid, since) {
            if pge && translation.global {
                *globals = true;
            } else if until > flushes.last(pcid, gva, translation.size) {
                push_new(&mut found, translation);
            }
        }
        if pge && *globals {
            for pcid in flushes.pcids() {
                for (translation, until) in self.descend::<F>(pcid, flushes.everything()) {
                    if translation.global && until > flushes.last_global(gva, translation.size) {
                        push_new(&mut found, translation);
                    }
                }
            }
        }
        found
    }

    /// Every leaf that a walk under `pcid` at or after `since` could have read, with the instant until which it could.
    fn descend<F>(&self, pcid: Pcid, since: Tick) -> Vec<(Translation, Tick)>
    where
        F: Format<In = GuestVirt, Out = GuestPhys>,
    {
        let active = self.flushes.segments(pcid, since).map(|s| (s.from.max(since), s.to)).collect::<Vec<_>>();
        let mut facts = (self.flushes.segments(pcid, since))
            .map(|s| Fact { table: s.root, perms: Attrs::PERMISSIONS, from: s.from.max(since), to: s.to })
            .collect::<Vec<_>>();
        let mut leaves = Vec::new();
        let mut level = Some(F::ROOT);
        while let Some(this) = level {
            facts = self.step::<F>(pcid, this, &facts, &active, &mut leaves);
            level = this.below();
        }
        leaves
    }

    /// One level: what the entries of `level` led to from each of `facts`.
    fn step<F>(
        &self,
        pcid: Pcid,
        level: Level,
        facts: &[Fact],
        active: &[(Tick, Tick)],
        leaves: &mut Vec<(Translation, Tick)>,
    ) -> Vec<Fact>
    where
        F: Format<In = GuestVirt, Out = GuestPhys>,
    {
        let (mut below, mut pieces) = (Vec::new(), Vec::new());
        let hardware = F::RAW_ACCESSED | F::RAW_DIRTY;
        for fact in facts {
            let word = fact.table.entry(F::index(self.gva, level));
            self.words.pieces(word, fact.from, (self.view.peek)(word), hardware, &mut pieces);
            for Piece { value, from, to } in &pieces {
                let entry = F::decode(*value, level);
                let (from, to) = ((*from).max(fact.from), (*to).min(fact.to));
                if from >= to {
                    continue;
                }
                let first = active.partition_point(|(_, end)| *end <= from);
                for (start, end) in active[first..].iter().take_while(|(start, _)| *start < to) {
                    let (from, to) = (from.max(*start), to.min(*end));
                    match entry {
                        Entry::Table { next, attrs } => below.push(Fact {
                            table: next,
                            perms: fact.perms & attrs,
                            from,
                            to: self.flushes.upper_cached_until(pcid, level, self.gva, to),
                        }),
                        Entry::Leaf { frame, size, attrs } => {
                            leaves.push((Translation::of(self.gva, frame, size, fact.perms, attrs), to));
                        }
                        Entry::Absent | Entry::Reserved => {}
                    }
                }
            }
        }
        merge(below)
    }
}

/// Joins facts about the same table whose intervals meet.
fn merge(mut facts: Vec<Fact>) -> Vec<Fact> {
    facts.sort_by_key(|fact| (fact.table, fact.perms.bits(), fact.from));
    let mut merged: Vec<Fact> = Vec::with_capacity(facts.len());
    for fact in facts {
        match merged.last_mut() {
            Some(last) if (last.table, last.perms) == (fact.table, fact.perms) && fact.from <= last.to => {
                last.to = last.to.max(fact.to);
            }
            _ => merged.push(fact),
        }
    }
    merged
}

fn push_new(found: &mut Vec<Translation>, translation: Translation) {
    if !found.contains(&translation) {
        found.push(translation);
    }
}
