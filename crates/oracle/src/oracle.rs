//! The oracle itself: it is told every store and every flush, and judges what a platform did with them.

use core::marker::PhantomData;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, GuestPhys, GuestVirt, Gva, Hfn, PageSize, PfCode};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, Invpcid};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};

use crate::flushes::Flushes;
use crate::history::{Change, Tick, Words};
use crate::search::{Search, Translation};
use crate::state::State;
use crate::verdict::{BitsVerdict, FaultRule, FaultVerdict, Seen, Verdict};

/// The present: what guest memory holds, and which host frame lies behind each guest frame.
#[expect(missing_debug_implementations, reason = "two closures")]
pub struct View<'a> {
    /// The aligned word at a guest address.
    pub peek: &'a dyn Fn(Gpa) -> u64,
    /// The host frame behind a guest frame, `None` while there is none. The host's side is never stale: once a frame has
    /// been taken away, every translation to it is broken.
    pub backing: &'a dyn Fn(Gfn) -> Option<Hfn>,
}

#[derive(Clone, Debug)]
struct Vcpu {
    state: State,
    flushes: Flushes,
}

/// Judges the translations of one virtual machine whose guest uses tables of format `F`.
#[derive(Clone, Debug)]
pub struct Oracle<F = Guest4> {
    vcpus: Vec<Vcpu>,
    words: Words,
    now: Tick,
    /// Whether a global leaf was ever seen; without one, a flush of all but global entries ends all history.
    globals: bool,
    kept: usize,
    faults: FaultRule,
    format: PhantomData<F>,
}

/// Histories shorter than this are never pruned.
const PRUNE_FROM: usize = 4096;

impl<F: Format<In = GuestVirt, Out = GuestPhys>> Oracle<F> {
    /// An oracle for `vcpus` vCPUs, all in the state [`State::default`], nothing cached.
    #[must_use]
    pub fn new(vcpus: u16) -> Self {
        let state = State::default();
        let vcpu = Vcpu { state, flushes: Flushes::new(&state) };
        Self {
            vcpus: vec![vcpu; usize::from(vcpus)],
            words: Words::default(),
            now: 0,
            globals: false,
            kept: PRUNE_FROM,
            faults: FaultRule::Architecture,
            format: PhantomData,
        }
    }

    /// This oracle with another rule for page faults.
    #[must_use]
    pub const fn with_fault_rule(mut self, rule: FaultRule) -> Self {
        self.faults = rule;
        self
    }

    /// The registers of a vCPU.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    #[must_use]
    pub fn state(&self, v: VcpuId) -> &State {
        &self.vcpus[v.index()].state
    }

    /// How many stores are remembered.
    #[must_use]
    pub const fn remembered(&self) -> usize {
        self.words.records()
    }

    /// The aligned word at `at` was changed from `old` (hardware's bits included) to `new` by a store.
    pub fn store(&mut self, at: Gpa, old: u64, new: u64) {
        if old != new {
            self.now += 1;
            self.words.record(at, Change { at: self.now, old, new });
        }
    }

