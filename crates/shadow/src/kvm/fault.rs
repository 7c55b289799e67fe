//! The exit of a page fault, from the error code to its outcome.
//!
//! Every page fault exits. KVM walks the guest's tables: either the guest would fault as well, and sees the fault; or only
//! the shadow lacks something, and KVM supplies it; or the page is a table that must stay protected, or no memory, and the
//! instruction is emulated. Source: spec A4, A16; `kvm_mmu_page_fault`, `FNAME(page_fault)`, `handle_mmio_page_fault` in
//! `arch/x86/kvm/mmu`.

use memvirt_addr::{Gfn, Gva, PfCode};
use memvirt_ops::arch::GuestFault;
use memvirt_platform::{Cx, ExitReason, Outcome, Request};

use super::Kvm;
use super::config::Kernel;
use super::lists::SpteRef;
use super::page::NONE;
use super::role::Access;
use super::vcpu::MmioCache;
use super::walk::{Kind, Walker};

/// What the fault handler made of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handled {
    /// A leaf changed.
    Fixed,
    /// The leaf was right.
    Spurious,
    /// Something came between: the guest tries again.
    Retry,
    /// The store goes to a protected table.
    WriteProtected,
    /// The access goes to no memory.
    Mmio,
    /// The guest must handle it.
    Guest(PfCode),
    /// The host has no frame left.
    OutOfMemory,
}

/// A fault on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) gva: Gva,
    pub(crate) kind: Kind,
    /// The shadow had an entry, which forbade the access.
    pub(crate) present: bool,
}

impl Kvm {
    /// Handles a page fault that hardware raised with `code`.
    pub(crate) fn fault_exit(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, code: PfCode) -> Outcome {
        let gva = request.acc.gva();
        let handled = if code.has(PfCode::RESERVED) { self.mmio_fault(cx, gva) } else { None };
        let handled = handled.unwrap_or_else(|| {
            self.stats.pf_taken += 1;
            let kind = Kind::of(request.acc);
            let handled = self.handle(cx, &Fault { gva, kind, present: code.has(PfCode::PRESENT) });
            match handled {
                Handled::Fixed => self.stats.pf_fixed += 1,
                Handled::Spurious => self.stats.pf_spurious += 1,
                Handled::WriteProtected | Handled::Mmio => self.stats.pf_emulate += 1,
                Handled::Retry | Handled::Guest(_) | Handled::OutOfMemory => {}
            }
            handled
        });
        let (reason, outcome) = match handled {
            Handled::Fixed | Handled::Spurious | Handled::Retry => (ExitReason::HiddenFault, Outcome::Retry),
            Handled::WriteProtected => (ExitReason::TableWrite, self.emulate_table_write(cx, request)),
            Handled::Mmio => (ExitReason::Mmio, self.emulate_mmio(cx, request)),
            Handled::Guest(code) => {
                self.inject(cx, gva, code);
                (ExitReason::ReflectedFault, Outcome::Fault(GuestFault { gva, code }))
            }
            Handled::OutOfMemory => (ExitReason::HiddenFault, Outcome::OutOfMemory),
        };
        self.finish_exit(cx, reason);
        outcome
    }

    /// A fault on a reserved bit: an MMIO entry, unless its generation has passed. (`handle_mmio_page_fault`)
    fn mmio_fault(&mut self, cx: &mut Cx<'_>, gva: Gva) -> Option<Handled> {
        if self.mmio_cached(cx, gva) {
            return Some(Handled::Mmio);
        }
        let mmio = self.leaf_entry(cx, gva).and_then(|at| self.spte(cx, at).as_mmio());
        match mmio {
            Some(mmio) if mmio.generation != self.mmio_generation => None,
            Some(_) => {
                self.cache_mmio(cx, gva);
                Some(Handled::Mmio)
            }
            None => Some(Handled::Retry),
        }
    }

    pub(crate) fn cache_mmio(&mut self, cx: &Cx<'_>, gva: Gva) {
        let generation = self.mmio_generation;
        self.vcpu_mut(cx).mmio = Some(MmioCache { page: gva.frame().number(), generation });
    }

    pub(crate) fn mmio_cached(&self, cx: &Cx<'_>, gva: Gva) -> bool {
        self.vcpu(cx).mmio == Some(MmioCache { page: gva.frame().number(), generation: self.mmio_generation })
    }

