//! Dirty logging: which guest pages were written since the host last asked.
//!
//! Without hardware's help every leaf is write-protected; the first store to a page exits once a round and is fixed without
//! the MMU lock (`fast_page_fault`). With the page-modification log the D bits are cleared instead, hardware lists the pages,
//! and every exit reads the list. Large leaves are broken when logging starts (eager splitting, the default since Linux 5.18);
//! where it ends, tables of small leaves that the host could map by a large page are dropped
//! (`kvm_mmu_zap_collapsible_sptes`), with a flush each. A page mapped while logging is on is mapped writable, D set, and
//! logged at once, whatever the access was (`make_spte`). Source: Linux 6.1 `arch/x86/kvm/x86.c`
//! (`kvm_mmu_slot_apply_flags`), `mmu/tdp_mmu.c`, `vmx/vmx.c` (`vmx_flush_pml_buffer`).

use memvirt_addr::{Gfn, Gpa, GuestPhys, GuestVirt, PageSize};
use memvirt_ops::arch::VcpuSet;
use memvirt_pagetable::{Attrs, Entry, Format, Mapping, Tree};
use memvirt_platform::{Cx, ExitReason, Horizon, Host, MemoryMap, Outcome, Work};

use super::Nested;
use crate::pml::ModificationLog;
use crate::stage::{DEVICE_GENERATION, SecondStage};

/// How dirty pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DirtyLogging {
    /// Every page is write-protected; its first store exits.
    WriteProtect,
    /// Hardware logs each nested D bit that it sets (page-modification logging, VMX).
    ModificationLog,
}

/// The log that the host reads.
#[derive(Debug, Default)]
pub(super) struct DirtyLog {
    /// How, while logging is on.
    on: Option<DirtyLogging>,
    /// One bit per frame.
    bits: Vec<u64>,
    /// What the host was given last.
    fetched: Vec<Gfn>,
}

impl DirtyLog {
    #[inline]
    pub(super) const fn is_on(&self) -> bool {
        self.on.is_some()
    }

    #[inline]
    pub(super) fn by_log(&self) -> bool {
        self.on == Some(DirtyLogging::ModificationLog)
    }

    fn start(&mut self, frames: u64, method: DirtyLogging) {
        self.on = Some(method);
        self.bits = vec![0; Gfn::new(frames.div_ceil(64)).as_index()];
    }

    fn stop(&mut self) {
        self.on = None;
        self.bits = Vec::new();
    }

    /// Enters a page; pages outside the machine's memory have no bit.
    pub(super) fn mark(&mut self, gfn: Gfn) {
        if let Some(word) = self.bits.get_mut(gfn.as_index() / 64) {
            *word |= 1 << (gfn.number() % 64);
        }
    }

    pub(super) fn contains(&self, gfn: Gfn) -> bool {
        self.bits.get(gfn.as_index() / 64).is_some_and(|word| word >> (gfn.number() % 64) & 1 == 1)
    }

    fn take(&mut self) -> Vec<Gfn> {
        let mut list = Vec::new();
        for (i, word) in (0u64..).zip(&mut self.bits) {
            let mut left = core::mem::take(word);
            while left != 0 {
                list.push(Gfn::new(64 * i + u64::from(left.trailing_zeros())));
                left &= left - 1;
            }
        }
        list
    }
}

