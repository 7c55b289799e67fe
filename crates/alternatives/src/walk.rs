//! The two-dimensional walk over any [`Stage`], from any level down.
//!
//! The walk of nested paging with two things left open: how a guest-physical address is translated (a tree, an array, a
//! segment), and where the walk starts: at a guest table known by its guest-physical address, as a root in CR3 is, or by its
//! host-physical one, as agile paging's switch and a register name it; such a table needs no host walk. Order of checks and
//! updates as in `memvirt_nested::walk`, save that reading a guest table is a read (see [`stage`](crate::stage)).

use memvirt_addr::{Acc, Gfn, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_nested::{Mapped, SecondStage};
use memvirt_pagetable::{Attrs, Entry, Ept4, Format, PhysMem};
use memvirt_platform::Regs;

use crate::meter::Meter;
use crate::stage::{Leaf, Stage, Violation, mark, table_read};
use memvirt_platform::{Dimension, Probe, Reference};

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Translated.
    Mapped(Mapped),
    /// The guest's own tables forbid the access.
    GuestFault(PfCode),
    /// The second stage does not map an address, or does not permit what is done there.
    Violation(Violation),
}

/// Where a guest table lies, as hardware knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableAt {
    /// In this guest frame, which has to be translated.
    Guest(Gfn),
    /// In this host frame.
    Host(Hfn),
}

/// Where a walk starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The table.
    pub table: TableAt,
    /// Its level.
    pub level: Level,
    /// What the entries above it permit.
    pub perms: Attrs,
}

impl Start {
    /// From the root in CR3.
    #[must_use]
    pub fn cr3<G: Format>(regs: &Regs) -> Self {
        Self { table: TableAt::Guest(regs.cr3.root.frame()), level: G::ROOT, perms: Attrs::PERMISSIONS }
    }
}

/// An entry of a guest table that was read.
#[derive(Clone, Copy)]
struct Read {
    entry: Entry<GuestPhys>,
    raw: u64,
    level: Level,
    /// Where it lies.
    hpa: Hpa,
    /// Its guest-physical address and what the host has there, where that was looked up.
    through: Option<(Gpa, Attrs, Option<Leaf>)>,
}

/// Walks guest tables of format `G` from `from` on for one access.
pub fn walk<G, S, P>(
    mem: &mut PhysMem<HostPhys>,
    stage: &S,
    regs: &Regs,
    acc: Acc,
    from: Start,
    meter: &mut Meter<'_, P>,
) -> End
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    S: Stage,
    P: Probe,
{
    Walker { mem, stage, meter }.descend::<G>(regs, acc, from).unwrap_or_else(|end| end)
}

struct Walker<'a, 'p, S, P> {
    mem: &'a mut PhysMem<HostPhys>,
    stage: &'a S,
    meter: &'a mut Meter<'p, P>,
}

impl<S: Stage, P: Probe> Walker<'_, '_, S, P> {
    fn descend<G>(&mut self, regs: &Regs, acc: Acc, from: Start) -> Result<End, End>
    where
        G: Format<In = GuestVirt, Out = GuestPhys>,
    {
        let Start { mut table, mut level, mut perms } = from;
        loop {
            let read = self.read::<G>(table, acc, level)?;
            match read.entry {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    self.set(&read, G::accessed_bit(level))?;
                    table = TableAt::Guest(next);
                    level = level.below().unwrap_or(Level::L1);
                }
                Entry::Leaf { frame, size, attrs } => {
                    perms &= attrs;
                    if !regs.permits(perms, acc) {
                        return Err(End::GuestFault(PfCode::of(acc, true)));
                    }
                    let dirty = if acc.is_write() { G::RAW_DIRTY } else { 0 };
                    let raw = self.set(&read, G::RAW_ACCESSED | dirty)?;
                    if attrs.contains(Attrs::GLOBAL) && regs.global_pages {
                        perms |= Attrs::GLOBAL;
                    }
                    let gpa = frame.base().wrapping_add(acc.gva().page_offset(size));
                    return self.data(acc, gpa, size, perms, raw & G::RAW_DIRTY != 0);
                }
                Entry::Absent => return Err(End::GuestFault(PfCode::of(acc, false))),
                Entry::Reserved => return Err(End::GuestFault(PfCode::of(acc, true).with_reserved())),
            }
        }
    }

    fn read<G>(&mut self, table: TableAt, acc: Acc, level: Level) -> Result<Read, End>
    where
        G: Format<In = GuestVirt, Out = GuestPhys>,
    {
        let index = G::index(acc.gva(), level);
        let (hpa, gpa, through) = match table {
            TableAt::Host(frame) => (frame.entry(index), Gpa::ZERO, None),
            TableAt::Guest(frame) => {
                let gpa = frame.entry(index);
                let host = self.stage.translate(self.mem, gpa, Some(level), table_read(), self.meter);
                let host = host.map_err(End::Violation)?;
                (host.frame.at(gpa.as_u64()), gpa, Some((gpa, host.perms, host.entry)))
            }
        };
        let raw = self.mem.read(hpa);
        let dimension = Dimension::Guest;
        self.meter.reference(&Reference { dimension, guest_level: Some(level), level, entry_at: hpa, gpa, raw });
        Ok(Read { entry: G::decode(raw, level), raw, level, hpa, through })
    }

    /// Sets bits of a guest entry in one locked update where any is missing. A table reached through the second stage must be
    /// writable there, and becomes dirty.
    fn set(&mut self, read: &Read, bits: u64) -> Result<u64, End> {
        if read.raw & bits == bits {
            return Ok(read.raw);
        }
        if let Some((gpa, had, entry)) = read.through {
            let want = Ept4::table_update();
            if !had.contains(Attrs::WRITE) {
                return Err(End::Violation(Violation { gpa, want, had, on_data: false, update: bits }));
            }
            if let Some(leaf) = entry {
                mark(self.mem, leaf, true, self.meter);
            }
        }
        self.mem.write(read.hpa, read.raw | bits);
        self.meter.update(Dimension::Guest, read.level, read.hpa, bits & !read.raw);
        Ok(read.raw | bits)
    }

    /// The translation of the data's own address.
    fn data(&mut self, acc: Acc, gpa: Gpa, guest_size: PageSize, mut perms: Attrs, dirty: bool) -> Result<End, End> {
        let host = self.stage.translate(self.mem, gpa, None, Ept4::data(acc.kind()), self.meter);
        let host = host.map_err(End::Violation)?;
        for bit in [Attrs::WRITE, Attrs::EXEC] {
            perms.set(bit, perms.contains(bit) && host.perms.contains(bit));
        }
        Ok(End::Mapped(Mapped {
            gfn: gpa.frame(),
            frame: host.frame,
            guest_size,
            host_size: host.size,
            perms,
            dirty: dirty && host.dirty,
        }))
    }
}
