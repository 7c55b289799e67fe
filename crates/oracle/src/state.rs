//! The registers that paging depends on, as the oracle keeps them itself: it trusts no platform's copy.

use memvirt_addr::Gpa;
use memvirt_addr::{Acc, AccessKind, Privilege};
use memvirt_ops::arch::{Control, Cr3, CrWrite, Pcid};
use memvirt_pagetable::Attrs;

/// CR0.WP, CR3, CR4.PGE, CR4.PCIDE and CR4.SMEP of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
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

impl Default for State {
    /// What a 64-bit kernel starts with: WP and PGE on, PCIDs and SMEP off, root 0.
    fn default() -> Self {
        Self { cr3: Cr3::flushing(Gpa::ZERO), write_protect: true, global_pages: true, pcid_enable: false, smep: false }
    }
}

impl State {
    /// The PCID of translations made now.
    #[must_use]
    pub const fn pcid(&self) -> Pcid {
        if self.pcid_enable { self.cr3.pcid } else { Pcid::ZERO }
    }

    /// Whether a page with the accumulated permissions `perms` allows `acc`. Source: Intel SDM volume 3, section 4.6.1.
    #[must_use]
    pub fn permits(&self, perms: Attrs, acc: Acc) -> bool {
        let user = acc.privilege() == Privilege::User;
        let user_page = perms.contains(Attrs::USER);
        if user && !user_page {
            return false;
        }
        match acc.kind() {
            AccessKind::Read => true,
            AccessKind::Write => perms.contains(Attrs::WRITE) || (!user && !self.write_protect),
            AccessKind::Fetch => perms.contains(Attrs::EXEC) && (user || !(self.smep && user_page)),
        }
    }

    /// Takes over what `control` does to the registers.
    pub(crate) fn execute(&mut self, control: &Control) {
        match *control {
            Control::Cr3(cr3) => self.cr3 = cr3,
            Control::Cr(CrWrite::WriteProtect(on)) => self.write_protect = on,
            Control::Cr(CrWrite::PcidEnable(on)) => self.pcid_enable = on,
            Control::Cr(CrWrite::TogglePge)
            | Control::ReadCr3
            | Control::Invlpg(_)
            | Control::Invpcid(_)
            | Control::Ipi(_)
            | Control::Interrupt
            | Control::Trap(_) => {}
        }
    }
}