    /// vCPU `v` carried out a privileged operation.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    pub fn control(&mut self, v: VcpuId, control: &Control, peek: &dyn Fn(Gpa) -> u64) {
        self.now += 1;
        let mapped = match control {
            Control::Invlpg(gva) | Control::Invpcid(Invpcid::Address(_, gva)) => self.mapped(v, *gva, peek),
            _ => None,
        };
        let Vcpu { state, flushes } = &mut self.vcpus[v.index()];
        let old = *state;
        state.execute(control);
        flushes.control(control, (&old, state), mapped, self.now);
        if self.words.records() >= 2 * self.kept {
            self.prune();
            self.kept = self.words.records().max(PRUNE_FROM);
        }
    }

    /// The guest on vCPU `v` saw a page fault at `gva`; hardware drops what it holds for that address.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    pub fn fault(&mut self, v: VcpuId, gva: Gva, code: PfCode, peek: &dyn Fn(Gpa) -> u64) {
        if self.faults.covers(code) {
            self.now += 1;
            let mapped = self.mapped(v, gva, peek);
            let Vcpu { state, flushes } = &mut self.vcpus[v.index()];
            flushes.fault(state.pcid(), gva, mapped, self.now);
        }
    }

    /// The size of the page that the current tables map at `gva`.
    fn mapped(&self, v: VcpuId, gva: Gva, peek: &dyn Fn(Gpa) -> u64) -> Option<PageSize> {
        self.walk(v, gva, peek, &mut |_, _, _| {}).ok().map(|translation| translation.size)
    }

    /// Forgets the history that lies before the last flush of everything on every vCPU. Happens by itself as histories grow.
    pub fn prune(&mut self) {
        let floor = self.vcpus.iter().map(|vcpu| vcpu.flushes.floor(self.globals)).min().unwrap_or(self.now);
        self.words.prune(floor);
        for vcpu in &mut self.vcpus {
            vcpu.flushes.prune(floor);
        }
    }

    /// What the current tables give for `acc`: the translation, or the error code of the page fault.
    ///
    /// # Errors
    ///
    /// The [`PfCode`] of the fault.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    pub fn current(&self, v: VcpuId, acc: Acc, peek: &dyn Fn(Gpa) -> u64) -> Result<Translation, PfCode> {
        let state = self.state(v);
        let end = self.walk(v, acc.gva(), peek, &mut |_, _, _| {});
        match end {
            Ok(translation) if state.permits(translation.perms, acc) => Ok(translation),
            Ok(_) => Err(PfCode::of(acc, true)),
            Err(Entry::Reserved) => Err(PfCode::of(acc, true).with_reserved()),
            Err(_) => Err(PfCode::of(acc, false)),
        }
    }

    /// Walks the current tables; `visit` sees each entry that leads on: where it lies, its raw bits, whether it is the leaf.
    fn walk(
        &self,
        v: VcpuId,
        gva: Gva,
        peek: &dyn Fn(Gpa) -> u64,
        visit: &mut dyn FnMut(Gpa, u64, bool),
    ) -> Result<Translation, Entry<GuestPhys>> {
        let mut table = self.state(v).cr3.root.frame();
        let mut perms = Attrs::PERMISSIONS;
        let mut level = F::ROOT;
        loop {
            let at = table.entry(F::index(gva, level));
            let raw = peek(at);
            match (F::decode(raw, level), level.below()) {
                (Entry::Table { next, attrs }, Some(below)) => {
                    visit(at, raw, false);
                    perms &= attrs;
                    (table, level) = (next, below);
                }
                (Entry::Leaf { frame, size, attrs }, _) => {
                    visit(at, raw, true);
                    return Ok(Translation::of(gva, frame, size, perms, attrs));
                }
                (entry, _) => return Err(entry),
            }
        }
    }

    /// Every translation that hardware may hold for `gva` now, the current one included where there is one.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    #[must_use]
    pub fn possible(&mut self, v: VcpuId, gva: Gva, view: &View<'_>) -> Vec<Translation> {
        let Vcpu { state, flushes } = &self.vcpus[v.index()];
        let search = Search { words: &self.words, flushes, view, gva };
        search.run::<F>(state.pcid(), state.global_pages, &mut self.globals)
    }

    /// Judges a completed access.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    pub fn judge(&mut self, v: VcpuId, acc: Acc, seen: Seen, view: &View<'_>) -> Verdict {
        let fits = |oracle: &Self, translation: &Translation| {
            let state = oracle.state(v);
            let frame = seen.frame.is_none_or(|frame| (view.backing)(translation.frame) == Some(frame));
            let write = Acc::new(acc.gva(), AccessKind::Write, acc.privilege());
            frame
                && state.permits(translation.perms, acc)
                && (!seen.writable || state.permits(translation.perms, write))
        };
        self.verdict(v, acc, view, &fits)
    }

    /// Judges the 8 bytes that a completed load returned: they must stand where some permitted translation leads.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    pub fn judge_value(&mut self, v: VcpuId, acc: Acc, value: u64, view: &View<'_>) -> Verdict {
        let fits = |oracle: &Self, translation: &Translation| {
            let at = translation.frame.at(acc.gva().as_u64());
            oracle.state(v).permits(translation.perms, acc) && (view.peek)(at) == value
        };
        self.verdict(v, acc, view, &fits)
    }

    fn verdict(&mut self, v: VcpuId, acc: Acc, view: &View<'_>, fits: &dyn Fn(&Self, &Translation) -> bool) -> Verdict {
        let current = self.walk(v, acc.gva(), view.peek, &mut |_, _, _| {});
        if let Ok(translation) = current {
            self.globals |= translation.global;
            if fits(self, &translation) {
                return Verdict::Fresh;
            }
        }
        let possible = self.possible(v, acc.gva(), view);
        if possible.iter().any(|translation| fits(self, translation)) { Verdict::Allowed } else { Verdict::Broken }
    }

    /// Judges a page fault that the guest saw; report it by [`Oracle::fault`] afterwards.
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    #[must_use]
    pub fn judge_fault(&self, v: VcpuId, acc: Acc, code: PfCode, view: &View<'_>) -> FaultVerdict {
        match self.current(v, acc, view.peek) {
            Err(expected) if expected == code => FaultVerdict::Justified,
            other => FaultVerdict::Unjustified { expected: other.err() },
        }
    }

    /// Judges the accessed and dirty bits after a completed access that was [`Verdict::Fresh`].
    ///
    /// Hardware sets them when it walks, not when it hits. So a bit may be clear where some entry of the path was present
    /// and then changed since the last flush of the page: a translation cached before the change may have served the access.
    /// Source: Intel SDM volume 3, section 4.8. One of another page size than the tables have now is such a translation whatever
    /// was flushed of the page that they have: the TLBs may hold both (4.10.2.3), and INVLPG and page faults need drop no more
    /// than the address's own page and what was cached of the page that maps it now (4.10.4.1).
    ///
    /// # Panics
    ///
    /// For a vCPU that does not exist.
    #[must_use]
    pub fn judge_bits(&mut self, v: VcpuId, acc: Acc, view: &View<'_>) -> BitsVerdict {
        let (mut words, mut verdict) = (Vec::new(), BitsVerdict::Set);
        let end = self.walk(v, acc.gva(), view.peek, &mut |at, raw, leaf| {
            words.push(at);
            if leaf && acc.is_write() && raw & F::RAW_DIRTY == 0 {
                verdict = BitsVerdict::DirtyLost;
            }
            if raw & F::RAW_ACCESSED == 0 {
                verdict = BitsVerdict::AccessedLost;
            }
        });
        let Ok(translation) = end else { return BitsVerdict::Set };
        let excused = verdict != BitsVerdict::Set
            && (self.excused(v, acc.gva(), &translation, &words)
                || self.cached_by_another_size(v, acc, &translation, view));
        if excused { BitsVerdict::Excused } else { verdict }
    }

    /// Whether a translation of another page size may be cached and have served `acc`.
    fn cached_by_another_size(&mut self, v: VcpuId, acc: Acc, current: &Translation, view: &View<'_>) -> bool {
        let possible = self.possible(v, acc.gva(), view);
        possible.iter().any(|old| old.size != current.size && self.state(v).permits(old.perms, acc))
    }

    /// Whether a translation may be cached that was made before the entries at `words` became what they are.
    fn excused(&self, v: VcpuId, gva: Gva, translation: &Translation, words: &[Gpa]) -> bool {
        let Vcpu { state, flushes } = &self.vcpus[v.index()];
        let pcid = state.pcid();
        let since = if self.globals {
            flushes.last_global(gva, translation.size).min(flushes.last(pcid, gva, PageSize::Size4K))
        } else {
            flushes.last(pcid, gva, translation.size)
        };
        let root = state.cr3.root.frame();
        flushes.segments(pcid, since).any(|segment| segment.root != root)
            || words.iter().any(|at| {
                let changes = self.words.of(*at);
                // Bit 0 is "present" in every x86-64 format.
                changes.iter().rev().take_while(|change| change.at > since).any(|change| change.old & 1 != 0)
            })
    }
}
