//! Violations and misconfigurations: filling the tables, lifting protections, devices.
//!
//! Source: Linux 6.1 `arch/x86/kvm/mmu/mmu.c` (`direct_page_fault`, `fast_page_fault`, `handle_mmio_page_fault`) and
//! `mmu/tdp_mmu.c` (`kvm_tdp_mmu_map`), whose counters the recordings confirm.

use memvirt_addr::{Gfn, Gpa, GuestPhys, GuestVirt, Hfn, Level, PageSize, PfCode};
use memvirt_ops::arch::{GfnRange, GuestFault, VcpuSet};
use memvirt_pagetable::{Attrs, Format, MapError, Tree};
use memvirt_platform::{Backed, Cx, ExitReason, Horizon, Host, LockMode, Outcome, Request, Work};

use super::Nested;
use super::zero::Discarded;
use crate::fault::{Misconfig, Violation};
use crate::stage::{AdBits, SecondStage};

/// The software bit of leaves that may be made writable without asking the host (KVM's MMU-writable).
const MAY_WRITE: Attrs = Attrs::SOFT_0;

impl<H, G> Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    /// A leaf as the hypervisor installs it.
    fn leaf(&self, writable: bool) -> Attrs {
        let bits = if self.ad == AdBits::On { Attrs::ACCESSED | Attrs::DIRTY } else { Attrs::empty() };
        let attrs = H::LEAF | bits | MAY_WRITE;
        if writable { attrs } else { attrs - Attrs::WRITE - Attrs::DIRTY - MAY_WRITE }
    }

    pub(super) fn violated(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, violation: &Violation) -> Outcome {
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        let root = cx.nested_root();
        let linear = violation.on_data.then_some((cx.tag(), request.acc.gva()));
        cx.cpu().violation(root, violation.gpa, linear);
        self.stats.pf_taken += 1;
        if !cx.map.contains(violation.gpa.frame()) {
            return self.new_device(cx, request, violation.gpa, violation.on_data, ExitReason::EptViolation);
        }
        if self.lift(cx, violation) {
            return Outcome::Retry;
        }
        self.fix(cx, violation).map_or(Outcome::OutOfMemory, |()| Outcome::Retry)
    }

    /// Lifts the protection that stopped a store, without the lock. A large leaf is not made writable while logging is on: the
    /// store must show as one of its small page.
    fn lift(&mut self, cx: &mut Cx<'_>, violation: &Violation) -> bool {
        let gfn = violation.gpa.frame();
        let leaf = Tree::<H, _>::new(&cx.host.mem, self.root).mapping(gfn.base());
        let Some(leaf) = leaf.filter(|_| violation.want.write) else { return false };
        let large = leaf.size > PageSize::Size4K && self.dirty.is_on();
        if large || leaf.attrs.contains(Attrs::WRITE) || !leaf.attrs.contains(MAY_WRITE) {
            return false;
        }
        let (mut mapper, _) = self.mapper(cx.host);
        if mapper.protect(leaf.at, |attrs| attrs | Attrs::WRITE).is_err() {
            return false;
        }
        self.dirty.mark(gfn);
        self.stats.fast_fixes += 1;
        self.stats.pf_fixed += 1;
        let work = Work { entries_set: 1, ..Work::default() };
        self.exit(cx, ExitReason::EptViolation, work, None, VcpuSet::EMPTY);
        true
    }

    /// Maps the page that a violation asked for. `None` when the host has no frame left.
    fn fix(&mut self, cx: &mut Cx<'_>, violation: &Violation) -> Option<()> {
        let gfn = violation.gpa.frame();
        let Some(writable) = self.host_permits_writes(cx, gfn, violation.want.write) else {
            self.exchange_zero_page(cx, gfn);
            return Some(());
        };
        let mut work = Work::default();
        let backed = cx.back(gfn, &mut work)?;
        let kick = self.map(cx, gfn, backed, writable, &mut work)?;
        if writable {
            self.dirty.mark(gfn);
        }
        self.stats.pf_fixed += 1;
        self.exit(cx, ExitReason::EptViolation, work, Some(LockMode::Shared), kick);
        Some(())
    }

    /// Whether the page that the host has behind `gfn`, after an access to it, may be written; `None` where it has to be
    /// exchanged first.
    fn host_permits_writes(&mut self, cx: &Cx<'_>, gfn: Gfn, write: bool) -> Option<bool> {
        match self.zero.get(gfn) {
            None => Some(true),
            Some(Discarded::Zero) if write => None,
            // The host itself has stored there since.
            Some(Discarded::Gone) if write || cx.map.lookup(gfn).is_some() => {
                self.zero.written(gfn);
                Some(true)
            }
            Some(_) => {
                self.zero.read(gfn);
                Some(false)
            }
        }
    }

    /// A store to the page of zeros: the host puts a page of its own there and has the leaf dropped; the violation is not
    /// fixed by that.
    fn exchange_zero_page(&mut self, cx: &mut Cx<'_>, gfn: Gfn) {
        self.zero.written(gfn);
        let mut work = Work::default();
        let kick = if self.drop_leaf(cx.host, gfn.base(), &mut work) {
            self.request_flush(cx, &mut work)
        } else {
            VcpuSet::EMPTY
        };
        self.exit(cx, ExitReason::EptViolation, work, Some(LockMode::Exclusive), kick);
    }

    /// Maps what is there behind a range and not mapped yet, as violations by stores would one page after the other (KVM's
    /// `kvm_arch_vcpu_pre_fault_memory`). Pages that the host has taken back stay as they are.
    pub(super) fn map_ahead(&mut self, cx: &mut Cx<'_>, range: GfnRange) {
        let mut work = Work::default();
        let end = range.start.number().saturating_add(range.frames);
        let mut gfn = range.start;
        while gfn.number() < end {
            let mapped = Tree::<H, _>::new(&cx.host.mem, self.root).mapping(gfn.base());
            let mut size = mapped.map_or(PageSize::Size4K, |leaf| leaf.size);
            if mapped.is_none()
                && self.zero.get(gfn).is_none()
                && let Some(backed) = cx.map.lookup(gfn)
            {
                if self.map(cx, gfn, backed, true, &mut work).is_none() {
                    break;
                }
                self.dirty.mark(gfn);
                size = if self.dirty.is_on() { PageSize::Size4K } else { backed.size };
            }
            gfn = gfn.align_down(size).offset(size.frames());
        }
        cx.out.counters.work += work;
    }

    /// Puts a leaf of the size that the host's page and dirty logging allow where nothing useful is; returns whom that
    /// interrupted.
    fn map(&mut self, cx: &mut Cx<'_>, gfn: Gfn, backed: Backed, writable: bool, work: &mut Work) -> Option<VcpuSet> {
        let size = if self.dirty.is_on() { PageSize::Size4K } else { backed.size };
        let (at, frame, attrs) = (gfn.align_down(size).base(), backed.frame.align_down(size), self.leaf(writable));
        let mut kick = VcpuSet::EMPTY;
        self.frames = cx.map.frames();
        loop {
            let (mut mapper, frames) = self.mapper(cx.host);
            match mapper.map(at, frame, size, attrs, frames) {
                Ok(made) => {
                    self.tables += u64::from(made);
                    work.tables_allocated += u64::from(made);
                    break;
                }
                Err(MapError::TableInTheWay { .. }) => self.zap(cx.host, at, size.level(), work),
                Err(MapError::HugeInTheWay { .. } | MapError::AlreadyMapped { .. }) => {
                    self.drop_leaf(cx.host, at, work);
                }
                Err(_) => return None,
            }
            kick = self.request_flush(cx, work);
        }
        self.stats.leaves[size as usize - 1] += 1;
        work.entries_set += 1;
        Some(kick)
    }

    /// The first access to a page that is not memory, or the first after the slots changed: leaves an entry at which hardware
    /// stops by itself.
    fn new_device(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        gpa: Gpa,
        on_data: bool,
        reason: ExitReason,
    ) -> Outcome {
        let mut work = Work::default();
        if H::covers(gpa) {
            if self.set_device(cx.host, gpa, &mut work).is_none() {
                return Outcome::OutOfMemory;
            }
            self.stats.pf_mmio_spte_created += 1;
        }
        self.stats.pf_emulate += 1;
        self.emulate(cx, request, on_data, (reason, work, Some(LockMode::Shared)))
    }

    fn set_device(&mut self, host: &mut Host, gpa: Gpa, work: &mut Work) -> Option<()> {
        let at = gpa.frame().base();
        let attrs = self.leaf(false);
        let (mut mapper, frames) = self.mapper(host);
        // The tables down to the entry; what stands in the entry does not matter.
        match mapper.map(at, Hfn::new(0), PageSize::Size4K, attrs, frames) {
            Ok(made) => {
                self.tables += u64::from(made);
                work.tables_allocated += u64::from(made);
            }
            Err(MapError::OutOfFrames { .. }) => return None,
            Err(_) => {}
        }
        let step = Tree::<H, _>::new(&host.mem, self.root).descend(at, Level::L1);
        if step.level == Level::L1 {
            host.mem.write(step.entry_at, H::device_entry(gpa, self.device_generation));
            work.entries_set += 1;
        }
        Some(())
    }

    pub(super) fn misconfigured(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, found: &Misconfig) -> Outcome {
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        let outdated = H::device_generation(found.raw) != Some(self.device_generation);
        if outdated && !cx.map.contains(found.gpa.frame()) {
            self.stats.pf_taken += 1;
            return self.new_device(cx, request, found.gpa, found.on_data, ExitReason::EptMisconfig);
        }
        self.emulate(cx, request, found.on_data, (ExitReason::EptMisconfig, Work::default(), None))
    }

    /// Carries out an access to a device. A guest table that lies in one reads as absent: the emulator's own walk ends in a
    /// page fault.
    fn emulate(
        &mut self,
        cx: &mut Cx<'_>,
        request: &Request<'_>,
        on_data: bool,
        (reason, mut work, lock): (ExitReason, Work, Option<LockMode>),
    ) -> Outcome {
        work.instructions_emulated += 1;
        self.stats.insn_emulation += 1;
        self.stats.mmio_exits += u64::from(on_data);
        self.exit(cx, reason, work, lock, VcpuSet::EMPTY);
        if on_data {
            Outcome::Emulated
        } else {
            Outcome::Fault(GuestFault { gva: request.acc.gva(), code: PfCode::of(request.acc, false) })
        }
    }
}
