//! What a regime works on while it serves one vCPU: the CPUs, the host, the virtual machine's memory, the ledger.

use memvirt_addr::{Acc, Gfn, PageSize};
use memvirt_ops::arch::{Control, CrWrite, Invpcid, VcpuSet};
use memvirt_ops::{VcpuId, VmId};
use memvirt_pagetable::Attrs;
use memvirt_tlb::{Entry, KeepGlobal, Perms, Tag};

use crate::cpu::{Cpu, Regs, Vcpu};
use crate::exit::{Exit, ExitReason, LockMode, Work};
use crate::host::{Backed, GuestMem, Host, MemoryMap};
use crate::ledger::Ledger;
use crate::seam::Horizon;

/// Whether cached translations carry a tag of their virtual machine (VPID, ASID). Without, every exit and entry empties the
/// TLB. Source: Intel SDM volume 3, section 28.3.3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tags {
    /// Entries survive exits.
    On,
    /// Every exit flushes.
    Off,
}

/// What inter-processor interrupts cost a guest: whether sending and receiving one exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Interrupts {
    /// Both do: the hypervisor carries out the sender's store to its interrupt controller, and interrupts the target to inject
    /// what was sent.
    #[default]
    Exiting,
    /// Sending does, receiving does not: the hypervisor posts the interrupt and the target's processor delivers it in guest mode
    /// (Intel SDM volume 3, section 30.6, posted interrupts).
    Posted,
    /// Neither does: the sender's processor posts the interrupt by itself (Intel SDM volume 3, section 30.1.6, IPI
    /// virtualization; AMD APM volume 2, section 15.29, AVIC).
    Virtualized,
}

/// Whose virtualization hardware it is; they differ in which control-register accesses exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// Intel VMX.
    Vmx,
    /// AMD SVM.
    Svm,
}

/// The surroundings of one vCPU.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The vCPU.
    pub me: VcpuId,
    /// Its virtual machine.
    pub vm: VmId,
    /// All vCPUs of the host.
    pub vcpus: &'a mut [Vcpu],
    /// All physical CPUs.
    pub cpus: &'a mut [Cpu],
    /// The machine's memory.
    pub host: &'a mut Host,
    /// The memory of the vCPU's virtual machine.
    pub map: &'a mut MemoryMap,
    /// Where to count.
    pub out: &'a mut Ledger,
    /// Whether exits may be handled now.
    pub horizon: Horizon,
    /// Whether translations survive exits.
    pub tags: Tags,
    /// The index of the access in its run.
    pub at: usize,
}

