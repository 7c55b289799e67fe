//! What one vCPU flushed, and when: the end of every permission to use an old entry.
//!
//! Two kinds of cache are told apart, as the manual does: TLBs, which hold whole translations, and paging-structure caches,
//! which hold one upper-level entry for each prefix of an address. INVLPG drops *all* paging-structure caches of the current
//! PCID but only one page of the TLBs; a page fault drops both for its own address only. Source: Intel SDM volume 3, section
//! 4.10.4.1.

use std::collections::{BTreeMap, HashMap};

use memvirt_addr::{Gfn, Gva, Level, PageSize};
use memvirt_ops::arch::{Control, CrWrite, Invpcid, Pcid};

use crate::history::{OPEN, Tick};
use crate::state::State;

/// An interval during which one root was loaded under one PCID.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) root: Gfn,
    pub(crate) pcid: Pcid,
    pub(crate) from: Tick,
    pub(crate) to: Tick,
}

/// The last flush of each page, by page size and page number, beside flushes of everything.
#[derive(Clone, Debug, Default)]
struct Pages {
    all: Tick,
    page: HashMap<(PageSize, u64), Tick>,
}

impl Pages {
    fn flush_all(&mut self, at: Tick) {
        self.all = at;
        self.page.clear();
    }

    /// Flushes the page of `gva`: the 4 KiB page, whatever it was cached as, and where the tables now map it by a larger page
    /// (`mapped`), all pieces of that. A larger page that the tables no longer have may have been cached in pieces, of which only
    /// the one that holds `gva` need go.
    fn flush_page(&mut self, gva: Gva, mapped: Option<PageSize>, at: Tick) {
        for size in [Some(PageSize::Size4K), mapped].into_iter().flatten() {
            self.page.insert((size, gva.as_u64() >> size.shift()), at);
        }
    }

    fn last(&self, gva: Gva, size: PageSize) -> Tick {
        let of = |size: PageSize| self.page.get(&(size, gva.as_u64() >> size.shift())).copied().unwrap_or(0);
        of(PageSize::Size4K).max(of(size)).max(self.all)
    }
}

/// What is tagged with one PCID.
#[derive(Clone, Debug, Default)]
struct Context {
    tlb: Pages,
    /// Flushes of all paging-structure caches, ascending.
    upper: Vec<Tick>,
    /// Flushes of one cached entry each, by level and address prefix.
    upper_for: HashMap<(Level, u64), Vec<Tick>>,
}

impl Context {
    fn flush_all(&mut self, at: Tick) {
        self.tlb.flush_all(at);
        self.upper.push(at);
    }

    fn flush_upper_for(&mut self, gva: Gva, at: Tick) {
        for level in &Level::ALL[1..] {
            self.upper_for.entry((*level, gva.as_u64() >> level.entry_shift())).or_default().push(at);
        }
    }
}

/// The flushes of one vCPU, and the address spaces it ran in.
#[derive(Clone, Debug)]
pub(crate) struct Flushes {
    segments: Vec<Segment>,
    contexts: BTreeMap<Pcid, Context>,
    global: Pages,
}

impl Flushes {
    pub(crate) fn new(state: &State) -> Self {
        let segment = Segment { root: state.cr3.root.frame(), pcid: state.pcid(), from: 0, to: OPEN };
        Self {
            segments: vec![segment],
            contexts: BTreeMap::from([(state.pcid(), Context::default())]),
            global: Pages::default(),
        }
    }

    /// Takes over a privileged operation; `old` and `new` are the registers before and after it, `mapped` the size of the page
    /// that the tables map at the address it names.
    pub(crate) fn control(
        &mut self,
        control: &Control,
        (old, new): (&State, &State),
        mapped: Option<PageSize>,
        at: Tick,
    ) {
        match *control {
            Control::Invlpg(gva) => {
                let context = self.context(old.pcid());
                context.tlb.flush_page(gva, mapped, at);
                context.upper.push(at);
                self.global.flush_page(gva, mapped, at);
            }
            Control::Cr3(cr3) => {
                self.enter(new, at);
                if !(cr3.keep && new.pcid_enable) {
                    self.context(new.pcid()).flush_all(at);
                }
            }
            Control::Cr(CrWrite::TogglePge) | Control::Invpcid(Invpcid::AllGlobal) => self.flush_everything(at),
            Control::Cr(CrWrite::PcidEnable(on)) => {
                self.enter(new, at);
                if old.pcid_enable && !on {
                    self.flush_everything(at);
                }
            }
            Control::Invpcid(Invpcid::Address(pcid, gva)) => {
                let mapped = mapped.filter(|_| pcid == old.pcid());
                let context = self.context(pcid);
                context.tlb.flush_page(gva, mapped, at);
                context.flush_upper_for(gva, at);
            }
            Control::Invpcid(Invpcid::Single(pcid)) => self.context(pcid).flush_all(at),
            Control::Invpcid(Invpcid::All) => self.contexts.values_mut().for_each(|context| context.flush_all(at)),
            Control::Cr(CrWrite::WriteProtect(_))
            | Control::ReadCr3
            | Control::Ipi(_)
            | Control::Interrupt
            | Control::Trap(_) => {}
        }
    }

