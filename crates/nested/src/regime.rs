//! Nested paging as a regime: hardware walks in two dimensions, the hypervisor fills its tables on violations.
//!
//! One tree per virtual machine, shared by its vCPUs. Guest page faults, CR3 loads, INVLPG and stores to guest tables do not
//! exit. Each guest frame that is touched for the first time, table frames included, costs one violation; the hypervisor
//! maps it at the size of the host page behind it, without prefetching neighbours (KVM's `tdp_mmu.c`), with its accessed and
//! dirty bits already set (`make_spte`). SVM hardware exits on accesses to CR4 and on changes of CR0.WP, VMX hardware does
//! not (KVM's intercepts, measured). Accesses to addresses that are not memory exit each time and are carried out by the
//! hypervisor.

use core::marker::PhantomData;

use memvirt_addr::{Gfn, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, PageSize, PfCode};
use memvirt_ops::arch::{Control, CrWrite, GfnRange, GuestFault, HostEvent, VcpuSet};
use memvirt_pagetable::map::TableAttrs;
use memvirt_pagetable::{Attrs, Format, Guest4, MapError, Mapper, PhysMem};
use memvirt_platform::Horizon;
use memvirt_platform::{
    Backed, Cx, ExitReason, Host, HostFrames, LockMode, Outcome, Refusal, Regime, Request, TableBytes, Vendor, Work,
    tlb_entry,
};

use crate::stage::{AdBits, SecondStage};
use crate::walk::{End, Mapped, Violation, Walker};

/// Nested paging: guest tables of format `G` under nested tables of format `H`.
#[derive(Debug)]
pub struct Nested<H, G = Guest4> {
    root: Hfn,
    ad: AdBits,
    vendor: Vendor,
    logging: bool,
    tables: u64,
    stats: NestedStats,
    formats: PhantomData<(G, H)>,
}

/// What the hypervisor counts about its nested tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestedStats {
    /// Present leaf entries, by page size (4K, 2M, 1G).
    pub leaves: [u64; 3],
    /// Violations fixed without the MMU lock: stores to pages that are write-protected for dirty logging.
    pub fast_fixes: u64,
    /// Flushes of the guest's own translations that the hypervisor carries out for it: one for each intercepted store to CR4
    /// that changes PGE (KVM's `tlb_flush`).
    pub guest_flushes: u64,
}