impl<H, G> Nested<H, G>
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    H: SecondStage,
{
    /// Whether dirty pages are being logged, and how.
    #[must_use]
    pub const fn dirty_logging(&self) -> Option<DirtyLogging> {
        self.dirty.on
    }

    /// The pages that the host was given when it last fetched the dirty log, in order.
    pub fn dirty_frames(&self) -> &[Gfn] {
        &self.dirty.fetched
    }

    pub(super) fn set_logging(&mut self, cx: &mut Cx<'_>, on: bool, work: &mut Work) {
        if on != self.dirty.is_on() {
            self.next_device_generation(cx, work);
            if on { self.start_logging(cx, work) } else { self.stop_logging(cx, work) }
        }
    }

    fn start_logging(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        let method = if self.make_logs(cx) { self.method } else { DirtyLogging::WriteProtect };
        self.dirty.start(cx.map.frames(), method);
        for leaf in self.leaves(cx.host, cx.map) {
            self.split(cx.host, leaf, work);
        }
        for leaf in self.leaves(cx.host, cx.map) {
            self.arm(cx.host, &leaf, work);
        }
        self.request_flush(cx, work);
    }

    /// Makes the page-modification logs, where they are to be used; false where the host has no frame for one.
    fn make_logs(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.method == DirtyLogging::WriteProtect {
            return true;
        }
        self.logs.resize(cx.vcpus.len(), None);
        for (log, vcpu) in self.logs.iter_mut().zip(cx.vcpus.iter()) {
            if vcpu.vm == cx.vm && log.is_none() {
                *log = cx.host.allocate(PageSize::Size4K).map(ModificationLog::new);
                if log.is_none() {
                    return false;
                }
            }
        }
        true
    }

    /// All leaves of the machine's memory.
    pub(super) fn leaves(&self, host: &Host, map: &MemoryMap) -> Vec<Mapping<H>> {
        let Some(last) = map.frames().checked_sub(1) else { return Vec::new() };
        Tree::<H, _>::new(&host.mem, self.root).leaves(Gpa::ZERO..=Gfn::new(last).base()).collect()
    }

    /// Breaks a large leaf down to 4 KiB. Where the host has no frame for a table, what is left stays large.
    fn split(&mut self, host: &mut Host, leaf: Mapping<H>, work: &mut Work) {
        let Some(smaller) = leaf.size.level().below().and_then(memvirt_addr::Level::page_size) else { return };
        let (mut mapper, frames) = self.mapper(host);
        let Ok(made) = mapper.split(leaf.at, smaller, frames) else { return };
        self.tables += u64::from(made);
        work.tables_allocated += u64::from(made);
        let pieces = leaf.size.frames() / smaller.frames();
        work.entries_set += pieces + 1;
        self.stats.leaves[leaf.size as usize - 1] -= 1;
        self.stats.leaves[smaller as usize - 1] += pieces;
        for i in 0..pieces {
            let offset = i * smaller.frames();
            let at = leaf.at.wrapping_add(offset << 12);
            self.split(host, Mapping { at, frame: leaf.frame.offset(offset), size: smaller, ..leaf }, work);
        }
    }

    /// Makes the next store to the page of `leaf` show: by an exit, or in hardware's log.
    fn arm(&mut self, host: &mut Host, leaf: &Mapping<H>, work: &mut Work) {
        let bit = if self.dirty.by_log() && leaf.size == PageSize::Size4K { Attrs::DIRTY } else { Attrs::WRITE };
        if leaf.attrs.contains(bit) {
            let (mut mapper, _) = self.mapper(host);
            if mapper.protect(leaf.at, |attrs| attrs - bit).is_ok() {
                work.entries_cleared += 1;
            }
        }
    }

    /// Gives the host the dirty pages and arms them again.
    pub(super) fn dirty_round(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        if !self.dirty.is_on() {
            return;
        }
        self.drain_all_logs(cx);
        let dirty = self.dirty.take();
        for gfn in &dirty {
            if let Some(leaf) = Tree::<H, _>::new(&cx.host.mem, self.root).mapping(gfn.base()) {
                self.arm(cx.host, &leaf, work);
            }
        }
        if !dirty.is_empty() {
            self.request_flush(cx, work);
        }
        self.dirty.fetched = dirty;
    }

    fn stop_logging(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        self.drain_all_logs(cx);
        self.dirty.stop();
        for (at, level) in self.collapsible(cx.host, cx.map) {
            self.zap(cx.host, at, level, work);
            self.request_flush(cx, work);
        }
    }

    /// The tables whose whole span the host maps by one page: where they hang, and the level of the entry there.
    fn collapsible(&self, host: &Host, map: &MemoryMap) -> Vec<(Gpa, memvirt_addr::Level)> {
        let mut found: Vec<(Gpa, memvirt_addr::Level)> = Vec::new();
        let Some(last) = map.frames().checked_sub(1) else { return found };
        let mut done = Gpa::ZERO;
        for (at, step) in Tree::<H, _>::new(&host.mem, self.root).entries(Gpa::ZERO..=Gfn::new(last).base()) {
            let (Entry::Table { .. }, Some(size)) = (step.entry, step.level.page_size()) else { continue };
            let inside = at.frame().number() + size.frames() <= map.frames();
            let one_page = map.lookup(at.frame()).is_some_and(|backed| backed.size >= size);
            if at >= done && inside && one_page {
                found.push((at, step.level));
                done = at.wrapping_add(size.bytes());
            }
        }
        found
    }

    /// Reads hardware's log of this vCPU, as is done at each exit.
    pub(super) fn drain_log(&mut self, cx: &Cx<'_>) {
        if self.dirty.by_log() {
            self.drain(cx.host, cx.me.index());
        }
    }

    fn drain_all_logs(&mut self, cx: &Cx<'_>) {
        if self.dirty.by_log() {
            (0..self.logs.len()).for_each(|i| self.drain(cx.host, i));
        }
    }

    fn drain(&mut self, host: &Host, vcpu: usize) {
        if let Some(Some(log)) = self.logs.get_mut(vcpu) {
            log.pages(&host.mem).for_each(|gfn| self.dirty.mark(gfn));
            log.reset();
        }
    }

    /// The access that found the log full starts again once it has been read.
    pub(super) fn log_full(&mut self, cx: &mut Cx<'_>) -> Outcome {
        if cx.horizon == Horizon::NextExit {
            return Outcome::Horizon;
        }
        self.exit(cx, ExitReason::PmlFull, Work::default(), None, VcpuSet::EMPTY);
        Outcome::Retry
    }

    /// A change of the machine's memory slots makes the entries of devices invalid; when the numbers run out, all tables go.
    pub(super) fn next_device_generation(&mut self, cx: &mut Cx<'_>, work: &mut Work) {
        self.device_generation = (self.device_generation + 1) & DEVICE_GENERATION;
        if self.device_generation == 0 {
            self.zap_all(cx, work);
        }
    }
}
