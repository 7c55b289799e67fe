//! [`Checked`]: a platform with the oracle beside it.

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, PfCode};
use memvirt_ops::arch::{Event, GfnRange, GuestFault, HostEvent, StoreOp};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Guest4;
use memvirt_platform::{Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};

use crate::oracle::{Oracle, View};
use crate::verdict::{BitsVerdict, FaultRule, FaultVerdict, Seen, Tally, Verdict, Violation, Wrong};

/// A [`Platform`] that passes everything on to another one and has the oracle judge each access, value, store and fault.
///
/// Runs of accesses are handed on one by one, so that each can be judged by what the TLB holds right after it.
#[derive(Debug)]
pub struct Checked<P> {
    inner: P,
    /// The virtual machine of each vCPU.
    vm_of: Vec<VmId>,
    /// One oracle for each virtual machine.
    oracles: Vec<Oracle<Guest4>>,
    tally: Tally,
    violations: Vec<Violation>,
}

/// A place that a store may have reached, and what its words held before.
struct Place {
    frame: Gfn,
    verdict: Verdict,
    before: Vec<u64>,
}

impl<P: Platform> Checked<P> {
    /// How many violations are kept in full; all are counted.
    pub const KEPT: usize = 32;

    /// Watches `platform`, which has run nothing yet; `vm_of` names the virtual machine of each vCPU.
    #[must_use]
    pub fn new(platform: P, vm_of: Vec<VmId>) -> Self {
        let vms = vm_of.iter().map(|vm| vm.index() + 1).max().unwrap_or(0);
        let vcpus = u16::try_from(vm_of.len()).unwrap_or(u16::MAX);
        Self {
            inner: platform,
            oracles: (0..vms).map(|_| Oracle::new(vcpus)).collect(),
            vm_of,
            tally: Tally::default(),
            violations: Vec::new(),
        }
    }

    /// Watches a platform of one virtual machine with one vCPU.
    #[must_use]
    pub fn single(platform: P) -> Self {
        Self::new(platform, vec![VmId::FIRST])
    }

    /// The same with another rule for page faults; for KVM's shadow paging, [`FaultRule::Kvm`].
    #[must_use]
    pub fn with_fault_rule(mut self, rule: FaultRule) -> Self {
        self.oracles = self.oracles.into_iter().map(|oracle| oracle.with_fault_rule(rule)).collect();
        self
    }

    /// The platform.
    pub const fn inner(&self) -> &P {
        &self.inner
    }

