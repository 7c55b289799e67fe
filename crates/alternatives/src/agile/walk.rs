//! Agile paging's hardware walk: in shadow tables first, and where an entry carries the switching bit, on in the guest's.
//!
//! The entry with the bit names the guest's table by its host frame, so the first reference after the switch needs no host
//! walk. With the lowest k of four levels nested a walk makes (4 - k) + k + 4k = 4 + 4k references. Hardware has three
//! registers: the root of the shadow tables (or of a guest's root table, then with the bit), the guest's CR3 and the root of
//! the nested tables. Source: Gandhi, Hill and Swift, ISCA 2016, section III.

use memvirt_addr::{Acc, Gfn, Gpa, Hfn, HostPhys, Level};
use memvirt_nested::Mapped;
use memvirt_pagetable::{Attrs, Entry, Format, Guest4, PhysMem, Shadow4};
use memvirt_platform::{Backed, Caches, Dimension, Outcome, Partial, Probe, Reference, Regs, tlb_entry};
use memvirt_shadow::store::{PageId, SWITCH};

use crate::meter::{GUEST_TABLE, Job, Meter};
use crate::radix::Radix;
use crate::walk::{End, Start, TableAt, walk};

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

/// One walk from `top`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hardware<'a> {
    pub(super) stage: &'a Radix,
    pub(super) top: Top,
}

/// A shadow table and what the entries above it permit.
type At = (Level, Partial<HostPhys>);

impl Job for Hardware<'_> {
    type End = Walked;

    fn run<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> Walked {
        let everything = Attrs::PERMISSIONS;
        loop {
            let known = if self.top == Top::Nowhere { None } else { meter.known(acc.gva(), true) };
            let walked = match (known, self.top) {
                (Some((level, entry)), _) if entry.perms.intersects(SWITCH | GUEST_TABLE) => {
                    self.nested(mem, Start::below(level, &entry), regs, acc, meter)
                }
                (Some((level, entry)), _) => {
                    self.shadow(mem, (level.below().unwrap_or(Level::L1), entry), regs, acc, meter)
                }
                (None, Top::Shadow(table)) => {
                    self.shadow(mem, (Shadow4::ROOT, Partial { table, perms: everything }), regs, acc, meter)
                }
                (None, Top::Guest(frame)) => {
                    let start = Start { table: TableAt::Host(frame), level: Level::L4, perms: everything };
                    self.nested(mem, start, regs, acc, meter)
                }
                (None, Top::Nowhere) => Walked::Missing,
            };
            let stopped_at = match walked {
                Walked::Missing | Walked::Nested(End::GuestFault(_)) => None,
                Walked::Nested(End::Violation(violation)) => Some(violation.gpa),
                Walked::Shadow(_) | Walked::Nested(End::Mapped(_)) => return walked,
            };
            if !meter.again(acc.gva(), stopped_at) {
                return walked;
            }
        }
    }
}

impl Hardware<'_> {
    /// In shadow tables, from `at` on.
    fn shadow<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        (mut level, Partial { mut table, mut perms }): At,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> Walked {
        loop {
            let entry_at = table.entry(Shadow4::index(acc.gva(), level));
            let raw = mem.read(entry_at);
            let (dimension, gpa) = (Dimension::Shadow, Gpa::ZERO);
            meter.reference(&Reference { dimension, guest_level: None, level, entry_at, gpa, raw });
            match Shadow4::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    let entry = Partial { table: next, perms: perms | attrs & SWITCH };
                    meter.keep(acc.gva(), level, entry);
                    if attrs.contains(SWITCH) {
                        return self.nested(mem, Start::below(level, &entry), regs, acc, meter);
                    }
                    (table, level) = (next, level.below().unwrap_or(Level::L1));
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

    /// In the guest's tables, from `start` on.
    fn nested<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        start: Start,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> Walked {
        Walked::Nested(walk::<Guest4, _, _, _>(mem, self.stage, regs, acc, start, meter))
    }
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
    Shadow(PageId),
    /// The guest's root table itself.
    Guest(Gfn, Hfn),
}
