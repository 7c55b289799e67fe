//! Agile paging's hardware walk: in shadow tables first, and where an entry carries the switching bit, on in the guest's.
//!
//! The entry with the bit names the guest's table by its host frame, so the first reference after the switch needs no host
//! walk. With the lowest k of four levels nested a walk makes (4 - k) + k + 4k = 4 + 4k references. Hardware has three
//! registers: the root of the shadow tables (or of a guest's root table, then with the bit), the guest's CR3 and the root of
//! the nested tables. Source: Gandhi, Hill and Swift, ISCA 2016, section III.

use memvirt_addr::{Acc, Gfn, Hfn, HostPhys, Level};
use memvirt_nested::Mapped;
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, PhysMem, Shadow4};
use memvirt_platform::{Backed, Outcome, Regs, tlb_entry};
use memvirt_shadow::store::SWITCH;

use crate::meter::Meter;
use crate::radix::Radix;
use crate::walk::{End, Start, TableAt, walk};
use memvirt_platform::{Dimension, Probe, Reference};

/// Where hardware starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Top {
    /// In the shadow of the root table.
    Shadow(Hfn),
    /// In the guest's root table, which lies in this host frame.
    Guest(Hfn),
    /// Nowhere: the vCPU has no root yet.
    Nowhere,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Walked {
    /// In the shadow tables, with a translation.
    Shadow(Outcome),
    /// In the guest's.
    Nested(End),
    /// The shadow tables do not give the translation or do not permit the access.
    Missing,
}

/// Walks for one access.
pub(super) fn hardware<P: Probe>(
    mem: &mut PhysMem<HostPhys>,
    stage: &Radix,
    top: Top,
    regs: &Regs,
    acc: Acc,
    meter: &mut Meter<'_, P>,
) -> Walked {
    let mut table = match top {
        Top::Shadow(frame) => frame,
        Top::Guest(frame) => return nested(mem, stage, frame, (Level::L4, Attrs::PERMISSIONS), regs, acc, meter),
        Top::Nowhere => return Walked::Missing,
    };
    let (mut level, mut perms) = (Shadow4::ROOT, Attrs::PERMISSIONS);
    loop {
        let entry_at = table.entry(Shadow4::index(acc.gva(), level));
        let raw = mem.read(entry_at);
        let (dimension, gpa) = (Dimension::Shadow, memvirt_addr::Gpa::ZERO);
        meter.reference(&Reference { dimension, guest_level: None, level, entry_at, gpa, raw });
        match Shadow4::decode(raw, level) {
            Entry::Table { next, attrs } => {
                perms &= attrs;
                level = level.below().unwrap_or(Level::L1);
                if attrs.contains(SWITCH) {
                    return nested(mem, stage, next, (level, perms), regs, acc, meter);
                }
                table = next;
            }
            Entry::Leaf { frame, size, attrs } => {
                perms &= attrs;
                // What the hypervisor protects is protected from a kernel with CR0.WP = 0 too.
                if !(Regs { write_protect: true, ..*regs }).permits(perms, acc) {
                    return Walked::Missing;
                }
                let bits = Shadow4::RAW_ACCESSED | if acc.is_write() { Shadow4::RAW_DIRTY } else { 0 };
                if raw & bits != bits {
                    mem.write(entry_at, raw | bits);
                    meter.update(Dimension::Shadow, level, entry_at, bits & !raw);
                }
                let dirty = (raw | bits) & Shadow4::RAW_DIRTY != 0;
                let frame = frame.offset(acc.gva().page_offset(size) >> 12);
                let entry = tlb_entry(acc, Backed { frame, size }, size, perms & Attrs::PERMISSIONS, dirty);
                return Walked::Shadow(Outcome::Filled(entry));
            }
            Entry::Absent | Entry::Reserved => return Walked::Missing,
        }
    }
}

fn nested<P: Probe>(
    mem: &mut PhysMem<HostPhys>,
    stage: &Radix,
    table: Hfn,
    (level, perms): (Level, Attrs),
    regs: &Regs,
    acc: Acc,
    meter: &mut Meter<'_, P>,
) -> Walked {
    let start = Start { table: TableAt::Host(table), level, perms: perms & Attrs::PERMISSIONS };
    Walked::Nested(walk::<Guest4, _, _>(mem, stage, regs, acc, start, meter))
}

/// The TLB entry for the end of a walk in the guest's tables.
pub(super) fn filled(acc: Acc, found: &Mapped) -> Outcome {
    let backed = Backed { frame: found.frame, size: found.host_size };
    Outcome::Filled(tlb_entry(acc, backed, found.guest_size, found.perms, found.dirty))
}

/// The root of a vCPU, as the hypervisor set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// The shadow of the root table.
    Shadow(memvirt_shadow::store::PageId),
    /// The guest's root table itself.
    Guest(Gfn, Hfn),
}
