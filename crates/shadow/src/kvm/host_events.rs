//! What the host does by itself: takes memory away, logs dirty pages, changes the layout or the limit.
//!
//! Requests made here are served at the next entry. Source: spec A13, A16; the MMU notifier, dirty logging and memory-slot
//! functions of `arch/x86/kvm/mmu/mmu.c` and `virt/kvm/kvm_main.c`.

use memvirt_addr::PageSize;
use memvirt_ops::arch::{GfnRange, HostEvent};
use memvirt_platform::Cx;
use memvirt_tlb::KeepGlobal;

use super::Kvm;
use super::config::KvmConfig;
use super::lists::{Cursor, SpteRef};
use super::page::NONE;
use super::spte::Spte;
use super::vcpu::Requests;
use super::zap::Zapped;

impl Kvm {
    pub(crate) fn host_event(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        match *event {
            HostEvent::Unmap(_, range) => {
                self.unmap(cx, range);
                cx.map.unmap(range);
            }
            HostEvent::Discard(_, range) => {
                self.unmap(cx, range);
                cx.map.unmap(range);
                // What comes back after large host pages were taken away are large pages of the guest's own.
                if cx.map.page_size() == PageSize::Size4K {
                    let (start, end) = self.slot.clip(range);
                    (start..end).for_each(|gfn| self.slot.set_zero_page(gfn, true));
                }
            }
            HostEvent::DirtyLog(_, true) => self.start_logging(cx),
            HostEvent::DirtyLog(_, false) => self.stop_logging(cx),
            HostEvent::DirtyRound(_) => self.dirty_round(cx),
            HostEvent::SlotChange(_) => self.zap_all_fast(cx),
            HostEvent::WorldSwitch(_) => {}
            HostEvent::ShadowPageLimit(_, limit) => {
                self.change_limit(cx, u64::from(limit.max(KvmConfig::MIN_PAGE_LIMIT)));
            }
        }
    }

    /// What the host has asked for is served when the guest is entered again; until then it must not run on translations that
    /// the host has taken back.
    pub(crate) fn leave_guest(&mut self, cx: &mut Cx<'_>) {
        if self.vcpu(cx).requests.any() {
            let vpid = cx.tag().vpid();
            cx.cpu().flush_vpid(vpid, KeepGlobal::No);
            cx.out.counters.tlb_flushes += 1;
        }
    }

    /// The notifier: drops every leaf that maps a frame of the range, with one flush if there was any. The host takes whole
    /// host pages.
    fn unmap(&mut self, cx: &mut Cx<'_>, range: GfnRange) {
        let (start, end) = self.slot.clip(range);
        let page = cx.map.page_size().frames();
        let (start, end) = (start & !(page - 1), end.next_multiple_of(page).min(self.slot.frames()));
        let mut flush = false;
        for level in 1..=3 {
            let mut gfn = start & !((1 << (9 * (level - 1))) - 1);
            while gfn < end {
                flush |= self.zap_rmap(cx, gfn, level);
                gfn += 1 << (9 * (level - 1));
            }
        }
        self.flush_if(cx, flush);
    }

    fn start_logging(&mut self, cx: &mut Cx<'_>) {
        self.slot.set_logging(true);
        self.next_mmio_generation(cx);
        for level in 1..=3 {
            for i in 0..self.slot.rmaps(level).len() {
                let head = self.slot.rmaps(level)[i];
                self.write_protect_rmap(cx, head, Spte::W);
            }
        }
        self.flush_remote(cx);
    }

    /// Reads the log out and protects what was dirty.
    fn dirty_round(&mut self, cx: &mut Cx<'_>) {
        self.dirty_frames = self.slot.take_dirty();
        for i in 0..self.dirty_frames.len() {
            let head = self.slot.rmap(self.dirty_frames[i], 1);
            self.write_protect_rmap(cx, head, Spte::W);
        }
        self.flush_if(cx, !self.dirty_frames.is_empty());
    }

    /// Ends logging; small leaves of direct pages that could be large again are dropped.
    /// (`kvm_mmu_zap_collapsible_sptes`)
    fn stop_logging(&mut self, cx: &mut Cx<'_>) {
        self.slot.set_logging(false);
        self.next_mmio_generation(cx);
        let mut flush = false;
        for level in 1..=2 {
            for i in 0..self.slot.rmaps(level).len() {
                while let Some(at) = self.collapsible(cx, level, i) {
                    self.drop_leaf(cx, at);
                    flush = true;
                }
            }
        }
        self.flush_if(cx, flush);
    }

    fn collapsible(&self, cx: &Cx<'_>, level: u8, i: usize) -> Option<SpteRef> {
        let mut cursor = Cursor::new(self.slot.rmaps(level)[i]);
        while let Some(at) = cursor.next(&self.lists) {
            let page = &self.pages[at.page()];
            if page.role.is_direct() && page.level() < self.max_mapping_level(cx, page.gfn, 3) {
                return Some(at);
            }
        }
        None
    }

    /// Makes every shadow page obsolete and zaps them all; vCPUs drop their roots at the next entry.
    /// (`kvm_mmu_zap_all_fast`)
    fn zap_all_fast(&mut self, cx: &mut Cx<'_>) {
        self.mmio_generation = (self.mmio_generation + 1) & MMIO_GENERATION;
        self.generation ^= 1;
        self.request_all(cx, Requests::FREE_OBSOLETE_ROOTS);
        let mut zapped = Zapped::new();
        let mut id = self.pages.oldest();
        while id != NONE && self.is_obsolete(id) {
            let next = self.pages.newer(id);
            let count = self.zap_page(cx, id, &mut zapped);
            id = if count.children { self.pages.oldest() } else { next };
        }
        self.free_zapped(cx, &mut zapped);
    }

    /// Every change of a memory slot makes the MMIO entries of before invalid; when the numbers run out, all pages go.
    fn next_mmio_generation(&mut self, cx: &mut Cx<'_>) {
        self.mmio_generation = (self.mmio_generation + 1) & MMIO_GENERATION;
        if self.mmio_generation == 0 {
            self.zap_all_fast(cx);
        }
    }
}

/// An MMIO entry has room for 19 bits of generation.
const MMIO_GENERATION: u32 = (1 << 19) - 1;