    /// The entries of the current root's tables that translate `gva`, as far down as they are linked.
    pub(crate) fn shadow_path(&self, cx: &Cx<'_>, root: u32, gva: Gva) -> ShadowPath {
        let mut path = ShadowPath { entries: [SpteRef::new(0, 0); 4], len: 0 };
        let mut page = root;
        while page != NONE && path.len < 4 {
            let level = self.pages[page].level();
            let at = SpteRef::new(page, gva.index(memvirt_addr::Level::ALL[usize::from(level) - 1]));
            path.entries[path.len] = at;
            path.len += 1;
            let entry = self.spte(cx, at);
            page = if entry.is_present() && !entry.is_leaf(level) { self.child_of(entry) } else { NONE };
        }
        path
    }

    fn leaf_entry(&self, cx: &Cx<'_>, gva: Gva) -> Option<SpteRef> {
        self.shadow_path(cx, self.vcpu(cx).root.page, gva).iter().last()
    }

    /// Passes a fault on to the guest. (`kvm_inject_emulated_page_fault`)
    fn inject(&mut self, cx: &mut Cx<'_>, gva: Gva, code: PfCode) {
        if code.has(PfCode::PRESENT) && !code.has(PfCode::RESERVED) {
            let root = self.vcpu(cx).root;
            self.invalidate_address(cx, gva, root);
        }
        self.stats.pf_guest += 1;
    }

    /// `FNAME(page_fault)`.
    fn handle(&mut self, cx: &mut Cx<'_>, fault: &Fault) -> Handled {
        let mut walker = match self.walk_guest(cx, fault.gva, fault.kind) {
            Ok(walker) => walker,
            Err(code) => return Handled::Guest(code),
        };
        let memory = self.slot.contains(walker.gfn);
        if fault.present && fault.kind.write && memory && self.slot.tracked(walker.gfn) > 0 {
            for at in self.shadow_path(cx, self.vcpu(cx).root.page, fault.gva).iter() {
                self.pages[at.page()].write_flooding = 0;
            }
            return Handled::WriteProtected;
        }
        if !self.top_up(cx) {
            return Handled::OutOfMemory;
        }
        let max_level = self.max_level(cx, &walker, fault.kind);
        let mut host_writable = false;
        if memory {
            match self.fault_in(cx, walker.gfn, fault.kind.write) {
                FaultIn::Ready { writable } => host_writable = writable,
                FaultIn::Retry => return Handled::Retry,
                FaultIn::OutOfMemory => return Handled::OutOfMemory,
            }
            // A store of the kernel with CR0.WP clear: the page becomes writable, and the kernel's.
            if fault.kind.write && !walker.access.has(Access::WRITE) && !cx.regs().write_protect && !fault.kind.user {
                walker.access = walker.access.with(Access::WRITE).without(Access::USER);
                if cx.regs().smep {
                    walker.access = walker.access.without(Access::EXEC);
                }
            }
        } else {
            self.cache_mmio(cx, fault.gva);
        }
        self.locked = true;
        self.make_pages_available(cx);
        self.fetch(cx, fault, &walker, max_level, host_writable)
    }

    /// The largest page that the fault may map. Linux 6.1 knows in advance that a page which maps its own tables will have to
    /// be small. (`is_self_change_mapping`)
    fn max_level(&self, cx: &Cx<'_>, walker: &Walker, kind: Kind) -> u8 {
        let writable = walker.access.has(Access::WRITE) || !cx.regs().write_protect && !kind.user;
        if self.config.kernel == Kernel::V6_1 && writable {
            let outside = !((1u64 << (9 * (walker.level - 1))) - 1);
            let tables = &walker.table_gfn[usize::from(walker.level)..=4];
            if tables.iter().any(|table| (walker.gfn ^ table) & outside == 0) {
                return 1;
            }
        }
        walker.level
    }

    /// Has the host bring a page in. A store to the host's shared page of zeros replaces it first, and the host's notifier
    /// makes KVM start again. (`kvm_faultin_pfn`)
    fn fault_in(&mut self, cx: &mut Cx<'_>, gfn: u64, write: bool) -> FaultIn {
        if cx.back(Gfn::new(gfn), &mut self.work).is_none() {
            return FaultIn::OutOfMemory;
        }
        if !self.slot.is_zero_page(gfn) {
            return FaultIn::Ready { writable: true };
        }
        if !write {
            return FaultIn::Ready { writable: false };
        }
        self.slot.set_zero_page(gfn, false);
        self.locked = true;
        let dropped = self.zap_rmap(cx, gfn, 1);
        self.flush_if(cx, dropped);
        FaultIn::Retry
    }
}

enum FaultIn {
    Ready { writable: bool },
    Retry,
    OutOfMemory,
}

/// Entries from a root downwards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShadowPath {
    entries: [SpteRef; 4],
    len: usize,
}

impl ShadowPath {
    pub(crate) fn iter(self) -> impl Iterator<Item = SpteRef> {
        self.entries.into_iter().take(self.len)
    }
}
