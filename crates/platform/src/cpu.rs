//! Physical and virtual CPUs: TLBs and walk caches, registers, and the rules by which a page's permissions meet an access.
//!
//! All invalidation goes through the methods of [`Cpu`], one for each thing that the architecture says drops cached
//! translations. Each drops what it must from the TLB and from the walk caches together. Source: Intel SDM volume 3, sections
//! 4.10.4 (linear mappings) and 28.3.3 (combined and guest-physical ones); AMD APM volume 2, sections 5.5.3 and 15.16.

use memvirt_addr::{Acc, AccessKind, Gpa, Gva, Privilege};
use memvirt_ops::VmId;
use memvirt_ops::arch::{Cr3, Pcid};
use memvirt_pagetable::Attrs;
use memvirt_tlb::{Entry, Geometry, KeepGlobal, Perms, Tag, Tlb};

use crate::mmu::{Invalidation, Mmu};

/// A physical CPU.
pub struct Cpu {
    /// Its TLBs.
    pub(crate) tlb: Tlb,
    /// Its walk caches, where they are modelled. Boxed: without them a CPU is its TLB.
    pub mmu: Option<Box<Mmu>>,
}

impl Cpu {
    /// A CPU with an empty TLB and no walk caches.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        Self { tlb: Tlb::new(geometry), mmu: None }
    }

    /// Its TLBs.
    #[must_use]
    pub const fn tlb(&self) -> &Tlb {
        &self.tlb
    }

    /// Caches a translation, as the last act of a walk.
    #[inline]
    pub fn fill(&mut self, tag: Tag, entry: Entry) {
        self.tlb.fill(tag, entry);
    }

    /// INVLPG: the page for this tag and its global entries; of the paging-structure caches all entries of the PCID, whatever
    /// their address (SDM 4.10.4.1; an AMD processor does the same unless EFER.TCE is set, APM volume 2, section 3.1.7).
    pub fn flush_page(&mut self, tag: Tag, gva: Gva) {
        self.tlb.flush_page(tag, gva);
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_tag(tag, Invalidation::Page);
        }
    }

    /// INVPCID type 0, INVVPID type 0, INVLPGA: the page, and the paging-structure entries that lead to it.
    pub fn flush_address(&mut self, tag: Tag, gva: Gva) {
        self.tlb.flush_page(tag, gva);
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_path(tag, gva, Invalidation::Address);
        }
    }

    /// A CR3 load, INVPCID type 1: everything of one PCID. Paging-structure entries are never global.
    pub fn flush_tag(&mut self, tag: Tag, keep: KeepGlobal) {
        self.tlb.flush_tag(tag, keep);
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_tag(tag, Invalidation::Context);
        }
    }

    /// CR4.PGE toggled, INVPCID types 2 and 3, INVVPID types 1 and 3: everything of one VPID, save its guest-physical
    /// mappings, which belong to no VPID (SDM 28.3.3.1).
    pub fn flush_vpid(&mut self, vpid: u16, keep: KeepGlobal) {
        self.tlb.flush_vpid(vpid, keep);
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_vpid(vpid);
        }
    }

    /// INVEPT type 1 for the nested tables numbered `root`, all of whose translations carry the VPID `vpid`; on AMD a new
    /// ASID or VMRUN with TLB_CONTROL: guest-physical and combined mappings.
    pub fn flush_root(&mut self, vpid: u16, root: u16) {
        self.tlb.flush_vpid(vpid, KeepGlobal::No);
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_vpid(vpid);
            mmu.drop_root(root);
        }
    }

    /// VM entry or exit without VPIDs: linear and combined mappings. Guest-physical ones are tagged with their EPT root all the
    /// same and stay (SDM 28.3.3.1).
    pub fn flush_untagged(&mut self) {
        self.tlb.flush_all();
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_guest();
        }
    }

    /// The guest-physical mappings of one root alone: what flushing without ASIDs adds on AMD, whose guest-physical
    /// translations belong to the ASID.
    pub fn flush_guest_physical(&mut self, root: u16) {
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_root(root);
        }
    }

    /// A page fault: the page and the paging-structure entries that were used for its address (SDM 4.10.4.1).
    pub fn page_fault(&mut self, tag: Tag, gva: Gva) {
        self.tlb.flush_page(tag, gva);
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_path(tag, gva, Invalidation::PageFault);
        }
    }

    /// A page fault or violation at an access that somebody else then carried out: a TLB entry for the address did not permit it.
    /// Where a fill follows instead, that replaces the entry.
    pub(crate) fn drop_denied(&mut self, tag: Tag, gva: Gva) {
        if self.tlb.probe(tag, gva).is_some() {
            self.tlb.flush_page(tag, gva);
        }
    }

    /// An EPT violation or nested page fault: the guest-physical mappings used for `gpa`, and where that was the translation
    /// of a `linear` address the combined ones used for it (SDM 28.3.3.1). A TLB entry that did not permit the access is
    /// replaced by the fill that follows.
    pub fn violation(&mut self, root: u16, gpa: Gpa, linear: Option<(Tag, Gva)>) {
        if let Some(mmu) = &mut self.mmu {
            mmu.drop_gpa(root, gpa, linear);
        }
    }
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

    /// Whether a page that a TLB entry may cache with `perms`, and that grants what `acc` needs, allows it.
    #[inline]
    pub(crate) fn permits_plainly(&self, perms: Perms, acc: Acc) -> bool {
        let fetch = acc.privilege() == Privilege::Supervisor && acc.kind() == AccessKind::Fetch;
        !(self.smep && fetch && perms.contains(Perms::USER))
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