    /// The judgements so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The first violations.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    fn with<T>(&mut self, v: VcpuId, ask: impl FnOnce(&mut Oracle<Guest4>, &View<'_>) -> T) -> T {
        let vm = self.vm_of[v.index()];
        let inner = &self.inner;
        let view = View { peek: &|at| inner.peek(vm, at), backing: &|gfn| inner.backing(vm, gfn) };
        ask(&mut self.oracles[vm.index()], &view)
    }

    fn blame(&mut self, vcpu: VcpuId, acc: Acc, wrong: Wrong) {
        if self.violations.len() < Self::KEPT {
            self.violations.push(Violation { vcpu, acc, wrong });
        }
    }

    /// What the platform shows of the access just completed. Where it shows nothing (it carried the access out itself), only
    /// the permission can be judged here.
    fn seen(&self, v: VcpuId, gva: Gva) -> Seen {
        let reached = self.inner.reached(v, gva);
        Seen { frame: reached.map(|reached| reached.frame), writable: reached.is_some_and(|reached| reached.writable) }
    }

    /// Judges where an access arrived; the verdict is not counted yet.
    fn translation(&mut self, v: VcpuId, acc: Acc) -> Verdict {
        let seen = self.seen(v, acc.gva());
        let verdict = self.with(v, |oracle, view| oracle.judge(v, acc, seen, view));
        if verdict == Verdict::Broken {
            let expected = self.with(v, |oracle, view| {
                oracle.current(v, acc, view.peek).ok().and_then(|translation| (view.backing)(translation.frame))
            });
            self.blame(v, acc, Wrong::Translation { reached: seen.frame, expected });
        }
        verdict
    }

    /// Judges the accessed and dirty bits of a completed access with `verdict`, and counts the access.
    fn finish(&mut self, v: VcpuId, acc: Acc, verdict: Verdict) {
        let mut verdict = verdict;
        if verdict == Verdict::Fresh {
            let bits = self.with(v, |oracle, view| oracle.judge_bits(v, acc, view));
            if matches!(bits, BitsVerdict::AccessedLost | BitsVerdict::DirtyLost) {
                self.blame(v, acc, Wrong::Bits(bits));
                verdict = Verdict::Broken;
            }
        }
        self.tally.access(verdict);
    }

    fn faulted(&mut self, v: VcpuId, acc: Acc, fault: GuestFault) {
        let code = fault.code;
        let verdict = if fault.gva.frame() == acc.gva().frame() {
            self.with(v, |oracle, view| oracle.judge_fault(v, acc, code, view))
        } else {
            FaultVerdict::Unjustified { expected: None }
        };
        match verdict {
            FaultVerdict::Justified => self.tally.faults += 1,
            FaultVerdict::Unjustified { expected } => self.unjustified(v, acc, code, expected),
        }
        self.with(v, |oracle, view| oracle.fault(v, fault.gva, code, view.peek));
    }

    fn unjustified(&mut self, v: VcpuId, acc: Acc, code: PfCode, expected: Option<PfCode>) {
        self.tally.unjustified += 1;
        self.blame(v, acc, Wrong::Fault { code, expected });
    }

    fn load(&mut self, v: VcpuId, gva: Gva, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        let acc = Acc::supervisor(gva, AccessKind::Read);
        let result = self.inner.event(v, &Event::Load { gva }, out);
        match result {
            Ok(Some(value)) => {
                let place = self.translation(v, acc);
                let verdict = self.with(v, |oracle, view| oracle.judge_value(v, acc, value, view));
                if verdict == Verdict::Broken && place != Verdict::Broken {
                    let expected = self.with(v, |oracle, view| {
                        let found = oracle.current(v, acc, view.peek).ok()?;
                        Some((view.peek)(found.frame.at(gva.as_u64())))
                    });
                    self.blame(v, acc, Wrong::Value { got: value, expected });
                }
                self.finish(v, acc, place.max(verdict));
            }
            Err(Refusal::GuestFault(fault)) => self.faulted(v, acc, fault),
            _ => {}
        }
        result
    }

    fn place(view: &View<'_>, frame: Gfn, verdict: Verdict, offsets: &[u64]) -> Place {
        Place { frame, verdict, before: offsets.iter().map(|offset| (view.peek)(frame.at(*offset))).collect() }
    }

    /// The places that the words at `offsets` of the page of `acc` may mean: the current one, and where the TLB holds
    /// another frame, every one that hardware may still reach. Searching them all before each store would cost more than it
    /// tells; a stale translation that only the platform's own tables hold shows afterwards.
    fn places(&mut self, v: VcpuId, acc: Acc, offsets: &[u64]) -> Vec<Place> {
        let held = self.inner.reached(v, acc.gva()).map(|reached| reached.frame);
        self.with(v, |oracle, view| {
            let current = oracle.current(v, acc, view.peek).ok().map(|translation| translation.frame);
            let mut places: Vec<Place> =
                current.iter().map(|frame| Self::place(view, *frame, Verdict::Fresh, offsets)).collect();
            let fresh = current.and_then(|frame| (view.backing)(frame));
            if held.is_some() && held != fresh {
                for translation in &oracle.possible(v, acc.gva(), view) {
                    let new = places.iter().all(|place| place.frame != translation.frame);
                    if new && oracle.state(v).permits(translation.perms, acc) {
                        places.push(Self::place(view, translation.frame, Verdict::Allowed, offsets));
                    }
                }
            }
            places
        })
    }

    /// Whether the store shows at some place that hardware may still reach. What stood there before is not known, so bits
    /// that the store leaves alone are not compared.
    fn shows_elsewhere(&mut self, v: VcpuId, acc: Acc, offsets: &[u64], op: &StoreOp) -> bool {
        let via = acc.gva();
        self.with(v, |oracle, view| {
            oracle.possible(v, via, view).iter().any(|translation| {
                oracle.state(v).permits(translation.perms, acc)
                    && offsets.iter().all(|offset| {
                        let after = (view.peek)(translation.frame.at(*offset));
                        same(applied(after, *offset, via, op), after)
                    })
            })
        })
    }

    fn store(&mut self, v: VcpuId, via: Gva, op: &StoreOp, event: &Event, out: &mut Ledger) -> Result<(), Refusal> {
        let acc = Acc::supervisor(via, AccessKind::Write);
        let offsets = words_of(via, op);
        let places = self.places(v, acc, &offsets);
        let result = self.inner.event(v, event, out);
        if let Err(Refusal::GuestFault(fault)) = result {
            self.faulted(v, acc, fault);
        }
        let mut arrived = self.arrived(v, &places, &offsets, via, op);
        if result.is_ok() {
            if arrived == Verdict::Broken && self.shows_elsewhere(v, acc, &offsets, op) {
                arrived = Verdict::Allowed;
            }
            let seen = self.inner.reached(v, via).is_some();
            let place = if seen { self.translation(v, acc) } else { arrived };
            if arrived == Verdict::Broken && !(seen && place == Verdict::Broken) {
                self.blame(v, acc, Wrong::Store);
            }
            // A frame reached is exact; the contents may fit at several places.
            self.finish(v, acc, if arrived == Verdict::Broken { arrived } else { place });
        }
        result.map(|_| ())
    }

    /// Which of `places` the store changed as it should have; what changed anywhere becomes history.
    fn arrived(&mut self, v: VcpuId, places: &[Place], offsets: &[u64], via: Gva, op: &StoreOp) -> Verdict {
        let mut verdict = Verdict::Broken;
        for place in places {
            let after: Vec<u64> =
                self.with(v, |_, view| offsets.iter().map(|offset| (view.peek)(place.frame.at(*offset))).collect());
            let done = (place.before.iter().zip(offsets).zip(&after))
                .all(|((before, offset), after)| same(applied(*before, *offset, via, op), *after));
            if done {
                verdict = verdict.min(place.verdict);
            }
            self.with(v, |oracle, _| {
                for ((before, offset), after) in place.before.iter().zip(offsets).zip(&after) {
                    oracle.store(place.frame.at(*offset), *before, *after);
                }
            });
        }
        verdict
    }
}

