//! Requests: what must be done before the guest runs again, and in which order.
//!
//! A remote flush asks every vCPU, the caller included, to flush everything; several before one entry are one flush. Served
//! requests are what `tlb_flush` counts; the flush that comes with a new root is not counted. Serving one can make others,
//! so the order is part of the result. Source: spec A14; `vcpu_enter_guest` in `arch/x86/kvm/x86.c`.

use memvirt_addr::Gpa;
use memvirt_ops::VcpuId;
use memvirt_platform::{Cx, Tags};
use memvirt_tlb::KeepGlobal;

use super::Kvm;
use super::vcpu::Requests;

impl Kvm {
    /// Asks something of every vCPU of the virtual machine. All but the caller are interrupted for it, which costs them their
    /// translations at once: every request ends in a flush before the guest runs again. Returns whether there were others.
    pub(crate) fn request_all(&mut self, cx: &mut Cx<'_>, which: u8) -> bool {
        let mut others = false;
        for ((i, mmu), vcpu) in (0u16..).zip(&mut self.vcpus).zip(cx.vcpus.iter()) {
            if vcpu.vm != cx.vm {
                continue;
            }
            mmu.requests.make(which);
            if i != cx.me.0 {
                cx.cpus[vcpu.cpu].flush_vpid(vcpu.vpid, KeepGlobal::No);
                cx.out.counters.tlb_flushes += 1;
                self.kick = self.kick.with(VcpuId(i));
                others = true;
            }
        }
        others
    }

    /// Flushes the translations of all vCPUs. (`kvm_flush_remote_tlbs`)
    pub(crate) fn flush_remote(&mut self, cx: &mut Cx<'_>) {
        self.stats.remote_tlb_flush_requests += 1;
        self.work.remote_flushes += 1;
        let kicked = self.request_all(cx, Requests::FLUSH_ALL);
        self.stats.remote_tlb_flush += u64::from(kicked);
    }

    pub(crate) fn flush_if(&mut self, cx: &mut Cx<'_>, due: bool) {
        if due {
            self.flush_remote(cx);
        }
    }

    /// Empties the vCPU's own translations. Without tags the exit has done so.
    pub(crate) fn flush_own(&mut self, cx: &mut Cx<'_>) {
        if cx.tags == Tags::On {
            let vpid = cx.tag().vpid();
            cx.cpu().flush_vpid(vpid, KeepGlobal::No);
            cx.out.counters.tlb_flushes += 1;
        }
    }

    /// Serves what is pending and sees to a root, until the guest can run.
    pub(crate) fn enter(&mut self, cx: &mut Cx<'_>) {
        while self.vcpu(cx).must_prepare() {
            if self.take(cx, Requests::FREE_OBSOLETE_ROOTS) {
                self.free_obsolete_roots(cx);
            }
            if self.take(cx, Requests::SYNC) {
                self.sync_root(cx);
            }
            let _ = self.take(cx, Requests::LOAD_PGD);
            if self.take(cx, Requests::FLUSH_ALL) {
                self.serve_flush(cx);
                let _ = self.take(cx, Requests::FLUSH_CURRENT);
            }
            if self.take(cx, Requests::FLUSH_CURRENT) {
                self.serve_flush(cx);
            }
            if self.take(cx, Requests::FLUSH_GUEST) {
                self.sync_root(cx);
                self.free_unsync_previous_roots(cx);
                self.serve_flush(cx);
            }
            if !self.vcpu(cx).root.is_valid() && !self.vcpu(cx).dummy_root {
                self.load_root(cx);
                self.flush_own(cx);
            }
        }
        self.vcpu_mut(cx).has_run = true;
    }

    fn take(&mut self, cx: &Cx<'_>, which: u8) -> bool {
        self.vcpu_mut(cx).requests.take(which)
    }

    fn serve_flush(&mut self, cx: &mut Cx<'_>) {
        self.stats.tlb_flush += 1;
        self.flush_own(cx);
    }

    /// CR3 as KVM compares it: root and PCID.
    pub(crate) fn pgd(cx: &Cx<'_>) -> u64 {
        let regs = cx.regs();
        Self::pgd_of(regs.cr3.root, regs.pcid().number())
    }

    pub(crate) const fn pgd_of(root: Gpa, pcid: u16) -> u64 {
        root.as_u64() & !0xfff | pcid as u64
    }
}
