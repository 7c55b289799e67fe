//! [`Radix`]: the second stage as today's hardware has it, a tree of four levels (EPT), filled by the hypervisor.
//!
//! What the proposals fall back to, or go on with: the nested part of agile paging, guest memory outside a direct segment.
//! Accessed bits are set on each level, the dirty bit in the leaf. Source: Intel SDM volume 3, section 28.2.

use memvirt_addr::{Gfn, Gpa, Hfn, HostPhys, Level, PageSize};
use memvirt_nested::{SecondStage, Want};
use memvirt_pagetable::{Attrs, Entry, Ept4, Format, MapError, Mapper, PhysMem, TableAttrs, Tree};
use memvirt_platform::{Backed, Caches, Host, Partial, Probe, Work};
use memvirt_shadow::store::Change;

use crate::meter::Meter;
use crate::stage::{HostPage, HostTables, Leaf, Stage, Violation, mark};

/// An EPT tree.
#[derive(Debug)]
pub struct Radix {
    root: Hfn,
    tables: u64,
}

impl Radix {
    /// An empty tree; `None` where the host has no frame for its root.
    pub fn new(host: &mut Host) -> Option<Self> {
        Some(Self { root: host.allocate(PageSize::Size4K)?, tables: 1 })
    }

    /// The frame of the root table.
    #[must_use]
    pub const fn root(&self) -> Hfn {
        self.root
    }

    fn mapper<'h>(&self, host: &'h mut Host) -> Mapper<'h, Ept4, PhysMem<HostPhys>> {
        Mapper::new(&mut host.mem, self.root, TableAttrs::EPT)
    }

    /// Removes the leaf that covers `gpa`.
    fn drop_leaf(&self, host: &mut Host, gpa: Gpa, work: &mut Work) -> Change {
        match self.mapper(host).unmap(gpa) {
            Ok(_) => {
                work.entries_cleared += 1;
                Change::Lost
            }
            Err(_) => Change::Kept,
        }
    }

    /// Takes the write permission from what maps `gfn`; a larger page goes.
    pub(crate) fn protect(&self, host: &mut Host, gfn: Gfn, work: &mut Work) -> Change {
        let Some(leaf) = Tree::<Ept4, _>::new(&host.mem, self.root).mapping(gfn.base()) else { return Change::Kept };
        if leaf.size > PageSize::Size4K {
            return self.drop_leaf(host, gfn.base(), work);
        }
        if !leaf.attrs.contains(Attrs::WRITE) {
            return Change::Kept;
        }
        let _ = self.mapper(host).protect(gfn.base(), |attrs| attrs - Attrs::WRITE - Attrs::DIRTY);
        work.entries_cleared += 1;
        Change::Lost
    }

    /// Clears the dirty bit of what maps `gfn`, and says whether it was set.
    pub(crate) fn take_dirty(&self, host: &mut Host, gfn: Gfn) -> bool {
        let leaf = Tree::<Ept4, _>::new(&host.mem, self.root).mapping(gfn.base());
        let Some(leaf) = leaf.filter(|leaf| leaf.attrs.contains(Attrs::DIRTY)) else { return false };
        let raw = host.mem.read(leaf.entry_at);
        host.mem.write(leaf.entry_at, raw & !Ept4::RAW_DIRTY);
        true
    }
}

impl Stage for Radix {
    fn translate<P: Probe, C: Caches>(
        &self,
        mem: &mut PhysMem<HostPhys>,
        gpa: Gpa,
        serves: Option<Level>,
        want: Want,
        meter: &mut Meter<'_, P, C>,
    ) -> Result<HostPage, Violation> {
        let stop = |had| Violation { gpa, want, had, on_data: serves.is_none(), update: 0 };
        if !Ept4::covers(gpa) {
            return Err(stop(Attrs::empty()));
        }
        let root = Partial { table: self.root, perms: Attrs::PERMISSIONS };
        let known = meter.known_host(gpa).map(|(level, entry)| (level.below().unwrap_or(Level::L1), entry));
        let (mut level, Partial { mut table, mut perms }) = known.unwrap_or((Ept4::ROOT, root));
        let mut path = [None; 4];
        for step in &mut path {
            let at = table.entry(Ept4::index(gpa, level));
            let raw = mem.read(at);
            meter.host(serves, level, at, gpa, raw);
            match Ept4::decode(raw, level) {
                Entry::Table { next, attrs } => {
                    perms &= attrs;
                    *step = Some((Leaf { at, raw, level }, Partial { table: next, perms }));
                    (table, level) = (next, level.below().unwrap_or(Level::L1));
                }
                Entry::Leaf { frame, size, attrs } => {
                    perms &= attrs;
                    if !perms.contains(want.perms) {
                        return Err(stop(perms));
                    }
                    for (entry, leads_to) in path.into_iter().flatten() {
                        mark(mem, entry, false, meter);
                        meter.keep_host(gpa, entry.level, leads_to);
                    }
                    let leaf = mark(mem, Leaf { at, raw, level }, want.write, meter);
                    let frame = frame.offset(gpa.page_offset(size) >> 12);
                    let dirty = leaf.raw & Ept4::RAW_DIRTY != 0;
                    return Ok(HostPage { frame, size, perms, dirty, entry: Some(leaf) });
                }
                Entry::Absent | Entry::Reserved => break,
            }
        }
        Err(stop(Attrs::empty()))
    }
}