    /// A page fault that the guest saw.
    pub(crate) fn fault(&mut self, pcid: Pcid, gva: Gva, mapped: Option<PageSize>, at: Tick) {
        let context = self.context(pcid);
        context.tlb.flush_page(gva, mapped, at);
        context.flush_upper_for(gva, at);
        self.global.flush_page(gva, mapped, at);
    }

    fn context(&mut self, pcid: Pcid) -> &mut Context {
        self.contexts.entry(pcid).or_default()
    }

    fn flush_everything(&mut self, at: Tick) {
        self.contexts.values_mut().for_each(|context| context.flush_all(at));
        self.global.flush_all(at);
    }

    fn enter(&mut self, state: &State, at: Tick) {
        let (root, pcid) = (state.cr3.root.frame(), state.pcid());
        self.context(pcid);
        match self.segments.last_mut() {
            Some(last) if (last.root, last.pcid) == (root, pcid) => {}
            last => {
                if let Some(last) = last {
                    last.to = at;
                }
                self.segments.push(Segment { root, pcid, from: at, to: OPEN });
            }
        }
    }

    /// When `pcid` was current, and with which roots; what ended by `since` left out.
    pub(crate) fn segments(&self, pcid: Pcid, since: Tick) -> impl Iterator<Item = &Segment> {
        let first = self.segments.partition_point(|segment| segment.to <= since);
        self.segments[first..].iter().filter(move |segment| segment.pcid == pcid)
    }

    /// Every PCID that was ever current.
    pub(crate) fn pcids(&self) -> impl Iterator<Item = Pcid> {
        self.contexts.keys().copied()
    }

    /// The last flush of the translation of `gva`, were it cached with `size` under `pcid`.
    pub(crate) fn last(&self, pcid: Pcid, gva: Gva, size: PageSize) -> Tick {
        self.contexts.get(&pcid).map_or(0, |context| context.tlb.last(gva, size))
    }

    /// The last flush of the translation of `gva`, were it cached as global with `size`.
    pub(crate) fn last_global(&self, gva: Gva, size: PageSize) -> Tick {
        self.global.last(gva, size)
    }

    /// The last flush of everything, global translations included.
    pub(crate) const fn everything(&self) -> Tick {
        self.global.all
    }

    /// Until when the entry of `level` for `gva` may stay cached that was last read just before `read_until`.
    pub(crate) fn upper_cached_until(&self, pcid: Pcid, level: Level, gva: Gva, read_until: Tick) -> Tick {
        let Some(context) = self.contexts.get(&pcid) else { return read_until };
        let from = |ticks: &[Tick]| ticks.get(ticks.partition_point(|at| *at < read_until)).copied().unwrap_or(OPEN);
        let own =
            context.upper_for.get(&(level, gva.as_u64() >> level.entry_shift())).map_or(OPEN, |ticks| from(ticks));
        own.min(from(&context.upper))
    }

    /// The instant before which nothing matters any more.
    pub(crate) fn floor(&self, globals: bool) -> Tick {
        let own = self.contexts.values().map(|context| context.tlb.all).min().unwrap_or(0);
        if globals { own.min(self.global.all) } else { own }
    }

    /// Forgets what no instant from `floor` on can see.
    pub(crate) fn prune(&mut self, floor: Tick) {
        let gone = self.segments.partition_point(|segment| segment.to <= floor);
        self.segments.drain(..gone);
        let forget = |ticks: &mut Vec<Tick>| drop(ticks.drain(..ticks.partition_point(|at| *at <= floor)));
        for context in self.contexts.values_mut() {
            forget(&mut context.upper);
            context.upper_for.retain(|_, ticks| {
                forget(ticks);
                !ticks.is_empty()
            });
        }
    }
}
