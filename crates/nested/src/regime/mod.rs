//! Nested paging as a regime: hardware walks in two dimensions, the hypervisor fills its tables on violations.
//!
//! One tree per virtual machine, shared by its vCPUs. Guest page faults, CR3 loads, INVLPG and stores to guest tables do not
//! exit. Each guest frame that is touched for the first time, table frames included, costs one violation; the hypervisor
//! maps it at the size of the host page behind it, without prefetching neighbours (KVM's `tdp_mmu.c`), with its accessed and
//! dirty bits already set (`make_spte`). SVM hardware exits on accesses to CR4 and on changes of CR0.WP, VMX hardware does
//! not (KVM's intercepts, measured). Accesses to addresses that are not memory exit each time and are carried out by the
//! hypervisor.
//!
//! Violations are handled in `faults`, dirty logging in `logging`, what the host does by itself in `host`; `audit` holds the
//! tables against the memory map.

mod audit;
mod faults;
mod host;
mod logging;
mod stats;
mod zero;

use core::marker::PhantomData;

use memvirt_addr::{Acc, GuestPhys, GuestVirt, Hfn, HostPhys, PageSize};
use memvirt_ops::arch::{Control, CrWrite, GfnRange, GuestFault, HostEvent, VcpuSet};
use memvirt_pagetable::map::TableAttrs;
use memvirt_pagetable::{Format, Guest4, Mapper, PhysMem};
use memvirt_platform::{
    Backed, Caches, Cx, ExitReason, Foresight, Host, HostFrames, LockMode, Outcome, Refusal, Regime, Regs, Request,
    TableBytes, Tags, Vendor, WalkRefs, Work, tlb_entry,
};

use crate::foresee::Ahead;
use crate::pml::ModificationLog;
use crate::reference::{Counts, Probe};
use crate::stage::{AdBits, SecondStage};
use crate::walk::{End, Mapped, Walker};

pub use logging::DirtyLogging;
pub use stats::NestedStats;

use logging::DirtyLog;
use zero::ZeroPages;

/// Bytes of the header of each table, and of the hash of shadow pages that every machine of KVM's has. Source: spec A17.
const HEADER: u64 = 184;
const HASH: u64 = 32 << 10;

/// Nested paging: guest tables of format `G` under nested tables of format `H`.
#[derive(Debug)]
pub struct Nested<H, G = Guest4> {
    root: Hfn,
    ad: AdBits,
    vendor: Vendor,
    /// How dirty pages are to be found.
    method: DirtyLogging,
    dirty: DirtyLog,
    /// The page-modification logs of the machine's vCPUs, by vCPU; made when logging first starts.
    logs: Vec<Option<ModificationLog>>,
    zero: ZeroPages,
    device_generation: u32,
    /// Which vCPUs, by number, have to flush before they enter the guest.
    flush_requested: Vec<bool>,
    tables: u64,
    /// Frames of the guest's memory, once the first of them is mapped: what the memory slot's records follow.
    frames: u64,
    stats: NestedStats,
    formats: PhantomData<(G, H)>,
}

impl<H, G> Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    /// Nested paging with an empty tree, dirty logging by write protection; `None` where the host has no frame for its root.
    pub fn new(host: &mut Host, ad: AdBits, vendor: Vendor) -> Option<Self> {
        let root = host.allocate(PageSize::Size4K)?;
        Some(Self {
            root,
            ad: if H::AD_OPTIONAL { ad } else { AdBits::On },
            vendor,
            method: DirtyLogging::WriteProtect,
            dirty: DirtyLog::default(),
            logs: Vec::new(),
            zero: ZeroPages::default(),
            device_generation: 0,
            flush_requested: Vec::new(),
            tables: 1,
            frames: 0,
            stats: NestedStats::default(),
            formats: PhantomData,
        })
    }

    /// The same with another way of dirty logging. The page-modification log is a feature of VMX and needs the D bits of EPT;
    /// where there are none, pages are write-protected as before.
    #[must_use]
    pub fn with_dirty_logging(mut self, method: DirtyLogging) -> Self {
        let has_log = self.vendor == Vendor::Vmx && H::AD_OPTIONAL && self.ad == AdBits::On;
        self.method = if has_log { method } else { DirtyLogging::WriteProtect };
        self
    }

    /// The frame of the root table.
    #[must_use]
    pub const fn root(&self) -> Hfn {
        self.root
    }

    /// What was counted.
    #[must_use]
    pub const fn stats(&self) -> &NestedStats {
        &self.stats
    }

    fn mapper<'h>(&self, host: &'h mut Host) -> (Mapper<'h, H, PhysMem<HostPhys>>, &'h mut HostFrames) {
        let (mem, frames) = host.parts();
        (Mapper::new(mem, self.root, TableAttrs::new(H::TABLE)), frames)
    }

    /// Serves what was asked of this vCPU before it enters the guest.
    #[inline]
    fn enter(&mut self, cx: &Cx<'_>) {
        if let Some(requested) = self.flush_requested.get_mut(cx.me.index())
            && *requested
        {
            *requested = false;
            self.stats.tlb_flush += 1;
        }
    }

    /// Makes all vCPUs flush before they enter the guest again; returns those that had to be interrupted for it.
    fn request_flush(&mut self, cx: &mut Cx<'_>, work: &mut Work) -> VcpuSet {
        self.stats.remote_tlb_flush_requests += 1;
        self.flush_requested.resize(cx.vcpus.len(), false);
        for (requested, vcpu) in self.flush_requested.iter_mut().zip(cx.vcpus.iter()) {
            *requested |= vcpu.vm == cx.vm;
        }
        cx.flush_vm(work)
    }

    /// One exit and the entry after it.
    fn exit(&mut self, cx: &mut Cx<'_>, reason: ExitReason, work: Work, lock: Option<LockMode>, kick: VcpuSet) {
        self.drain_log(cx);
        cx.exit(reason, work, lock, kick);
        self.crossed(cx);
        self.enter(cx);
    }

    /// What crossing without tags flushes beside linear and combined mappings: under SVM guest-physical ones too, which belong
    /// to the ASID (AMD APM volume 2, section 15.16); under VMX they are tagged with the EPT root and stay.
    fn crossed(&self, cx: &mut Cx<'_>) {
        if cx.tags == Tags::Off && self.vendor == Vendor::Svm {
            let root = cx.nested_root();
            cx.cpu().flush_guest_physical(root);
        }
    }

    /// How many exits a privileged operation costs, and why.
    fn exits_of(&self, control: &Control) -> (ExitReason, u32) {
        match control {
            Control::Cr(CrWrite::TogglePge) if self.vendor == Vendor::Svm => (ExitReason::CrAccess, 3),
            Control::Cr(_) if self.vendor == Vendor::Svm => (ExitReason::CrAccess, 1),
            Control::Ipi(_) | Control::Interrupt => (ExitReason::Ipi, 1),
            Control::Trap(trap) => ((*trap).into(), 1),
            Control::Invlpg(_) | Control::Cr3(_) | Control::ReadCr3 | Control::Cr(_) | Control::Invpcid(_) => {
                (ExitReason::CrAccess, 0)
            }
        }
    }
}