impl HostTables for Radix {
    fn map(&mut self, host: &mut Host, gfn: Gfn, backed: Backed, writable: bool, work: &mut Work) -> Option<Change> {
        let size = backed.size;
        let (at, frame) = (gfn.align_down(size).base(), backed.frame.align_down(size));
        let attrs = if writable { Ept4::LEAF } else { Ept4::LEAF - Attrs::WRITE };
        let mut change = Change::Kept;
        loop {
            let (mem, frames) = host.parts();
            match Mapper::<Ept4, _>::new(mem, self.root, TableAttrs::EPT).map(at, frame, size, attrs, frames) {
                Ok(made) => {
                    self.tables += u64::from(made);
                    work.tables_allocated += u64::from(made);
                    work.entries_set += 1;
                    return Some(change);
                }
                Err(MapError::AlreadyMapped { .. }) => {
                    let old = self.mapper(host).replace(at, frame, attrs).ok()?;
                    work.entries_set += 1;
                    let less = old.frame != frame || !attrs.contains(old.attrs & Attrs::PERMISSIONS);
                    return Some(if less { Change::Lost } else { change });
                }
                Err(MapError::HugeInTheWay { .. }) => change = change.or(self.drop_leaf(host, at, work)),
                Err(MapError::TableInTheWay { .. }) => {
                    change = change.or(self.unmap(host, gfn.align_down(size), size.frames(), work));
                    change = change.or(self.prune(host, gfn.align_down(size), size.frames(), work));
                }
                Err(_) => return None,
            }
        }
    }

    fn unmap(&mut self, host: &mut Host, first: Gfn, frames: u64, work: &mut Work) -> Change {
        if frames == 0 {
            return Change::Kept;
        }
        let last = Gfn::new(first.number().saturating_add(frames - 1)).base();
        let tree = Tree::<Ept4, _>::new(&host.mem, self.root);
        let leaves: Vec<Gpa> = tree.leaves(first.base()..=last).map(|leaf| leaf.at).collect();
        leaves.into_iter().fold(Change::Kept, |change, at| change.or(self.drop_leaf(host, at, work)))
    }

    fn protect_all(&mut self, host: &mut Host, work: &mut Work) -> Change {
        let leaves: Vec<Gfn> = Tree::<Ept4, _>::new(&host.mem, self.root).iter().map(|leaf| leaf.at.frame()).collect();
        leaves.into_iter().fold(Change::Kept, |change, gfn| change.or(self.protect(host, gfn, work)))
    }

    fn clear(&mut self, host: &mut Host, work: &mut Work) -> Change {
        let frames = 1 << (Ept4::input_bits() - 12);
        let change = self.unmap(host, Gfn::new(0), frames, work);
        change.or(self.prune(host, Gfn::new(0), frames, work))
    }

    fn bytes(&self) -> u64 {
        self.tables * PageSize::Size4K.bytes()
    }
}

impl Radix {
    /// Frees the empty tables for these frames. Hardware may still know where they lay.
    fn prune(&mut self, host: &mut Host, first: Gfn, frames: u64, work: &mut Work) -> Change {
        let last = Gfn::new(first.number() + frames - 1).base();
        let (mem, pool) = host.parts();
        let freed = Mapper::<Ept4, _>::new(mem, self.root, TableAttrs::EPT).prune(first.base()..=last, pool);
        self.tables -= freed;
        work.tables_freed += freed;
        if freed > 0 { Change::Lost } else { Change::Kept }
    }
}
