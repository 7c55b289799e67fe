//! The two walks: hardware's over shadow tables, and KVM's own over the guest's tables.
//!
//! Hardware reads at most four shadow entries and sets A and D in the leaf. The software walk decides whether a fault is the
//! guest's; where it is not, it sets A on every level and D for a store, directly in guest memory. Source: spec A4, A5;
//! Intel SDM volume 3, section 4.5; `walk_addr_generic` and `update_accessed_dirty_bits` in `arch/x86/kvm/mmu/paging_tmpl.h`.

use memvirt_addr::{Acc, AccessKind, Gfn, Gva, Hpa, Level, PageSize, PfCode, Privilege};
use memvirt_pagetable::{Attrs, Entry, Format, Guest4};
use memvirt_platform::{Backed, Cx, Regs, tlb_entry};

use super::Kvm;
use super::gpte::Gpte;
use super::role::Access;
use super::spte::Spte;

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
    /// Hardware's walk: the translation that the TLB gets, or the error code of the fault.
    pub(crate) fn hardware_walk(&self, cx: &mut Cx<'_>, acc: Acc) -> Result<memvirt_tlb::Entry, PfCode> {
        cx.out.counters.walks += 1;
        let root = self.vcpu(cx).root;
        if !root.is_valid() {
            return Err(PfCode::of(acc, false));
        }
        let mut table = self.pages[root.page].table;
        let mut granted = u64::MAX;
        for level in Level::ALL[..4].iter().rev() {
            let at = table.entry(acc.gva().index(*level));
            let entry = Spte(cx.host.mem.read(at));
            cx.out.counters.refs.shadow += 1;
            if entry.0 & Spte::P == 0 {
                return Err(PfCode::of(acc, false));
            }
            if entry.0 & Spte::RESERVED != 0 {
                return Err(PfCode::of(acc, true).with_reserved());
            }
            granted &= entry.0 ^ Spte::NX;
            if !entry.is_leaf(level.number()) {
                table = entry.frame();
                continue;
            }
            let perms = attrs(granted);
            // The host keeps CR0.WP set whatever the guest does.
            if !(Regs { write_protect: true, ..*cx.regs() }).permits(perms, acc) {
                return Err(PfCode::of(acc, true));
            }
            let entry = set_bits(cx, at, entry, acc.is_write());
            let size = level.page_size().unwrap_or(PageSize::Size4K);
            let backed = Backed { frame: entry.frame(), size };
            return Ok(tlb_entry(acc, backed, size, perms, entry.0 & Spte::D != 0));
        }
        unreachable!("an entry of level 1 is a leaf")
    }

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

/// The permissions that a walk has gathered; bit 63 is inverted, so that it gathers like the others.
fn attrs(granted: u64) -> Attrs {
    let mut perms = Attrs::READ;
    for (bit, attr) in [(Spte::W, Attrs::WRITE), (Spte::U, Attrs::USER), (Spte::NX, Attrs::EXEC)] {
        if granted & bit != 0 {
            perms |= attr;
        }
    }
    perms
}

/// Sets A, and D for a store, as hardware does: one locked update where any is missing.
fn set_bits(cx: &mut Cx<'_>, at: Hpa, entry: Spte, write: bool) -> Spte {
    let new = entry.with(Spte::A | if write { Spte::D } else { 0 });
    if new != entry {
        cx.out.counters.ad_updates += 1;
        cx.host.mem.write(at, new.0);
    }
    new
}
