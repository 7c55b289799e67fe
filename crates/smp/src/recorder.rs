//! Between a guest and its platform: cuts what one vCPU does in a batch into segments, each with what it cost in translation and
//! the exits that it brought.
//!
//! What other vCPUs are made to do meanwhile has ledgers of its own (`memvirt_guest::Shootdown`); here it only marks where the
//! sender began to wait.

use memvirt_addr::{Acc, Gfn, Gpa, Gva, Hfn, Privilege};
use memvirt_machine::{MachineSpec, translation_cycles};
use memvirt_ops::arch::{Control, Event, GfnRange, HostEvent, StoreOp};
use memvirt_ops::{VcpuId, VmId};
use memvirt_platform::{Attribution, Horizon, Ledger, Platform, Reached, Refusal, Stop, TableBytes};

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Accesses of the process.
    User,
    /// Accesses of the kernel.
    Kernel,
    /// One store to a page table.
    TableStore,
    /// INVLPG.
    Invlpg,
    /// A CR3 load.
    Cr3,
    /// An interrupt to other vCPUs was sent.
    Sent,
    /// The sender begins to wait for them.
    Waits,
    /// Anything else.
    Other,
}

/// One call of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) kind: Kind,
    /// Accesses done; 1 for everything else.
    pub(crate) done: u64,
    /// Cycles of TLB misses and walks.
    pub(crate) translation: u64,
    /// Which exits of the ledger's list are its own: from, up to.
    pub(crate) exits: (usize, usize),
}

/// A platform that writes down what passes.
pub(crate) struct Recorder<'a> {
    pub(crate) inner: &'a mut dyn Platform,
    pub(crate) spec: &'a MachineSpec,
    /// The vCPU whose batch it is.
    pub(crate) me: VcpuId,
    pub(crate) log: &'a mut Vec<Segment>,
    /// An interrupt was sent, and nobody is waited for yet.
    pub(crate) sent: bool,
}

impl Recorder<'_> {
    fn record<T>(
        &mut self,
        v: VcpuId,
        kind: Kind,
        out: &mut Ledger,
        act: impl FnOnce(&mut dyn Platform, &mut Ledger) -> (T, u64),
    ) -> T {
        if v != self.me {
            if core::mem::take(&mut self.sent) {
                self.log.push(Segment { kind: Kind::Waits, done: 1, translation: 0, exits: (0, 0) });
            }
            return act(self.inner, out).0;
        }
        let listed = |out: &Ledger| out.exits.as_ref().map_or(0, Vec::len);
        let (from, before) = (listed(out), translation_cycles(self.spec, &out.counters));
        let (result, done) = act(self.inner, out);
        let translation = translation_cycles(self.spec, &out.counters) - before;
        self.log.push(Segment { kind, done, translation, exits: (from, listed(out)) });
        self.sent |= kind == Kind::Sent;
        result
    }
}

fn kind_of(event: &Event) -> Kind {
    match event {
        Event::Control(Control::Invlpg(_)) => Kind::Invlpg,
        Event::Control(Control::Cr3(_)) => Kind::Cr3,
        Event::Control(Control::Ipi(_)) => Kind::Sent,
        Event::Store { op: StoreOp::Mov { .. } | StoreOp::And { .. } | StoreOp::Or { .. }, .. } => Kind::TableStore,
        _ => Kind::Other,
    }
}

impl Platform for Recorder<'_> {
    fn accesses(&mut self, v: VcpuId, run: &[Acc], horizon: Horizon, out: &mut Ledger) -> (usize, Stop) {
        let user = run.first().is_some_and(|acc| acc.privilege() == Privilege::User);
        let kind = if user { Kind::User } else { Kind::Kernel };
        self.record(v, kind, out, |inner, out| {
            let (done, stop) = inner.accesses(v, run, horizon, out);
            ((done, stop), done as u64)
        })
    }

    fn event(&mut self, v: VcpuId, event: &Event, out: &mut Ledger) -> Result<Option<u64>, Refusal> {
        self.record(v, kind_of(event), out, |inner, out| (inner.event(v, event, out), 1))
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
        self.inner.poke(vm, at, value);
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

    fn attribution(&self, vm: VmId) -> Option<Attribution> {
        self.inner.attribution(vm)
    }
}
