//! Privileged operations: what exits, and what KVM does about it.
//!
//! The vendors differ in what exits: SVM traps CR4 reads too, so a toggle of PGE is three exits there and two on VMX. On SVM
//! without decode assists (the machine of the recordings) INVLPG and control-register accesses go through the emulator, which
//! counts them as emulated instructions. Source: spec A1, A10; `kvm_set_cr3`, `kvm_post_set_cr0`, `kvm_post_set_cr4`,
//! `kvm_handle_invpcid`, `kvm_invalidate_pcid` in `arch/x86/kvm/x86.c`; `init_vmcb` in `svm/svm.c`; `vmx/vmx.c`.

use memvirt_ops::arch::{Control, Cr3, CrWrite, Invpcid, Pcid, VcpuSet};
use memvirt_platform::{Cx, ExitReason, LockMode, Vendor};

use super::Kvm;
use super::config::Kernel;
use super::roots::Which;
use super::vcpu::Requests;

impl Kvm {
    pub(crate) fn control_exit(&mut self, cx: &mut Cx<'_>, control: &Control) {
        match *control {
            Control::Invlpg(gva) => {
                self.emulated_on_svm(cx);
                self.invalidate_everywhere(cx, gva);
                self.stats.invlpg += 1;
                self.finish_exit(cx, ExitReason::Invlpg);
            }
            Control::Cr3(cr3) => {
                self.emulated_on_svm(cx);
                self.load_cr3(cx, cr3);
                self.finish_exit(cx, ExitReason::Cr3Load);
            }
            Control::ReadCr3 => {
                self.emulated_on_svm(cx);
                self.finish_exit(cx, ExitReason::CrAccess);
            }
            Control::Cr(CrWrite::TogglePge) => self.toggle_pge(cx),
            Control::Cr(CrWrite::WriteProtect(on)) => {
                self.emulated_on_svm(cx);
                if cx.regs().write_protect != on {
                    cx.regs_mut().write_protect = on;
                    self.reset_context(cx);
                }
                self.finish_exit(cx, ExitReason::CrAccess);
            }
            Control::Cr(CrWrite::PcidEnable(on)) => {
                self.emulated_on_svm(cx);
                self.enable_pcid(cx, on);
                self.finish_exit(cx, ExitReason::CrAccess);
            }
            Control::Invpcid(what) => {
                self.invpcid(cx, what);
                self.finish_exit(cx, ExitReason::Invpcid);
            }
            Control::Ipi(_) | Control::Interrupt => self.finish_exit(cx, ExitReason::Ipi),
            Control::Trap(trap) => self.finish_exit(cx, trap.into()),
        }
    }

    /// An instruction that SVM hands over undecoded. In Linux 6.1 any emulation ends a pending retry.
    fn emulated_on_svm(&mut self, cx: &Cx<'_>) {
        if self.config.vendor == Vendor::Svm {
            self.decode();
            if self.config.kernel == Kernel::V6_1 {
                self.vcpu_mut(cx).last_retry = None;
            }
        }
    }

    fn load_cr3(&mut self, cx: &mut Cx<'_>, cr3: Cr3) {
        let pcid_enable = cx.regs().pcid_enable;
        let pcid = if pcid_enable { cr3.pcid } else { Pcid::ZERO };
        let pgd = Self::pgd_of(cr3.root, pcid.number());
        if pgd != Self::pgd(cx) {
            self.switch_root(cx, pgd);
        }
        cx.regs_mut().cr3 = Cr3 { keep: false, ..cr3 };
        if !(pcid_enable && cr3.keep) {
            self.invalidate_pcid(cx, pcid);
        }
    }

    /// Flushes one PCID: the current root is synced; previous roots of the PCID are let go, so that they are synced when they
    /// come back. Without PCIDs every CR3 load syncs anyway.
    fn invalidate_pcid(&mut self, cx: &mut Cx<'_>, pcid: Pcid) {
        if cx.regs().pcid() == pcid {
            self.vcpu_mut(cx).requests.make(Requests::SYNC | Requests::FLUSH_CURRENT);
        }
        if cx.regs().pcid_enable {
            let number = u64::from(pcid.number());
            self.free_roots_where(cx, |_, root, which| which == Which::Previous && root.pgd & 0xfff == number);
        }
    }

    /// CR4.PGE is read, cleared and set.
    fn toggle_pge(&mut self, cx: &mut Cx<'_>) {
        if self.config.vendor == Vendor::Svm {
            self.emulated_on_svm(cx);
            self.finish_exit(cx, ExitReason::CrAccess);
        }
        for _ in 0..2 {
            self.emulated_on_svm(cx);
            self.vcpu_mut(cx).requests.make(Requests::FLUSH_GUEST);
            self.finish_exit(cx, ExitReason::CrAccess);
        }
    }

    fn enable_pcid(&mut self, cx: &mut Cx<'_>, on: bool) {
        if cx.regs().pcid_enable == on {
            return;
        }
        cx.regs_mut().pcid_enable = on;
        if on {
            // A later load with the keep bit must not find roots from before.
            self.unload(cx);
        } else {
            self.vcpu_mut(cx).requests.make(Requests::FLUSH_GUEST);
        }
    }

    fn invpcid(&mut self, cx: &mut Cx<'_>, what: Invpcid) {
        match what {
            Invpcid::Address(pcid, gva) => {
                let mmu = self.vcpu(cx);
                let current = (cx.regs().pcid() == pcid).then_some(mmu.root);
                let number = u64::from(pcid.number());
                let previous = mmu.previous.into_iter().filter(|root| root.pgd & 0xfff == number);
                for root in current.into_iter().chain(previous) {
                    if root.is_valid() {
                        self.invalidate_in(cx, gva, root);
                    }
                }
                let tag = memvirt_tlb::Tag::new(cx.tag().vpid(), pcid.number());
                cx.cpu().flush_address(tag, gva);
                self.stats.invlpg += 1;
            }
            Invpcid::Single(pcid) => self.invalidate_pcid(cx, pcid),
            Invpcid::AllGlobal | Invpcid::All => self.vcpu_mut(cx).requests.make(Requests::FLUSH_GUEST),
        }
    }

    /// Ends an exit: serves what is pending, then accounts for everything done since the guest stopped. The lock was held where
    /// some part of it asks for it: loading a root, syncing one that reaches unsync pages, letting go of one, INVLPG, a fault that
    /// comes as far as the tables, an emulated store to one. A CR3 load that finds its root in the vCPU's cache, with nothing to
    /// sync, takes none (`fast_pgd_switch`, `is_unsync_root`).
    pub(crate) fn finish_exit(&mut self, cx: &mut Cx<'_>, reason: ExitReason) {
        self.stats.exits += 1;
        self.enter(cx);
        let work = core::mem::take(&mut self.work);
        let kick = core::mem::replace(&mut self.kick, VcpuSet::EMPTY);
        let lock = core::mem::take(&mut self.locked).then_some(LockMode::Exclusive);
        cx.exit(reason, work, lock, kick);
    }
}