impl<H, G> Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    /// Nested paging with an empty tree; `None` where the host has no frame for its root.
    pub fn new(host: &mut Host, ad: AdBits, vendor: Vendor) -> Option<Self> {
        let root = host.allocate(PageSize::Size4K)?;
        let ad = if H::AD_OPTIONAL { ad } else { AdBits::On };
        Some(Self { root, ad, vendor, logging: false, tables: 1, stats: NestedStats::default(), formats: PhantomData })
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

    /// A leaf as the hypervisor installs it.
    fn leaf(&self, writable: bool) -> Attrs {
        let bits = if self.ad == AdBits::On { Attrs::ACCESSED | Attrs::DIRTY } else { Attrs::empty() };
        let attrs = H::LEAF | bits;
        if writable { attrs } else { attrs - Attrs::WRITE - Attrs::DIRTY }
    }

    fn mapper<'h>(&self, host: &'h mut Host) -> (Mapper<'h, H, PhysMem<HostPhys>>, &'h mut HostFrames) {
        let (mem, frames) = host.parts();
        (Mapper::new(mem, self.root, TableAttrs::new(H::TABLE)), frames)
    }

    /// Maps the page that a violation asked for, or lifts the protection that stopped a store. `None` when the host has no
    /// frame left.
    fn fix(&mut self, cx: &mut Cx<'_>, violation: &Violation) -> Option<()> {
        let mut work = Work::default();
        let gfn = violation.gpa.frame();
        let backed = cx.back(gfn, &mut work)?;
        let size = if self.logging { PageSize::Size4K } else { backed.size };
        let attrs = self.leaf(!self.logging || violation.want.write);
        let at = gfn.align_down(size).base();
        let (mut mapper, frames) = self.mapper(cx.host);
        let lock = match mapper.map(at, backed.frame.align_down(size), size, attrs, frames) {
            Ok(made) => {
                self.tables += u64::from(made);
                work.tables_allocated += u64::from(made);
                self.stats.leaves[size as usize - 1] += 1;
                Some(LockMode::Shared)
            }
            Err(MapError::OutOfFrames { .. }) => return None,
            Err(_) => {
                mapper.protect(violation.gpa, |_| attrs).ok()?;
                self.stats.fast_fixes += 1;
                None
            }
        };
        work.entries_set += 1;
        cx.exit(ExitReason::EptViolation, work, lock, VcpuSet::EMPTY);
        Some(())
    }

    fn violated(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, violation: &Violation) -> Outcome {
        if !cx.map.contains(violation.gpa.frame()) {
            return Self::device(cx, request, violation.on_data);
        }
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        self.fix(cx, violation).map_or(Outcome::OutOfMemory, |()| Outcome::Retry)
    }

    /// An access to a device: the hypervisor carries it out. A guest table that lies in a device reads as absent.
    fn device(cx: &mut Cx<'_>, request: &Request<'_>, on_data: bool) -> Outcome {
        if !on_data {
            return Outcome::Fault(GuestFault { gva: request.acc.gva(), code: PfCode::of(request.acc, false) });
        }
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        let work = Work { instructions_emulated: 1, ..Work::default() };
        cx.exit(ExitReason::Mmio, work, Some(LockMode::Shared), VcpuSet::EMPTY);
        Outcome::Emulated
    }

    /// Removes every leaf that meets `range`, and says how many there were.
    fn drop_leaves(&mut self, cx: &mut Cx<'_>, range: GfnRange) -> u64 {
        let (mut mapper, _) = self.mapper(cx.host);
        let end = Gfn::new(range.start.number().saturating_add(range.frames));
        let mut at = range.start;
        let mut dropped = 0;
        loop {
            let next = mapper.leaves(at.base()..).next().filter(|leaf| leaf.at.frame() < end);
            let covering = mapper.translate(at.base()).map(|(_, _, size)| (at.align_down(size), size));
            let Some((first, size)) = covering.or(next.map(|leaf| (leaf.at.frame(), leaf.size))) else { break };
            if mapper.unmap(first.base()).is_err() {
                break;
            }
            self.stats.leaves[size as usize - 1] -= 1;
            dropped += 1;
            at = first.offset(size.frames());
            if at >= end {
                break;
            }
        }
        dropped
    }

    /// Makes every leaf read-only, after breaking the large ones: each page's first store will exit.
    fn protect_all(&mut self, cx: &mut Cx<'_>) -> Option<u64> {
        let mut changed = 0;
        let mut at = Gpa::ZERO;
        loop {
            let (mut mapper, frames) = self.mapper(cx.host);
            let Some(leaf) = mapper.leaves(at..).next() else { break };
            if leaf.size > PageSize::Size4K {
                self.tables += u64::from(mapper.split(leaf.at, PageSize::Size4K, frames).ok()?);
                self.stats.leaves[leaf.size as usize - 1] -= 1;
                self.stats.leaves[0] += leaf.size.frames();
                continue;
            }
            if leaf.attrs.contains(Attrs::WRITE) {
                mapper.protect(leaf.at, |attrs| attrs - Attrs::WRITE - Attrs::DIRTY).ok()?;
                changed += 1;
            }
            at = leaf.at.checked_add(leaf.size.bytes())?;
        }
        Some(changed)
    }
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
        let regs = *cx.regs();
        let mut unseen = ();
        let mut walker = Walker::<G, H, ()>::new(&mut cx.host.mem, self.root, self.ad, &mut unseen);
        let end = walker.walk(&regs, request.acc);
        let counts = walker.counts;
        let counters = &mut cx.out.counters;
        counters.walks += 1;
        counters.refs.guest += counts.guest;
        counters.refs.host += counts.host;
        counters.ad_updates += counts.ad_updates;
        match end {
            End::Mapped(found) => mapped(request, &found),
            End::GuestFault(code) => Outcome::Fault(GuestFault { gva: request.acc.gva(), code }),
            End::Violation(violation) => self.violated(cx, request, &violation),
            End::Misconfig { on_data, .. } => Self::device(cx, request, on_data),
        }
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        let (reason, exits) = match control {
            Control::Cr(CrWrite::TogglePge) if self.vendor == Vendor::Svm => (ExitReason::CrAccess, 3),
            Control::Cr(_) if self.vendor == Vendor::Svm => (ExitReason::CrAccess, 1),
            Control::Ipi(_) => (ExitReason::Ipi, 1),
            Control::Trap(trap) => ((*trap).into(), 1),
            Control::Invlpg(_) | Control::Cr3(_) | Control::Cr(_) | Control::Invpcid(_) => (ExitReason::CrAccess, 0),
        };
        if *control == Control::Cr(CrWrite::TogglePge) && exits > 0 {
            self.stats.guest_flushes += 2;
        }
        for _ in 0..exits {
            cx.exit(reason, Work::default(), None, VcpuSet::EMPTY);
        }
        cx.execute(control);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        let mut work = Work::default();
        let changed = match *event {
            HostEvent::Unmap(_, range) | HostEvent::Discard(_, range) => {
                cx.map.unmap(range);
                self.drop_leaves(cx, range)
            }
            HostEvent::DirtyLog(_, on) => {
                self.logging = on;
                if on {
                    self.protect_all(cx).unwrap_or(0)
                } else {
                    let all = GfnRange { start: Gfn::new(0), frames: cx.map.frames() };
                    if cx.map.page_size() > PageSize::Size4K { self.drop_leaves(cx, all) } else { 0 }
                }
            }
            HostEvent::DirtyRound(_) => self.protect_all(cx).unwrap_or(0),
            HostEvent::SlotChange(_) => {
                let all = GfnRange { start: Gfn::new(0), frames: cx.map.frames() };
                self.drop_leaves(cx, all)
            }
            HostEvent::WorldSwitch(_) | HostEvent::ShadowPageLimit(..) => 0,
        };
        work.entries_cleared += changed;
        if changed > 0 {
            cx.flush_vm(&mut work);
        }
        cx.out.counters.work += work;
    }

    fn table_bytes(&self) -> TableBytes {
        TableBytes { nested: self.tables * PageSize::Size4K.bytes(), ..TableBytes::default() }
    }
}
