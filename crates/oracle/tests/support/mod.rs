//! A guest's memory in a map, with the oracle told of every store.

#![expect(dead_code, clippy::unwrap_used, reason = "each test file uses a part of it; test helpers")]

use std::collections::BTreeMap;

use memvirt_addr::{Acc, AccessKind, Gfn, Gpa, Gva, Hfn, PfCode};
use memvirt_ops::VcpuId;
use memvirt_ops::arch::{Control, Cr3, Pcid};
use memvirt_oracle::{BitsVerdict, FaultVerdict, Oracle, Seen, Translation, Verdict, View};

/// The first vCPU.
pub(crate) const V0: VcpuId = VcpuId(0);
/// The second one.
pub(crate) const V1: VcpuId = VcpuId(1);

/// Guest frame `n` lies in host frame `n + HOST`.
pub(crate) const HOST: u64 = 0x1000;

/// Guest memory and its oracle.
pub(crate) struct World {
    pub(crate) mem: BTreeMap<u64, u64>,
    pub(crate) oracle: Oracle,
    /// Guest frames that the host took away.
    pub(crate) gone: Vec<u64>,
}

impl World {
    pub(crate) fn new(vcpus: u16) -> Self {
        Self { mem: BTreeMap::new(), oracle: Oracle::new(vcpus), gone: Vec::new() }
    }

    pub(crate) fn ask<T>(&mut self, ask: impl FnOnce(&mut Oracle, &View<'_>) -> T) -> T {
        let (mem, gone) = (&self.mem, &self.gone);
        let view = View {
            peek: &|at| mem.get(&(at.as_u64() & !7)).copied().unwrap_or(0),
            backing: &|gfn| (!gone.contains(&gfn.number())).then(|| Hfn::new(gfn.number() + HOST)),
        };
        ask(&mut self.oracle, &view)
    }

    /// Stores entry `index` of the table in frame `table`.
    pub(crate) fn set(&mut self, table: u64, index: usize, value: u64) {
        let at = Gfn::new(table).entry(index);
        let old = self.mem.insert(at.as_u64(), value).unwrap_or(0);
        self.oracle.store(at, old, value);
    }

    /// What hardware does to an entry: the oracle is not told.
    pub(crate) fn hardware_sets(&mut self, table: u64, index: usize, bits: u64) {
        *self.mem.entry(Gfn::new(table).entry(index).as_u64()).or_default() |= bits;
    }

    pub(crate) fn control(&mut self, v: VcpuId, control: Control) {
        self.ask(|oracle, view| oracle.control(v, &control, view.peek));
    }

    pub(crate) fn fault(&mut self, v: VcpuId, gva: u64, code: u32) {
        self.ask(|oracle, view| oracle.fault(v, Gva::new(gva), PfCode::from_bits(code), view.peek));
    }

    /// INVLPG of page 1.
    pub(crate) fn invlpg_neighbour(&mut self) {
        self.control(V0, Control::Invlpg(Gva::new(0x1000)));
    }

    /// A user's fault at page 1, of the supervisor.
    pub(crate) fn fault_at_neighbour(&mut self) {
        self.fault(V0, 0x1000, 5);
    }

    pub(crate) fn load_cr3(&mut self, v: VcpuId, root: u64) {
        self.control(v, Control::Cr3(Cr3::flushing(Gfn::new(root).base())));
    }

    pub(crate) fn load_cr3_pcid(&mut self, v: VcpuId, root: u64, pcid: u16, keep: bool) {
        let cr3 = Cr3 { root: Gpa::new(root << 12), pcid: Pcid::try_new(pcid).unwrap(), keep };
        self.control(v, Control::Cr3(cr3));
    }

    /// Judges an access that reached guest frame `frame`.
    pub(crate) fn judge(&mut self, v: VcpuId, acc: Acc, frame: u64) -> Verdict {
        let seen = Seen { frame: Some(Hfn::new(frame + HOST)), writable: false };
        self.ask(|oracle, view| oracle.judge(v, acc, seen, view))
    }

    pub(crate) fn judge_fault(&mut self, v: VcpuId, acc: Acc, code: u32) -> FaultVerdict {
        self.ask(|oracle, view| oracle.judge_fault(v, acc, PfCode::from_bits(code), view))
    }

    pub(crate) fn judge_bits(&mut self, v: VcpuId, acc: Acc) -> BitsVerdict {
        self.ask(|oracle, view| oracle.judge_bits(v, acc, view))
    }

    pub(crate) fn possible(&mut self, v: VcpuId, gva: Gva) -> Vec<Translation> {
        self.ask(|oracle, view| oracle.possible(v, gva, view))
    }
}

pub(crate) fn read(gva: u64) -> Acc {
    Acc::supervisor(Gva::new(gva), AccessKind::Read)
}

pub(crate) fn write(gva: u64) -> Acc {
    Acc::supervisor(Gva::new(gva), AccessKind::Write)
}
