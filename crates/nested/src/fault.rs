//! How nested tables stop a walk, and how hardware reports it.
//!
//! A violation means that no entry is there or that the entries, ANDed, lack the access; a misconfiguration, that an entry has
//! bits no entry may have. Each entry is checked for misconfiguration as it is read, permissions only once the leaf is found
//! (Intel SDM volume 3, section 28.2.3.3). Reports: table 27-7 there (exit qualification); AMD APM volume 2, section 15.25.6
//! (EXITINFO1).

use memvirt_addr::{Gpa, PfCode};
use memvirt_pagetable::Attrs;

use crate::stage::Want;

/// Why the nested tables stopped a walk: EPT violation, nested page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The guest-physical address that was being translated.
    pub gpa: Gpa,
    /// What the access asked for.
    pub want: Want,
    /// The permissions of all nested entries met, ANDed; empty where one was absent.
    pub had: Attrs,
    /// Whether the address was the data's own, not a guest table's.
    pub on_data: bool,
}

impl Violation {
    /// Qualification bit 0: the access was a data read.
    pub const READ: u64 = 1 << 0;
    /// Bit 1: it was a write. Both for references to guest tables that count as writes.
    pub const WRITE: u64 = 1 << 1;
    /// Bit 2: it was an instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// Bit 3: the entries, ANDed, allow reads.
    pub const READABLE: u64 = 1 << 3;
    /// Bit 4: they allow writes.
    pub const WRITABLE: u64 = 1 << 4;
    /// Bit 5: they allow fetches.
    pub const EXECUTABLE: u64 = 1 << 5;
    /// Bit 7: there is a linear address. Always here: all accesses are made through one.
    pub const LINEAR_VALID: u64 = 1 << 7;
    /// Bit 8: the fault was on the translation of the linear address, not of a guest table's.
    pub const FINAL: u64 = 1 << 8;

    /// EXITINFO1 bit 32: the fault was on the guest's final address.
    pub const NPF_FINAL: u64 = 1 << 32;
    /// Bit 33: it was on the address of a guest table.
    pub const NPF_TABLE: u64 = 1 << 33;

    /// The exit qualification of an EPT violation. The advanced bits (9 to 11) and NMI unblocking (12) are not modelled.
    #[must_use]
    pub fn qualification(&self) -> u64 {
        let asked = [(Attrs::READ, Self::READ), (Attrs::WRITE, Self::WRITE), (Attrs::EXEC, Self::FETCH)];
        let granted = [(Attrs::READ, Self::READABLE), (Attrs::WRITE, Self::WRITABLE), (Attrs::EXEC, Self::EXECUTABLE)];
        bits(self.want.perms, asked)
            | bits(self.had, granted)
            | Self::LINEAR_VALID
            | if self.on_data { Self::FINAL } else { 0 }
    }

    /// EXITINFO1 of a nested page fault: a page-fault error code, always of a user access, and which translation it was.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        let present = if self.had.contains(Attrs::READ) { PfCode::PRESENT } else { 0 };
        u64::from(present) | exit_info(self.want, self.on_data)
    }
}

/// A nested entry has illegal bits: EPT misconfiguration. It has no qualification; NPT reports a page fault with RSV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misconfig {
    /// The guest-physical address that was being translated.
    pub gpa: Gpa,
    /// What the access asked for.
    pub want: Want,
    /// Whether the address was the data's own, not a guest table's.
    pub on_data: bool,
    /// The raw bits of the entry.
    pub raw: u64,
}

impl Misconfig {
    /// EXITINFO1 of the nested page fault that AMD hardware raises for it.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        u64::from(PfCode::PRESENT | PfCode::RESERVED) | exit_info(self.want, self.on_data)
    }
}

fn bits(attrs: Attrs, names: [(Attrs, u64); 3]) -> u64 {
    names.into_iter().filter(|(attr, _)| attrs.contains(*attr)).fold(0, |sum, (_, bit)| sum | bit)
}

fn exit_info(want: Want, on_data: bool) -> u64 {
    let write = if want.perms.contains(Attrs::WRITE) { PfCode::WRITE } else { 0 };
    let fetch = if want.perms.contains(Attrs::EXEC) { PfCode::FETCH } else { 0 };
    u64::from(PfCode::USER | write | fetch) | if on_data { Violation::NPF_FINAL } else { Violation::NPF_TABLE }
}