/// Equal save for the bits that hardware sets: a store to a table can be overtaken by the walk for the next access to it.
const fn same(expected: u64, found: u64) -> bool {
    (expected ^ found) & !0x60 == 0
}

/// The page offsets of the aligned words that `op` at `via` touches.
fn words_of(via: Gva, op: &StoreOp) -> Vec<u64> {
    let bytes = match op {
        StoreOp::Mov { width, .. } => width.bytes(),
        StoreOp::And { .. } | StoreOp::Or { .. } => 8,
        StoreOp::RepStos { count, .. } => 8 * u64::from(*count),
        StoreOp::Vector => 16,
    };
    let start = via.as_u64() & 0xfff;
    (start & !7..start + bytes).step_by(8).map(|offset| offset & 0xff8).collect()
}

/// What the word at page offset `offset` holds after `op`, were it `before`.
fn applied(before: u64, offset: u64, via: Gva, op: &StoreOp) -> u64 {
    match *op {
        StoreOp::And { mask } => before & mask,
        StoreOp::Or { bits } => before | bits,
        StoreOp::RepStos { value, .. } => value,
        StoreOp::Vector => 0,
        StoreOp::Mov { width, value } => {
            let mut after = before;
            for i in 0..width.bytes() {
                let at = (via.as_u64() & 0xfff) + i;
                if at & 0xff8 == offset {
                    let shift = 8 * (at & 7);
                    after = (after & !(0xff << shift)) | (((value >> (8 * i)) & 0xff) << shift);
                }
            }
            after
        }
    }
}

impl<P: Platform> Platform for Checked<P> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        for (done, acc) in run.iter().enumerate() {
            let (one, stop) = self.inner.accesses(v, core::slice::from_ref(acc), horizon, out);
            if let Stop::GuestFault(fault) = stop {
                self.faulted(v, *acc, fault);
            }
            if one == 0 {
                return (done, stop);
            }
            let verdict = self.translation(v, *acc);
            self.finish(v, *acc, verdict);
        }
        (run.len(), Stop::Done)
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        match event {
            Event::Load { gva } => self.load(v, *gva, out),
            Event::Store { via, op, .. } => self.store(v, *via, op, event, out).map(|()| None),
            Event::Control(control) => {
                let result = self.inner.event(v, event, out);
                if result.is_ok() {
                    self.with(v, |oracle, view| oracle.control(v, control, view.peek));
                }
                result
            }
        }
    }

    fn host(&mut self, event: &HostEvent, out: &mut Ledger) {
        self.inner.host(event, out);
    }

    fn world_switch(&mut self, v: VcpuId, out: &mut Ledger) {
        self.inner.world_switch(v, out);
    }

    fn peek(&self, vm: VmId, at: Gpa) -> u64 {
        self.inner.peek(vm, at)
    }

    fn poke(&mut self, vm: VmId, at: Gpa, value: u64) {
        let old = self.inner.peek(vm, at);
        self.inner.poke(vm, at, value);
        self.oracles[vm.index()].store(at, old, value);
    }

    fn populate(&mut self, vm: VmId, range: GfnRange, out: &mut Ledger) {
        self.inner.populate(vm, range, out);
    }

    fn backing(&self, vm: VmId, gfn: Gfn) -> Option<Hfn> {
        self.inner.backing(vm, gfn)
    }

    fn reached(&self, v: VcpuId, gva: Gva) -> Option<Reached> {
        self.inner.reached(v, gva)
    }

    fn table_bytes(&self) -> TableBytes {
        self.inner.table_bytes()
    }

    fn attribution(&self, vm: VmId) -> Option<memvirt_platform::Attribution> {
        self.inner.attribution(vm)
    }
}
