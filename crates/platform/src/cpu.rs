//! Physical and virtual CPUs: TLBs, registers, and the rules by which a page's permissions meet an access.

use memvirt_addr::{Acc, AccessKind, Privilege};
use memvirt_ops::VmId;
use memvirt_ops::arch::{Cr3, Pcid};
use memvirt_pagetable::Attrs;
use memvirt_tlb::{Tag, Tlb};

/// A physical CPU.
pub struct Cpu {
    /// Its TLBs.
    pub tlb: Tlb,
}

impl core::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cpu").field("tlb", &self.tlb.stats()).finish()
    }
}

/// The registers of a vCPU that paging depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regs {
    /// The root of the current address space.
    pub cr3: Cr3,
    /// CR0.WP: supervisor stores respect read-only pages.
    pub write_protect: bool,
    /// CR4.PGE: global entries survive CR3 loads.
    pub global_pages: bool,
    /// CR4.PCIDE: CR3 carries a PCID.
    pub pcid_enable: bool,
    /// CR4.SMEP: the supervisor does not fetch from user pages.
    pub smep: bool,
}

impl Regs {
    /// What a 64-bit kernel runs with: WP and PGE on, PCIDs off, SMEP off.
    #[must_use]
    pub const fn kernel(cr3: Cr3) -> Self {
        Self { cr3, write_protect: true, global_pages: true, pcid_enable: false, smep: false }
    }

    /// The PCID that tags translations now.
    #[must_use]
    pub const fn pcid(&self) -> Pcid {
        if self.pcid_enable { self.cr3.pcid } else { Pcid::ZERO }
    }

    /// Whether a page with the accumulated permissions `perms` allows `acc`. Source: Intel SDM volume 3, section 4.6.
    #[must_use]
    #[inline]
    pub fn permits(&self, perms: Attrs, acc: Acc) -> bool {
        let user_page = perms.contains(Attrs::USER);
        match (acc.privilege(), acc.kind()) {
            (Privilege::User, _) if !user_page => false,
            (_, AccessKind::Read) => true,
            (Privilege::User, AccessKind::Write) => perms.contains(Attrs::WRITE),
            (Privilege::Supervisor, AccessKind::Write) => perms.contains(Attrs::WRITE) || !self.write_protect,
            (Privilege::User, AccessKind::Fetch) => perms.contains(Attrs::EXEC),
            (Privilege::Supervisor, AccessKind::Fetch) => perms.contains(Attrs::EXEC) && !(self.smep && user_page),
        }
    }
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    /// The virtual machine that it belongs to.
    pub vm: VmId,
    /// The physical CPU that it runs on.
    pub cpu: usize,
    /// Its registers.
    pub regs: Regs,
    /// The VPID or ASID of its cached translations.
    pub vpid: u16,
}

impl Vcpu {
    /// The tag of translations made now.
    #[must_use]
    #[inline]
    pub const fn tag(&self) -> Tag {
        Tag::new(self.vpid, self.regs.pcid().number())
    }
}
