//! Emulated instructions: stores to protected tables, and accesses to what is no memory.
//!
//! An instruction that usually writes page tables is carried out, and the entries that shadow the written ones are zapped;
//! the third store to an upper table without a use in between, or one that no page-table code makes, zaps the whole shadow
//! page. Any other instruction unshadows the table and is tried again. Source: spec A9, A16; `x86_emulate_instruction`,
//! `retry_instruction` in `arch/x86/kvm/x86.c`; `kvm_mmu_pte_write`, `kvm_mmu_unprotect_page` (6.1) and
//! `kvm_mmu_track_write`, `kvm_mmu_unprotect_gfn_and_retry` (6.12) in `arch/x86/kvm/mmu/mmu.c`.

use memvirt_addr::{Gfn, Gpa, Gva};
use memvirt_ops::arch::StoreOp;
use memvirt_platform::{Cx, Outcome, Request, store_element};

use super::Kvm;
use super::config::Kernel;
use super::lists::SpteRef;
use super::page::NONE;
use super::walk::Kind;
use super::zap::Zapped;

/// Stores to an upper table, without a use in between, that make KVM give its shadow up.
const FLOODED: u32 = 3;

/// Whether the instruction is one that usually writes page tables (MOV, locked AND and OR), by KVM's table of opcodes.
const fn writes_page_tables(op: &StoreOp) -> bool {
    match op {
        StoreOp::Mov { .. } | StoreOp::And { .. } | StoreOp::Or { .. } => true,
        StoreOp::RepStos { .. } | StoreOp::Vector => false,
    }
}

/// The bytes that one element of a store writes. A plain access is taken for a store of a whole entry.
const fn bytes_of(store: Option<&StoreOp>) -> u64 {
    match store {
        Some(StoreOp::Mov { width, .. }) => width.bytes(),
        Some(StoreOp::Vector) => 16,
        Some(StoreOp::And { .. } | StoreOp::Or { .. } | StoreOp::RepStos { .. }) | None => 8,
    }
}

impl Kvm {
    /// Starts the emulator: the instruction is fetched and decoded.
    pub(crate) fn decode(&mut self) {
        self.stats.insn_emulation += 1;
        self.work.instructions_emulated += 1;
    }

    /// A store to a protected table.
    pub(crate) fn emulate_table_write(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        self.locked = true;
        let key = (request.ip, request.acc.gva());
        let last = self.vcpu_mut(cx).last_retry.take();
        let repeated = last == Some(key);
        if repeated && self.config.kernel == Kernel::V6_12 {
            // The guard stays up until something else faults on a protected table; in 6.1 it works once.
            self.vcpu_mut(cx).last_retry = last;
        }
        self.decode();
        let page_table_code = request.store.is_none_or(writes_page_tables);
        if !page_table_code && !repeated && self.unprotect(cx, key.1) {
            self.vcpu_mut(cx).last_retry = Some(key);
            return Outcome::Retry;
        }
        self.emulate_store(cx, request)
    }

    /// Zaps every shadow of the table that `gva` maps, so that the store can go through; returns whether to try it again.
    /// Linux 6.12 does not where no page could be freed, because all are roots in use.
    fn unprotect(&mut self, cx: &mut Cx<'_>, gva: Gva) -> bool {
        let Ok(walker) = self.walk_guest(cx, gva, Kind::WRITE) else { return self.config.kernel == Kernel::V6_1 };
        let mut zapped = Zapped::new();
        let mut id = self.pages.first_in_bucket(walker.gfn);
        while id != NONE {
            if self.is_table_page(id, walker.gfn) {
                self.zap_page(cx, id, &mut zapped);
            }
            id = self.pages.next_in_bucket(id);
        }
        let freed = self.free_zapped(cx, &mut zapped);
        freed || self.config.kernel == Kernel::V6_1
    }

    /// Carries a store out: all elements that are left of it.
    fn emulate_store(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let left = match request.store {
            Some(StoreOp::RepStos { count, .. }) => count.saturating_sub(request.element).max(1),
            _ => 1,
        };
        for element in 0..left {
            let gva = request.acc.gva().wrapping_add(8 * u64::from(element));
            self.emulate_element(cx, gva, request);
        }
        Outcome::EmulatedAll
    }

    fn emulate_element(&mut self, cx: &mut Cx<'_>, gva: Gva, request: &Request<'_>) {
        let Ok(walker) = self.walk_guest(cx, gva, Kind::WRITE) else { return };
        let gpa = Gfn::new(walker.gfn).at(gva.as_u64());
        let Some(host) = cx.back(Gfn::new(walker.gfn), &mut self.work) else {
            self.stats.mmio_exits += 1;
            return;
        };
        if let Some(op) = request.store {
            store_element(&mut cx.host.mem, host.frame.at(gpa.as_u64()), op);
        }
        self.slot.mark_dirty(walker.gfn);
        self.track_write(cx, gpa, bytes_of(request.store));
    }

    /// Accounts for an emulated store: what shadowed the written bytes is out of date. (`kvm_mmu_pte_write`)
    fn track_write(&mut self, cx: &mut Cx<'_>, gpa: Gpa, bytes: u64) {
        if self.pages.indirect == 0 {
            return;
        }
        // Half of an entry counts as the entry.
        let (gpa, bytes) = if bytes == 4 { (Gpa::new_truncate(gpa.as_u64() & !7), 8) } else { (gpa, bytes) };
        let nonzero = bytes == 8 && cx.guest().read(gpa) != 0;
        self.stats.mmu_pte_write += 1;
        let gfn = gpa.frame().number();
        let (mut zapped, mut flush) = (Zapped::new(), false);
        let mut id = self.pages.first_in_bucket(gfn);
        while id != NONE {
            if self.is_table_page(id, gfn) {
                if misaligned(gpa, bytes) || self.is_flooded(id) {
                    self.zap_page(cx, id, &mut zapped);
                    self.stats.mmu_flooded += 1;
                } else {
                    let index = usize::try_from((gpa.as_u64() & 0xfff) / 8).unwrap_or(0);
                    let at = SpteRef::new(id, index);
                    flush |= self.spte(cx, at).is_present();
                    self.zap_entry(cx, at);
                    self.stats.mmu_pde_zapped += u64::from(nonzero && self.pages[id].level() > 1);
                }
            }
            id = self.pages.next_in_bucket(id);
        }
        self.free_zapped_or_flush(cx, &mut zapped, flush);
    }

    fn is_flooded(&mut self, id: u32) -> bool {
        let page = &mut self.pages[id];
        if page.level() == 1 {
            return false;
        }
        page.write_flooding += 1;
        page.write_flooding >= FLOODED
    }

    /// An access to what is no memory: the host carries it out; reads give zero.
    pub(crate) fn emulate_mmio(&mut self, _cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        self.decode();
        self.stats.mmio_exits += match request.store {
            Some(StoreOp::And { .. } | StoreOp::Or { .. } | StoreOp::Vector) => 2,
            Some(StoreOp::RepStos { count, .. }) => u64::from(count.saturating_sub(request.element).max(1)),
            _ => 1,
        };
        Outcome::EmulatedAll
    }
}

/// Whether a store is of a kind that page-table code does not make: across entries, or smaller than 4 bytes. One byte at the
/// start of an entry is allowed, since systems clear status bits like that.
const fn misaligned(gpa: Gpa, bytes: u64) -> bool {
    let offset = gpa.as_u64() & 0xfff;
    if offset & 7 == 0 && bytes == 1 {
        return false;
    }
    (offset ^ (offset + bytes - 1)) & !7 != 0 || bytes < 4
}