impl Cx<'_> {
    /// The vCPU's registers.
    #[must_use]
    pub fn regs(&self) -> &Regs {
        &self.vcpus[self.me.index()].regs
    }

    /// The vCPU's registers, to be changed.
    #[must_use]
    pub fn regs_mut(&mut self) -> &mut Regs {
        &mut self.vcpus[self.me.index()].regs
    }

    /// The tag of translations made now.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.vcpus[self.me.index()].tag()
    }

    /// The CPU that the vCPU runs on.
    #[must_use]
    pub fn cpu(&mut self) -> &mut Cpu {
        let cpu = self.vcpus[self.me.index()].cpu;
        &mut self.cpus[cpu]
    }

    /// The number of the virtual machine's nested tables, which tags guest-physical mappings. One tree per machine.
    #[must_use]
    pub const fn nested_root(&self) -> u16 {
        self.vm.0
    }

    /// Guest-physical memory.
    #[must_use]
    pub fn guest(&mut self) -> GuestMem<'_> {
        GuestMem { host: self.host, map: self.map }
    }

    /// The host page behind `gfn`, allocated (and entered in `work`) on first touch; `None` when the host has no frame left.
    pub fn back(&mut self, gfn: Gfn, work: &mut Work) -> Option<Backed> {
        let (backed, fresh) = self.map.back(gfn, self.host)?;
        if fresh {
            work.frames_backed += backed.size.frames();
        }
        Some(backed)
    }

    /// Counts one exit of this vCPU; without tags it flushes.
    pub fn exit(&mut self, reason: ExitReason, work: Work, lock: Option<LockMode>, kick: VcpuSet) {
        self.out.exit(Exit { at: self.at, reason, work, lock, kick });
        self.cross();
    }

    /// What crossing between virtual machine and host flushes: without tags every linear and combined mapping, else nothing.
    pub fn cross(&mut self) {
        if self.tags == Tags::Off {
            self.flush(Cpu::flush_untagged);
        }
    }

    /// Flushes every translation of this virtual machine on all CPUs, guest-physical ones included; returns the vCPUs that had to be interrupted for it.
    pub fn flush_vm(&mut self, work: &mut Work) -> VcpuSet {
        let mut kick = VcpuSet::EMPTY;
        work.remote_flushes += 1;
        for (i, vcpu) in (0u16..).zip(self.vcpus.iter()) {
            if vcpu.vm == self.vm {
                self.cpus[vcpu.cpu].flush_root(vcpu.vpid, self.vm.0);
                self.out.counters.tlb_flushes += 1;
                if i != self.me.0 {
                    kick = kick.with(VcpuId(i));
                }
            }
        }
        kick
    }

    /// What a privileged operation does to the vCPU's own registers and cached translations, on hardware that executes it without an exit.
    /// Source: Intel SDM volume 3, section 4.10.4.1.
    pub fn execute(&mut self, control: &Control) {
        let tag = self.tag();
        let vpid = tag.vpid();
        let keep = if self.regs().global_pages { KeepGlobal::Yes } else { KeepGlobal::No };
        match *control {
            Control::Invlpg(gva) => self.cpu().flush_page(tag, gva),
            Control::Cr3(cr3) => {
                self.regs_mut().cr3 = cr3;
                if !(cr3.keep && self.regs().pcid_enable) {
                    let tag = self.tag();
                    self.flush(|cpu| cpu.flush_tag(tag, keep));
                }
            }
            Control::Cr(CrWrite::TogglePge) => self.flush(|cpu| cpu.flush_vpid(vpid, KeepGlobal::No)),
            Control::Cr(CrWrite::WriteProtect(on)) => self.regs_mut().write_protect = on,
            Control::Cr(CrWrite::PcidEnable(on)) => {
                self.regs_mut().pcid_enable = on;
                if !on {
                    self.flush(|cpu| cpu.flush_vpid(vpid, KeepGlobal::No));
                }
            }
            Control::Invpcid(Invpcid::Address(pcid, gva)) => {
                self.cpu().flush_address(Tag::new(vpid, pcid.number()), gva);
            }
            Control::Invpcid(Invpcid::Single(pcid)) => {
                self.flush(|cpu| cpu.flush_tag(Tag::new(vpid, pcid.number()), KeepGlobal::Yes));
            }
            Control::Invpcid(Invpcid::AllGlobal) => self.flush(|cpu| cpu.flush_vpid(vpid, KeepGlobal::No)),
            Control::Invpcid(Invpcid::All) => self.flush(|cpu| cpu.flush_vpid(vpid, KeepGlobal::Yes)),
            Control::ReadCr3 | Control::Ipi(_) | Control::Interrupt | Control::Trap(_) => {}
        }
    }

    fn flush(&mut self, act: impl FnOnce(&mut Cpu)) {
        act(self.cpu());
        self.out.counters.tlb_flushes += 1;
    }
}

/// The TLB entry for an access through a mapping.
///
/// `perms` are the accumulated permissions of the walk (with [`Attrs::GLOBAL`] where the entry is to survive CR3 loads), `dirty` tells whether the dirty bit is set everywhere it has to be:
/// only then may later stores go through without a walk.
#[must_use]
pub fn tlb_entry(acc: Acc, backed: Backed, guest_size: PageSize, perms: Attrs, dirty: bool) -> Entry {
    let size = guest_size.min(backed.size);
    let mut cached = Perms::NONE;
    for (granted, perm) in [
        (perms.contains(Attrs::WRITE) && dirty, Perms::WRITE),
        (perms.contains(Attrs::EXEC), Perms::EXEC),
        (perms.contains(Attrs::USER), Perms::USER),
    ] {
        if granted {
            cached = cached | perm;
        }
    }
    Entry {
        page: acc.gva().frame().align_down(size),
        frame: backed.frame.align_down(size),
        size,
        guest_size,
        perms: cached,
        global: perms.contains(Attrs::GLOBAL),
    }
}