#[inline]
fn walk<G, H, P, C>(mut walker: Walker<'_, G, H, P, C>, regs: &Regs, acc: Acc) -> (End, Counts)
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
    P: Probe,
    C: Caches,
{
    (walker.walk(regs, acc), walker.counts)
}

fn mapped(request: &Request<'_>, mapped: &Mapped) -> Outcome {
    let backed = Backed { frame: mapped.frame, size: mapped.host_size };
    Outcome::Filled(tlb_entry(request.acc, backed, mapped.guest_size, mapped.perms, mapped.dirty))
}

impl<H, G> Regime for Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        self.enter(cx);
        let vcpu = &cx.vcpus[cx.me.index()];
        let (regs, acc) = (&vcpu.regs, request.acc);
        let log = self.logs.get_mut(cx.me.index()).and_then(Option::as_mut).filter(|_| self.dirty.by_log());
        let (mem, root, ad) = (&mut cx.host.mem, self.root, self.ad);
        let (end, counts) = match cx.cpus[vcpu.cpu].mmu.as_deref_mut() {
            None => walk(Walker::<G, H, _>::new(mem, root, ad, &mut ()).with_log(log), regs, acc),
            Some(mmu) => {
                core::hint::cold_path();
                let (caches, probe) = mmu.walk(vcpu.tag(), cx.vm.0);
                walk(Walker::<G, H, _>::new(mem, root, ad, probe).with_caches(caches).with_log(log), regs, acc)
            }
        };
        let refs = WalkRefs { guest: counts.guest, host: counts.host, ..WalkRefs::default() };
        cx.out.counters.add_walk(refs, counts.ad_updates, counts.ad_updates_nested);
        self.stats.ad_updates_nested += counts.ad_updates_nested;
        match end {
            End::Mapped(found) => mapped(request, &found),
            End::GuestFault(code) => Outcome::Fault(GuestFault { gva: request.acc.gva(), code }),
            End::Violation(violation) => self.violated(cx, request, &violation),
            End::Misconfig(misconfig) => self.misconfigured(cx, request, &misconfig),
            End::LogFull => self.log_full(cx),
        }
    }

    fn foresee(&self, cx: &Cx<'_>, ahead: &[Acc], found: &mut Foresight) {
        // What has to be served at entry is served by the next walk.
        if !self.flush_requested.get(cx.me.index()).is_some_and(|requested| *requested) {
            Ahead::<G, H>::new(&cx.host.mem, self.root, self.ad, cx.regs()).walk(cx.tag(), ahead, found);
        }
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        self.enter(cx);
        let (reason, exits) = self.exits_of(control);
        let mut flushes = 0;
        if let (Control::Cr(write), true) = (control, exits > 0) {
            flushes = match write {
                CrWrite::TogglePge => 2,
                CrWrite::PcidEnable(false) if cx.regs().pcid_enable => 1,
                CrWrite::PcidEnable(_) | CrWrite::WriteProtect(_) => 0,
            };
            self.stats.guest_flushes += flushes;
            self.stats.tlb_flush += flushes;
            self.stats.insn_emulation += u64::from(exits);
        }
        for _ in 0..exits {
            self.exit(cx, reason, Work::default(), None, VcpuSet::EMPTY);
        }
        cx.execute(control);
        if flushes > 0 {
            // What the hypervisor flushes for the guest on SVM goes by a new ASID, which spares nothing (`svm_flush_tlb_asid`).
            let root = cx.nested_root();
            cx.cpu().flush_guest_physical(root);
        }
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.host_event(cx, event);
    }

    fn populate(&mut self, cx: &mut Cx<'_>, range: GfnRange) {
        self.map_ahead(cx, range);
    }

    fn table_bytes(&self) -> TableBytes {
        let page = PageSize::Size4K.bytes();
        let logs = self.logs.iter().flatten().count() as u64;
        let large = self.frames / 512 + self.frames / (512 * 512);
        let metadata = logs * page + self.tables * HEADER + 4 * large + HASH;
        TableBytes { nested: self.tables * page, metadata, ..TableBytes::default() }
    }
}
