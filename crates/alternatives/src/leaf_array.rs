//! [`LeafArray`]: an EPT tree whose leaf tables lie side by side in host memory, so that a register can name them all.
//!
//! The tree is complete and can be walked as usual, four references; but the leaf entry of guest frame n is also entry n of one
//! array, and hardware that has the array's address in a register reads it at once. The hypervisor links all leaf tables when
//! the virtual machine is made; a host page larger than 4 KiB fills as many entries as it has frames. Source: Zhang et al.,
//! *Direct Memory Translation for Virtualized Clouds*, ASPLOS 2024 (the host's translation entry area).

use memvirt_addr::{Gfn, Gpa, Hfn, HostPhys, Level, PageSize};
use memvirt_nested::Want;
use memvirt_pagetable::{Attrs, Entry, Ept4, Format, PhysMem};
use memvirt_platform::{Backed, Caches, Host, Partial, Probe, Work};
use memvirt_shadow::store::Change;

use crate::flat_table::FlatTable;
use crate::meter::Meter;
use crate::stage::{HostPage, HostTables, Leaf, Stage, Violation, mark};

/// Leaf tables in an array, and the tables that lead to them.
#[derive(Debug)]
pub struct LeafArray {
    root: Hfn,
    upper: u64,
    leaves: FlatTable,
}

impl LeafArray {
    /// Leaf tables for `frames` guest frames, empty. `None` where the host has no contiguous memory for them, and for more than
    /// 512 GiB.
    pub fn new(host: &mut Host, frames: u64) -> Option<Self> {
        let leaves = FlatTable::new(host, frames)?;
        let mut level = Level::L1;
        let tables = frames.div_ceil(512);
        let mut below: Vec<Hfn> = (0..tables).map(|i| leaves.entry_at(Gfn::new(512 * i)).frame()).collect();
        let mut upper = 0;
        while let Some(above) = level.above().filter(|above| *above <= Ept4::ROOT) {
            let mut made = Vec::new();
            for children in below.chunks(512) {
                let table = host.allocate(PageSize::Size4K)?;
                for (index, child) in children.iter().enumerate() {
                    let entry = Entry::Table { next: *child, attrs: Attrs::RWX };
                    host.mem.write(table.entry(index), Ept4::encode(entry, above));
                }
                made.push(table);
            }
            upper += made.len() as u64;
            (below, level) = (made, above);
        }
        Some(Self { root: *below.first()?, upper, leaves })
    }

    /// The leaf tables as hardware reads them by the register: one reference.
    #[must_use]
    pub const fn leaves(&self) -> &FlatTable {
        &self.leaves
    }
}

impl Stage for LeafArray {
    fn translate<P: Probe, C: Caches>(
        &self,
        mem: &mut PhysMem<HostPhys>,
        gpa: Gpa,
        serves: Option<Level>,
        want: Want,
        meter: &mut Meter<'_, P, C>,
    ) -> Result<HostPage, Violation> {
        let stop = || Violation { gpa, want, had: Attrs::empty(), on_data: serves.is_none(), update: 0 };
        if !Ept4::covers(gpa) {
            return Err(stop());
        }
        let known = meter.known_host(gpa).map(|(level, entry)| (level.below().unwrap_or(Level::L1), entry.table));
        let (mut level, mut table) = known.unwrap_or((Ept4::ROOT, self.root));
        while level > Level::L1 {
            let at = table.entry(Ept4::index(gpa, level));
            let raw = mem.read(at);
            meter.host(serves, level, at, gpa, raw);
            let Entry::Table { next, .. } = Ept4::decode(raw, level) else { return Err(stop()) };
            mark(mem, Leaf { at, raw, level }, false, meter);
            meter.keep_host(gpa, level, Partial { table: next, perms: Attrs::PERMISSIONS });
            (table, level) = (next, level.below().unwrap_or(Level::L1));
        }
        self.leaves.translate(mem, gpa, serves, want, meter)
    }
}

impl HostTables for LeafArray {
    fn map(&mut self, host: &mut Host, gfn: Gfn, backed: Backed, writable: bool, work: &mut Work) -> Option<Change> {
        self.leaves.map(host, gfn, backed, writable, work)
    }

    fn unmap(&mut self, host: &mut Host, first: Gfn, frames: u64, work: &mut Work) -> Change {
        self.leaves.unmap(host, first, frames, work)
    }

    fn protect_all(&mut self, host: &mut Host, work: &mut Work) -> Change {
        self.leaves.protect_all(host, work)
    }

    fn clear(&mut self, host: &mut Host, work: &mut Work) -> Change {
        self.leaves.clear(host, work)
    }

    fn bytes(&self) -> u64 {
        self.upper * PageSize::Size4K.bytes() + self.leaves.bytes()
    }
}
