//! KVM's shadow MMU, exact to every counter.
//!
//! [`Kvm`] is the shadow paging of Linux 6.1 and 6.12, rebuilt from its mechanism: shadow pages found by guest frame and role
//! (`page`, `role`, `get`), real entries in host memory that hardware walks (`spte`, `walk`), a reverse map and write
//! protection (`leaf`, `lists`, `slot`), leaf tables out of sync (`unsync`, `sync`), emulated stores and flooding
//! (`emulate`), zapping (`zap`, `recycle`), a cache of roots (`roots`), requests served at entry (`requests`). A fault goes
//! through `fault`, `fetch` and `prefetch`; privileged operations through `controls` and `invlpg`; the host through
//! `host_events`.
//!
//! The counters ([`KvmStats`]) bear KVM's names and are meant to equal those that KVM reports for the same operations. What
//! is not modelled: guests with 32-bit or 5-level paging, SMM, nested guests, the no-execute workaround for large pages.
//!
//! Source: the specification's part A; `arch/x86/kvm/mmu/` and `arch/x86/kvm/x86.c` of Linux 6.1 and 6.12 (read, not copied).

mod check;
mod config;
mod controls;
mod emulate;
mod fault;
mod fetch;
mod footprint;
mod get;
mod gpte;
mod hardware;
mod host_events;
mod invlpg;
mod leaf;
mod lists;
mod page;
mod prefetch;
mod recycle;
mod requests;
mod role;
mod roots;
mod slot;
mod spte;
mod stats;
mod sync;
mod unsync;
mod vcpu;
mod walk;
mod zap;

use memvirt_addr::{Acc, Gfn, Hfn};
use memvirt_ops::arch::{Control, HostEvent, VcpuSet};
use memvirt_platform::{
    Attribution, Cx, Foresight, Horizon, Host, Outcome, Refusal, Regime, Request, TableBytes, Work,
};

pub use check::Defect;
pub use config::{Kernel, KvmConfig};
pub use stats::KvmStats;

use lists::Lists;
use page::Pages;
use slot::Slot;
use vcpu::VcpuMmu;

/// KVM's shadow MMU for one virtual machine.
#[derive(Debug)]
pub struct Kvm {
    config: KvmConfig,
    stats: KvmStats,
    pages: Pages,
    /// The leaves of each guest frame.
    lists: Lists,
    /// The links to each shadow page. Their order and layout show nowhere, so both kernels add in constant time.
    links: Lists,
    slot: Slot,
    /// By vCPU of the host; those of other virtual machines are not used.
    vcpus: Vec<VcpuMmu>,
    max_pages: u64,
    /// Pages of another generation are obsolete.
    generation: u8,
    mmio_generation: u32,
    /// Frames for tables, held ready so that nothing fails halfway.
    spare: Vec<Hfn>,
    dirty_frames: Vec<u64>,
    /// What was done since the last exit was accounted for.
    work: Work,
    kick: VcpuSet,
    /// Whether some of it was done under the MMU lock.
    locked: bool,
}

impl Kvm {
    /// A KVM that has not seen its virtual machine yet.
    #[must_use]
    pub fn new(config: KvmConfig) -> Self {
        Self {
            config,
            stats: KvmStats::default(),
            pages: Pages::new(),
            lists: Lists::new(config.kernel),
            links: Lists::new(Kernel::V6_12),
            slot: Slot::default(),
            vcpus: Vec::new(),
            max_pages: 0,
            generation: 0,
            mmio_generation: 0,
            spare: Vec::new(),
            dirty_frames: Vec::new(),
            work: Work::default(),
            kick: VcpuSet::EMPTY,
            locked: false,
        }
    }

    /// The counters.
    #[must_use]
    pub const fn stats(&self) -> &KvmStats {
        &self.stats
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &KvmConfig {
        &self.config
    }

    /// Shadow pages in use, which the limit bounds (by up to 4 more within one fault).
    #[must_use]
    pub const fn used_pages(&self) -> u64 {
        self.pages.used
    }

    /// The limit on shadow pages.
    #[must_use]
    pub const fn max_pages(&self) -> u64 {
        self.max_pages
    }

    /// The guest frames that the last round of dirty logging found stored to, in order.
    pub fn dirty_frames(&self) -> impl Iterator<Item = Gfn> {
        self.dirty_frames.iter().map(|gfn| Gfn::new(*gfn))
    }

    /// Sizes everything to the virtual machine when it is first seen.
    fn prepare(&mut self, cx: &Cx<'_>) {
        if !self.slot.is_ready() {
            self.slot = Slot::new(cx.map.frames());
            self.max_pages = self.config.limit(cx.map.frames());
        }
        if self.vcpus.len() < cx.vcpus.len() {
            let known = self.vcpus.len();
            self.vcpus.extend(cx.vcpus[known..].iter().map(|vcpu| VcpuMmu::new(&vcpu.regs)));
        }
    }

    fn vcpu(&self, cx: &Cx<'_>) -> &VcpuMmu {
        &self.vcpus[cx.me.index()]
    }

    fn vcpu_mut(&mut self, cx: &Cx<'_>) -> &mut VcpuMmu {
        &mut self.vcpus[cx.me.index()]
    }

    /// Enters the guest where something has to be done first; what that takes belongs to no exit.
    fn enter_first(&mut self, cx: &mut Cx<'_>) {
        self.enter(cx);
        self.settle(cx);
    }

    fn settle(&mut self, cx: &mut Cx<'_>) {
        cx.out.counters.work += core::mem::take(&mut self.work);
        (self.kick, self.locked) = (VcpuSet::EMPTY, false);
    }
}

impl Regime for Kvm {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        self.prepare(cx);
        if self.vcpu(cx).must_prepare() {
            if cx.horizon == Horizon::NextExit {
                return Outcome::Horizon;
            }
            self.enter_first(cx);
        }
        match self.hardware_walk(cx, request.acc) {
            Ok(entry) => Outcome::Filled(entry),
            Err(_) if cx.horizon == Horizon::NextExit => Outcome::Horizon,
            Err(code) => self.fault_exit(cx, request, code),
        }
    }

    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        self.hardware_foresees(cx, ahead, found);
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        self.prepare(cx);
        if self.vcpu(cx).has_run && self.vcpu(cx).must_prepare() {
            self.enter_first(cx);
        }
        self.control_exit(cx, control);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.prepare(cx);
        self.host_event(cx, event);
        self.leave_guest(cx);
        self.settle(cx);
    }

    fn table_bytes(&self) -> TableBytes {
        self.footprint()
    }

    fn attribution(&self, host: &Host) -> Option<Attribution> {
        Some(self.served(host))
    }
}
