//! The two-dimensional walk over any [`Stage`], from any level down.
//!
//! The walk of nested paging with two things left open: how a guest-physical address is translated (a tree, an array, a
//! segment), and where the walk starts: at a guest table known by its guest-physical address, as a root in CR3 is, or by its
//! host-physical one, as agile paging's switch and a register name it; such a table needs no host walk. Order of checks and
//! updates as in `memvirt_nested::walk`, save that reading a guest table is a read (see [`stage`](crate::stage)).

use memvirt_addr::{Acc, Gfn, Gpa, GuestPhys, GuestVirt, Hfn, HostPhys, Hpa, Level, PageSize, PfCode};
use memvirt_nested::{Mapped, SecondStage, Want};
use memvirt_pagetable::{Attrs, Entry, Ept4, Format, PhysMem};
use memvirt_platform::{Caches, Dimension, Partial, Probe, Reference, Regs};
use memvirt_tlb::{NestedEntry, Perms};

use crate::meter::{GUEST_TABLE, Meter};
use crate::stage::{HostPage, Leaf, Stage, Violation, mark, table_read};

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

impl End {
    /// Whether the walk gave no translation.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        !matches!(self, Self::Mapped(_))
    }

    /// The guest-physical address at which the second stage stopped the walk.
    #[must_use]
    pub const fn stopped_at(&self) -> Option<Gpa> {
        match self {
            Self::Violation(violation) => Some(violation.gpa),
            Self::Mapped(_) | Self::GuestFault(_) => None,
        }
    }
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

    /// From the guest table that a cached entry of `level` leads to.
    pub(crate) fn below(level: Level, entry: &Partial<HostPhys>) -> Self {
        let table = match entry.perms.contains(GUEST_TABLE) {
            true => TableAt::Guest(Gfn::new(entry.table.number())),
            false => TableAt::Host(entry.table),
        };
        Self { table, level: level.below().unwrap_or(Level::L1), perms: entry.perms & Attrs::PERMISSIONS }
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
pub fn walk<G, S, P, C>(
    mem: &mut PhysMem<HostPhys>,
    stage: &S,
    regs: &Regs,
    acc: Acc,
    from: Start,
    meter: &mut Meter<'_, P, C>,
) -> End
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    S: Stage,
    P: Probe,
    C: Caches,
{
    walk_to::<G, _, _, _>(mem, stage, regs, acc, from, meter).0
}

/// The same; also says which guest table was read last.
pub(crate) fn walk_to<G, S, P, C>(
    mem: &mut PhysMem<HostPhys>,
    stage: &S,
    regs: &Regs,
    acc: Acc,
    from: Start,
    meter: &mut Meter<'_, P, C>,
) -> (End, Start)
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    S: Stage,
    P: Probe,
    C: Caches,
{
    let mut walker = Walker { mem, stage, meter, last: from };
    let end = walker.descend::<G>(regs, acc, from).unwrap_or_else(|end| end);
    (end, walker.last)
}

/// Walks guest tables of format `G` from the root in CR3, or from where the caches know the way; a fault is confirmed
/// without them.
pub fn walk_cached<G, S, P, C>(
    mem: &mut PhysMem<HostPhys>,
    stage: &S,
    regs: &Regs,
    acc: Acc,
    meter: &mut Meter<'_, P, C>,
) -> End
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    S: Stage,
    P: Probe,
    C: Caches,
{
    walk_cached_to::<G, _, _, _>(mem, stage, regs, acc, meter).0
}

/// The same; also says which guest table was read last.
pub(crate) fn walk_cached_to<G, S, P, C>(
    mem: &mut PhysMem<HostPhys>,
    stage: &S,
    regs: &Regs,
    acc: Acc,
    meter: &mut Meter<'_, P, C>,
) -> (End, Start)
where
    G: Format<In = GuestVirt, Out = GuestPhys>,
    S: Stage,
    P: Probe,
    C: Caches,
{
    loop {
        let known = meter.known(acc.gva(), false).map(|(level, entry)| Start::below(level, &entry));
        let from = known.unwrap_or_else(|| Start::cr3::<G>(regs));
        let (end, last) = walk_to::<G, _, _, _>(mem, stage, regs, acc, from, meter);
        if !end.is_fault() || !meter.again(acc.gva(), end.stopped_at()) {
            return (end, last);
        }
    }
}

struct Walker<'a, 'p, S, P, C> {
    mem: &'a mut PhysMem<HostPhys>,
    stage: &'a S,
    meter: &'a mut Meter<'p, P, C>,
    /// The table that was read last.
    last: Start,
}

impl<S: Stage, P: Probe, C: Caches> Walker<'_, '_, S, P, C> {
    fn descend<G>(&mut self, regs: &Regs, acc: Acc, from: Start) -> Result<End, End>
    where
        G: Format<In = GuestVirt, Out = GuestPhys>,
    {
        let Start { mut table, mut level, mut perms } = from;
        loop {
            self.last = Start { table, level, perms };
            let read = self.read::<G>(table, acc, level)?;
            match read.entry {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    self.set(&read, G::accessed_bit(level))?;
                    if G::accessed_bit(level) != 0 {
                        let entry = Partial { table: Hfn::new(next.number()), perms: perms | GUEST_TABLE };
                        self.meter.keep(acc.gva(), level, entry);
                    }
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
                let host = self.host(gpa, Some(level), table_read())?;
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
            match entry {
                Some(leaf) if had.contains(Attrs::WRITE) => _ = mark(self.mem, leaf, true, self.meter),
                // The nested TLB says that stores need a walk first.
                None if !had.contains(Attrs::WRITE) => {
                    self.host(gpa, Some(read.level), want).map_err(|end| with_update(end, bits))?;
                }
                None => {}
                Some(_) => {
                    return Err(End::Violation(Violation { gpa, want, had, on_data: false, update: bits }));
                }
            }
        }
        self.mem.write(read.hpa, read.raw | bits);
        self.meter.update(Dimension::Guest, read.level, read.hpa, bits & !read.raw);
        Ok(read.raw | bits)
    }

    /// Translates one guest-physical address, by the nested TLB where that has it.
    #[inline]
    fn host(&mut self, gpa: Gpa, serves: Option<Level>, want: Want) -> Result<HostPage, End> {
        if let Some(page) = self.meter.page(gpa, perms_of(want.perms)) {
            return Ok(from_page(&page, gpa));
        }
        let host = self.stage.translate(self.mem, gpa, serves, want, self.meter).map_err(End::Violation)?;
        if C::ANY && host.entry.is_some() && host.perms.contains(Attrs::READ) {
            let stored = if host.dirty { host.perms } else { host.perms - Attrs::WRITE };
            let (page, perms) = (gpa.frame().align_down(host.size), perms_of(stored));
            self.meter.keep_page(NestedEntry { page, frame: host.frame.align_down(host.size), size: host.size, perms });
        }
        Ok(host)
    }

    /// The translation of the data's own address.
    fn data(&mut self, acc: Acc, gpa: Gpa, guest_size: PageSize, mut perms: Attrs, dirty: bool) -> Result<End, End> {
        let host = self.host(gpa, None, Ept4::data(acc.kind()))?;
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

fn with_update(end: End, bits: u64) -> End {
    match end {
        End::Violation(violation) => End::Violation(Violation { update: bits, ..violation }),
        other => other,
    }
}

/// Permissions without the one to read, which every page of the nested TLB gives.
fn perms_of(attrs: Attrs) -> Perms {
    let bits = [(Attrs::WRITE, Perms::WRITE), (Attrs::EXEC, Perms::EXEC)].into_iter();
    bits.filter(|(attr, _)| attrs.contains(*attr)).fold(Perms::NONE, |sum, (_, perm)| sum | perm)
}

/// A page of the nested TLB. It lets stores through only where nothing is left to be set.
fn from_page(page: &NestedEntry, gpa: Gpa) -> HostPage {
    let mut perms = Attrs::READ;
    perms.set(Attrs::WRITE, page.perms.contains(Perms::WRITE));
    perms.set(Attrs::EXEC, page.perms.contains(Perms::EXEC));
    let dirty = perms.contains(Attrs::WRITE);
    HostPage { frame: page.frame_of(gpa), size: page.size, perms, dirty, entry: None }
}
