//! KVM's own walk over the guest's tables; hardware's over shadow tables is in `hardware`.
//!
//! It decides whether a fault is the guest's; where it is not, it sets A on every level and D for a store, directly in guest
//! memory. Source: spec A4, A5; `walk_addr_generic` and `update_accessed_dirty_bits` in `arch/x86/kvm/mmu/paging_tmpl.h`.

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, Level, PfCode, Privilege};
use memvirt_pagetable::{Entry, Format, Guest4};
use memvirt_platform::{Cx, Regs};

use super::Kvm;
use super::gpte::Gpte;
use super::role::Access;

/// What an access does, as an error code says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) fetch: bool,
}

impl Kind {
    pub(crate) const WRITE: Self = Self { write: true, user: false, fetch: false };

    pub(crate) fn of(acc: Acc) -> Self {
        Self { write: acc.is_write(), user: acc.privilege() == Privilege::User, fetch: acc.kind() == AccessKind::Fetch }
    }

    fn code(self, bits: u32) -> PfCode {
        let mut bits = bits;
        for (set, bit) in [(self.write, PfCode::WRITE), (self.user, PfCode::USER), (self.fetch, PfCode::FETCH)] {
            bits |= if set { bit } else { 0 };
        }
        PfCode::from_bits(bits)
    }

    /// Whether a page that grants `access` refuses this. (`permission_fault`)
    fn refused_by(self, access: Access, regs: &Regs) -> bool {
        let kernel = !self.user;
        self.write && !access.has(Access::WRITE) && (self.user || regs.write_protect)
            || self.user && !access.has(Access::USER)
            || self.fetch && !access.has(Access::EXEC)
            || self.fetch && kernel && regs.smep && access.has(Access::USER)
    }
}

/// A successful walk of the guest's tables. Arrays are indexed by level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walker {
    /// The level of the guest's leaf.
    pub(crate) level: u8,
    pub(crate) table_gfn: [u64; 5],
    pub(crate) entries: [Gpte; 5],
    /// What the entries above a level grant together: the access of the table at that level.
    pub(crate) table_access: [Access; 5],
    /// What all entries grant together, without the right to write to a clean page unless this walk was for a store.
    pub(crate) access: Access,
    pub(crate) gfn: u64,
}

impl Kvm {
    /// KVM's walk of the guest's tables; sets A and D where it succeeds.
    ///
    /// # Errors
    ///
    /// The error code of the page fault that the guest is to see.
    pub(crate) fn walk_guest(&mut self, cx: &mut Cx<'_>, gva: Gva, kind: Kind) -> Result<Walker, PfCode> {
        loop {
            let mut walker = self.read_tables(cx, gva, kind)?;
            if self.set_accessed_dirty(cx, gva, kind, &mut walker) {
                return Ok(walker);
            }
        }
    }

    fn read_tables(&mut self, cx: &mut Cx<'_>, gva: Gva, kind: Kind) -> Result<Walker, PfCode> {
        let mut walker = Walker {
            level: 4,
            table_gfn: [0; 5],
            entries: [Gpte(0); 5],
            table_access: [Access::ALL; 5],
            access: Access::ALL,
            gfn: 0,
        };
        let mut table = cx.regs().cr3.root.frame();
        for level in Level::ALL[..4].iter().rev() {
            let i = usize::from(level.number());
            if !self.slot.contains(table.number()) {
                return Err(kind.code(0));
            }
            self.work.guest_entries_read += 1;
            let gpte = Gpte(cx.guest().read(table.entry(gva.index(*level))));
            walker.level = level.number();
            walker.table_gfn[i] = table.number();
            walker.entries[i] = gpte;
            walker.table_access[i] = walker.access;
            walker.access = walker.access.and(gpte.access());
            match Guest4::decode(gpte.0, *level) {
                Entry::Absent => return Err(kind.code(0)),
                Entry::Reserved => return Err(kind.code(PfCode::RESERVED | PfCode::PRESENT)),
                Entry::Table { next, .. } => table = next,
                Entry::Leaf { .. } => break,
            }
        }
        if kind.refused_by(walker.access, cx.regs()) {
            return Err(kind.code(PfCode::PRESENT));
        }
        let leaf = walker.entries[usize::from(walker.level)];
        let within = (1 << (9 * (walker.level - 1))) - 1;
        walker.gfn = leaf.gfn(walker.level) | gva.frame().number() & within;
        if !kind.write {
            walker.access = leaf.protect_clean(walker.access);
        }
        Ok(walker)
    }

    /// Sets the bits that hardware would set; returns false where an entry has changed since it was read (as one that is
    /// used at two levels does), so that the walk starts again.
    fn set_accessed_dirty(&mut self, cx: &mut Cx<'_>, gva: Gva, kind: Kind, walker: &mut Walker) -> bool {
        for level in (walker.level..=4).rev() {
            let i = usize::from(level);
            let old = walker.entries[i];
            let dirty = if level == walker.level && kind.write { Gpte::D } else { 0 };
            let new = Gpte(old.0 | Gpte::A | dirty);
            if new == old {
                continue;
            }
            let at = Gfn::new(walker.table_gfn[i]).entry(gva.index(Level::ALL[i - 1]));
            if cx.guest().read(at) != old.0 {
                return false;
            }
            cx.guest().write_bytes(at, 8, new.0);
            self.slot.mark_dirty(walker.table_gfn[i]);
            walker.entries[i] = new;
        }
        true
    }
}
